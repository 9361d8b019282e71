//! Starting states.

use super::super::image;
use super::super::layout::{CODE, DATA, STACK};
use super::super::registers::{FxImage, Registers, START_SELECTORS};
use super::super::rng::Rng;
use super::super::values;

/// The six arithmetic flags.
const OSZAPC: u64 = 0x8d5;
/// Bits 1 and 9: always set for a process.
const FIXED: u64 = 0x202;

/// Registers with values at the edges, pointers, and random ones. RIP is not set.
pub(super) fn registers(rng: &mut Rng) -> Registers {
    let mut registers = Registers {
        rip: CODE.base,
        rflags: rflags(rng),
        fs_base: segment_base(rng),
        gs_base: segment_base(rng),
        selectors: START_SELECTORS,
        fpu: fpu(rng),
        ..Registers::default()
    };
    for value in &mut registers.gpr {
        *value = match rng.below(20) {
            0..=7 => values::address(rng, 8),
            8..=12 => rng.below(65) as u64,
            _ => values::integer(rng),
        };
    }
    registers.gpr[4] = stack_pointer(rng);
    registers
}

fn stack_pointer(rng: &mut Rng) -> u64 {
    let offset = match rng.below(40) {
        // Near the boundary of the pages, near the ends.
        0..=3 => STACK.bytes() / 2 + rng.below(33) as u64 - 16,
        4 => STACK.bytes() - rng.below(17) as u64,
        5 => rng.below(17) as u64,
        6 => return values::address(rng, 8),
        7 if rng.percent(20) => return values::integer(rng),
        _ => 1024 + rng.below(6144) as u64,
    };
    let alignment = rng.pick(&[16, 16, 8, 8, 8, 8, 2, 1]);
    (STACK.base + offset) & !(alignment - 1)
}

fn rflags(rng: &mut Rng) -> u64 {
    let arithmetic = match rng.below(4) {
        0 => 0,
        1 => OSZAPC,
        _ => rng.bits() & OSZAPC,
    };
    let bit = |set: bool, bit: u32| u64::from(set) << bit;
    FIXED
        | arithmetic
        | bit(rng.percent(15), 10)
        | bit(rng.percent(1), 14)
        | bit(rng.percent(1), 18)
        | bit(rng.percent(30), 21)
}

fn segment_base(rng: &mut Rng) -> u64 {
    match rng.below(5) {
        0 => 0,
        1 => DATA.base + rng.below(0x1000) as u64,
        2 => rng.below(1 << 20) as u64,
        3 => (rng.below(1 << 20) as u64).wrapping_neg(),
        // Sign-extended from bit 47: canonical.
        _ => ((rng.bits() << 16) as i64 >> 16) as u64,
    }
}

fn fpu(rng: &mut Rng) -> FxImage {
    let mut fpu = image::fpu(rng);
    if rng.percent(25) {
        // As many programs have it: an empty stack, the last instruction unknown.
        fpu.set_fcw(0x37f);
        fpu.set_fsw(0);
        fpu.set_ftw(0);
    }
    if rng.percent(25) {
        fpu.set_fop(rng.bits() as u16 & 0x7ff);
        fpu.set_fip(rng.bits() >> 17);
        fpu.set_fdp(rng.bits() >> 17);
    }
    fpu
}
