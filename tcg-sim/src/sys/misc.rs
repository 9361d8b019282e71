//! The rest: CPUID, RDTSC, RDPMC, HLT, cache control, ENTER, 16-bit LEAVE, XLAT.

use super::context::Context;
use super::{AccessKind, Fault, Outcome};
use iced_x86::{Code, Mnemonic};
use machine::cpuid::CpuidTable;
use machine::state::{Activity, Gpr, cr4};

/// CPUID 8000_0001h EDX: RDTSCP and TSC_AUX.
const EDX_RDTSCP: u32 = 1 << 27;

/// Whether a CPU model has RDTSCP.
fn offers_rdtscp(table: &CpuidTable) -> bool {
    table.lookup(0x8000_0001, 0)[3] & EDX_RDTSCP != 0
}

impl Context<'_> {
    pub(super) fn has_rdtscp(&self) -> bool {
        offers_rdtscp(self.bus.cpuid())
    }
}

/// CPUID.
pub(super) fn cpuid(ctx: &mut Context) -> Result<Outcome, Fault> {
    let (leaf, subleaf) = (ctx.gpr(Gpr::Rax) as u32, ctx.gpr(Gpr::Rcx) as u32);
    let answer = ctx.bus.cpuid().lookup(leaf, subleaf);
    for (register, value) in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx]
        .into_iter()
        .zip(answer)
    {
        ctx.set_gpr(register, u64::from(value));
    }
    Ok(Outcome::Next)
}

/// RDTSC and, where offered, RDTSCP.
pub(super) fn timestamp(ctx: &mut Context) -> Result<Outcome, Fault> {
    if ctx.instr.mnemonic() == Mnemonic::Rdtscp && !ctx.has_rdtscp() {
        return Err(Fault::UD);
    }
    if ctx.cpu.cr4 & cr4::TSD != 0 && ctx.cpl() > 0 {
        return Err(Fault::GP0);
    }
    Ok(Outcome::TimestampRead)
}

/// Puts a time stamp where RDTSC, RDTSCP and RDMSR want it.
pub(super) fn finish_timestamp(ctx: &mut Context, value: u64) {
    ctx.set_gpr(Gpr::Rax, value & 0xffff_ffff);
    ctx.set_gpr(Gpr::Rdx, value >> 32);
    if ctx.instr.mnemonic() == Mnemonic::Rdtscp {
        let aux = ctx.cpu.msrs.tsc_aux & 0xffff_ffff;
        ctx.set_gpr(Gpr::Rcx, aux);
    }
}

/// RDPMC: there are no counters, so every index is invalid.
pub(super) fn rdpmc(_: &mut Context) -> Result<Outcome, Fault> {
    Err(Fault::GP0)
}

/// HLT.
pub(super) fn hlt(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    ctx.cpu.activity = Activity::Halted;
    Ok(Outcome::Halt)
}

/// INVLPG. A non-canonical address is no fault.
pub(super) fn invlpg(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    Ok(Outcome::InvalidatePage { va: ctx.place().va })
}

/// INVD, WBINVD: memory is always coherent here.
pub(super) fn invalidate_caches(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    Ok(Outcome::Next)
}

/// CLFLUSH: faults like a byte load.
pub(super) fn clflush(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.load(ctx.place(), 1)?;
    Ok(Outcome::Next)
}

/// Instructions that the CPU model does not have, and UD0 to UD2.
pub(super) fn undefined(_: &mut Context) -> Result<Outcome, Fault> {
    Err(Fault::UD)
}

/// XLAT: iced shows the operand as [RBX + AL].
pub(super) fn xlat(ctx: &mut Context) -> Result<Outcome, Fault> {
    let value = ctx.load(ctx.place(), 1)?;
    ctx.set_register(iced_x86::Register::AL, value);
    Ok(Outcome::Next)
}

/// ENTER (SDM vol. 2). What is pushed before a fault stays in memory; registers change last.
pub(super) fn enter(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = if ctx.instr.code() == Code::Enterw_imm16_imm8 {
        2
    } else {
        ctx.word()
    };
    let levels = u64::from(ctx.instr.immediate8_2nd() & 31);
    let (old_rsp, old_rbp) = (ctx.stack_pointer(), ctx.gpr(Gpr::Rbp));
    let step = size as u64;
    let frame_pointer = ctx.narrowed(old_rsp.wrapping_sub(step));
    let mut rsp = frame_pointer;
    ctx.store(Context::stack_place(rsp), size, old_rbp)?;
    for level in 1..levels {
        let from = ctx.narrowed(old_rbp.wrapping_sub(step * level));
        let value = ctx.load(Context::stack_place(from), size)?;
        rsp = ctx.narrowed(rsp.wrapping_sub(step));
        ctx.store(Context::stack_place(rsp), size, value)?;
    }
    if levels > 0 {
        rsp = ctx.narrowed(rsp.wrapping_sub(step));
        ctx.store(Context::stack_place(rsp), size, frame_pointer)?;
    }
    rsp = ctx.narrowed(rsp.wrapping_sub(u64::from(ctx.instr.immediate16())));
    // The final stack pointer must be writable, though nothing is stored there.
    ctx.check(Context::stack_place(rsp), size, size)?;
    ctx.bus
        .prepare_write(ctx.cpu, rsp, size, AccessKind::Data)?;
    // The 16-bit form replaces only BP.
    let rbp = if size == 2 {
        (old_rbp & !0xffff) | (frame_pointer & 0xffff)
    } else {
        frame_pointer
    };
    ctx.set_gpr(Gpr::Rbp, rbp);
    ctx.set_gpr(Gpr::Rsp, rsp);
    Ok(Outcome::Next)
}

/// LEAVE with an operand-size prefix: the stack pointer is as wide as the mode has it all the same.
pub(super) fn leave(ctx: &mut Context) -> Result<Outcome, Fault> {
    let frame = ctx.narrowed(ctx.gpr(Gpr::Rbp));
    let value = ctx.load(Context::stack_place(frame), 2)?;
    ctx.set_stack_pointer(frame.wrapping_add(2));
    ctx.set_register(iced_x86::Register::BP, value);
    Ok(Outcome::Next)
}
