//! Control and debug registers: MOV CR, MOV DR, LMSW, SMSW, CLTS (SDM vol. 2 there; vol. 3, 2.5 and
//! 17.2).

use super::context::Context;
use super::tables::check_umip;
use super::{Fault, Outcome};
use iced_x86::{OpKind, Register};
use machine::cpuid::{CpuidTable, leaf7};
use machine::state::{cr0, cr4};

/// CR0 bits that can change; the others in the low half are fixed and writes to them ignored.
const CR0_WRITABLE: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// DR6 bits that are always one, and those that software may set.
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR6_WRITABLE: u64 = 0xe00f;
/// DR7 bit 10 is always one; bits 11, 12, 14 and 15 are zero (no RTM).
const DR7_FIXED: u64 = 0x400;
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_GD: u64 = 1 << 13;
/// DR6.BD: a debug register was touched while DR7.GD was set.
const DR6_BD: u64 = 1 << 13;

/// MOV to and from CR0, CR2, CR3, CR4, CR8.
pub(super) fn mov_control(ctx: &mut Context) -> Result<Outcome, Fault> {
    let (to, from) = (ctx.instr.op0_register(), ctx.instr.op1_register());
    if !to.is_cr() {
        let value = match from {
            Register::CR0 => ctx.cpu.cr0,
            Register::CR2 => ctx.cpu.cr2,
            Register::CR3 => ctx.cpu.cr3,
            Register::CR4 => ctx.cpu.cr4,
            Register::CR8 => ctx.cpu.cr8,
            _ => return Err(Fault::UD),
        };
        ctx.require_cpl0()?;
        ctx.set_register(to, value);
        return Ok(Outcome::Next);
    }
    let known = matches!(
        to,
        Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8
    );
    if !known {
        return Err(Fault::UD);
    }
    ctx.require_cpl0()?;
    let value = ctx.register(from);
    match to {
        Register::CR0 => write_cr0(ctx, value),
        Register::CR3 => write_cr3(ctx, value),
        Register::CR4 => write_cr4(ctx, value),
        Register::CR2 => {
            ctx.cpu.cr2 = value;
            Ok(Outcome::Next)
        }
        _ if value > 0xf => Err(Fault::GP0),
        _ => {
            ctx.cpu.cr8 = value;
            Ok(Outcome::Next)
        }
    }
}

/// In 64-bit mode paging and protection cannot be turned off (SDM vol. 3, 4.1.1 and 9.8.5.4).
fn write_cr0(ctx: &mut Context, value: u64) -> Result<Outcome, Fault> {
    let old = ctx.cpu.cr0;
    let new = (value & CR0_WRITABLE) | cr0::ET;
    let missing = new & (cr0::PE | cr0::PG) != cr0::PE | cr0::PG;
    let cache = new & (cr0::CD | cr0::NW) == cr0::NW;
    if value >> 32 != 0 || missing || cache {
        return Err(Fault::GP0);
    }
    ctx.cpu.cr0 = new;
    if (old ^ new) & cr0::WP != 0 {
        return Ok(Outcome::AddressSpace { globals: true });
    }
    Ok(Outcome::Mode)
}

fn write_cr3(ctx: &mut Context, value: u64) -> Result<Outcome, Fault> {
    let phys_bits = phys_bits(ctx.bus.cpuid());
    if value >> phys_bits != 0 {
        return Err(Fault::GP0);
    }
    ctx.cpu.cr3 = value;
    Ok(Outcome::AddressSpace { globals: false })
}

/// Physical address bits of a CPU model.
pub(super) fn phys_bits(table: &CpuidTable) -> u32 {
    table.lookup(0x8000_0008, 0)[0] & 0xff
}

fn write_cr4(ctx: &mut Context, value: u64) -> Result<Outcome, Fault> {
    if value & !offered_cr4(ctx.bus.cpuid()) != 0 || value & cr4::PAE == 0 {
        return Err(Fault::GP0);
    }
    let changed = ctx.cpu.cr4 ^ value;
    ctx.cpu.cr4 = value;
    if changed & (cr4::PGE | cr4::PSE | cr4::PAE | cr4::SMEP | cr4::SMAP) != 0 {
        return Ok(Outcome::AddressSpace { globals: true });
    }
    Ok(Outcome::Mode)
}

/// CR4 bits of a CPU model. TSD, MCE and PCE are always there, as on the recording hosts; XSAVE,
/// PCID, FSGSBASE and 57-bit addresses are engine limits that no table may offer.
pub(crate) fn offered_cr4(table: &CpuidTable) -> u64 {
    let always = cr4::TSD
        | cr4::DE
        | cr4::PSE
        | cr4::PAE
        | cr4::MCE
        | cr4::PGE
        | cr4::PCE
        | cr4::OSFXSR
        | cr4::OSXMMEXCPT;
    let [_, ebx, ecx, _] = table.lookup(7, 0);
    let optional = [
        (ebx & leaf7::EBX_SMEP, cr4::SMEP),
        (ebx & leaf7::EBX_SMAP, cr4::SMAP),
        // Leaf 7 ECX bit 2.
        (ecx & 4, cr4::UMIP),
    ];
    optional
        .iter()
        .filter(|(feature, _)| *feature != 0)
        .fold(always, |bits, (_, bit)| bits | bit)
}

/// LMSW: MP, EM and TS; PE can only be set.
pub(super) fn lmsw(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    let value = ctx.read_operand(0, 2)?;
    let bits = cr0::MP | cr0::EM | cr0::TS;
    ctx.cpu.cr0 = (ctx.cpu.cr0 & !bits) | (value & bits);
    Ok(Outcome::Mode)
}

/// SMSW: memory takes 16 bits, a register as many as it has.
pub(super) fn smsw(ctx: &mut Context) -> Result<Outcome, Fault> {
    check_umip(ctx)?;
    let value = ctx.cpu.cr0;
    ctx.write_operand(0, 2, value)?;
    Ok(Outcome::Next)
}

/// CLTS.
pub(super) fn clts(ctx: &mut Context) -> Result<Outcome, Fault> {
    ctx.require_cpl0()?;
    ctx.cpu.cr0 &= !cr0::TS;
    Ok(Outcome::Mode)
}

/// MOV to and from a debug register.
pub(super) fn mov_debug(ctx: &mut Context) -> Result<Outcome, Fault> {
    debug_assert_eq!(ctx.instr.op0_kind(), OpKind::Register);
    let (to, from) = (ctx.instr.op0_register(), ctx.instr.op1_register());
    let write = to.is_dr();
    ctx.require_cpl0()?;
    let index = debug_index(ctx, if write { to } else { from })?;
    if ctx.cpu.dr7 & DR7_GD != 0 {
        return Err(Fault::debug(DR6_BD));
    }
    if write {
        let value = ctx.register(from);
        return write_debug(ctx, index, value);
    }
    let value = match index {
        6 => ctx.cpu.dr6,
        7 => ctx.cpu.dr7,
        n => ctx.cpu.dr[n],
    };
    ctx.set_register(to, value);
    Ok(Outcome::Next)
}

/// DR4 and DR5 are DR6 and DR7 unless CR4.DE is set.
fn debug_index(ctx: &Context, register: Register) -> Result<usize, Fault> {
    match register.number() {
        4 | 5 if ctx.cpu.cr4 & cr4::DE != 0 => Err(Fault::UD),
        n @ (4 | 5) => Ok(n + 2),
        n @ 0..=7 => Ok(n),
        _ => Err(Fault::UD),
    }
}

fn write_debug(ctx: &mut Context, index: usize, value: u64) -> Result<Outcome, Fault> {
    if index >= 6 && value >> 32 != 0 {
        return Err(Fault::GP0);
    }
    match index {
        6 => ctx.cpu.dr6 = (value & DR6_WRITABLE) | DR6_FIXED,
        7 => ctx.cpu.dr7 = (value & DR7_WRITABLE) | DR7_FIXED,
        n => ctx.cpu.dr[n] = value,
    }
    Ok(Outcome::Mode)
}
