//! The instruments of a running engine.
//!
//! Translated code counts how often its blocks were entered and through which taken branch they were
//! left; here those counters meet the facts of the blocks. A block that is left before its end is
//! taken back from there on. What runs alone or in Rust is noted access by access, and dropped unless
//! the instruction, iteration or delivery completes.

use super::facts::{BlockFacts, Branch, Slot, Tally};
use super::{Counts, Direction, InstrumentSet, Instruments};
use crate::exec::cache::CodeCache;
use crate::jit::block::Block;
use crate::jit::layout::Core;
use crate::sys::StringRun;
use std::cell::Cell;

/// An access that Rust made or arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) va: u64,
    pub(crate) bytes: u32,
    pub(crate) direction: Direction,
    /// Made by the processor itself to a table of its own.
    pub(crate) system: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Probe {
    set: InstrumentSet,
    done: Counts,
    /// What [`Probe::done`] has too much of.
    undone: Counts,
    /// Counters that translated code increments; `Core::counters` points to them.
    counters: Vec<Cell<u64>>,
    /// What is accessed by what executes now.
    noted: Vec<Noted>,
    /// Privilege level of the instruction that executes now.
    cpl: u8,
    /// The conditional branch that executes alone was taken.
    taken: bool,
    /// What was counted where the run may come back to, oldest first.
    marks: Vec<Counts>,
}

impl Probe {
    pub(crate) fn set(&self) -> InstrumentSet {
        self.set
    }

    fn is_off(&self) -> bool {
        self.set.is_empty()
    }

    /// Starts anew with other instruments. Translations of the old ones must not be entered again.
    pub(crate) fn choose(&mut self, instruments: Instruments, cache: &CodeCache) {
        self.fold(cache);
        *self = Self {
            set: instruments.set(),
            counters: std::mem::take(&mut self.counters),
            ..Self::default()
        };
    }

    /// What was counted so far.
    pub(crate) fn counts(&mut self, cache: &CodeCache) -> Counts {
        self.fold(cache);
        self.done.without(&self.undone)
    }

    /// The run may come back to here.
    pub(crate) fn mark(&mut self, cache: &CodeCache) {
        let counts = self.counts(cache);
        self.marks.push(counts);
    }

    /// The run has come back to the last mark.
    pub(crate) fn go_back(&mut self, cache: &CodeCache) {
        self.fold(cache);
        self.forget();
        self.undone = Counts::default();
        self.done = self.marks.pop().expect("replay goes back to marks only");
    }

    /// The run will not come back to the oldest mark.
    pub(crate) fn settle(&mut self) {
        self.marks.remove(0);
    }

    /// Makes room for the counters of a new block.
    pub(crate) fn translated(&mut self, slots: u32, core: &mut Core) {
        let counters = self.counters.len() + slots as usize;
        self.counters.resize(counters, Cell::new(0));
        core.counters = self.counters.as_ptr() as u64;
    }

    /// The number of the next counter.
    pub(crate) fn next_slot(&self) -> u32 {
        self.counters.len() as u32
    }

    /// All translations are about to go.
    pub(crate) fn clear(&mut self, cache: &CodeCache) {
        self.fold(cache);
        self.counters.clear();
    }

    /// Moves what translated code counted to the totals.
    fn fold(&mut self, cache: &CodeCache) {
        for block in cache.blocks() {
            let Some(facts) = &block.facts else { continue };
            for (slot, number) in facts.slots.iter().zip(facts.first_slot..) {
                let runs = self.counters[number as usize].take();
                if runs != 0 {
                    self.fold_slot(*slot, runs, block.key.mode.cpl(), &facts.facts);
                }
            }
        }
    }

    fn fold_slot(&mut self, slot: Slot, runs: u64, cpl: u8, facts: &BlockFacts) {
        match slot {
            Slot::Entry => self.done.add(&facts.tally(0), cpl, runs),
            Slot::Taken(index) => {
                self.done.branches_taken += runs;
                let behind = facts.tally(usize::from(index) + 1);
                self.undone.add(&behind, cpl, runs);
            }
        }
    }

    /// A block was left before its instruction `index`.
    pub(crate) fn rewind(&mut self, block: &Block, index: usize) {
        if let Some(facts) = self.counting(block) {
            let behind = facts.tally(index);
            self.undone.add(&behind, block.key.mode.cpl(), 1);
        }
    }

    /// A block that was left goes on before its instruction `index`.
    pub(crate) fn resume(&mut self, block: &Block, index: usize) {
        if let Some(facts) = self.counting(block) {
            let behind = facts.tally(index);
            self.done.add(&behind, block.key.mode.cpl(), 1);
        }
    }

    fn counting<'a>(&self, block: &'a Block) -> Option<&'a BlockFacts> {
        let facts = block.facts.as_ref()?;
        (!block.key.mode.is_one_step()).then_some(&facts.facts)
    }

    /// An instruction begins that runs alone or in Rust.
    pub(crate) fn begin(&mut self, cpl: u8) {
        (self.cpl, self.taken) = (cpl, false);
        self.noted.clear();
    }

    /// Something is accessed.
    pub(crate) fn note(&mut self, access: Noted) {
        if !self.is_off() {
            self.noted.push(access);
        }
    }

    /// The conditional branch that runs alone is taken.
    pub(crate) fn note_taken(&mut self, taken: bool) {
        self.taken = taken;
    }

    /// What was accessed led nowhere.
    pub(crate) fn forget(&mut self) {
        self.noted.clear();
    }

    /// The instruction that was begun has retired.
    pub(crate) fn retire(&mut self, branch: Option<Branch>) {
        if self.is_off() {
            return;
        }
        let taken = branch == Some(Branch::Always) || self.taken;
        let tally = Tally {
            instructions: 1,
            branches: u64::from(branch.is_some()),
            taken: u64::from(branch.is_some() && taken),
            ..Tally::default()
        };
        self.done.add(&tally, self.cpl, 1);
        self.commit();
    }

    /// Iterations of the instruction that was begun are complete.
    pub(crate) fn iterate(&mut self, iterations: u64, run: Option<&StringRun>) {
        if self.is_off() {
            return;
        }
        self.done.rep_iterations += iterations;
        for part in run.into_iter().flat_map(StringRun::parts) {
            self.done
                .data
                .note(part.direction, u64::from(part.bytes), iterations);
        }
        self.commit();
    }

    /// An exception (else an external interrupt) was delivered.
    pub(crate) fn deliver(&mut self, exception: bool) {
        if self.is_off() {
            return;
        }
        self.done.exceptions += u64::from(exception);
        self.done.interrupts += u64::from(!exception);
        self.commit();
    }

    fn commit(&mut self) {
        for access in self.noted.drain(..) {
            let accesses = match access.system {
                true => &mut self.done.system,
                false => &mut self.done.data,
            };
            accesses.note(access.direction, access.bytes.into(), 1);
        }
    }
}

impl Counts {
    fn add(&mut self, tally: &Tally, cpl: u8, times: u64) {
        self.instructions[usize::from(cpl & 3)] += tally.instructions * times;
        self.branches += tally.branches * times;
        self.branches_taken += tally.taken * times;
        self.data.reads += tally.accesses.reads * times;
        self.data.read_bytes += tally.accesses.read_bytes * times;
        self.data.writes += tally.accesses.writes * times;
        self.data.written_bytes += tally.accesses.written_bytes * times;
    }

    /// Undoes what [`Counts::add`] did too much.
    fn without(mut self, undone: &Self) -> Self {
        for (level, less) in self.instructions.iter_mut().zip(undone.instructions) {
            *level -= less;
        }
        self.branches -= undone.branches;
        self.branches_taken -= undone.branches_taken;
        self.data.reads -= undone.data.reads;
        self.data.read_bytes -= undone.data.read_bytes;
        self.data.writes -= undone.data.writes;
        self.data.written_bytes -= undone.data.written_bytes;
        self
    }
}
