//! Self-modifying code: an instruction is overwritten with another one before it runs, or between two
//! times that it runs.

use super::Generator;
use super::assemble::{Item, Place, Reference};
use iced_x86::{Code, Instruction, Register};

impl Generator {
    /// Stores over an instruction that follows at once, follows later, or was executed before.
    pub(super) fn patch(&mut self) {
        let Some(old) = self.movable() else { return };
        let Some(new) = self.movable() else { return };
        let mut bytes = new.bytes().to_vec();
        if bytes.len() > old.length() {
            return;
        }
        bytes.resize(old.length(), 0x90);
        let behind = self.rng.percent(30);
        // Four bytes at a time; a rest of three takes two stores.
        let stores = bytes.len().div_ceil(4).max(1) + usize::from(bytes.len() % 4 == 3);
        let gap = if behind || self.rng.percent(50) {
            0
        } else {
            1 + self.rng.below(3)
        };
        let here = self.items.len();
        let victim = if behind { here } else { here + stores + gap };
        if behind {
            self.push(old.clone());
        }
        for (chunk, part) in bytes.chunks(4).enumerate() {
            self.store(victim, chunk as u64 * 4, part);
        }
        if behind {
            self.back_to(victim);
            return;
        }
        for _ in 0..gap {
            // A gap of plain instructions; each is one item, or a NOP where none was found.
            let item = self.movable().unwrap_or_else(nop);
            self.push(item);
        }
        self.push(old);
    }

    /// A plain instruction that can be moved.
    fn movable(&mut self) -> Option<Item> {
        for _ in 0..10 {
            let code = self.plain_code();
            let Some(instruction) = self.operands(code) else {
                continue;
            };
            let item = Item::new(instruction, &[]);
            if item.is_allowed() && item.is_position_independent() {
                return Some(item);
            }
        }
        None
    }

    fn store(&mut self, index: usize, delta: u64, bytes: &[u8]) {
        let (code, value) = match bytes {
            [a, b, c, d] => (Code::Mov_rm32_imm32, i32::from_le_bytes([*a, *b, *c, *d])),
            [first, rest @ ..] if rest.len() == 2 => {
                self.store(index, delta, &[*first]);
                return self.store(index, delta + 1, rest);
            }
            [a, b, ..] => (
                Code::Mov_rm16_imm16,
                i32::from(u16::from_le_bytes([*a, *b])),
            ),
            [a] => (Code::Mov_rm8_imm8, i32::from(*a)),
            [] => return,
        };
        let memory = iced_x86::MemoryOperand::with_base_displ_size(Register::RIP, 0x1000_0000, 8);
        let Ok(store) = Instruction::with2(code, memory, value) else {
            return;
        };
        let reference = Reference {
            place: Place::Memory,
            index,
            delta,
        };
        self.push(Item::referring(store, reference));
    }

    fn back_to(&mut self, index: usize) {
        self.guard(1);
        let mut jump = Instruction::default();
        jump.set_code(Code::Jmp_rel8_64);
        jump.set_op_kind(0, iced_x86::OpKind::NearBranch64);
        self.push(Item::referring(
            jump,
            Reference {
                place: Place::Branch,
                index,
                delta: 0,
            },
        ));
    }
}

fn nop() -> Item {
    Item::new(Instruction::with(Code::Nopd), &[])
}
