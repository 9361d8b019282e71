//! What is known of a block when it is translated.

use super::Direction;
use crate::jit::block::MemoryAccess;
use iced_x86::{FlowControl, Instruction, Mnemonic};

/// How an instruction transfers control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branch {
    /// Or not: Jcc, LOOP, JRCXZ and their like, INTO.
    Conditional,
    /// Always.
    Always,
}

impl Branch {
    /// The kind of an instruction that transfers control.
    pub(crate) fn of(instruction: &Instruction) -> Option<Self> {
        if instruction.mnemonic() == Mnemonic::Into {
            return Some(Self::Conditional);
        }
        match instruction.flow_control() {
            FlowControl::ConditionalBranch => Some(Self::Conditional),
            FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Call
            | FlowControl::IndirectCall
            | FlowControl::Return
            | FlowControl::Interrupt => Some(Self::Always),
            FlowControl::Next | FlowControl::Exception | FlowControl::XbeginXabortXend => None,
        }
    }
}

/// An access that translated code makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccessFact {
    pub(crate) bytes: u8,
    pub(crate) direction: Direction,
}

impl AccessFact {
    pub(crate) fn of(access: MemoryAccess) -> Self {
        let direction = match (access.read, access.write) {
            (true, true) => Direction::Update,
            (false, true) => Direction::Write,
            (_, false) => Direction::Read,
        };
        Self {
            bytes: access.bytes,
            direction,
        }
    }
}

/// An instruction of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InsnFact {
    pub(crate) branch: Option<Branch>,
    /// Index of its first access in [`BlockFacts::accesses`].
    pub(crate) first_access: u16,
}

/// A block. Accesses of instructions that Rust executes are not in here, but the instructions are:
/// what Rust executes is taken back when the block is left for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockFacts {
    pub(crate) insns: Vec<InsnFact>,
    pub(crate) accesses: Vec<AccessFact>,
}

impl BlockFacts {
    /// An instruction follows.
    pub(crate) fn push_insn(&mut self, branch: Option<Branch>) {
        let first_access = self.accesses.len() as u16;
        self.insns.push(InsnFact {
            branch,
            first_access,
        });
    }

    /// The accesses of the first `insns` instructions.
    pub(crate) fn accesses_before(&self, insns: usize) -> usize {
        self.insns
            .get(insns)
            .map_or(self.accesses.len(), |insn| usize::from(insn.first_access))
    }

    /// What the instructions from `first` on amount to.
    pub(crate) fn tally(&self, first: usize) -> Tally {
        self.tally_between(first, self.insns.len())
    }

    /// The same of one instruction.
    pub(crate) fn tally_of(&self, index: usize) -> Tally {
        self.tally_between(index, index + 1)
    }

    fn tally_between(&self, first: usize, end: usize) -> Tally {
        let mut tally = Tally::default();
        for insn in &self.insns[first..end] {
            tally.instructions += 1;
            tally.branches += u64::from(insn.branch.is_some());
            tally.taken += u64::from(insn.branch == Some(Branch::Always));
        }
        for access in &self.accesses[self.accesses_before(first)..self.accesses_before(end)] {
            tally
                .accesses
                .note(access.direction, access.bytes.into(), 1);
        }
        tally
    }
}

/// What some instructions amount to, conditional branches as if not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) instructions: u64,
    pub(crate) branches: u64,
    pub(crate) taken: u64,
    pub(crate) accesses: super::Accesses,
}

/// What a counter of translated code counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Runs of a block.
    Entry,
    /// Conditional branch of this index taken.
    Taken(u16),
}
