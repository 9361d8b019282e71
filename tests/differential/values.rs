//! Values that find errors: edges of integers and floating-point classes.

use super::layout::{CODE, CONSTANT, DATA, STACK, WRAP};
use super::rng::Rng;

/// A 64-bit value: small, an edge, or random.
pub(super) fn integer(rng: &mut Rng) -> u64 {
    match rng.below(10) {
        0..=2 => rng.below(256) as u64,
        3 => (rng.below(256) as u64).wrapping_neg(),
        4..=6 => {
            let edge = 1u64 << rng.below(64);
            edge.wrapping_add(rng.pick(&[0, 0, 1, u64::MAX]))
        }
        7 => rng.pick(&[
            0,
            u64::MAX,
            0x7fff_ffff,
            0xffff_ffff,
            0x8000_0000,
            i64::MAX as u64,
        ]),
        // Repeated patterns: masks, packed bytes.
        8 => (rng.bits() & 0xff) * 0x0101_0101_0101_0101,
        _ => rng.bits(),
    }
}

/// An address that a sequence can use, near what it can use, or (seldom) neither.
pub(super) fn address(rng: &mut Rng, alignment: u64) -> u64 {
    let region = match rng.below(1000) {
        0..=569 => DATA,
        570..=819 => STACK,
        820..=969 => WRAP,
        970..=984 => CONSTANT,
        985..=993 => CODE,
        _ => {
            return rng.pick(&[
                0,
                8,
                CODE.base - 1,
                STACK.end(),
                0x7fff_ffff_f000,
                1 << 63,
                1 << 47,
            ]);
        }
    };
    let offset = match rng.below(20) {
        // Across the middle of two pages, across the end, across the start.
        0..=2 => (region.bytes() / 2).wrapping_sub(rng.below(17) as u64),
        3 if rng.percent(25) => region.bytes() - rng.below(17) as u64,
        4 if rng.percent(12) => (rng.below(8) as u64).wrapping_neg(),
        _ => rng.below(region.bytes() as usize - 64) as u64,
    };
    let address = region.base.wrapping_add(offset);
    if rng.percent(if alignment >= 16 { 92 } else { 50 }) {
        address & !(alignment.max(1) - 1)
    } else {
        address
    }
}

/// Bits of a double or, twice, of a single.
pub(super) fn float64(rng: &mut Rng) -> u64 {
    if rng.percent(50) {
        return u64::from(float32(rng)) << 32 | u64::from(float32(rng));
    }
    match rng.below(12) {
        0 => 0,
        1 => 1 << 63,
        2 => f64::INFINITY.to_bits() | (rng.bits() & 1 << 63),
        3 => 0x7ff8_0000_0000_0000 | (rng.bits() & 0x8007_ffff_ffff_ffff),
        4 => 0x7ff0_0000_0000_0001 | (rng.bits() & 0x8007_ffff_ffff_ffff),
        5 => rng.bits() & 0x800f_ffff_ffff_ffff,
        6 => rng.pick(&[
            1,
            0x0010_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0x000f_ffff_ffff_ffff,
        ]),
        7 => (rng.bits() as i32 as f64).to_bits(),
        8 => rng
            .pick(&[
                1.0f64,
                -1.0,
                0.5,
                2147483647.0,
                -2147483648.5,
                9.3e18,
                4503599627370496.5,
            ])
            .to_bits(),
        // Exponents around 1, so that sums and products stay finite.
        _ => (rng.bits() & 0x800f_ffff_ffff_ffff) | (1003 + rng.below(40) as u64) << 52,
    }
}

fn float32(rng: &mut Rng) -> u32 {
    let bits = rng.bits() as u32;
    match rng.below(10) {
        0 => 0,
        1 => 1 << 31,
        2 => f32::INFINITY.to_bits() | (bits & 1 << 31),
        3 => 0x7fc0_0000 | (bits & 0x803f_ffff),
        4 => 0x7f80_0001 | (bits & 0x803f_ffff),
        5 => bits & 0x807f_ffff,
        6 => (bits as i16 as f32).to_bits(),
        7 => rng
            .pick(&[1.0f32, -1.0, 0.5, 2147483648.0, f32::MIN_POSITIVE, f32::MAX])
            .to_bits(),
        _ => (bits & 0x807f_ffff) | (117 + rng.below(20) as u32) << 23,
    }
}

/// 80 bits of an extended value of any class, the invalid ones included.
pub(super) fn float80(rng: &mut Rng) -> u128 {
    let mantissa = match rng.below(6) {
        0 => 1 << 63,
        1 => 3 << 62 | rng.bits() >> 2,
        2 => rng.bits() >> 1,
        3 => 0,
        _ => rng.bits() | 1 << 63,
    };
    let exponent = match rng.below(8) {
        0 => 0,
        1 => 0x7fff,
        2 => rng.pick(&[1, 0x7ffe, 0x3fff, 0x403e, 0x403d, 0x3fbe, 0x43fe, 0x3c01]),
        3 => rng.below(0x8000) as u64,
        _ => 0x3fff - 20 + rng.below(60) as u64,
    };
    u128::from(exponent | (rng.bits() & 0x8000)) << 64 | u128::from(mantissa)
}

/// Sixteen bytes for a vector register or memory.
pub(super) fn vector(rng: &mut Rng) -> u128 {
    let mut half = || match rng.below(4) {
        0 => rng.bits(),
        1 => integer(rng),
        _ => float64(rng),
    };
    u128::from(half()) << 64 | u128::from(half())
}

/// A valid MXCSR, with all exceptions masked more often than not.
pub(super) fn mxcsr(rng: &mut Rng) -> u32 {
    let random = rng.bits() as u32 & 0xffff;
    match rng.below(10) {
        0..=4 => 0x1f80,
        5..=7 => random | 0x1f80,
        8 => (random & 0xffc0) | 0x1f00,
        _ => random,
    }
}

/// A valid x87 control word, with all exceptions masked more often than not.
pub(super) fn fcw(rng: &mut Rng) -> u16 {
    let random = (rng.bits() as u16 & 0x1f3f) | 0x40;
    match rng.below(10) {
        0..=4 => 0x37f,
        5..=8 => random | 0x3f,
        _ => random,
    }
}
