//! Whether CR0 and CR4 let an instruction use the floating-point and vector units, where its memory
//! operand is, and which breakpoints it meets.

use crate::mmu::is_canonical;
use crate::sys::{Fault, vector};
use iced_x86::{CpuidFeature, Instruction, Mnemonic, Register};
use machine::state::{CpuState, Seg, cr0, cr4};

/// The fault that CR0.EM, CR0.TS or CR4.OSFXSR raises for an instruction (SDM vol. 3, 2.5 and 13.1).
pub(super) fn unit_fault(instruction: &Instruction, cpu: &CpuState) -> Option<Fault> {
    let (em, ts) = (cpu.cr0 & cr0::EM != 0, cpu.cr0 & cr0::TS != 0);
    if !em && !ts && cpu.cr4 & cr4::OSFXSR != 0 {
        return None;
    }
    let nm = Fault::plain(vector::NM);
    match unit(instruction)? {
        Unit::Wait => (ts && cpu.cr0 & cr0::MP != 0).then_some(nm),
        Unit::X87 => (em || ts).then_some(nm),
        Unit::Mmx if em => Some(Fault::UD),
        Unit::Sse if em || cpu.cr4 & cr4::OSFXSR == 0 => Some(Fault::UD),
        Unit::Mmx | Unit::Sse => ts.then_some(nm),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Wait,
    X87,
    Mmx,
    Sse,
}

fn unit(instruction: &Instruction) -> Option<Unit> {
    use CpuidFeature as F;
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Wait => return Some(Unit::Wait),
        // Flagged with a vector extension, but no vector instruction.
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Sfence | M::Lfence
        | M::Mfence | M::Movnti | M::Clflush | M::Pause | M::Crc32 | M::Popcnt => return None,
        _ => {}
    }
    let vectors = |test: fn(Register) -> bool| {
        (0..instruction.op_count()).any(|op| test(instruction.op_register(op)))
    };
    instruction.cpuid_features().iter().find_map(|feature| match feature {
        F::FPU | F::FPU287 | F::FPU387 | F::FXSR => Some(Unit::X87),
        F::MMX => Some(Unit::Mmx),
        F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 | F::SSE4A | F::AES
        | F::PCLMULQDQ | F::SHA => Some(match instruction.mnemonic() {
            M::Fisttp => Unit::X87,
            _ if vectors(Register::is_mm) && !vectors(Register::is_xmm) => Unit::Mmx,
            _ => Unit::Sse,
        }),
        _ => None,
    })
}

/// Linear address of the memory operand, `bytes` long.
///
/// # Errors
/// #GP(0), or #SS(0) for a stack address, if it is not canonical.
pub(super) fn memory_operand(instruction: &Instruction, cpu: &CpuState, bytes: u64) -> Result<u64, Fault> {
    let index = (0..instruction.op_count())
        .find(|op| instruction.op_kind(*op) == iced_x86::OpKind::Memory)
        .expect("callers name instructions with a memory operand");
    let va = instruction
        .virtual_address(index, 0, |register, _, _| match register {
            Register::FS => Some(cpu.segs[Seg::Fs as usize].base),
            Register::GS => Some(cpu.segs[Seg::Gs as usize].base),
            segment if segment.is_segment_register() => Some(0),
            register => {
                let full = cpu.gpr[register.full_register().number()];
                Some(if register.size() == 4 { full & 0xffff_ffff } else { full })
            }
        })
        .expect("every register has a value");
    if is_canonical(va) && is_canonical(va.wrapping_add(bytes - 1)) {
        return Ok(va);
    }
    let stack = matches!(
        instruction.memory_base(),
        Register::RSP | Register::RBP | Register::ESP | Register::EBP
    ) && !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    Err(if stack { Fault::SS0 } else { Fault::GP0 })
}

/// DR6 bits of the enabled breakpoints that `matches` (kind and length fields of DR7, address).
fn hits(cpu: &CpuState, matches: impl Fn(u64, u64, u64) -> bool) -> u64 {
    (0..4).fold(0, |found, index| {
        let enabled = cpu.dr7 >> (2 * index) & 3 != 0;
        let kind = cpu.dr7 >> (16 + 4 * index) & 3;
        let length = [1, 2, 8, 4][(cpu.dr7 >> (18 + 4 * index) & 3) as usize];
        let hit = enabled && matches(kind, length, cpu.dr[index as usize]);
        found | u64::from(hit) << index
    })
}

/// Instruction breakpoints at an address (SDM vol. 3, 17.2.4).
pub(super) fn instruction_hits(cpu: &CpuState, rip: u64) -> u64 {
    hits(cpu, |kind, _, address| kind == 0 && address == rip)
}

/// Data breakpoints that an access touches (SDM vol. 3, 17.2.5).
pub(super) fn data_hits(cpu: &CpuState, va: u64, bytes: u64, write: bool) -> u64 {
    hits(cpu, |kind, length, address| {
        let start = address & !(length - 1);
        let wanted = kind == 3 || kind == 1 && write;
        wanted && va.wrapping_sub(start) < length || wanted && start.wrapping_sub(va) < bytes
    })
}
