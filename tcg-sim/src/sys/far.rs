//! Far JMP, CALL and RET, IRET (SDM vol. 2 there; vol. 3, 5.8; APM vol. 3 and vol. 2, 4.8).
//!
//! In long mode there are no task gates and no hardware task switches; call gates are 16 bytes long
//! and copy no parameters. Targets and return addresses of compatibility mode have 32 bits.

use super::context::Context;
use super::deliver::push_frame;
use super::descriptor::{self, Descriptor, Selector, system_type};
use super::{Fault, Maker, Outcome};
use crate::mmu::is_canonical;
use iced_x86::{Code, OpKind};
use machine::state::{Gpr, Seg, Segment, rflags};

/// A checked target of a far transfer.
struct Target {
    selector: Selector,
    code: Descriptor,
    rip: u64,
    cpl: u8,
}

impl Target {
    /// What CS becomes.
    fn segment(&self) -> Segment {
        let selector = Selector((self.selector.0 & !3) | u16::from(self.cpl));
        self.code.segment(selector)
    }
}

/// A far pointer in memory.
struct FarPointer {
    selector: Selector,
    offset: u64,
    /// Bytes of the offset: 2, 4 or 8.
    size: usize,
}

fn operand_size(code: Code) -> usize {
    match code {
        Code::Jmp_m1616
        | Code::Call_m1616
        | Code::Jmp_ptr1616
        | Code::Call_ptr1616
        | Code::Retfw
        | Code::Retfw_imm16
        | Code::Iretw => 2,
        Code::Jmp_m1632
        | Code::Call_m1632
        | Code::Jmp_ptr1632
        | Code::Call_ptr1632
        | Code::Retfd
        | Code::Retfd_imm16
        | Code::Iretd => 4,
        _ => 8,
    }
}

fn far_pointer(ctx: &mut Context) -> Result<FarPointer, Fault> {
    let size = operand_size(ctx.instr.code());
    let immediate = match ctx.instr.op0_kind() {
        OpKind::FarBranch16 => Some(u64::from(ctx.instr.far_branch16())),
        OpKind::FarBranch32 => Some(u64::from(ctx.instr.far_branch32())),
        _ => None,
    };
    if let Some(offset) = immediate {
        return Ok(FarPointer {
            selector: Selector(ctx.instr.far_branch_selector()),
            offset,
            size,
        });
    }
    let (offset, selector) = ctx.load_far_pointer(size)?;
    Ok(FarPointer {
        selector: Selector(selector),
        offset,
        size,
    })
}

/// Far JMP. Intel (family 6 model 207) clears the upper half of RSP on the way to compatibility mode; of AMD
/// it is not known.
pub(super) fn jump(ctx: &mut Context) -> Result<Outcome, Fault> {
    let pointer = far_pointer(ctx)?;
    let descriptor = transfer_descriptor(ctx, pointer.selector)?;
    let target = if descriptor.is_segment() {
        direct_target(ctx, &pointer, descriptor)?
    } else {
        let target = gate_target(ctx, pointer.selector, descriptor)?;
        // A jump never changes the CPL.
        if !target.code.is_conforming() && target.code.dpl() != ctx.cpl() {
            return Err(Fault::gp(target.selector.error()));
        }
        present(&target)?;
        target
    };
    check_rip(&target)?;
    enter(
        ctx,
        &Target {
            cpl: ctx.cpl(),
            ..target
        },
    )?;
    if ctx.bus.vendor() == Maker::Intel {
        ctx.set_stack_pointer(ctx.gpr(Gpr::Rsp));
    }
    Ok(Outcome::Mode)
}

/// Far CALL. Intel (family 6 model 207) pushes as the target's mode does: with ESP, if that is compatibility
/// mode. What AMD does there has not been seen; it pushes as the caller's mode does, as APM vol. 3 has it.
pub(super) fn call(ctx: &mut Context) -> Result<Outcome, Fault> {
    let pointer = far_pointer(ctx)?;
    let descriptor = transfer_descriptor(ctx, pointer.selector)?;
    if !descriptor.is_segment() {
        return call_gate(ctx, pointer.selector, descriptor);
    }
    let target = direct_target(ctx, &pointer, descriptor)?;
    let before = ctx.cpu.segs[Seg::Cs as usize];
    let frame = [u64::from(before.selector), ctx.next_rip()];
    if ctx.bus.vendor() == Maker::Intel {
        ctx.cpu.segs[Seg::Cs as usize] = target.segment();
    }
    call_target(ctx, &target, pointer.size, frame).inspect_err(|_| {
        ctx.cpu.segs[Seg::Cs as usize] = before;
    })
}

/// CS is pushed before RIP, and both before the target is found not to be canonical: memory shows what
/// came before the fault.
fn call_target(
    ctx: &mut Context,
    target: &Target,
    size: usize,
    [cs, rip]: [u64; 2],
) -> Result<Outcome, Fault> {
    let above = ctx.narrowed(ctx.gpr(Gpr::Rsp).wrapping_sub(size as u64));
    ctx.store(Context::stack_place(above), size, cs)?;
    let rsp = ctx.narrowed(above.wrapping_sub(size as u64));
    ctx.store(Context::stack_place(rsp), size, rip)?;
    check_rip(target)?;
    enter(ctx, target)?;
    ctx.set_gpr(Gpr::Rsp, rsp);
    Ok(Outcome::Mode)
}

fn call_gate(ctx: &mut Context, selector: Selector, gate: Descriptor) -> Result<Outcome, Fault> {
    let target = gate_target(ctx, selector, gate)?;
    present(&target)?;
    check_rip(&target)?;
    let cpl = ctx.cpl();
    let inner = target.cpl < cpl;
    let old_rsp = ctx.stack_pointer();
    let cs = u64::from(ctx.cpu.segs[Seg::Cs as usize].selector);
    let ss = u64::from(ctx.cpu.segs[Seg::Ss as usize].selector);
    let frame = [ctx.next_rip(), cs, old_rsp, ss];
    descriptor::mark(ctx.cpu, ctx.bus, target.selector, target.code, 1)?;
    let rsp = if inner {
        let top = descriptor::tss_stack(ctx.cpu, ctx.bus, u64::from(target.cpl), 0)?;
        push_frame(ctx.cpu, ctx.bus, top, &frame, target.cpl, 0)?
    } else {
        let place = Context::stack_place(old_rsp.wrapping_sub(16));
        ctx.check(place, 16, 8)?;
        push_frame(ctx.cpu, ctx.bus, old_rsp, &frame[..2], cpl, 0)?
    };
    enter(ctx, &target)?;
    if inner {
        ctx.cpu.segs[Seg::Ss as usize] =
            descriptor::null_segment(u16::from(target.cpl), target.cpl);
    }
    ctx.set_gpr(Gpr::Rsp, rsp);
    Ok(Outcome::Mode)
}

/// Reads the descriptor that a far pointer names.
fn transfer_descriptor(ctx: &mut Context, selector: Selector) -> Result<Descriptor, Fault> {
    if selector.is_null() {
        return Err(Fault::GP0);
    }
    descriptor::read(ctx.cpu, ctx.bus, selector)?.ok_or(Fault::gp(selector.error()))
}

/// A code segment named directly: the CPL stays.
fn direct_target(ctx: &Context, pointer: &FarPointer, code: Descriptor) -> Result<Target, Fault> {
    let selector = pointer.selector;
    let error = selector.error();
    let cpl = ctx.cpl();
    let allowed = if code.is_conforming() {
        code.dpl() <= cpl
    } else {
        selector.rpl() <= cpl && code.dpl() == cpl
    };
    if !code.is_code() || (code.is_long() && code.is_default_32()) || !allowed {
        return Err(Fault::gp(error));
    }
    let target = Target {
        selector,
        code,
        rip: pointer.offset,
        cpl,
    };
    present(&target)?;
    Ok(target)
}

/// The code segment behind a 64-bit call gate; its presence is not checked yet.
fn gate_target(ctx: &mut Context, selector: Selector, gate: Descriptor) -> Result<Target, Fault> {
    let error = selector.error();
    let cpl = ctx.cpl();
    let denied = gate.dpl() < cpl || gate.dpl() < selector.rpl();
    if gate.kind() != system_type::CALL_GATE || denied {
        return Err(Fault::gp(error));
    }
    if !gate.present() {
        return Err(Fault::np(error));
    }
    let (low, high) = descriptor::read_wide(ctx.cpu, ctx.bus, selector)?.ok_or(Fault::gp(error))?;
    // The type field of the upper half must be zero (APM vol. 2, 4.8.4).
    if high & (0x1f << 40) != 0 {
        return Err(Fault::gp(error));
    }
    let inner = Selector((low.0 >> 16) as u16);
    if inner.is_null() {
        return Err(Fault::GP0);
    }
    let error = inner.error();
    let code = descriptor::read(ctx.cpu, ctx.bus, inner)?.ok_or(Fault::gp(error))?;
    if !code.is_code() || code.dpl() > cpl || !code.is_long() || code.is_default_32() {
        return Err(Fault::gp(error));
    }
    let new_cpl = if code.is_conforming() {
        cpl
    } else {
        code.dpl()
    };
    Ok(Target {
        selector: inner,
        code,
        rip: (low.0 & 0xffff) | ((low.0 >> 32) & 0xffff_0000) | (high << 32),
        cpl: new_cpl,
    })
}

fn present(target: &Target) -> Result<(), Fault> {
    if target.code.present() {
        Ok(())
    } else {
        Err(Fault::np(target.selector.error()))
    }
}

/// Canonical, or inside the limit of a compatibility-mode segment.
fn check_rip(target: &Target) -> Result<(), Fault> {
    let allowed = match target.code.is_long() {
        true => is_canonical(target.rip),
        false => target.rip & 0xffff_ffff <= u64::from(target.code.limit()),
    };
    if allowed { Ok(()) } else { Err(Fault::GP0) }
}

/// Loads CS and RIP.
fn enter(ctx: &mut Context, target: &Target) -> Result<(), Fault> {
    descriptor::mark(ctx.cpu, ctx.bus, target.selector, target.code, 1)?;
    ctx.cpu.segs[Seg::Cs as usize] = target.segment();
    ctx.cpu.rip = ctx.narrowed(target.rip);
    Ok(())
}

/// Checks the CS image of RET and IRET; the new CPL is its RPL.
fn return_target(ctx: &mut Context, selector: Selector, rip: u64) -> Result<Target, Fault> {
    let code = transfer_descriptor(ctx, selector)?;
    let error = selector.error();
    let rpl = selector.rpl();
    let allowed = if code.is_conforming() {
        code.dpl() <= rpl
    } else {
        code.dpl() == rpl
    };
    let both_sizes = code.is_long() && code.is_default_32();
    if !code.is_code() || both_sizes || rpl < ctx.cpl() || !allowed {
        return Err(Fault::gp(error));
    }
    let target = Target {
        selector,
        code,
        rip,
        cpl: rpl,
    };
    present(&target)?;
    Ok(target)
}

/// Checks and loads SS for a privilege level, then drops what the level may not keep.
fn return_stack(
    ctx: &mut Context,
    target: &Target,
    ss: Selector,
    ss_descriptor: Option<Descriptor>,
    rsp: u64,
) -> Result<(), Fault> {
    let old_cpl = ctx.cpl();
    if let Some(descriptor) = ss_descriptor {
        descriptor::mark(ctx.cpu, ctx.bus, ss, descriptor, 1)?;
    }
    enter(ctx, target)?;
    ctx.cpu.segs[Seg::Ss as usize] = match ss_descriptor {
        Some(descriptor) => descriptor.segment(ss),
        None => descriptor::null_segment(ss.0, target.cpl),
    };
    ctx.set_stack_pointer(rsp);
    if target.cpl > old_cpl {
        drop_inner_segments(ctx, target.cpl);
    }
    Ok(())
}

/// Data segments that the outer level may not use become null (SDM vol. 3, 5.8.6). Null ones keep
/// the bases that WRMSR gave FS and GS.
fn drop_inner_segments(ctx: &mut Context, cpl: u8) {
    for register in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        let segment = &mut ctx.cpu.segs[register as usize];
        let conforming_code = segment.kind() & 0xc == 0xc;
        if segment.present() && !conforming_code && segment.dpl() < cpl {
            *segment = descriptor::null_segment(0, 0);
        }
    }
}

/// Far RET: reads CS before RIP.
pub(super) fn ret(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = operand_size(ctx.instr.code());
    let extra = match ctx.instr.op_count() {
        0 => 0,
        _ => u64::from(ctx.instr.immediate16()),
    };
    let step = size as u64;
    let cs = Selector(ctx.peek_selector(step)?);
    let rip = ctx.peek(0, size)?;
    let target = return_target(ctx, cs, rip)?;
    let released = 2 * step + extra;
    if target.cpl == ctx.cpl() {
        check_rip(&target)?;
        enter(ctx, &target)?;
        let rsp = ctx.gpr(Gpr::Rsp).wrapping_add(released);
        ctx.set_stack_pointer(rsp);
        return Ok(Outcome::Mode);
    }
    let ss = Selector(ctx.peek_selector(released + step)?);
    let rsp = ctx.peek(released, size)?;
    let ss_descriptor = descriptor::stack_descriptor(ctx.cpu, ctx.bus, ss, target.cpl)?;
    check_rip(&target)?;
    return_stack(ctx, &target, ss, ss_descriptor, rsp.wrapping_add(extra))?;
    Ok(Outcome::Mode)
}

/// IRETW, IRETD and IRETQ. In 64-bit mode all five slots are popped whatever the levels, in
/// compatibility mode three on a return to the same level; blocking of NMIs is not modelled, since the
/// machine has none. Slots are read in the order of Intel's family 6 model 207: RFLAGS, CS, RIP, then,
/// if the code segment will do, SS and RSP.
pub(super) fn iret(ctx: &mut Context) -> Result<Outcome, Fault> {
    if ctx.cpu.rflags & rflags::NT != 0 {
        return Err(Fault::GP0);
    }
    let size = operand_size(ctx.instr.code());
    let step = size as u64;
    let flags = ctx.peek(2 * step, size)?;
    let cs = Selector(ctx.peek_selector(step)?);
    let rip = ctx.peek(0, size)?;
    let target = return_target(ctx, cs, rip)?;
    let changeable = iret_flags(ctx, size);
    if ctx.is_compat() && target.cpl == ctx.cpl() {
        check_rip(&target)?;
        let rsp = ctx.narrowed(ctx.gpr(Gpr::Rsp).wrapping_add(3 * step));
        enter(ctx, &target)?;
        ctx.set_stack_pointer(rsp);
        ctx.cpu.rflags = (ctx.cpu.rflags & !changeable) | (flags & changeable);
        return Ok(Outcome::Mode);
    }
    let (ss, rsp) = outer_stack(ctx, step, flags)?;
    let ss_descriptor = descriptor::stack_descriptor(ctx.cpu, ctx.bus, ss, target.cpl)?;
    check_rip(&target)?;
    return_stack(ctx, &target, ss, ss_descriptor, rsp)?;
    ctx.cpu.rflags = (ctx.cpu.rflags & !changeable) | (flags & changeable);
    Ok(Outcome::Mode)
}

/// The slots of SS and RSP. Intel reads them with the new RFLAGS.AC.
fn outer_stack(ctx: &mut Context, step: u64, flags: u64) -> Result<(Selector, u64), Fault> {
    let old = ctx.cpu.rflags;
    if ctx.bus.vendor() == Maker::Intel {
        ctx.set_flag(rflags::AC, flags & rflags::AC != 0);
    }
    let size = step as usize;
    let slots = ctx
        .peek_selector(4 * step)
        .and_then(|ss| Ok((Selector(ss), ctx.peek(3 * step, size)?)));
    ctx.cpu.rflags = old;
    slots
}

/// The RFLAGS bits that IRET may change at the old CPL (SDM vol. 2, IRET).
fn iret_flags(ctx: &Context, size: usize) -> u64 {
    use rflags::{AC, DF, ID, IF, IOPL, NT, OSZAPC, RF, TF, VIF, VIP};
    let cpl = ctx.cpl();
    let mut bits = OSZAPC | TF | DF | NT | RF | AC | ID;
    if cpl <= ctx.iopl() {
        bits |= IF;
    }
    if cpl == 0 {
        bits |= IOPL | VIF | VIP;
    }
    if size == 2 { bits & 0xffff } else { bits }
}

/// INT n, INT3, INT1 and, where OF is set, INTO.
pub(super) fn software_interrupt(ctx: &mut Context) -> Result<Outcome, Fault> {
    use super::fault::vector;
    use super::{Event, EventKind};
    let (kind, number) = match ctx.instr.code() {
        Code::Into if ctx.cpu.rflags & rflags::OF == 0 => {
            ctx.cpu.rip = ctx.next_rip();
            return Ok(Outcome::Next);
        }
        Code::Into => (EventKind::Software, vector::OF),
        Code::Int1 => (EventKind::PrivilegedSoftware, vector::DB),
        Code::Int3 => (EventKind::Software, vector::BP),
        _ => {
            debug_assert_eq!(ctx.instr.op0_kind(), OpKind::Immediate8);
            (EventKind::Software, ctx.instr.immediate8())
        }
    };
    let event = Event {
        kind,
        fault: Fault::plain(number),
    };
    let return_rip = ctx.next_rip();
    super::deliver::attempt(ctx.cpu, ctx.bus, event, return_rip)?;
    Ok(Outcome::Mode)
}
