//! Fuzz input that reaches far: fragments of system code between plain noise.

use super::image::{ADDRESSES, CODE_BYTES};
use crate::differential::rng::Rng;

/// Opcodes worth meeting often, with how many operand bytes follow at random.
const FRAGMENTS: &[(&[u8], usize)] = &[
    (&[0x0f, 0x00], 1),
    (&[0x0f, 0x01], 1),
    (&[0x0f, 0x20], 1),
    (&[0x0f, 0x21], 1),
    (&[0x0f, 0x22], 1),
    (&[0x0f, 0x23], 1),
    (&[0x0f, 0x30], 0),
    (&[0x0f, 0x32], 0),
    (&[0x0f, 0x05], 0),
    (&[0x48, 0x0f, 0x07], 0),
    (&[0x0f, 0x34], 0),
    (&[0x0f, 0x35], 0),
    (&[0xcf], 0),
    (&[0x48, 0xcf], 0),
    (&[0x66, 0xcf], 0),
    (&[0xcb], 0),
    (&[0x48, 0xca], 2),
    (&[0xff], 1),
    (&[0x48, 0xff], 1),
    (&[0xcd], 1),
    (&[0xcc], 0),
    (&[0xf1], 0),
    (&[0xf4], 0),
    (&[0xfa], 0),
    (&[0xfb], 0),
    (&[0x9c], 0),
    (&[0x9d], 0),
    (&[0x8e], 1),
    (&[0x8c], 1),
    (&[0x0f, 0xa1], 0),
    (&[0x0f, 0xb2], 1),
    (&[0x0f, 0xb4], 1),
    (&[0xec], 0),
    (&[0xee], 0),
    (&[0xf3, 0x6c], 0),
    (&[0xf3, 0x6f], 0),
    (&[0xf3, 0xa4], 0),
    (&[0xf3, 0x48, 0xa5], 0),
    (&[0xf3, 0xaa], 0),
    (&[0xf3, 0x48, 0xab], 0),
    (&[0xf3, 0xa6], 0),
    (&[0xf2, 0xae], 0),
    (&[0xfd], 0),
    (&[0xfc], 0),
    (&[0xc8], 3),
    (&[0xc9], 0),
    (&[0x0f, 0xa2], 0),
    (&[0x0f, 0x31], 0),
    (&[0x0f, 0xae], 1),
    (&[0x0f, 0xc7], 1),
    (&[0xf0, 0x48, 0x0f, 0xc7], 1),
    (&[0xf0, 0x48, 0x0f, 0xb1], 1),
    (&[0xf0, 0x48, 0x01], 1),
    (&[0x48, 0x87], 1),
    (&[0x48, 0x89], 1),
    (&[0x48, 0x8b], 1),
    (&[0x88], 1),
    (&[0xc6], 2),
    (&[0x48, 0x0f, 0xab], 1),
    (&[0x0f, 0x29], 1),
    (&[0x66, 0x0f, 0x7f], 1),
    (&[0xdd], 1),
    (&[0xd9], 1),
    (&[0xdf], 1),
    (&[0x9b], 0),
    (&[0x0f, 0x38], 2),
    (&[0x66, 0x0f, 0x3a], 3),
    (&[0x0f, 0xf7], 1),
    (&[0x50], 0),
    (&[0x58], 0),
    (&[0x66, 0x54], 0),
    (&[0x5c], 0),
    (&[0x48, 0x94], 0),
    (&[0xc3], 0),
    (&[0xe8], 0),
    (&[0xeb], 1),
    (&[0x75], 1),
    (&[0x72], 1),
    (&[0xe2], 1),
    (&[0xe3], 1),
    (&[0x67], 0),
    (&[0x66], 0),
    (&[0x64, 0x48, 0x8b], 1),
    (&[0x0f, 0x0b], 0),
];

/// Input for [`super::case::run`].
pub fn input(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes: Vec<u8> = (0..4).map(|_| rng.bits() as u8).collect();
    // Traps, alignment checks and breakpoints in some cases only: they hide the rest.
    for bit in [2u8, 3, 4] {
        if rng.percent(75) {
            bytes[2] &= !(1 << bit);
        }
    }
    for _ in 0..16 {
        let choice = rng.bits() as u8;
        bytes.push(choice);
        if choice >= 224 {
            bytes.extend(rng.bits().to_le_bytes());
        }
    }
    let length = 16 + rng.below(CODE_BYTES - 16);
    let start = bytes.len();
    while bytes.len() < start + length {
        fragment(&mut rng, &mut bytes);
    }
    bytes
}

fn fragment(rng: &mut Rng, bytes: &mut Vec<u8>) {
    match rng.below(10) {
        0 | 1 => {
            for _ in 0..1 + rng.below(6) {
                bytes.push(rng.bits() as u8);
            }
        }
        2 => address(rng, bytes),
        3 => branch(rng, bytes),
        _ => {
            let (opcode, operands) = rng.pick(FRAGMENTS);
            bytes.extend(opcode);
            for index in 0..operands {
                bytes.push(if index == 0 {
                    operand(rng)
                } else {
                    rng.bits() as u8
                });
            }
        }
    }
}

/// Mostly a register operand or `[register]`, so that what follows is code again.
fn operand(rng: &mut Rng) -> u8 {
    let any = rng.bits() as u8;
    match rng.below(10) {
        0..=4 if any & 7 != 4 && any & 7 != 5 => any & 0x3f,
        5..=8 => any | 0xc0,
        _ => any,
    }
}

/// MOV r64, imm64 of an address that matters, sometimes into CR3.
fn address(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let register = rng.below(8) as u8;
    let address = rng.pick(&ADDRESSES)
        ^ if rng.percent(20) {
            rng.bits() & 0xfff
        } else {
            0
        };
    bytes.extend([0x48, 0xb8 | register]);
    bytes.extend(address.to_le_bytes());
    if rng.percent(15) {
        bytes.extend([0x0f, 0x22, 0xd8 | register]);
    }
}

/// A short way back or forth: loops, and jumps into the middle of instructions.
fn branch(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let distance = rng.below(48) as i8 - 30;
    match rng.below(3) {
        0 => {
            bytes.push(0xe8);
            bytes.extend(i32::from(distance).to_le_bytes());
        }
        1 => bytes.extend([0xe2, distance as u8]),
        _ => bytes.extend([0x70 | rng.below(16) as u8, distance as u8]),
    }
}
