//! MOV, PUSH and POP of segment registers, LSS, LFS, LGS, and the tests of selectors: LAR, LSL,
//! VERR, VERW (SDM vol. 2 there; vol. 3, 5.10).

use super::context::{Context, seg_index};
use super::descriptor::{self, Descriptor, Selector, system_type};
use super::{Fault, Maker, Outcome};
use iced_x86::{Mnemonic, Register};
use machine::state::{CpuState, Gpr, Seg, Shadow, rflags};

/// The fault of an access in compatibility mode through a segment register, if what it holds does not
/// allow the access: nothing, or too few rights. What the engine does not do is #UD: limits, and bases
/// of CS, DS, ES and SS. The caller knows that this is compatibility mode.
pub(crate) fn refusal(cpu: &CpuState, register: Seg, writes: bool) -> Option<Fault> {
    let segment = &cpu.segs[register as usize];
    let placed = match register {
        Seg::Fs | Seg::Gs => true,
        Seg::Ss => segment.base == 0 && segment.default_32(),
        _ => segment.base == 0,
    };
    // Data that grows up, or code that may be read.
    let readable = matches!(segment.kind() & 0xe, 0 | 2 | 0xa | 0xe);
    let writable = segment.kind() & 0xa == 2;
    if !segment.present() {
        Some(match register {
            Seg::Ss => Fault::SS0,
            _ => Fault::GP0,
        })
    } else if !placed || segment.limit != u32::MAX {
        Some(Fault::UD)
    } else {
        (!readable || writes && !writable).then_some(Fault::GP0)
    }
}

/// MOV to or from a segment register.
pub(super) fn mov(ctx: &mut Context) -> Result<Outcome, Fault> {
    if let Some(register) = seg_index(ctx.instr.op0_register()) {
        if register == Seg::Cs {
            return Err(Fault::UD);
        }
        let selector = Selector(ctx.read_operand(1, 2)? as u16);
        descriptor::load_segment(ctx.cpu, ctx.bus, register, selector)?;
        if register == Seg::Ss {
            ctx.cpu.shadow = Shadow::MovSs;
        }
        return Ok(Outcome::Mode);
    }
    let register = seg_index(ctx.instr.op1_register()).ok_or(Fault::UD)?;
    let selector = ctx.cpu.segs[register as usize].selector;
    // Memory takes 16 bits; registers are zero-extended to the operand size.
    ctx.write_operand(0, 2, u64::from(selector))?;
    Ok(Outcome::Next)
}

/// PUSH of a segment register. With 32-bit operands Intel's processors write only the two bytes of the
/// selector (SDM vol. 2, PUSH).
pub(super) fn push(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = stack_size(ctx);
    let register = seg_index(ctx.instr.op0_register()).ok_or(Fault::UD)?;
    let selector = u64::from(ctx.cpu.segs[register as usize].selector);
    if size == 4 && ctx.bus.vendor() == Maker::Intel {
        let place = Context::stack_place(ctx.narrowed(ctx.gpr(Gpr::Rsp).wrapping_sub(4)));
        ctx.store(place, 2, selector)?;
        ctx.set_stack_pointer(place.va);
    } else {
        ctx.push(size, selector)?;
    }
    Ok(Outcome::Next)
}

/// POP of a segment register.
pub(super) fn pop(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = stack_size(ctx);
    let register = seg_index(ctx.instr.op0_register()).ok_or(Fault::UD)?;
    let selector = Selector(ctx.peek_selector(0)?);
    descriptor::load_segment(ctx.cpu, ctx.bus, register, selector)?;
    let rsp = ctx.gpr(Gpr::Rsp).wrapping_add(size as u64);
    ctx.set_stack_pointer(rsp);
    if register == Seg::Ss {
        ctx.cpu.shadow = Shadow::MovSs;
    }
    Ok(Outcome::Mode)
}

fn stack_size(ctx: &Context) -> usize {
    match ctx.instr.stack_pointer_increment().abs() {
        2 => 2,
        _ => ctx.word(),
    }
}

/// LSS, LDS, LES, LFS, LGS: a far pointer into a segment and a general register. LSS opens no shadow.
pub(super) fn load_far_pointer(ctx: &mut Context) -> Result<Outcome, Fault> {
    let register = match ctx.instr.mnemonic() {
        Mnemonic::Lss => Seg::Ss,
        Mnemonic::Lds => Seg::Ds,
        Mnemonic::Les => Seg::Es,
        Mnemonic::Lfs => Seg::Fs,
        _ => Seg::Gs,
    };
    let target = ctx.instr.op0_register();
    let size = ctx.instr.memory_size().size() - 2;
    let (offset, selector) = ctx.load_far_pointer(size)?;
    let selector = Selector(selector);
    descriptor::load_segment(ctx.cpu, ctx.bus, register, selector)?;
    ctx.set_register(target, offset);
    Ok(Outcome::Mode)
}

/// Reads a selector operand and its descriptor for a test; `None` where the test fails at once.
fn tested(ctx: &mut Context, operand: u32) -> Result<Option<(Selector, Descriptor)>, Fault> {
    let selector = Selector(ctx.read_operand(operand, 2)? as u16);
    if selector.is_null() {
        return Ok(None);
    }
    let descriptor = descriptor::read(ctx.cpu, ctx.bus, selector)?;
    Ok(descriptor.map(|d| (selector, d)))
}

/// Whether CPL and RPL allow to see a descriptor.
fn visible(ctx: &Context, selector: Selector, descriptor: Descriptor) -> bool {
    descriptor.is_conforming() || descriptor.dpl() >= ctx.cpl().max(selector.rpl())
}

/// LAR and LSL: ZF and, if it is set, the destination.
pub(super) fn inspect(ctx: &mut Context) -> Result<Outcome, Fault> {
    let limit = ctx.instr.mnemonic() == Mnemonic::Lsl;
    let found = tested(ctx, 1)?.filter(|&(selector, descriptor)| {
        let system = match descriptor.kind() {
            system_type::LDT | system_type::TSS_AVAILABLE | system_type::TSS_BUSY => true,
            system_type::CALL_GATE => !limit,
            _ => false,
        };
        (descriptor.is_segment() || system) && visible(ctx, selector, descriptor)
    });
    if let Some((_, descriptor)) = found {
        let value = if limit {
            u64::from(descriptor.limit())
        } else {
            // Descriptor bits 40 to 55 in their places (APM vol. 3, LAR).
            (descriptor.0 >> 32) & 0x00ff_ff00
        };
        let register: Register = ctx.instr.op0_register();
        ctx.set_register(register, value);
    }
    ctx.set_flag(rflags::ZF, found.is_some());
    Ok(Outcome::Next)
}

/// VERR and VERW: ZF.
pub(super) fn verify(ctx: &mut Context) -> Result<Outcome, Fault> {
    let write = ctx.instr.mnemonic() == Mnemonic::Verw;
    let allowed = tested(ctx, 0)?.is_some_and(|(selector, descriptor)| {
        let kind = if write {
            descriptor.is_writable_data()
        } else {
            descriptor.is_readable()
        };
        kind && visible(ctx, selector, descriptor)
    });
    ctx.set_flag(rflags::ZF, allowed);
    Ok(Outcome::Next)
}
