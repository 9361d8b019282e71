//! Makes a failing case small.

use super::case::Case;
use super::registers::FxImage;

/// NOP.
const NOP: u8 = 0x90;

/// The smallest case found that still fails. `fails` is asked about every candidate; the case itself
/// is taken to fail.
pub fn minimise(case: &Case, mut fails: impl FnMut(&Case) -> bool) -> Case {
    let mut best = case.clone();
    loop {
        let before = best.clone();
        blank_instructions(&mut best, &mut fails);
        remove_blanks(&mut best, &mut fails);
        simplify_registers(&mut best, &mut fails);
        simplify_fpu(&mut best, &mut fails);
        attempt(&mut best, &mut fails, |case| case.image = 0);
        if best == before {
            return best;
        }
    }
}

/// Keeps a change if the case still fails with it.
fn attempt(
    best: &mut Case,
    fails: &mut impl FnMut(&Case) -> bool,
    change: impl FnOnce(&mut Case),
) -> bool {
    let mut candidate = best.clone();
    change(&mut candidate);
    let keep = candidate != *best && fails(&candidate);
    if keep {
        *best = candidate;
    }
    keep
}

fn span(case: &Case, index: usize) -> std::ops::Range<usize> {
    let end = case
        .instructions
        .get(index + 1)
        .copied()
        .unwrap_or(case.code.len());
    case.instructions[index]..end
}

/// Overwrites instructions with NOPs, so that branches keep their distances.
fn blank_instructions(best: &mut Case, fails: &mut impl FnMut(&Case) -> bool) {
    for index in (0..best.instructions.len()).rev() {
        let range = span(best, index);
        attempt(best, fails, |case| case.code[range].fill(NOP));
    }
}

/// Takes NOPs out, at the end, at the start, or in between where no distance matters.
fn remove_blanks(best: &mut Case, fails: &mut impl FnMut(&Case) -> bool) {
    let mut index = best.instructions.len();
    while index > 0 && best.instructions.len() > 1 {
        index -= 1;
        let range = span(best, index);
        if range.is_empty() || best.code[range.clone()].iter().any(|&byte| byte != NOP) {
            continue;
        }
        // Once with what follows moved down, once with what precedes moved up.
        let removed = attempt(best, fails, |case| remove(case, index, range.clone()));
        if !removed {
            attempt(best, fails, |case| {
                let bytes = range.len() as u64;
                remove(case, index, range);
                case.code_at += bytes;
                case.start.rip += bytes;
            });
        }
    }
}

fn remove(case: &mut Case, index: usize, range: std::ops::Range<usize>) {
    let bytes = range.len();
    case.code.drain(range);
    case.instructions.remove(index);
    for start in &mut case.instructions[index..] {
        *start -= bytes;
    }
}

fn simplify_registers(best: &mut Case, fails: &mut impl FnMut(&Case) -> bool) {
    for index in 0..16 {
        attempt(best, fails, |case| case.start.gpr[index] = 0);
        if best.start.gpr[index] != 0 {
            attempt(best, fails, |case| case.start.gpr[index] = 1);
            attempt(best, fails, |case| case.start.gpr[index] &= 0xffff_ffff);
        }
    }
    attempt(best, fails, |case| case.start.rflags = 0x202);
    for bit in (0..22).filter(|&bit| bit != 1 && bit != 9) {
        attempt(best, fails, |case| case.start.rflags &= !(1 << bit));
    }
    attempt(best, fails, |case| case.start.fs_base = 0);
    attempt(best, fails, |case| case.start.gs_base = 0);
}

fn simplify_fpu(best: &mut Case, fails: &mut impl FnMut(&Case) -> bool) {
    attempt(best, fails, |case| case.start.fpu = FxImage::default());
    let plain = FxImage::default();
    attempt(best, fails, |case| case.start.fpu.set_fcw(plain.fcw()));
    attempt(best, fails, |case| case.start.fpu.set_fsw(0));
    attempt(best, fails, |case| case.start.fpu.set_ftw(0));
    attempt(best, fails, |case| case.start.fpu.set_fop(0));
    attempt(best, fails, |case| case.start.fpu.set_fip(0));
    attempt(best, fails, |case| case.start.fpu.set_fdp(0));
    attempt(best, fails, |case| case.start.fpu.set_mxcsr(plain.mxcsr()));
    for index in 0..8 {
        attempt(best, fails, |case| case.start.fpu.set_st(index, 0));
    }
    for index in 0..16 {
        attempt(best, fails, |case| case.start.fpu.set_xmm(index, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::super::generator::Generator;
    use super::*;

    /// A case fails here if INC EAX (FF C0) is an instruction of it, RBX is odd and XMM3 is not 0.
    fn fails(case: &Case) -> bool {
        let has = case
            .instructions
            .iter()
            .any(|&start| case.code[start..].starts_with(&[0xff, 0xc0]));
        has && case.start.gpr[3] & 1 == 1 && case.start.fpu.xmm(3) != 0
    }

    #[test]
    fn what_is_left_is_what_the_failure_needs() {
        let mut case = Generator::default().case(1);
        let at = case.instructions[case.instructions.len() / 2];
        case.code.splice(at..at, [0xff, 0xc0]);
        let middle = case.instructions.len() / 2;
        for start in &mut case.instructions[middle..] {
            *start += 2;
        }
        case.instructions.insert(middle, at);
        case.start.gpr[3] |= 1;
        case.start.fpu.set_xmm(3, 9);
        let small = minimise(&case, fails);
        assert_eq!(small.code, [0xff, 0xc0]);
        assert_eq!(small.instructions, [0]);
        assert_eq!(small.start.gpr.iter().sum::<u64>(), 1);
        assert_eq!(small.start.fpu.xmm(3), 9);
        assert_eq!((small.image, small.start.rflags), (0, 0x202));
    }
}
