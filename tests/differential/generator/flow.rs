//! Transfers of control. Forward ones are free; each backward one is guarded by a counter in memory,
//! so that sequences end.

use super::super::forms::{Kind, kind};
use super::super::layout::DATA;
use super::super::values;
use super::Generator;
use super::assemble::{Item, Place, Reference};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// Counters of backward transfers: bytes at the end of the data, which few operands reach.
const COUNTERS: u64 = DATA.base + 0x1800;

impl Generator {
    /// A near branch with any condition to an item, mostly a later one.
    pub(super) fn branch(&mut self) {
        let code = self.forms.branch[self.rng.below(self.forms.branch.len())];
        // Those that truncate RIP to 16 bits end the sequence where they are taken.
        if code.op_code().operand_size() == 16 && self.rng.percent(96) {
            return self.branch();
        }
        if code.op_code().op_kind(0) == iced_x86::OpCodeOperandKind::br64_1 && self.rng.percent(20)
        {
            self.load(1, self.rng.clone().below(3) as u64);
        }
        let (index, backward) = self.choose_target();
        if backward {
            self.guard(1);
        }
        let delta = self.delta(backward);
        let mut branch = Instruction::default();
        branch.set_code(code);
        branch.set_op_kind(
            0,
            if code.op_code().operand_size() == 16 {
                iced_x86::OpKind::NearBranch16
            } else {
                iced_x86::OpKind::NearBranch64
            },
        );
        let reference = Reference {
            place: Place::Branch,
            index,
            delta,
        };
        if code.op_code().operand_size() == 16 {
            branch.set_near_branch16(self.rng.bits() as u16);
            // The encoder takes 16-bit targets only near the instruction: write the bytes.
            let item = Self::raw_branch16(code, self.rng.bits());
            if let Some(item) = item {
                self.push(item);
            }
            return;
        }
        let item = Item::referring(branch, reference);
        if item.length() > 0 {
            self.push(item);
        }
    }

    fn raw_branch16(code: Code, random: u64) -> Option<Item> {
        let op = code.op_code();
        let mut bytes = vec![0x66];
        if op.op_code_len() == 2 || matches!(op.table(), iced_x86::OpCodeTableKind::T0F) {
            bytes.push(0x0f);
        }
        bytes.push(op.op_code() as u8);
        bytes.push(random as u8);
        if op.op_kind(0) == iced_x86::OpCodeOperandKind::br16_2 {
            bytes.push((random >> 8) as u8);
        }
        Item::raw_transfer(bytes)
    }

    /// An item and whether it lies behind.
    fn choose_target(&mut self) -> (usize, bool) {
        let here = self.items.len();
        if here > 0 && self.rng.percent(25) {
            let back = 1 + self.rng.below(here.min(6));
            (here - back, true)
        } else {
            // Past the guard that is not there, past the branch itself.
            (here + 1 + self.rng.below(5), false)
        }
    }

    /// Seldom into the middle of an instruction.
    fn delta(&mut self, backward: bool) -> u64 {
        if !backward && self.rng.percent(3) {
            1 + self.rng.below(3) as u64
        } else {
            0
        }
    }

    /// Skips the next `guarded` items once a counter in memory has run down.
    pub(super) fn guard(&mut self, guarded: usize) {
        let counter = COUNTERS + self.rng.below(64) as u64 * 4;
        let memory = MemoryOperand::with_base_displ_size(Register::None, counter as i64, 8);
        // Fewer than 16 rounds, whatever the counter holds.
        let mask = 1i32 << self.rng.below(4);
        let xor_in = Instruction::with2(Code::Sub_rm32_imm8, memory, 1).expect("SUB encodes");
        let test = Instruction::with2(Code::Test_rm32_imm32, memory, mask).expect("TEST encodes");
        // What jumps behind the counting must count all the same.
        let first = self.items.len();
        self.push(Item::new(xor_in, &[]));
        self.guarded = Some((first, first + 3 + guarded));
        self.push(Item::new(test, &[]));
        let index = self.items.len() + 1 + guarded;
        let mut skip = Instruction::default();
        skip.set_code(Code::Je_rel8_64);
        skip.set_op_kind(0, iced_x86::OpKind::NearBranch64);
        self.push(Item::referring(
            skip,
            Reference {
                place: Place::Branch,
                index,
                delta: 0,
            },
        ));
    }

    /// A near transfer through a register, memory or the stack.
    pub(super) fn indirect(&mut self) {
        let code = self.forms.indirect[self.rng.below(self.forms.indirect.len())];
        if code.op_code().operand_size() == 16 && self.rng.percent(96) {
            return self.indirect();
        }
        let backward = !self.items.is_empty() && self.rng.percent(20);
        if backward {
            self.guard(2);
        }
        // The instructions below are one (the address) or two (the transfer) items.
        let here = self.items.len();
        let index = if backward {
            here.saturating_sub(3 + 1 + self.rng.below(4))
        } else {
            here + 2 + self.rng.below(4)
        };
        let delta = self.delta(backward);
        let reference = Reference {
            place: Place::Immediate,
            index,
            delta,
        };
        if kind(code) == Kind::Indirect && code.op_code().op_count() == 0
            || code.op_code().op_kind(0) == iced_x86::OpCodeOperandKind::imm16
        {
            self.return_to(code, reference);
        } else {
            self.jump_through(code, reference);
        }
    }

    fn return_to(&mut self, code: Code, reference: Reference) {
        let push = Instruction::with1(Code::Pushq_imm32, 0x1000_0000).expect("PUSH encodes");
        self.push(Item::referring(push, reference));
        self.push_random(code);
    }

    fn jump_through(&mut self, code: Code, reference: Reference) {
        let mut transfer = Instruction::default();
        transfer.set_code(code);
        let wide = code.op_code().operand_size() == 64 || code.op_code().force_op_size64();
        if self.rng.percent(60) {
            let register = self
                .rng
                .pick(&[0u32, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
            let load = Instruction::with2(
                Code::Mov_r32_imm32,
                Register::EAX + register,
                0x1000_0000u32,
            );
            self.push(Item::referring(load.expect("MOV encodes"), reference));
            transfer.set_op_kind(0, iced_x86::OpKind::Register);
            let first = if wide { Register::RAX } else { Register::AX };
            transfer.set_op_register(0, first + register);
        } else {
            let at = values::address(&mut self.rng, 8) as i32;
            let memory = MemoryOperand::with_base_displ_size(Register::None, i64::from(at), 8);
            let store = Instruction::with2(Code::Mov_rm64_imm32, memory, 0x1000_0000i32);
            self.push(Item::referring(store.expect("MOV encodes"), reference));
            transfer.set_op_kind(0, iced_x86::OpKind::Memory);
            transfer.set_memory_displ_size(8);
            transfer.set_memory_displacement64(at as u64);
        }
        self.push(Item::new(transfer, &[]));
    }

    /// A far transfer to this code segment, to the 32-bit one, or to one that faults.
    pub(super) fn far(&mut self) {
        let code = self.forms.far[self.rng.below(self.forms.far.len())];
        let bytes = match code.op_code().operand_size() {
            16 => 2,
            32 => 4,
            _ => 8,
        };
        let selector = match self.rng.below(10) {
            0..=4 => 0x33,
            // What follows is 32-bit code then.
            5..=6 => 0x23,
            _ => self
                .rng
                .pick(&[0, 3, 0x10, 0x2b, 0x30, 0x33, 0x7f, 0x88, 0xfff8]),
        };
        let is_return = matches!(
            code.mnemonic(),
            iced_x86::Mnemonic::Iret
                | iced_x86::Mnemonic::Iretd
                | iced_x86::Mnemonic::Iretq
                | iced_x86::Mnemonic::Retf
        );
        if !is_return || bytes == 2 {
            return self.push_random(code);
        }
        // Only 8-byte returns take what PUSH leaves; the smaller ones find what the stack holds.
        let here = self.items.len();
        let is_iret = code.mnemonic() == iced_x86::Mnemonic::Iretq;
        if bytes == 8 && is_iret {
            let stack = self.known[4].unwrap_or(self.start.gpr[4]);
            self.push_value(0x2b);
            let pointer = if self.rng.percent(90) {
                stack as i32
            } else {
                0
            };
            let mut flags = (self.rng.bits() as i32 & 0x24_0cd5) | 0x202;
            if !self.rng.percent(5) {
                flags &= !(1 << 18);
            }
            self.push_value(pointer);
            self.push_value(flags);
        }
        self.push_value(selector);
        let after = self.items.len() + 2 + self.rng.below(3);
        let push = Instruction::with1(Code::Pushq_imm32, 0x1000_0000).expect("PUSH encodes");
        self.push(Item::referring(
            push,
            Reference {
                place: Place::Immediate,
                index: after,
                delta: 0,
            },
        ));
        debug_assert!(self.items.len() > here);
        self.push_random(code);
    }

    /// A far return to 32-bit code, then selectors for DS, ES, FS and GS: mostly usable ones.
    pub(super) fn enter_compat(&mut self) {
        self.push_value(0x23);
        let push = Instruction::with1(Code::Pushq_imm32, 0x1000_0000).expect("PUSH encodes");
        let reference = Reference {
            place: Place::Immediate,
            index: self.items.len() + 2,
            delta: 0,
        };
        self.push(Item::referring(push, reference));
        self.push(Item::new(Instruction::with(Code::Retfq), &[]));
        for segment in [Register::DS, Register::ES, Register::FS, Register::GS] {
            if self.rng.percent(60) {
                let selector = self
                    .rng
                    .pick(&[0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x23, 0x33, 0]);
                let value = Instruction::with2(Code::Mov_r32_imm32, Register::EAX, selector);
                self.push(Item::new(value.expect("MOV encodes"), &[]));
                let load = Instruction::with2(Code::Mov_Sreg_r32m16, segment, Register::EAX);
                self.push(Item::new(load.expect("MOV encodes"), &[]));
            }
        }
    }

    fn push_value(&mut self, value: i32) {
        let push = Instruction::with1(Code::Pushq_imm32, value).expect("PUSH encodes");
        self.push(Item::new(push, &[]));
    }
}
