//! Where a guest stands that KVM cannot go on with.

use crate::walk::translate;
use machine::ram::Ram;
use machine::state::{CpuState, Seg};
use machine::units::GuestPhys;
use machine::vcpu::VcpuError;

/// Most bytes of an instruction.
const INSTRUCTION_BYTES: usize = 15;

/// The guest met a triple fault before anything of it could be seen.
pub(super) const AT_START: &str = "the guest met a triple fault before its first access to a device: this KVM \
                                   cannot run it, or nothing can";

/// The error that names the instruction at which the guest stands; `bytes` of it, if KVM told them.
pub(super) fn unable(ram: &Ram, cpu: &CpuState, what: String, bytes: Option<Vec<u8>>) -> VcpuError {
    VcpuError::Unable {
        what,
        rip: cpu.rip,
        bytes: bytes.unwrap_or_else(|| instruction(ram, cpu)),
    }
}

/// The bytes at RIP, as far as they are mapped.
pub(super) fn instruction(ram: &Ram, cpu: &CpuState) -> Vec<u8> {
    let start = match cpu.segs[Seg::Cs as usize].long_mode() {
        true => cpu.rip,
        false => cpu.segs[Seg::Cs as usize].base.wrapping_add(cpu.rip) & 0xffff_ffff,
    };
    let byte = |offset: u64| {
        let at: GuestPhys = translate(ram, cpu, start.wrapping_add(offset))?;
        let mut byte = [0];
        ram.read(at, &mut byte).ok()?;
        Some(byte[0])
    };
    (0..INSTRUCTION_BYTES as u64).map_while(byte).collect()
}
