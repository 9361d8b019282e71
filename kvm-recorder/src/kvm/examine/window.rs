//! Where an interrupt window is reported.

use super::{CODE, Level, OUT, ProbeError, SmallGuest};
use crate::kvm::Host;
use machine::cpuid::CpuidTable;
use machine::vcpu::{Exit, Vcpu};

/// How often each way to open the interrupt window is tried.
const WINDOWS: u32 = 20;

const NOP: u8 = 0x90;
/// PUSH imm32 of RFLAGS with IF set.
const PUSH_FLAGS: [u8; 5] = [0x68, 0x02, 0x02, 0, 0];

/// Whether the first open interrupt window is reported where it opens, after STI, POPF and IRET. If it
/// comes later, positions cannot be told by it.
///
/// # Errors
/// [`ProbeError`].
pub fn window_is_exact(host: &Host) -> Result<bool, ProbeError> {
    let sti = [&[0xfb, NOP][..]].concat();
    let popf = [&PUSH_FLAGS[..], &[0x9d]].concat();
    for opening in [sti, popf, iret()] {
        // The OUT, what opens the window, and a slide behind it.
        let code = [&OUT[..], &opening, &[NOP; 200]].concat();
        let opens_at = CODE + (OUT.len() + opening.len()) as u64;
        let mut guest = SmallGuest::new(host, &CpuidTable::of_host(), Level::Kernel, &code)?;
        for _ in 0..WINDOWS {
            guest.run()?;
            guest.vcpu.request_interrupt_window(true);
            match guest.go_on()? {
                Exit::InterruptWindow if guest.vcpu.rip()? == opens_at => {}
                Exit::InterruptWindow => return Ok(false),
                other => return Err(ProbeError::Unexpected(other)),
            }
        }
    }
    Ok(true)
}

/// IRETQ to the instruction behind it: SS, RSP, RFLAGS, CS and RIP of the guest's start are pushed.
fn iret() -> Vec<u8> {
    let head = [
        // PUSH 0x18 (SS); PUSH RSP, which is 8 too low and good enough.
        &[0x6a, 0x18, 0x54][..],
        &PUSH_FLAGS,
        // PUSH 0x10 (CS).
        &[0x6a, 0x10],
    ]
    .concat();
    // PUSH imm32 and IRETQ have 5 and 2 bytes.
    let after = CODE as u32 + (OUT.len() + head.len() + 5 + 2) as u32;
    let target = after.to_le_bytes();
    [&head[..], &[0x68], &target, &[0x48, 0xcf]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::state::rflags;

    #[test]
    fn the_pushed_flags_have_interrupts_on() {
        let [_, flags @ ..] = PUSH_FLAGS;
        let flags = u64::from(u32::from_le_bytes(flags));
        assert_eq!(flags, rflags::IF | rflags::FIXED);
        assert_eq!(super::super::start(Level::Kernel).rflags & rflags::IF, 0);
    }
}
