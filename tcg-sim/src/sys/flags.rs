//! PUSHF, POPF, CLI, STI, CLAC, STAC.

use super::context::{Context, mask};
use super::{Fault, Outcome};
use iced_x86::{Code, Mnemonic};
use machine::cpuid::leaf7;
use machine::state::{Gpr, Shadow, rflags};

/// PUSHFW, PUSHFD and PUSHFQ.
pub(super) fn pushf(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = if ctx.instr.code() == Code::Pushfw {
        2
    } else {
        ctx.word()
    };
    let image = ctx.cpu.rflags & !(rflags::VM | rflags::RF);
    ctx.push(size, image)?;
    Ok(Outcome::Next)
}

/// POPFW, POPFD and POPFQ (SDM vol. 2, POPF): IOPL only at CPL 0, IF only where CPL <= IOPL; VM, VIF and VIP
/// stay, RF is cleared.
pub(super) fn popf(ctx: &mut Context) -> Result<Outcome, Fault> {
    use rflags::{AC, DF, ID, IF, IOPL, NT, OSZAPC, TF};
    let size = if ctx.instr.code() == Code::Popfw {
        2
    } else {
        ctx.word()
    };
    let image = ctx.peek(0, size)?;
    let mut changeable = (OSZAPC | TF | DF | NT | AC | ID) & mask(size);
    if ctx.cpl() == 0 {
        changeable |= IOPL;
    }
    if ctx.cpl() <= ctx.iopl() {
        changeable |= IF;
    }
    ctx.cpu.rflags = (ctx.cpu.rflags & !changeable) | (image & changeable);
    let rsp = ctx.gpr(Gpr::Rsp).wrapping_add(size as u64);
    ctx.set_stack_pointer(rsp);
    Ok(Outcome::Mode)
}

/// CLI and STI. Virtual interrupts (CR4.PVI) are not in the CPU model.
pub(super) fn interrupt_flag(ctx: &mut Context) -> Result<Outcome, Fault> {
    if ctx.cpl() > ctx.iopl() {
        return Err(Fault::GP0);
    }
    let on = ctx.instr.mnemonic() == Mnemonic::Sti;
    let was_on = ctx.cpu.rflags & rflags::IF != 0;
    ctx.set_flag(rflags::IF, on);
    if on && !was_on {
        ctx.cpu.shadow = Shadow::Sti;
    }
    Ok(Outcome::Mode)
}

/// CLAC and STAC: #UD where SMAP is not offered or above CPL 0.
pub(super) fn alignment_flag(ctx: &mut Context) -> Result<Outcome, Fault> {
    if ctx.bus.cpuid().lookup(7, 0)[1] & leaf7::EBX_SMAP == 0 || ctx.cpl() != 0 {
        return Err(Fault::UD);
    }
    ctx.set_flag(rflags::AC, ctx.instr.mnemonic() == Mnemonic::Stac);
    Ok(Outcome::Mode)
}
