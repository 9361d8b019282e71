//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2 there; APM vol. 3 and vol. 2, 6.1).

use super::context::Context;
use super::{Fault, Maker, Outcome};
use crate::mmu::is_canonical;
use iced_x86::Code;
use machine::state::{Gpr, Seg, Segment, efer, rflags};

/// Flat 64-bit code at a privilege level, accessed.
fn code_segment(selector: u16, dpl: u16) -> Segment {
    Segment {
        selector,
        attributes: 0xa09b | (dpl << 5),
        limit: u32::MAX,
        base: 0,
    }
}

/// Flat 32-bit code for compatibility mode, accessed.
fn compat_code_segment(selector: u16) -> Segment {
    Segment {
        selector,
        attributes: 0xc0fb,
        limit: u32::MAX,
        base: 0,
    }
}

/// Flat stack segment at a privilege level, accessed.
fn stack_segment(selector: u16, dpl: u16) -> Segment {
    Segment {
        selector,
        attributes: 0xc093 | (dpl << 5),
        limit: u32::MAX,
        base: 0,
    }
}

/// SYSCALL. From compatibility mode AMD enters at CSTAR; Intel has none there.
pub(super) fn syscall(ctx: &mut Context) -> Result<Outcome, Fault> {
    let msrs = ctx.cpu.msrs;
    let compat = ctx.is_compat();
    if msrs.efer & efer::SCE == 0 || compat && ctx.bus.vendor() == Maker::Intel {
        return Err(Fault::UD);
    }
    let selector = (msrs.star >> 32) as u16 & !3;
    let next = ctx.next_rip();
    let flags = ctx.cpu.rflags & !rflags::RF;
    ctx.set_gpr(Gpr::Rcx, next);
    ctx.set_gpr(Gpr::R11, flags);
    ctx.cpu.rip = if compat { msrs.cstar } else { msrs.lstar };
    ctx.cpu.rflags = (flags & !msrs.sfmask) | rflags::FIXED;
    ctx.cpu.segs[Seg::Cs as usize] = code_segment(selector, 0);
    ctx.cpu.segs[Seg::Ss as usize] = stack_segment(selector.wrapping_add(8), 0);
    Ok(Outcome::Mode)
}

/// SYSRET. AMD takes only selector and privilege of SS, and faults on a non-canonical RCX at the
/// target (at CPL 3); Intel loads a flat SS and faults before the transfer (at CPL 0).
pub(super) fn sysret(ctx: &mut Context) -> Result<Outcome, Fault> {
    let msrs = ctx.cpu.msrs;
    if msrs.efer & efer::SCE == 0 {
        return Err(Fault::UD);
    }
    ctx.require_cpl0()?;
    let compat = ctx.instr.code() == Code::Sysretd;
    let (rip, flags) = match compat {
        true => (ctx.gpr(Gpr::Rcx) & 0xffff_ffff, ctx.gpr(Gpr::R11)),
        false => (ctx.gpr(Gpr::Rcx), ctx.gpr(Gpr::R11)),
    };
    let vendor = ctx.bus.vendor();
    if vendor == Maker::Intel && !is_canonical(rip) {
        return Err(Fault::GP0);
    }
    let base = (msrs.star >> 48) as u16;
    let ss_selector = base.wrapping_add(8) | 3;
    let ss = &mut ctx.cpu.segs[Seg::Ss as usize];
    if vendor == Maker::Intel {
        *ss = stack_segment(ss_selector, 3);
    } else {
        ss.selector = ss_selector;
        ss.attributes |= 3 << 5;
    }
    ctx.cpu.segs[Seg::Cs as usize] = match compat {
        true => compat_code_segment(base | 3),
        false => code_segment(base.wrapping_add(16) | 3, 3),
    };
    // RF and VM are cleared, reserved bits forced (SDM vol. 2, SYSRET).
    ctx.cpu.rflags = (flags & rflags::DEFINED & !(rflags::RF | rflags::VM)) | rflags::FIXED;
    ctx.cpu.rip = rip;
    Ok(Outcome::Mode)
}

/// SYSENTER: #UD on AMD in long mode.
pub(super) fn sysenter(ctx: &mut Context) -> Result<Outcome, Fault> {
    if ctx.bus.vendor() == Maker::Amd {
        return Err(Fault::UD);
    }
    let msrs = ctx.cpu.msrs;
    let selector = msrs.sysenter_cs as u16 & !3;
    if selector == 0 {
        return Err(Fault::GP0);
    }
    ctx.cpu.rflags &= !(rflags::VM | rflags::IF);
    ctx.set_gpr(Gpr::Rsp, msrs.sysenter_esp);
    ctx.cpu.rip = msrs.sysenter_eip;
    ctx.cpu.segs[Seg::Cs as usize] = code_segment(selector, 0);
    ctx.cpu.segs[Seg::Ss as usize] = stack_segment(selector.wrapping_add(8), 0);
    Ok(Outcome::Mode)
}

/// SYSEXIT: #UD on AMD in long mode.
pub(super) fn sysexit(ctx: &mut Context) -> Result<Outcome, Fault> {
    if ctx.bus.vendor() == Maker::Amd {
        return Err(Fault::UD);
    }
    let selector = ctx.cpu.msrs.sysenter_cs as u16 & !3;
    if selector == 0 {
        return Err(Fault::GP0);
    }
    ctx.require_cpl0()?;
    if ctx.instr.code() == Code::Sysexitd {
        let (rsp, rip) = (ctx.gpr(Gpr::Rcx), ctx.gpr(Gpr::Rdx));
        ctx.set_gpr(Gpr::Rsp, rsp & 0xffff_ffff);
        ctx.cpu.rip = rip & 0xffff_ffff;
        ctx.cpu.segs[Seg::Cs as usize] = compat_code_segment(selector.wrapping_add(16) | 3);
        ctx.cpu.segs[Seg::Ss as usize] = stack_segment(selector.wrapping_add(24) | 3, 3);
        return Ok(Outcome::Mode);
    }
    let (rsp, rip) = (ctx.gpr(Gpr::Rcx), ctx.gpr(Gpr::Rdx));
    if !is_canonical(rsp) || !is_canonical(rip) {
        return Err(Fault::GP0);
    }
    ctx.set_gpr(Gpr::Rsp, rsp);
    ctx.cpu.rip = rip;
    ctx.cpu.segs[Seg::Cs as usize] = code_segment(selector.wrapping_add(32) | 3, 3);
    ctx.cpu.segs[Seg::Ss as usize] = stack_segment(selector.wrapping_add(40) | 3, 3);
    Ok(Outcome::Mode)
}

/// SWAPGS.
pub(super) fn swapgs(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    let gs = &mut ctx.cpu.segs[Seg::Gs as usize].base;
    std::mem::swap(gs, &mut ctx.cpu.msrs.kernel_gs_base);
    Ok(Outcome::Next)
}
