//! The instruments of a running engine.
//!
//! Translated code counts how often its blocks were entered and through which taken branch they were
//! left; here those counters meet the facts of the blocks. A block that is left before its end is
//! taken back from there on. What runs alone or in Rust is noted access by access, and dropped unless
//! the instruction, iteration or delivery completes. The memory trace gets the same, in order.

use super::facts::{BlockFacts, Branch, Slot, Tally};
use super::memory::{At, MemoryTrace};
use super::{Counts, Direction, InstrumentSet, Instruments};
use crate::exec::cache::CodeCache;
use crate::jit::block::{Block, BlockId};
use crate::jit::layout::Core;
use crate::sys::{Event, EventKind, StringRun};
use crate::trace::{Run, RunOperand};
use machine::units::{Gfn, PAGE_BYTES, Position};
use std::cell::Cell;
use std::io;

/// An access that Rust made or arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) va: u64,
    pub(crate) gpa: u64,
    /// Where its part in a second page starts.
    pub(crate) second: Option<u64>,
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
    /// Frames of linear pages that it accesses through pointers.
    runs: Vec<(u64, Gfn)>,
    /// The instruction that executes now, or that is delivered from.
    at: At,
    /// The conditional branch that executes alone was taken.
    taken: bool,
    /// What was counted where the run may come back to, oldest first.
    marks: Vec<Counts>,
    memory: Option<Box<MemoryTrace>>,
}

/// The probe with what it works on.
pub(crate) struct Probed<'a> {
    pub(crate) probe: &'a mut Probe,
    pub(crate) cache: &'a CodeCache,
    pub(crate) core: &'a mut Core,
}

impl Probe {
    pub(crate) fn set(&self) -> InstrumentSet {
        self.set
    }

    fn is_off(&self) -> bool {
        self.set.is_empty()
    }

    /// The number of the next counter.
    pub(crate) fn next_slot(&self) -> u32 {
        self.counters.len() as u32
    }

    /// An instruction begins that runs alone or in Rust, or a delivery that returns to `pc`.
    pub(crate) fn begin(&mut self, pc: u64, cpl: u8) {
        (self.at, self.taken) = (At { pc, cpl }, false);
        self.forget();
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
        self.runs.clear();
    }

    /// What the trace's sink said that ends the run.
    pub(crate) fn failure(&mut self) -> Option<io::Error> {
        self.memory.as_mut()?.failure()
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

    fn commit(&mut self) {
        for access in &self.noted {
            let accesses = match access.system {
                true => &mut self.done.system,
                false => &mut self.done.data,
            };
            accesses.note(access.direction, access.bytes.into(), 1);
        }
        self.forget();
    }

    /// The run with physical addresses. Each operand lies in one page, which was noted.
    fn physical(&self, iterations: u64, run: &StringRun) -> Run {
        let operand = |operand: crate::sys::StringOperand| {
            let page = operand.va / PAGE_BYTES;
            let known = self.runs.iter().rev().find(|(noted, _)| *noted == page);
            let (_, gfn) = known.expect("pages of string elements are noted");
            RunOperand {
                va: operand.va,
                gpa: gfn.base().0 + operand.va % PAGE_BYTES,
                bytes: operand.bytes,
                direction: operand.direction,
            }
        };
        Run {
            iterations: iterations as u32,
            backward: run.backward,
            operands: run.operands.map(|o| o.map(operand)),
        }
    }
}

/// What instruments keep of a block that did not run alone.
fn facts_of(block: &Block) -> Option<&BlockFacts> {
    let facts = block.facts.as_ref()?;
    (!block.key.mode.is_one_step()).then_some(&facts.facts)
}

impl Probed<'_> {
    /// Starts anew with other instruments. Translations of the old ones must not be entered again.
    pub(crate) fn choose(self, instruments: Instruments, position: Position, cr3: u64) {
        let Self { probe, cache, core } = self;
        probe.fold(cache);
        let set = instruments.set();
        let memory = instruments.memory.map(|sink| {
            let mut memory = Box::new(MemoryTrace::new(sink, core));
            memory.moved(position, cr3, cache, core);
            memory
        });
        *probe = Probe {
            set,
            memory,
            counters: std::mem::take(&mut probe.counters),
            ..Probe::default()
        };
    }

    /// What was counted so far.
    pub(crate) fn counts(&mut self) -> Counts {
        self.probe.fold(self.cache);
        self.probe.done.without(&self.probe.undone)
    }

    /// Completes the trace, at a position that it must have got to.
    pub(crate) fn finish(self, position: Position) -> io::Result<()> {
        match self.probe.memory.take() {
            Some(mut memory) => memory.finish(position, self.cache, self.core),
            None => Ok(()),
        }
    }

    /// The run may come back to here.
    pub(crate) fn mark(&mut self) {
        let counts = self.counts();
        self.probe.marks.push(counts);
        if let Some(memory) = &mut self.probe.memory {
            memory.mark(self.cache, self.core);
        }
    }

    /// The run has come back to the last mark.
    pub(crate) fn go_back(self) {
        let Self { probe, cache, core } = self;
        probe.fold(cache);
        probe.forget();
        probe.undone = Counts::default();
        probe.done = probe.marks.pop().expect("replay goes back to marks only");
        if let Some(memory) = &mut probe.memory {
            memory.go_back(cache, core);
        }
    }

    /// The run will not come back to the oldest mark.
    pub(crate) fn settle(self) {
        self.probe.marks.remove(0);
        if let Some(memory) = &mut self.probe.memory {
            memory.settle();
        }
    }

    /// The vCPU was put somewhere else.
    pub(crate) fn moved(self, position: Position, cr3: u64) {
        self.probe.forget();
        if let Some(memory) = &mut self.probe.memory {
            memory.moved(position, cr3, self.cache, self.core);
        }
    }

    /// Makes room for the counters of a new block.
    pub(crate) fn translated(self, slots: usize) {
        let counters = self.probe.counters.len() + slots;
        self.probe.counters.resize(counters, Cell::new(0));
        self.core.counters = self.probe.counters.as_ptr() as u64;
    }

    /// All translations are about to go.
    pub(crate) fn clear(self) {
        self.probe.fold(self.cache);
        self.probe.counters.clear();
        if let Some(memory) = &mut self.probe.memory {
            memory.drain(self.cache, self.core);
            memory.forget_blocks();
        }
    }

    /// Most of `steps` steps that may run in translated code before this is asked again.
    pub(crate) fn allow(self, steps: u64) -> u64 {
        match &mut self.probe.memory {
            Some(memory) => {
                memory.make_room(self.cache, self.core);
                steps.min(memory.steps(self.core))
            }
            None => steps,
        }
    }

    /// Translated code goes on in this linear page.
    pub(crate) fn page(self, base: u64) {
        if let Some(memory) = &mut self.probe.memory {
            memory.page(base, self.core);
        }
    }

    /// Instruction `index` of a block accesses a linear page directly, and perhaps others after it.
    pub(crate) fn map(self, (id, index): (BlockId, u16), va: u64, gfn: Gfn) {
        if let Some(memory) = &mut self.probe.memory
            && let Some(facts) = facts_of(self.cache.block(id))
        {
            let access = facts.accesses_before(index.into());
            memory.map(access, va / PAGE_BYTES, gfn.0, self.core);
        }
    }

    /// String elements in a linear page are accessed through a pointer, and the page may be accessed
    /// directly from here on.
    pub(crate) fn note_run(self, va: u64, gfn: Gfn) {
        if let Some(memory) = &mut self.probe.memory {
            self.probe.runs.push((va / PAGE_BYTES, gfn));
            memory.map_now(va / PAGE_BYTES, gfn.0, self.core);
        }
    }

    /// The address space changes.
    pub(crate) fn space(self, cr3: u64) {
        if let Some(memory) = &mut self.probe.memory {
            memory.space(cr3, self.core);
        }
    }

    /// A block was left before its instruction `index`.
    pub(crate) fn rewind(self, id: BlockId, index: usize) {
        let block = self.cache.block(id);
        if let Some(facts) = facts_of(block) {
            let behind = facts.tally(index);
            self.probe.undone.add(&behind, block.key.mode.cpl(), 1);
            if let Some(memory) = &mut self.probe.memory {
                memory.rewind(facts, index, self.core);
            }
        }
    }

    /// A block was left through its instruction `index`, which did not retire after all.
    pub(crate) fn rewind_exit(self, id: BlockId, index: usize) {
        let block = self.cache.block(id);
        if let Some(facts) = facts_of(block) {
            let mut undone = facts.tally_of(index);
            // It was taken, or the block would not have been left here.
            undone.taken += u64::from(facts.insns[index].branch == Some(Branch::Conditional));
            self.probe.undone.add(&undone, block.key.mode.cpl(), 1);
            if let Some(memory) = &mut self.probe.memory {
                memory.reopen(facts, index, self.core);
                memory.rewind(facts, index, self.core);
            }
        }
    }

    /// A block that was left goes on before its instruction `index`.
    pub(crate) fn resume(self, id: BlockId, index: usize) {
        let block = self.cache.block(id);
        if let Some(facts) = facts_of(block) {
            let behind = facts.tally(index);
            self.probe.done.add(&behind, block.key.mode.cpl(), 1);
            if let Some(memory) = &mut self.probe.memory {
                memory.resume(id, index, self.cache, self.core);
            }
        }
    }

    /// The instruction that was begun has retired.
    pub(crate) fn retire(self, branch: Option<Branch>) {
        let Self { probe, core, .. } = self;
        if probe.is_off() {
            return;
        }
        let taken = branch == Some(Branch::Always) || probe.taken;
        let tally = Tally {
            instructions: 1,
            branches: u64::from(branch.is_some()),
            taken: u64::from(branch.is_some() && taken),
            ..Tally::default()
        };
        probe.done.add(&tally, probe.at.cpl, 1);
        if let Some(memory) = &mut probe.memory {
            memory.instruction(probe.at, branch, taken, &probe.noted, core);
        }
        probe.commit();
    }

    /// Iterations of the instruction that was begun are complete.
    pub(crate) fn iterate(self, iterations: u64, run: Option<&StringRun>) {
        let Self { probe, core, .. } = self;
        if probe.is_off() {
            return;
        }
        probe.done.rep_iterations += iterations;
        for part in run.into_iter().flat_map(StringRun::parts) {
            let bytes = u64::from(part.bytes);
            probe.done.data.note(part.direction, bytes, iterations);
        }
        let physical = match probe.memory {
            Some(_) => run.map(|run| probe.physical(iterations, run)),
            None => None,
        };
        if let Some(memory) = &mut probe.memory {
            match physical {
                Some(run) => memory.elements(probe.at, run, core),
                None => memory.iterations(probe.at, iterations, &probe.noted, core),
            }
        }
        probe.commit();
    }

    /// An event led from where [`Probe::begin`] said to the delivery of itself or of another.
    pub(crate) fn deliver(self, event: &Event, delivered: &Event) {
        let Self { probe, core, .. } = self;
        if probe.is_off() {
            return;
        }
        let exception = !matches!(delivered.kind, EventKind::External { .. });
        probe.done.exceptions += u64::from(exception);
        probe.done.interrupts += u64::from(!exception);
        if let Some(memory) = &mut probe.memory {
            // The trap after an instruction shares its step.
            let step = event.kind != EventKind::Trap { mid_rep: false };
            let how = (delivered.fault.vector, exception, step);
            memory.delivery(probe.at, how, &probe.noted, core);
        }
        probe.commit();
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
