//! LGDT, LIDT, LLDT, LTR and their stores (SDM vol. 2 there; vol. 3, 2.4).

use super::context::{Context, Place};
use super::descriptor::{self, Selector, system_type};
use super::{AccessKind, Fault, Outcome};
use crate::mmu::is_canonical;
use iced_x86::Mnemonic;
use machine::state::{DescriptorTable, Segment, cr4};

/// #GP(0) where UMIP keeps user code from seeing system registers.
pub(super) fn check_umip(ctx: &Context) -> Result<(), Fault> {
    if ctx.cpl() > 0 && ctx.cpu.cr4 & cr4::UMIP != 0 {
        return Err(Fault::GP0);
    }
    Ok(())
}

/// Bytes of the base in a table operand: 8, in compatibility mode 4.
fn base_bytes(ctx: &Context) -> usize {
    ctx.word()
}

/// LGDT and LIDT: ten bytes in 64-bit mode, six in compatibility mode.
pub(super) fn load_table(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    let place = ctx.place();
    let limit = ctx.load(place, 2)? as u16;
    let base = ctx.load(second_part(place), base_bytes(ctx))?;
    if !is_canonical(base) {
        return Err(Fault::GP0);
    }
    let table = DescriptorTable { base, limit };
    if ctx.instr.mnemonic() == Mnemonic::Lgdt {
        ctx.cpu.gdtr = table;
    } else {
        ctx.cpu.idtr = table;
    }
    Ok(Outcome::Next)
}

fn second_part(place: Place) -> Place {
    Place {
        va: place.va.wrapping_add(2),
        ..place
    }
}

/// SGDT and SIDT.
pub(super) fn store_table(ctx: &mut Context) -> Result<Outcome, Fault> {
    check_umip(ctx)?;
    let table = if ctx.instr.mnemonic() == Mnemonic::Sgdt {
        ctx.cpu.gdtr
    } else {
        ctx.cpu.idtr
    };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let place = ctx.place();
    let len = 2 + base_bytes(ctx);
    ctx.check(place, len, 2)?;
    ctx.bus
        .write(ctx.cpu, place.va, &bytes[..len], AccessKind::Data)?;
    Ok(Outcome::Next)
}

/// SLDT and STR: memory takes 16 bits, registers are zero-extended.
pub(super) fn store_register(ctx: &mut Context) -> Result<Outcome, Fault> {
    check_umip(ctx)?;
    let selector = if ctx.instr.mnemonic() == Mnemonic::Sldt {
        ctx.cpu.ldtr.selector
    } else {
        ctx.cpu.tr.selector
    };
    ctx.write_operand(0, 2, u64::from(selector))?;
    Ok(Outcome::Next)
}

/// LLDT and LTR.
pub(super) fn load_register(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    let selector = Selector(ctx.read_operand(0, 2)? as u16);
    let local = ctx.instr.mnemonic() == Mnemonic::Lldt;
    if selector.is_null() {
        if !local {
            return Err(Fault::GP0);
        }
        ctx.cpu.ldtr = descriptor::null_segment(selector.0, 0);
        return Ok(Outcome::Next);
    }
    let kind = if local {
        system_type::LDT
    } else {
        system_type::TSS_AVAILABLE
    };
    let segment = system_segment(ctx, selector, kind)?;
    if local {
        ctx.cpu.ldtr = segment;
    } else {
        ctx.cpu.tr = segment;
    }
    Ok(Outcome::Next)
}

/// Checks and reads a 16-byte descriptor of the GDT; a TSS becomes busy.
fn system_segment(ctx: &mut Context, selector: Selector, kind: u8) -> Result<Segment, Fault> {
    let error = selector.error();
    if selector.is_local() {
        return Err(Fault::gp(error));
    }
    let (low, high) = descriptor::read_wide(ctx.cpu, ctx.bus, selector)?.ok_or(Fault::gp(error))?;
    if low.is_segment() || low.kind() != kind {
        return Err(Fault::gp(error));
    }
    if !low.present() {
        return Err(Fault::np(error));
    }
    let base = low.base() | (high << 32);
    // The type field of the upper half must be zero (APM vol. 2, 4.8.3).
    if !is_canonical(base) || high & (0x1f << 40) != 0 {
        return Err(Fault::gp(error));
    }
    let mut attributes = low.attributes();
    if kind == system_type::TSS_AVAILABLE {
        descriptor::mark(ctx.cpu, ctx.bus, selector, low, 2)?;
        attributes |= 2;
    }
    Ok(Segment {
        selector: selector.0,
        attributes,
        limit: low.limit(),
        base,
    })
}
