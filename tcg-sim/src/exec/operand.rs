//! Where the memory operand of an instruction is that the runtime executes.

use crate::mmu::is_canonical;
use crate::sys::Fault;
use iced_x86::{Instruction, Register};
use machine::state::{CpuState, Seg};

/// Linear address of the memory operand, `bytes` long.
///
/// # Errors
/// #GP(0), or #SS(0) for a stack address, if it is not canonical.
pub(super) fn memory_operand(
    instruction: &Instruction,
    cpu: &CpuState,
    bytes: u64,
) -> Result<u64, Fault> {
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
                Some(if register.size() == 4 {
                    full & 0xffff_ffff
                } else {
                    full
                })
            }
        })
        .expect("every register has a value");
    let compat = !cpu.segs[Seg::Cs as usize].long_mode();
    let va = if compat { va & 0xffff_ffff } else { va };
    if is_canonical(va) && is_canonical(va.wrapping_add(bytes - 1)) {
        return Ok(va);
    }
    let stack = matches!(
        instruction.memory_base(),
        Register::RSP | Register::RBP | Register::ESP | Register::EBP
    ) && !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    Err(if stack { Fault::SS0 } else { Fault::GP0 })
}
