//! What RF says: string instructions under way, and some that KVM's emulator has ended and not retired.
//!
//! After the last iteration of a REP instruction that it emulates (all INS and OUTS), KVM leaves RIP on the
//! instruction, RCX zero and RF set; only when it looks at the instruction again does RIP move. Processors
//! retire the instruction with its last iteration.

use machine::state::{CpuState, Gpr, Seg, rflags};

/// Breakpoints in DR7 that are enabled.
const ENABLED: u64 = 0xff;

/// What a REP string instruction has besides its opcode.
struct Rep {
    length: u64,
    /// An address-size prefix: the counter is half as wide.
    narrow: bool,
}

/// Makes a state in which RF is set the one that the guest should see, given the bytes at RIP: retires a
/// string instruction that has ended, and takes away an RF that is not the guest's. Returns whether anything
/// changed.
///
/// Faults that are the host's, such as a page that is not mapped yet, leave RF set, and an interrupt that is
/// injected there would push it. Outside of string instructions under way RF only keeps breakpoints on
/// instructions from hitting twice, so it is taken away where there are none.
pub(super) fn settle(cpu: &mut CpuState, bytes: &[u8]) -> bool {
    if !is_resuming(cpu.rflags) {
        return false;
    }
    let code_64 = cpu.segs[Seg::Cs as usize].long_mode();
    let Some(rep) = parse(bytes, code_64) else {
        let no_breakpoints = cpu.dr7 & ENABLED == 0;
        if no_breakpoints {
            cpu.rflags &= !rflags::RF;
        }
        return no_breakpoints;
    };
    let default_32 = cpu.segs[Seg::Cs as usize].default_32();
    let counter = match (code_64, default_32 != rep.narrow, rep.narrow) {
        (true, _, false) => u64::MAX,
        (true, _, true) | (false, true, _) => 0xffff_ffff,
        (false, false, _) => 0xffff,
    };
    if cpu.gpr[Gpr::Rcx as usize] & counter != 0 {
        return false;
    }
    cpu.rip = cpu.rip.wrapping_add(rep.length);
    if !code_64 {
        cpu.rip &= 0xffff_ffff;
    }
    cpu.rflags &= !rflags::RF;
    true
}

/// Whether there is anything to look at: RF is set while a string instruction is under way.
pub(super) fn is_resuming(flags: u64) -> bool {
    flags & rflags::RF != 0
}

fn parse(bytes: &[u8], code_64: bool) -> Option<Rep> {
    let (mut repeats, mut narrow) = (false, false);
    for (length, byte) in (1..).zip(bytes) {
        match byte {
            0xf2 | 0xf3 => repeats = true,
            0x67 => narrow = true,
            0x66 | 0xf0 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
            0x40..=0x4f if code_64 => {}
            0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => {
                return repeats.then_some(Rep { length, narrow });
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(rcx: u64, flags: u64, bytes: &[u8]) -> Option<u64> {
        let mut cpu = CpuState::long_mode(0x1000, 0, 0);
        cpu.gpr[Gpr::Rcx as usize] = rcx;
        cpu.rflags |= flags;
        settle(&mut cpu, bytes).then_some(cpu.rip)
    }

    #[test]
    fn only_strings_under_way_keep_rf_and_only_ended_ones_retire() {
        let rows: &[(u64, u64, &[u8], Option<u64>)] = &[
            (0, rflags::RF, &[0xf3, 0x6d, 0x90], Some(0x1002)),
            (0, rflags::RF, &[0xf3, 0x48, 0xab], Some(0x1003)),
            (0, rflags::RF, &[0x66, 0xf2, 0xae], Some(0x1003)),
            (1 << 32, rflags::RF, &[0x67, 0xf3, 0xa4], Some(0x1003)),
            (1 << 32, rflags::RF, &[0xf3, 0xa4], None),
            (1, rflags::RF, &[0xf3, 0x6d], None),
            (0, 0, &[0xf3, 0x6d], None),
            // RF alone is taken away.
            (0, rflags::RF, &[0x6d], Some(0x1000)),
            (0, rflags::RF, &[0xf3, 0x90], Some(0x1000)),
            (0, rflags::RF, &[0xf3, 0xa8], Some(0x1000)),
            (0, rflags::RF, &[0xf3], Some(0x1000)),
        ];
        for (rcx, flags, bytes, expected) in rows {
            assert_eq!(ended(*rcx, *flags, bytes), *expected, "{bytes:02x?}");
        }
    }
}
