//! Random operands of a form.

use super::super::layout::CODE;
use super::super::values;
use super::Generator;
use iced_x86::{Code, Instruction, MemorySize, OpCodeOperandKind, OpKind, Register};

/// Encoding index of the stack pointer.
const RSP: usize = 4;

impl Generator {
    /// An instruction of the form with random operands. None where the draw cannot be encoded.
    pub(super) fn operands(&mut self, code: Code) -> Option<Instruction> {
        let op = code.op_code();
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        for operand in 0..op.op_count() {
            self.operand(&mut instruction, operand, op.op_kind(operand))?;
        }
        let in_memory = (0..op.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        if op.can_use_lock_prefix() && in_memory && self.rng.percent(30) {
            instruction.set_has_lock_prefix(true);
        }
        if op.can_use_rep_prefix() && self.rng.percent(60) {
            instruction.set_has_rep_prefix(true);
        }
        if op.can_use_repne_prefix() && self.rng.percent(30) {
            instruction.set_has_rep_prefix(false);
            instruction.set_has_repne_prefix(true);
        }
        Some(instruction)
    }

    fn operand(&mut self, to: &mut Instruction, n: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let register = match kind {
            K::mem | K::mem_offs | K::mem_mib | K::sibmem => {
                return self.memory(to, n, kind == K::mem_offs);
            }
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
                if self.rng.percent(55) =>
            {
                return self.memory(to, n, false);
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => self.gpr8(),
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => self.gpr(Register::AX),
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode => self.gpr(Register::EAX),
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode => self.gpr(Register::RAX),
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + self.rng.below(8) as u32,
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm => Register::XMM0 + self.rng.below(16) as u32,
            K::seg_reg => Register::ES + self.rng.below(6) as u32,
            K::cr_reg => {
                self.rng
                    .pick(&[Register::CR0, Register::CR3, Register::CR4, Register::CR8])
            }
            K::dr_reg => Register::DR0 + self.rng.below(8) as u32,
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + self.rng.below(8) as u32,
            _ => return self.immediate(to, n, kind),
        };
        to.set_op_kind(n, OpKind::Register);
        to.set_op_register(n, register);
        Some(())
    }

    /// A general register of the size of `first`. The stack pointer is rare: what writes it mostly
    /// ends the sequence soon.
    fn gpr(&mut self, first: Register) -> Register {
        let index = self.rng.below(16);
        let index = if index == RSP && self.rng.percent(80) {
            0
        } else {
            index
        };
        first + index as u32
    }

    fn gpr8(&mut self) -> Register {
        // AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8L..R15L.
        let register = Register::AL + self.rng.below(20) as u32;
        if register == Register::SPL && self.rng.percent(80) {
            Register::AH
        } else {
            register
        }
    }

    fn immediate(&mut self, to: &mut Instruction, n: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let value = values::integer(&mut self.rng);
        let (op_kind, value) = match kind {
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8 if n == 1 && to.mnemonic() == iced_x86::Mnemonic::Enter => {
                (OpKind::Immediate8_2nd, value & 0x1f)
            }
            K::imm8 => (OpKind::Immediate8, value & 0xff),
            K::imm8sex16 => (OpKind::Immediate8to16, value as i8 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, value as i8 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, value as i8 as u64),
            K::imm16 => (OpKind::Immediate16, value & 0xffff),
            K::imm32 => (OpKind::Immediate32, value & 0xffff_ffff),
            K::imm32sex64 => (OpKind::Immediate32to64, value as i32 as u64),
            K::imm64 => (OpKind::Immediate64, value),
            _ => return self.string_operand(to, n, kind),
        };
        to.set_op_kind(n, op_kind);
        match op_kind {
            OpKind::Immediate8_2nd => to.set_immediate8_2nd(value as u8),
            OpKind::Immediate64 => to.set_immediate64(value),
            OpKind::Immediate8 => to.set_immediate8(value as u8),
            OpKind::Immediate16 => to.set_immediate16(value as u16),
            OpKind::Immediate32 => to.set_immediate32(value as u32),
            OpKind::Immediate8to16 => to.set_immediate8to16(value as i16),
            OpKind::Immediate8to32 => to.set_immediate8to32(value as i32),
            OpKind::Immediate8to64 => to.set_immediate8to64(value as i64),
            _ => to.set_immediate32to64(value as i64),
        }
        Some(())
    }

    /// Memory through RSI, RDI or RBX. All operands of an instruction use one address size.
    fn string_operand(
        &mut self,
        to: &mut Instruction,
        n: u32,
        kind: OpCodeOperandKind,
    ) -> Option<()> {
        use OpCodeOperandKind as K;
        let first = (0..n).map(|k| to.op_kind(k)).find(|&k| {
            matches!(
                k,
                OpKind::MemorySegRSI
                    | OpKind::MemorySegESI
                    | OpKind::MemoryESRDI
                    | OpKind::MemoryESEDI
            )
        });
        let wide = match first {
            Some(OpKind::MemorySegRSI | OpKind::MemoryESRDI) => true,
            Some(_) => false,
            None => self.rng.percent(80),
        };
        let op_kind = match (kind, wide) {
            (K::seg_rSI, true) => OpKind::MemorySegRSI,
            (K::seg_rSI, false) => OpKind::MemorySegESI,
            (K::es_rDI, true) => OpKind::MemoryESRDI,
            (K::es_rDI, false) => OpKind::MemoryESEDI,
            (K::seg_rDI, true) => OpKind::MemorySegRDI,
            (K::seg_rDI, false) => OpKind::MemorySegEDI,
            (K::seg_rBX_al, _) => {
                to.set_memory_base(if wide { Register::RBX } else { Register::EBX });
                to.set_memory_index(Register::AL);
                OpKind::Memory
            }
            _ => return None,
        };
        to.set_op_kind(n, op_kind);
        Some(())
    }

    /// A memory operand that mostly lies where the form can use it.
    fn memory(&mut self, to: &mut Instruction, n: u32, offset_only: bool) -> Option<()> {
        to.set_op_kind(n, OpKind::Memory);
        let size = to.code().op_code().memory_size();
        let target = self.target(to, size);
        if offset_only {
            let narrow = self.rng.percent(15);
            to.set_memory_displ_size(if narrow { 4 } else { 8 });
            to.set_memory_displacement64(if narrow { target & 0xffff_ffff } else { target });
            return Some(());
        }
        let (segment, base) = self.segment();
        to.set_segment_prefix(segment);
        let target = target.wrapping_sub(base);
        match self.rng.below(200) {
            0..=39 if segment == Register::None => self.rip_relative(to, target),
            0..=59 => self.absolute(to, target),
            60..=75 => self.narrow(to, target),
            76 => self.wild(to),
            _ => self.based(to, target)?,
        }
        Some(())
    }

    /// The address an operand should have.
    fn target(&mut self, to: &Instruction, size: MemorySize) -> u64 {
        use super::super::image::{FCW_AT, FPU_STATE_AT, FXSAVE_AT, MXCSR_AT};
        use super::super::layout::DATA;
        use iced_x86::Mnemonic as M;
        let prepared = match to.mnemonic() {
            M::Fxrstor | M::Fxrstor64 => Some(self.rng.pick(&FXSAVE_AT)),
            M::Frstor | M::Fldenv => Some(self.rng.pick(&FPU_STATE_AT)),
            M::Ldmxcsr => Some(MXCSR_AT + 4 * self.rng.below(8) as u64),
            M::Fldcw => Some(FCW_AT + 2 * self.rng.below(8) as u64),
            _ => None,
        };
        if let Some(offset) = prepared.filter(|_| self.rng.percent(90)) {
            return DATA.base + offset;
        }
        if let Some(last) = self.last_target.filter(|_| self.rng.percent(15)) {
            let bytes = size.size().next_power_of_two() as u64;
            return if last % 64 + bytes > 64 && self.rng.percent(90) {
                last & !(bytes - 1)
            } else {
                last
            };
        }
        let alignment = match to.mnemonic() {
            M::Fxsave | M::Fxsave64 => 16,
            _ => size.size() as u64,
        };
        let mut target = values::address(&mut self.rng, alignment);
        let op = to.code().op_code();
        let locks = op.can_use_lock_prefix() || to.mnemonic() == M::Xchg;
        let bytes = size.size() as u64;
        if locks && bytes.is_power_of_two() && target % 64 + bytes > 64 {
            // The kernel makes whoever locks two cache lines at once sleep for 10 ms.
            if !self.rng.per_mille(10) {
                target &= !(bytes - 1);
            }
        }
        self.last_target = Some(target);
        target
    }

    /// A segment prefix that adds a base, now and then, and the base.
    fn segment(&mut self) -> (Register, u64) {
        match self.rng.below(100) {
            0..=2 => (Register::FS, self.start.fs_base),
            3..=5 => (Register::GS, self.start.gs_base),
            _ => (Register::None, 0),
        }
    }

    fn rip_relative(&mut self, to: &mut Instruction, target: u64) {
        // The encoder wants an address in reach; 32-bit addresses wrap around to all others.
        let near = target.wrapping_sub(CODE.base) as i32 / 2;
        let in_reach = CODE.base.wrapping_add_signed(i64::from(near) * 2) == target & !1;
        let wide = in_reach && self.rng.percent(90);
        if !in_reach {
            return self.narrow(to, target);
        }
        to.set_memory_base(if wide { Register::RIP } else { Register::EIP });
        to.set_memory_displ_size(if wide { 8 } else { 4 });
        to.set_memory_displacement64(if wide { target } else { target & 0xffff_ffff });
    }

    fn absolute(&mut self, to: &mut Instruction, target: u64) {
        if target as i32 as u64 != target && self.rng.percent(90) {
            return self.narrow(to, target);
        }
        to.set_memory_displ_size(8);
        to.set_memory_displacement64(target as i32 as u64);
    }

    /// 32-bit effective address: any displacement works, modulo 2^32.
    fn narrow(&mut self, to: &mut Instruction, target: u64) {
        to.set_memory_displ_size(4);
        let mut rest = target as u32;
        if let Some(base) = self.known_register().filter(|_| self.rng.percent(80)) {
            to.set_memory_base(Register::EAX + base as u32);
            rest = rest.wrapping_sub(self.known[base].unwrap_or(0) as u32);
        }
        let index = self.known_register().filter(|&index| index != RSP);
        if let Some(index) = index.filter(|_| self.rng.percent(50)) {
            let scale = 1 << self.rng.below(4);
            to.set_memory_index(Register::EAX + index as u32);
            to.set_memory_index_scale(scale);
            rest = rest.wrapping_sub((self.known[index].unwrap_or(0) as u32).wrapping_mul(scale));
        }
        to.set_memory_displacement64(u64::from(rest));
    }

    /// Registers and displacement at random.
    fn wild(&mut self, to: &mut Instruction) {
        to.set_memory_base(Register::RAX + self.rng.below(16) as u32);
        if self.rng.percent(40) {
            let index = self.rng.below(16);
            if index != RSP {
                to.set_memory_index(Register::RAX + index as u32);
                to.set_memory_index_scale(1 << self.rng.below(4));
            }
        }
        self.displacement(to, values::integer(&mut self.rng.clone()) as i32);
        self.rng.bits();
    }

    /// Base, index and displacement whose sum is the target, if what registers hold allows it.
    fn based(&mut self, to: &mut Instruction, target: u64) -> Option<()> {
        for _ in 0..24 {
            let Some(base) = self.known_register() else {
                break;
            };
            let mut rest = target.wrapping_sub(self.known[base].unwrap_or(0));
            let mut scaled = None;
            if self.rng.percent(35)
                && let Some(index) = self.known_register().filter(|&index| index != RSP)
            {
                let scale = 1u32 << self.rng.below(4);
                scaled = Some((index, scale));
                let value = self.known[index].unwrap_or(0);
                rest = rest.wrapping_sub(value.wrapping_mul(u64::from(scale)));
            }
            if rest as i32 as u64 != rest {
                continue;
            }
            to.set_memory_base(Register::RAX + base as u32);
            if let Some((index, scale)) = scaled {
                to.set_memory_index(Register::RAX + index as u32);
                to.set_memory_index_scale(scale);
            }
            self.displacement(to, rest as i32);
            return Some(());
        }
        self.absolute(to, target);
        Some(())
    }

    fn displacement(&mut self, to: &mut Instruction, value: i32) {
        let short = value as i8 as i32 == value && self.rng.percent(80);
        let size = match value {
            0 if self.rng.percent(60) => 0,
            _ if short => 1,
            _ => 8,
        };
        to.set_memory_displ_size(size);
        to.set_memory_displacement64(value as u64);
    }

    /// A register whose value is known.
    fn known_register(&mut self) -> Option<usize> {
        let count = self.known.iter().flatten().count();
        if count == 0 {
            return None;
        }
        let nth = self.rng.below(count);
        (0..16)
            .filter(|&index| self.known[index].is_some())
            .nth(nth)
    }
}
