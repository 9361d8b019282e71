//! The time stamp counter. It is hidden in CPUID, but a guest may read it all the same; only a counter
//! that stands still while the guest runs makes such a read repeatable.

use super::{Level, OUT, ProbeError, SmallGuest};
use crate::kvm::Host;
use machine::cpuid::CpuidTable;

/// What the guest's counter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tsc {
    /// How often it was read twice, and how often both were the same.
    pub tries: u32,
    /// See above.
    pub stood_still: u32,
    /// Whether KVM took the slowest rate that it can be told, 1 kHz.
    pub slowed: bool,
}

/// Reads the counter twice, some 100,000 instructions apart, with the counter as still as KVM holds it.
///
/// # Errors
/// [`ProbeError`].
pub fn tsc(host: &Host) -> Result<Tsc, ProbeError> {
    const TRIES: u32 = 8;
    /// RDTSC; SHL RDX, 32; OR RAX, RDX; MOV [RDI], RAX; ADD RDI, 8.
    const READ: [u8; 16] = [
        0x0f, 0x31, 0x48, 0xc1, 0xe2, 32, 0x48, 0x09, 0xd0, 0x48, 0x89, 0x07, 0x48, 0x83, 0xc7, 8,
    ];
    /// MOV ECX, 50000; DEC ECX; JNZ back.
    const WAIT: [u8; 9] = [0xb9, 0x50, 0xc3, 0, 0, 0xff, 0xc9, 0x75, 0xfc];
    let code = [&READ[..], &WAIT, &READ, &OUT].concat();
    let mut guest = SmallGuest::new(host, &CpuidTable::of_host(), Level::Kernel, &code)?;
    let slowed = guest.vcpu.frozen_tsc().is_some();
    let mut stood_still = 0;
    for _ in 0..TRIES {
        guest.run()?;
        let [first, second] = guest.found()?;
        stood_still += u32::from(first == second);
    }
    Ok(Tsc {
        tries: TRIES,
        stood_still,
        slowed,
    })
}
