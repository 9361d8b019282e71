//! What the runtime knows about translated code.

use super::mode::Mode;
use crate::instrument::InstrumentSet;
use crate::instrument::facts::{BlockFacts, Slot};
use iced_x86::{Code, FlowControl, Instruction};
use machine::units::Gfn;

/// Index of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockId(pub(crate) u32);

/// How an instruction touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryAccess {
    /// Length in bytes, 1 to 64.
    pub(crate) bytes: u8,
    /// Whether the bytes are read.
    pub(crate) read: bool,
    /// Whether the bytes are written.
    pub(crate) write: bool,
    /// Address bits that must be zero lest #GP (0 or 15).
    pub(crate) alignment: u8,
    /// Whether the processor makes two accesses of it, the second eight bytes on: extended reals, packed
    /// decimals, MASKMOVDQU.
    pub(crate) parts: bool,
    /// Whether a non-canonical address is #SS instead of #GP.
    pub(crate) stack: bool,
}

/// Why translated code left at a site.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SiteKind {
    /// The fast check of a memory access failed; T0 is the linear address. To perform the access,
    /// set T1 to the addend and continue at `direct`.
    Memory {
        /// What is accessed.
        access: MemoryAccess,
        /// Host address after the check.
        direct: u64,
    },
    /// An instruction that Rust executes. Continues at `resume` if nothing else happened.
    Execute {
        /// The instruction, decoded at its page offset.
        instruction: Instruction,
        /// Host address of the next instruction in the block.
        resume: u64,
    },
    /// A direct transfer to a page-relative address.
    Goto {
        /// Relative to the page base; may lie in another page.
        target: i64,
        /// Host address of the displacement to patch, if links are allowed here.
        link: Option<u64>,
        /// Whether a conditional branch was taken to get here.
        taken: bool,
    },
    /// An indirect transfer; T0 is the target. `undo_rsp` restores RSP if the target is invalid.
    Indirect {
        /// What to add to RSP to undo the instruction.
        undo_rsp: i32,
    },
    /// The page and the general-purpose registers are those that are looked for; nothing of the block
    /// was executed. Continues at `resume`.
    Stop {
        /// Host address after the comparison.
        resume: u64,
    },
    /// The block needs more steps than the budget has; nothing of it was executed.
    Budget,
}

/// A place where translated code leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// The block it belongs to.
    pub(crate) block: BlockId,
    /// Instruction of the block. For transfers: the transferring one, which has retired.
    pub(crate) index: u16,
    /// Why.
    pub(crate) kind: SiteKind,
}

/// How an instruction goes on. Its bytes may be gone by then: a call pushes over itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onward {
    /// With the next instruction, whatever else it does.
    Next,
    /// Elsewhere: a jump, an indirect call or a return.
    Away,
    /// Elsewhere: a direct call.
    Call,
    /// Either.
    Branch,
    /// Either, with one taken from ECX.
    CountEcx,
    /// Either, with one taken from RCX.
    CountRcx,
}

impl Onward {
    pub(crate) fn of(instruction: &Instruction) -> Self {
        match instruction.code() {
            Code::Loop_rel8_64_ECX | Code::Loope_rel8_64_ECX | Code::Loopne_rel8_64_ECX => {
                return Self::CountEcx;
            }
            Code::Loop_rel8_64_RCX | Code::Loope_rel8_64_RCX | Code::Loopne_rel8_64_RCX => {
                return Self::CountRcx;
            }
            _ => {}
        }
        match instruction.flow_control() {
            FlowControl::ConditionalBranch => Self::Branch,
            FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::IndirectCall
            | FlowControl::Return => Self::Away,
            FlowControl::Call => Self::Call,
            _ => Self::Next,
        }
    }
}

/// One guest instruction of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insn {
    /// Offset in the page.
    pub(crate) offset: u16,
    /// Length in bytes.
    pub(crate) length: u8,
    /// How it goes on.
    pub(crate) onward: Onward,
    /// Host offset of its first byte, relative to the block.
    pub(crate) host: u32,
}

/// Identity of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    /// Physical frame of the first byte.
    pub(crate) gfn: Gfn,
    /// Offset of the first byte in the page.
    pub(crate) offset: u16,
    /// Mode bits.
    pub(crate) mode: Mode,
    /// Most instructions it may hold.
    pub(crate) limit: u8,
    /// What it notes.
    pub(crate) instruments: InstrumentSet,
}

/// What the instruments know of a block.
#[derive(Debug)]
pub(crate) struct Instrumented {
    pub(crate) facts: BlockFacts,
    /// Its counters, consecutive from `first_slot`.
    pub(crate) slots: Vec<Slot>,
    pub(crate) first_slot: u32,
}

/// A translated superblock.
#[derive(Debug)]
pub(crate) struct Block {
    /// What it is a translation of.
    pub(crate) key: BlockKey,
    /// Second frame, if the only instruction straddles two pages.
    pub(crate) second: Option<Gfn>,
    /// Instructions in order of execution.
    pub(crate) insns: Vec<Insn>,
    /// Host address of the first byte.
    pub(crate) host: u64,
    /// Host address for entries from anywhere, with the linear address in T0.
    pub(crate) far: u64,
    /// Host address for entries from the same page.
    pub(crate) near: u64,
    /// Bytes of host code.
    pub(crate) host_bytes: u32,
    /// 64-byte chunks of the (first) page that it was made from.
    pub(crate) chunks: u64,
    /// Displacements patched to point here, with their original targets.
    pub(crate) incoming: Vec<(u64, u64)>,
    /// Whether it may still be entered.
    pub(crate) valid: bool,
    /// For the instruments, where there are any.
    pub(crate) facts: Option<Box<Instrumented>>,
}

impl Block {
    /// Instruction that the host address belongs to.
    pub(crate) fn insn_at(&self, host: u64) -> Option<usize> {
        let offset = u32::try_from(host.checked_sub(self.host)?).ok()?;
        if offset >= self.host_bytes {
            return None;
        }
        self.insns
            .partition_point(|insn| insn.host <= offset)
            .checked_sub(1)
    }
}
