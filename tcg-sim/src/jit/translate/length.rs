//! How many bytes an undefined instruction has. The processor finds out before it finds the
//! instruction undefined: a page fault in its last byte and the limit of 15 bytes come before #UD. What
//! the manuals leave open was found out on Intel family 6 model 207, by undefined instructions that end
//! where a page does. VEX and EVEX could not be: no host has them off.

/// What follows an opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    modrm: bool,
    /// ModRM names registers whatever its mode (control and debug registers).
    registers: bool,
    /// Bytes of the immediate.
    immediate: usize,
}

/// The bytes of an instruction as its first bytes tell; `None` if they do not. `compat`: of 32-bit code.
pub(super) fn length(bytes: &[u8], compat: bool) -> Option<usize> {
    let mut reader = Reader {
        bytes,
        at: 0,
        short_address: false,
    };
    let mut wide_operand = true;
    let mut narrow_address = false;
    let mut rex = 0;
    let opcode = loop {
        let byte = reader.next()?;
        match byte {
            0x66 => wide_operand = false,
            0x67 => narrow_address = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => {}
            0x40..=0x4f if !compat => {
                rex = byte;
                continue;
            }
            opcode => break opcode,
        }
        // Only next to the opcode does REX count.
        rex = 0;
    };
    let full = rex & 8 != 0;
    let operand = if wide_operand || full { 4 } else { 2 };
    let sizes = Sizes {
        operand,
        full,
        address: match (compat, narrow_address) {
            (false, false) => 8,
            (true, true) => 2,
            _ => 4,
        },
        // Intel ignores the prefix in 64-bit mode.
        branch: if compat { operand } else { 4 },
    };
    reader.short_address = sizes.address == 2;
    // Without registers in ModRM these are LES, LDS and BOUND in 32-bit code.
    let legacy = compat && reader.peek().is_none_or(|modrm| modrm < 0xc0);
    let shape = match opcode {
        0x0f => reader.two_bytes(sizes)?,
        0xc4 | 0xc5 | 0x62 if legacy => Shape {
            modrm: true,
            registers: false,
            immediate: 0,
        },
        0xc5 => {
            reader.skip(1)?;
            let opcode = reader.next()?;
            vector(1, opcode)
        }
        0xc4 => {
            let map = reader.next()? & 0x1f;
            reader.skip(1)?;
            vector(map, reader.next()?)
        }
        0x62 => {
            let map = reader.next()? & 7;
            reader.skip(2)?;
            vector(map, reader.next()?)
        }
        _ => one_byte(opcode, sizes),
    };
    let mut immediate = shape.immediate;
    if shape.modrm {
        let modrm = if shape.registers {
            reader.next()?
        } else {
            reader.operand()?
        };
        // TEST is the only one of its group that has an immediate.
        if modrm & 0x30 == 0 {
            immediate += match opcode {
                0xf6 => 1,
                0xf7 => sizes.operand,
                _ => 0,
            };
        }
    }
    Some(reader.at + immediate)
}

#[derive(Clone, Copy)]
struct Sizes {
    /// 4, or 2 with an operand-size prefix.
    operand: usize,
    /// REX.W.
    full: bool,
    /// 8, or 4 with an address-size prefix; 4 or 2 in 32-bit code.
    address: usize,
    /// Of a near branch.
    branch: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// ModRM is that of 16-bit addresses.
    short_address: bool,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        (0..bytes).try_for_each(|_| self.next().map(|_| ()))
    }

    /// Counts ModRM, SIB and displacement; returns ModRM.
    fn operand(&mut self) -> Option<u8> {
        let modrm = self.next()?;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if self.short_address {
            self.at += match (mode, rm) {
                (0, 6) | (2, _) => 2,
                (1, _) => 1,
                _ => 0,
            };
            return Some(modrm);
        }
        let mut displacement = match (mode, rm) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        };
        if mode != 3 && rm == 4 {
            let base = self.next()? & 7;
            if mode == 0 && base == 5 {
                displacement = 4;
            }
        }
        self.at += displacement;
        Some(modrm)
    }

    /// What follows 0F.
    fn two_bytes(&mut self, sizes: Sizes) -> Option<Shape> {
        let opcode = self.next()?;
        let (modrm, immediate) = match opcode {
            // The maps behind 0F 38 and 0F 3A, and those that are reserved beside them.
            0x38 | 0x39 | 0x3c | 0x3d => {
                self.skip(1)?;
                (true, 0)
            }
            0x3a | 0x3b | 0x3e | 0x3f => {
                self.skip(1)?;
                (true, 1)
            }
            0x80..=0x8f => (false, sizes.branch),
            0x04..=0x0c
            | 0x0e
            | 0x0f
            | 0x24..=0x27
            | 0x30..=0x37
            | 0x77
            | 0xa0..=0xa2
            | 0xa8..=0xaa
            | 0xc8..=0xcf => (false, 0),
            0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => (true, 1),
            _ => (true, 0),
        };
        Some(Shape {
            modrm,
            registers: matches!(opcode, 0x20..=0x23),
            immediate,
        })
    }
}

/// What follows an opcode behind a VEX or EVEX prefix.
fn vector(map: u8, opcode: u8) -> Shape {
    let (modrm, immediate) = match (map, opcode) {
        (1, 0x77) => (false, 0),
        (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) | (3, _) => (true, 1),
        _ => (true, 0),
    };
    Shape {
        modrm,
        registers: false,
        immediate,
    }
}

fn one_byte(opcode: u8, sizes: Sizes) -> Shape {
    let operand = sizes.operand;
    let (modrm, immediate) = match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => (true, 0),
            4 => (false, 1),
            5 => (false, operand),
            _ => (false, 0),
        },
        0x69 | 0x81 | 0xc7 => (true, operand),
        0x6b | 0x80 | 0x82 | 0x83 | 0xc0 | 0xc1 | 0xc6 => (true, 1),
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xf6 | 0xf7 | 0xfe | 0xff => (true, 0),
        0x68 | 0xa9 => (false, operand),
        0xe8 | 0xe9 => (false, sizes.branch),
        0x6a | 0x70..=0x7f | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xd4 | 0xd5 | 0xe0..=0xe7 | 0xeb => {
            (false, 1)
        }
        0xb8..=0xbf => (false, if sizes.full { 8 } else { operand }),
        0xa0..=0xa3 => (false, sizes.address),
        // Far pointers.
        0x9a | 0xea => (false, operand + 2),
        0xc8 => (false, 3),
        0xc2 | 0xca => (false, 2),
        _ => (false, 0),
    };
    Shape {
        modrm,
        registers: false,
        immediate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, EncodingKind};

    /// For what is defined, the decoder knows the length too.
    #[test]
    fn lengths_are_those_of_the_decoder() {
        compare(64);
        compare(32);
    }

    fn compare(bitness: u32) {
        let mut state = 1u64;
        let mut compared = 0;
        for _ in 0..2_000_000 {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let bytes = (u128::from(state) << 64 | u128::from(state.rotate_left(29))).to_be_bytes();
            let decoded = Decoder::new(bitness, &bytes, DecoderOptions::NONE).decode();
            let encoding = decoded.code().op_code().encoding();
            let gone = matches!(encoding, EncodingKind::XOP | EncodingKind::D3NOW);
            if !decoded.is_invalid() && !gone {
                assert_eq!(
                    length(&bytes, bitness == 32),
                    Some(decoded.len()),
                    "{bytes:02x?} {decoded}"
                );
                compared += 1;
            }
        }
        assert!(compared > 1_000_000, "{compared}");
    }

    #[test]
    fn what_the_first_bytes_do_not_tell_is_unknown() {
        assert_eq!(length(&[0xf0, 0x66], false), None);
        assert_eq!(length(&[0x0f, 0xb9], false), None);
        assert_eq!(length(&[0x9a], false), Some(7));
        assert_eq!(length(&[0x66, 0x9a], false), Some(6));
    }
}
