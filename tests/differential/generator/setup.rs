//! Instructions put before others so that those do something.

use super::super::values;
use super::Generator;
use super::assemble::Item;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;

impl Generator {
    /// Prepares implicit operands of a form.
    pub(super) fn prepare(&mut self, code: Code) {
        let mnemonic = code.mnemonic();
        match mnemonic {
            Mnemonic::Div | Mnemonic::Idiv if self.rng.percent(75) => {
                let value = if self.rng.percent(80) {
                    0
                } else {
                    self.rng.below(16) as u64
                };
                self.load(RDX, value);
            }
            Mnemonic::Xlatb => self.pointer(RBX, 1),
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu => self.pointer(RDI, 16),
            Mnemonic::Leave => self.load_stack_frame(),
            Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b
                if self.rng.percent(40) =>
            {
                // Image 0 and much of the others hold zeros.
                self.load(RAX, 0);
                self.load(RDX, 0);
            }
            Mnemonic::Popf | Mnemonic::Popfq => self.push_flags(),
            _ => {}
        }
        if is_string(mnemonic) {
            self.prepare_string();
        }
    }

    fn prepare_string(&mut self) {
        self.pointer(RSI, 8);
        self.pointer(RDI, 8);
        if self.rng.percent(70) {
            let count = match self.rng.below(10) {
                0 => 0,
                1 => values::integer(&mut self.rng),
                2 => self.rng.below(1024) as u64,
                _ => self.rng.below(40) as u64,
            };
            self.load(RCX, count);
        }
    }

    /// A bit test whose register holds, mostly, a bit number that stays near the operand.
    pub(super) fn bit_string(&mut self, code: Code) {
        let Some(instruction) = self.operands(code) else {
            return;
        };
        let register = instruction.op1_register().full_register();
        let addresses = [instruction.memory_base(), instruction.memory_index()];
        let free = !addresses.iter().any(|r| r.full_register() == register);
        if instruction.op0_kind() == OpKind::Memory && register.is_gpr64() {
            if free && self.rng.percent(93) {
                let value = match self.rng.below(3) {
                    0 => self.rng.below(64) as u64,
                    1 => self.rng.below(4096) as u64,
                    _ => (self.rng.below(256) as u64).wrapping_neg(),
                };
                self.load(register as usize - Register::RAX as usize, value);
            } else if self.rng.percent(80) {
                return;
            }
        }
        let prefixes = self.prefixes(&instruction);
        let item = Item::new(instruction, &prefixes);
        if item.is_allowed() {
            self.push(item);
        }
    }

    /// MOV, POP or a far pointer into a segment register, with a selector that mostly can be loaded.
    pub(super) fn segment_load(&mut self) {
        let selector = match self.rng.below(10) {
            0..=3 => self.rng.below(4) as i32,
            4..=7 => 0x28 + self.rng.below(4) as i32,
            8 => self.rng.pick(&[0x33, 0x23]),
            _ => self
                .rng
                .pick(&[0x08, 0x10, 0x18, 0x30, 0x43, 0x53, 0x63, 0x7c, 0x80, 0xfff8]),
        };
        if self.rng.percent(30) {
            let push = Instruction::with1(Code::Pushq_imm32, selector).expect("PUSH encodes");
            self.push(Item::new(push, &[]));
            let code = self
                .rng
                .pick(&[Code::Popq_FS, Code::Popq_GS, Code::Popw_FS, Code::Popw_GS]);
            self.push_random(code);
            return;
        }
        let register = self.rng.pick(&[0usize, 1, 2, 3, 5, 6, 7, 8, 11, 15]);
        self.load(register, selector as u64);
        let segment = self.rng.pick(&[
            Register::ES,
            Register::DS,
            Register::FS,
            Register::GS,
            Register::SS,
            Register::FS,
        ]);
        let load = Instruction::with2(
            Code::Mov_Sreg_r32m16,
            segment,
            Register::EAX + register as u32,
        );
        self.push(Item::new(load.expect("MOV encodes"), &[]));
    }

    /// Makes a register point to memory, mostly, if it is not known to do so.
    fn pointer(&mut self, register: usize, alignment: u64) {
        let good =
            self.known[register].is_some_and(|v| super::super::layout::image_offset(v).is_some());
        if (!good || self.rng.percent(20)) && self.rng.percent(90) {
            let address = values::address(&mut self.rng, alignment);
            self.load(register, address);
        }
    }

    /// RBP near RSP, as a frame has it.
    fn load_stack_frame(&mut self) {
        if self.rng.percent(80) {
            let value = self.start.gpr[4].wrapping_add(8 * self.rng.below(8) as u64);
            self.load(5, value);
        }
    }

    /// Pushes flags for POPF: TF only now and then, since it ends the sequence.
    fn push_flags(&mut self) {
        let mut flags = self.rng.bits() as u32 & 0x3f_fdff;
        if !self.rng.percent(10) {
            flags &= !(1 << 8);
        }
        if !self.rng.percent(10) {
            flags &= !(1 << 18);
        }
        if self.rng.percent(90) {
            let push =
                Instruction::with1(Code::Pushq_imm32, flags as i32).expect("PUSH imm32 encodes");
            self.push(Item::new(push, &[]));
        }
    }

    /// Appends a MOV that sets a register, in one of its forms, and remembers the value.
    pub(super) fn load(&mut self, register: usize, value: u64) {
        if self.known[register] == Some(value) && self.rng.percent(50) {
            return;
        }
        let wide = Register::RAX + register as u32;
        let narrow = Register::EAX + register as u32;
        let instruction = if value >> 32 == 0 {
            Instruction::with2(Code::Mov_r32_imm32, narrow, value as u32)
        } else if value as i32 as u64 == value {
            Instruction::with2(Code::Mov_rm64_imm32, wide, value as i32)
        } else {
            Instruction::with2(Code::Mov_r64_imm64, wide, value)
        };
        self.push(Item::new(instruction.expect("MOV encodes"), &[]));
        self.known[register] = Some(value);
    }
}

fn is_string(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Movsb
            | Mnemonic::Movsw
            | Mnemonic::Movsq
            | Mnemonic::Cmpsb
            | Mnemonic::Cmpsw
            | Mnemonic::Cmpsq
            | Mnemonic::Stosb
            | Mnemonic::Stosw
            | Mnemonic::Stosd
            | Mnemonic::Stosq
            | Mnemonic::Lodsb
            | Mnemonic::Lodsw
            | Mnemonic::Lodsd
            | Mnemonic::Lodsq
            | Mnemonic::Scasb
            | Mnemonic::Scasw
            | Mnemonic::Scasd
            | Mnemonic::Scasq
            | Mnemonic::Movsd
            | Mnemonic::Cmpsd
    )
}
