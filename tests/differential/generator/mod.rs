//! Random sequences of every instruction form of the CPU model, mostly with operands that let them
//! go on, over states at the edges.

mod assemble;
mod flow;
mod operands;
mod patch;
mod setup;
mod start;

use super::case::Case;
use super::forms::{Forms, Kind, kind};
use super::image::IMAGES;
use super::layout::CODE;
use super::registers::Registers;
use super::rng::Rng;
use assemble::{Item, assemble};

pub(super) use assemble::decoder_options;
use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess,
    OpCodeOperandKind, Register,
};

/// Most steps in a sequence. A step is an instruction together with those that prepare it.
pub const MAX_STEPS: usize = 24;

/// Consecutive seeds that start over the same memory.
const NEIGHBOURS: u64 = 64;

/// Makes cases from seeds.
pub struct Generator {
    forms: Forms,
    info: InstructionInfoFactory,
    rng: Rng,
    start: Registers,
    items: Vec<Item>,
    /// Values that registers are known to hold at this point, if no branch skipped the writer.
    known: [Option<u64>; 16],
    /// Address of the memory operand made last; accesses that meet find more.
    last_target: Option<u64>,
    code_at: u64,
    image: u8,
    /// First item of the last guard and the first one behind what it guards.
    guarded: Option<(usize, usize)>,
}

impl Default for Generator {
    fn default() -> Self {
        Self {
            forms: Forms::default(),
            info: InstructionInfoFactory::new(),
            rng: Rng::new(0),
            start: Registers::default(),
            items: Vec::new(),
            known: [None; 16],
            last_target: None,
            code_at: CODE.base,
            image: 0,
            guarded: None,
        }
    }
}

impl Generator {
    /// The case of a seed. Equal seeds give equal cases, on every host.
    pub fn case(&mut self, seed: u64) -> Case {
        // Neighbours start over the same memory: less of it changes from one to the next.
        let mut group = Rng::new(seed / NEIGHBOURS);
        self.image = match group.percent(3) {
            true => 0,
            false => 1 + group.below(usize::from(IMAGES) - 1) as u8,
        };
        self.rng = Rng::new(seed);
        loop {
            if let Some(case) = self.attempt() {
                return case;
            }
        }
    }

    fn attempt(&mut self) -> Option<Case> {
        self.items.clear();
        self.last_target = None;
        self.guarded = None;
        self.start = start::registers(&mut self.rng);
        self.known = self.start.gpr.map(Some);
        let image = self.image;
        let steps = 1 + self.rng.below(MAX_STEPS);
        for _ in 0..steps {
            self.step();
        }
        let bytes: usize = self.items.iter().map(Item::length).sum();
        if bytes == 0 {
            return None;
        }
        self.code_at = self.place(bytes as u64);
        let (code, instructions) = assemble(&mut self.items, self.code_at)?;
        let mut start = self.start;
        start.rip = self.code_at;
        Some(Case {
            start,
            image,
            code_at: self.code_at,
            code,
            instructions,
        })
    }

    /// An address for code of a length: anywhere, across the page boundary, or up to the end.
    fn place(&mut self, bytes: u64) -> u64 {
        let room = CODE.bytes() - bytes;
        let offset = match self.rng.below(10) {
            0..=2 => CODE.bytes() / 2 - self.rng.below(bytes as usize + 1) as u64,
            3 => room,
            _ => self.rng.below(room as usize + 1) as u64,
        };
        CODE.base + offset
    }

    fn step(&mut self) {
        match self.rng.below(1000) {
            0..=864 => self.plain(),
            865..=924 => self.branch(),
            925..=954 => self.indirect(),
            955..=957 => self.far(),
            958..=963 => self.terminal(),
            964..=986 => self.patch(),
            987..=994 => self.segment_load(),
            _ => self.garbage(),
        }
    }

    fn plain(&mut self) {
        let code = self.plain_code();
        self.prepare(code);
        if is_bit_string(code) {
            self.bit_string(code);
        } else {
            self.push_random(code);
        }
    }

    /// A plain form; one that mostly ends a sequence is drawn again now and then.
    fn plain_code(&mut self) -> Code {
        loop {
            let code = self.forms.plain[self.rng.below(self.forms.plain.len())];
            let keep = match code.mnemonic() {
                Mnemonic::Lss | Mnemonic::Enter | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => 30,
                Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Div | Mnemonic::Idiv => 50,
                Mnemonic::Ldmxcsr | Mnemonic::Fldcw | Mnemonic::Frstor | Mnemonic::Fldenv => 60,
                Mnemonic::Reservednop => 30,
                _ if loads_segment(code) => 5,
                _ => 100,
            };
            if self.rng.percent(keep) {
                return code;
            }
        }
    }

    fn terminal(&mut self) {
        let code = self.forms.terminal[self.rng.below(self.forms.terminal.len())];
        self.push_random(code);
    }

    /// Appends an instruction of a form with random operands, if the form can be had.
    fn push_random(&mut self, code: Code) {
        for _ in 0..8 {
            let Some(instruction) = self.operands(code) else {
                continue;
            };
            let prefixes = self.prefixes(&instruction);
            let item = Item::new(instruction, &prefixes);
            if item.is_allowed() {
                self.push(item);
                return;
            }
        }
    }

    /// Prefixes put before an encoded instruction: mostly none, then mostly redundant ones.
    fn prefixes(&mut self, instruction: &Instruction) -> Vec<u8> {
        let mut prefixes = Vec::new();
        if self.rng.per_mille(2) && !instruction.has_lock_prefix() {
            prefixes.push(0xf0);
        }
        while self.rng.percent(4) && prefixes.len() < 4 {
            // Segment overrides without effect, operand and address size, REP, a REX that is undone.
            let prefix = self.rng.pick(&[
                0x26u8, 0x2e, 0x36, 0x3e, 0x26, 0x2e, 0x36, 0x3e, 0x66, 0x67, 0xf2, 0xf3, 0x40,
                0x48, 0x4f,
            ]);
            prefixes.push(prefix);
        }
        prefixes
    }

    fn push(&mut self, mut item: Item) {
        item.enter_at = self
            .guarded
            .filter(|&(_, end)| self.items.len() < end)
            .map(|(first, _)| first);
        if let Some(instruction) = item.instruction() {
            self.learn(&instruction);
        }
        self.items.push(item);
    }

    /// Forgets what an instruction overwrites and follows the stack pointer.
    fn learn(&mut self, instruction: &Instruction) {
        let options = InstructionInfoOptions::NO_MEMORY_USAGE;
        let info = self.info.info_options(instruction, options);
        let writes = |access| {
            matches!(
                access,
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        };
        for used in info.used_registers() {
            let full = used.register().full_register();
            if writes(used.access()) && full.is_gpr64() {
                let index = full as usize - Register::RAX as usize;
                self.known[index] = None;
            }
        }
        let keeps_stack = kind(instruction.code()) == Kind::Plain
            && !matches!(instruction.mnemonic(), Mnemonic::Enter | Mnemonic::Leave)
            && instruction.is_stack_instruction();
        if keeps_stack
            && !(instruction.op_count() > 0 && instruction.op0_register() == Register::RSP)
        {
            let moved = i64::from(instruction.stack_pointer_increment());
            self.start_stack(moved);
        }
    }

    /// RSP was forgotten by the general rule: it stays near the stack.
    fn start_stack(&mut self, moved: i64) {
        let old = self.known[4].unwrap_or(self.start.gpr[4]);
        self.known[4] = Some(old.wrapping_add_signed(moved));
    }

    /// Random bytes that decode to something a sequence may contain, or to nothing.
    fn garbage(&mut self) {
        for _ in 0..20 {
            let mut bytes: Vec<u8> = (0..1 + self.rng.below(8))
                .map(|_| self.rng.bits() as u8)
                .collect();
            if self.rng.percent(40) {
                // Opcodes that 64-bit mode does not have, and empty places of the tables.
                bytes[0] = self.rng.pick(&[
                    0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61,
                    0x82, 0x9a, 0xce, 0xd4, 0xd5, 0xd6, 0xea, 0x0f, 0x0f, 0x0f, 0xd9, 0xdb, 0xdd,
                    0xdf, 0xf0, 0xfe, 0xff, 0xc6, 0xc7, 0x8d, 0x8f,
                ]);
            }
            if let Some(item) = Item::raw(bytes) {
                self.push(item);
                return;
            }
        }
    }
}

/// Whether a form takes its bit number from a register, far beyond the operand if in memory.
fn is_bit_string(code: Code) -> bool {
    let bit_test = matches!(
        code.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    bit_test && code.op_code().op_kind(1) != OpCodeOperandKind::imm8
}

/// MOV and POP to a segment register.
fn loads_segment(code: Code) -> bool {
    use OpCodeOperandKind as K;
    matches!(code.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
        && matches!(code.op_code().op_kind(0), K::seg_reg | K::fs | K::gs)
}

#[cfg(test)]
mod tests {
    use super::super::forms::unreachable;
    use super::super::vendor::Vendor;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_names_one_case() {
        let mut generator = Generator::default();
        let first: Vec<Case> = (0..50).map(|seed| generator.case(seed)).collect();
        let again: Vec<Case> = (0..50).rev().map(|seed| generator.case(seed)).collect();
        assert!(first.iter().eq(again.iter().rev()));
        assert!(first.iter().all(Case::fits));
        assert_ne!(first[0], first[1]);
    }

    #[test]
    fn every_form_of_the_model_appears() {
        let mut generator = Generator::default();
        let Forms {
            plain,
            branch,
            indirect,
            far,
            terminal,
        } = Forms::default();
        let vendor = Vendor::of_host();
        let mut missing: BTreeSet<Code> = [plain, branch, indirect, far, terminal]
            .into_iter()
            .flatten()
            .filter(|code| unreachable(*code, vendor).is_none())
            .collect();
        for seed in 0..100_000 {
            let case = generator.case(seed);
            for &start in &case.instructions {
                let at = case.code_at + start as u64;
                missing.remove(&assemble::decode(&case.code[start..], at).code());
            }
            if missing.is_empty() {
                return;
            }
        }
        panic!("never generated: {missing:?}");
    }
}
