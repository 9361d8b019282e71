//! Where the memory operand of an instruction is that the runtime executes.

use crate::jit::translate::is_narrow;
use crate::mmu::is_canonical;
use crate::sys::Fault;
use iced_x86::{Instruction, Register};
use machine::state::{CpuState, Seg};

/// A memory operand that the processor accesses in parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    /// Linear address of the first byte.
    pub(super) va: u64,
    bytes: u64,
    /// Linear address of offset 0 of the segment, where offsets go on behind 4 GiB.
    base: u64,
    /// Bytes before that.
    before_wrap: u64,
}

impl Operand {
    /// Linear address of the last byte.
    pub(super) fn last(self) -> u64 {
        match self.bytes - self.before_wrap {
            0 => self.va.wrapping_add(self.bytes - 1),
            behind => self.base.wrapping_add(behind - 1),
        }
    }

    /// Linear addresses and lengths of what lies side by side.
    pub(super) fn runs(self) -> impl Iterator<Item = (u64, usize)> {
        let behind = self.bytes - self.before_wrap;
        [
            (self.va, self.before_wrap as usize),
            (self.base, behind as usize),
        ]
        .into_iter()
        .filter(|run| run.1 != 0)
    }
}

/// The memory operand, `bytes` long.
///
/// # Errors
/// #GP(0), or #SS(0) for a stack address, if it is not canonical; #AC if `alignment` is asked for and missed,
/// which comes before the other two where only the end is not canonical (Intel family 6 model 207); and what
/// `before_end` finds at the first byte, which comes before them there as well.
pub(super) fn memory_operand(
    instruction: &Instruction,
    cpu: &CpuState,
    bytes: u64,
    alignment: Option<u64>,
    before_end: impl FnOnce(u64) -> Result<(), Fault>,
) -> Result<Operand, Fault> {
    let index = (0..instruction.op_count())
        .find(|op| instruction.op_kind(*op) == iced_x86::OpKind::Memory)
        .expect("callers name instructions with a memory operand");
    let base = match instruction.memory_segment() {
        Register::FS => cpu.segs[Seg::Fs as usize].base,
        Register::GS => cpu.segs[Seg::Gs as usize].base,
        _ => 0,
    };
    let offset = instruction
        .virtual_address(index, 0, |register, _, _| {
            if register.is_segment_register() {
                return Some(0);
            }
            let full = cpu.gpr[register.full_register().number()];
            Some(if register.size() == 4 {
                full & 0xffff_ffff
            } else {
                full
            })
        })
        .expect("every register has a value");
    let compat = !cpu.segs[Seg::Cs as usize].long_mode();
    let before_wrap = if compat || is_narrow(instruction) {
        bytes.min((1 << 32) - (offset & 0xffff_ffff))
    } else {
        bytes
    };
    let linear = |address: u64| {
        if compat {
            address & 0xffff_ffff
        } else {
            address
        }
    };
    let operand = Operand {
        va: linear(base.wrapping_add(offset)),
        bytes,
        base: linear(base),
        before_wrap,
    };
    if is_canonical(operand.va) {
        if alignment.is_some_and(|alignment| !operand.va.is_multiple_of(alignment)) {
            return Err(Fault::AC);
        }
        if is_canonical(operand.last()) {
            return Ok(operand);
        }
        before_end(operand.va)?;
    }
    let stack = matches!(
        instruction.memory_base(),
        Register::RSP | Register::RBP | Register::ESP | Register::EBP
    ) && !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    Err(if stack { Fault::SS0 } else { Fault::GP0 })
}
