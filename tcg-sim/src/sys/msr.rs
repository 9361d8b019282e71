//! RDMSR and WRMSR.
//!
//! Registers that are pure state live in the CPU state. A few that kernels touch without asking
//! first hold a constant of the vendor and take only that. Everything else is #GP(0), APIC_BASE included: the CPU
//! model has no APIC.

use super::context::Context;
use super::{Fault, Outcome};
use crate::mmu::is_canonical;
use machine::cpuid::Maker;
use machine::msr::constant;
pub use machine::msr::number;
use machine::state::{Gpr, Msrs, Seg, cr0, efer};

/// RDMSR.
pub(super) fn rdmsr(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    let index = ctx.gpr(Gpr::Rcx) as u32;
    if index == number::TSC {
        return Ok(Outcome::TimestampRead);
    }
    let value = read(ctx, index).ok_or(Fault::GP0)?;
    ctx.set_gpr(Gpr::Rax, value & 0xffff_ffff);
    ctx.set_gpr(Gpr::Rdx, value >> 32);
    Ok(Outcome::Next)
}

fn read(ctx: &Context, index: u32) -> Option<u64> {
    let msrs = &ctx.cpu.msrs;
    Some(match index {
        number::EFER => msrs.efer,
        number::STAR => msrs.star,
        number::LSTAR => msrs.lstar,
        number::CSTAR => msrs.cstar,
        number::SFMASK => msrs.sfmask,
        number::FS_BASE => ctx.cpu.segs[Seg::Fs as usize].base,
        number::GS_BASE => ctx.cpu.segs[Seg::Gs as usize].base,
        number::KERNEL_GS_BASE => msrs.kernel_gs_base,
        number::SYSENTER_CS => msrs.sysenter_cs,
        number::SYSENTER_ESP => msrs.sysenter_esp,
        number::SYSENTER_EIP => msrs.sysenter_eip,
        number::PAT => msrs.pat,
        number::TSC_AUX if ctx.has_rdtscp() => msrs.tsc_aux,
        _ => return constant(ctx.bus.vendor(), index),
    })
}

/// WRMSR. The counter cannot be written: its values come from the log.
pub(super) fn wrmsr(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    let index = ctx.gpr(Gpr::Rcx) as u32;
    let value = (ctx.gpr(Gpr::Rdx) << 32) | (ctx.gpr(Gpr::Rax) & 0xffff_ffff);
    if index == number::EFER {
        return write_efer(ctx, value);
    }
    match index {
        number::FS_BASE => ctx.cpu.segs[Seg::Fs as usize].base = canonical(value)?,
        number::GS_BASE => ctx.cpu.segs[Seg::Gs as usize].base = canonical(value)?,
        number::TSC_AUX if ctx.has_rdtscp() && value >> 32 == 0 => ctx.cpu.msrs.tsc_aux = value,
        _ if constant(ctx.bus.vendor(), index) == Some(value) => {}
        _ => write_plain(&mut ctx.cpu.msrs, ctx.bus.vendor(), index, value)?,
    }
    Ok(Outcome::Next)
}

fn write_plain(msrs: &mut Msrs, vendor: Maker, index: u32, value: u64) -> Result<(), Fault> {
    match index {
        number::STAR => msrs.star = value,
        number::LSTAR => msrs.lstar = canonical(value)?,
        number::CSTAR => msrs.cstar = canonical(value)?,
        // The upper half reads as zero.
        number::SFMASK => msrs.sfmask = value & 0xffff_ffff,
        number::KERNEL_GS_BASE => msrs.kernel_gs_base = canonical(value)?,
        number::SYSENTER_CS => msrs.sysenter_cs = value & 0xffff_ffff,
        number::SYSENTER_ESP => msrs.sysenter_esp = sysenter_address(vendor, value)?,
        number::SYSENTER_EIP => msrs.sysenter_eip = sysenter_address(vendor, value)?,
        number::PAT if is_pat(value) => msrs.pat = value,
        _ => return Err(Fault::GP0),
    }
    Ok(())
}

/// AMD has 32 bits here, since SYSENTER does not exist in long mode.
fn sysenter_address(vendor: Maker, value: u64) -> Result<u64, Fault> {
    match vendor {
        Maker::Amd => Ok(value & 0xffff_ffff),
        Maker::Intel => canonical(value),
    }
}

fn canonical(value: u64) -> Result<u64, Fault> {
    if is_canonical(value) {
        Ok(value)
    } else {
        Err(Fault::GP0)
    }
}

/// Memory types 2 and 3 and everything above 7 are reserved (SDM vol. 3, 11.12.2).
fn is_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|t| matches!(t, 0 | 1 | 4..=7))
}

/// LMA is ignored on writes; LME cannot change while paging is on; other bits are reserved in this
/// CPU model (APM vol. 2, 3.1.7).
fn write_efer(ctx: &mut Context, value: u64) -> Result<Outcome, Fault> {
    let old = ctx.cpu.msrs.efer;
    let paging = ctx.cpu.cr0 & cr0::PG != 0;
    if value & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) != 0
        || (paging && (old ^ value) & efer::LME != 0)
    {
        return Err(Fault::GP0);
    }
    let new = (value & !efer::LMA) | (old & efer::LMA);
    ctx.cpu.msrs.efer = new;
    if (old ^ new) & efer::NXE != 0 {
        return Ok(Outcome::AddressSpace { globals: true });
    }
    Ok(Outcome::Mode)
}
