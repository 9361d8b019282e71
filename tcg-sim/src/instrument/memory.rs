//! The memory trace while the engine runs.
//!
//! Translated code appends to a buffer of 64-bit words: a header for each run of a block, then the
//! linear addresses of its accesses. [`crate::jit::layout::Core::trace`] points to the header of the
//! block that runs, and behind the last block once that is left; each way out of a block advances it
//! by what the block used up to there. What Rust does is kept as events, each with the place in the
//! buffer that it comes before. When the buffer runs low, both are put together to chunks.
//!
//! | word | is |
//! |---|---|
//! | bit 0 set | a page: the code that follows lies in this linear page |
//! | bit 0 clear | a run: bits 2 to 31 the block; 32 to 47 its first instruction that runs; 48 to 62 the first that does not, 0 for all; 63 the last was a conditional branch and taken |
//!
//! Addresses follow a run's header at the places that they have when all of the block runs, so the
//! places of what did not run before are there and empty.

use super::assembly::{Assembly, Queue};
use super::facts::BlockFacts;
use super::probe::Noted;
use crate::exec::cache::CodeCache;
use crate::instrument::facts::Branch;
use crate::jit::block::BlockId;
use crate::jit::layout::Core;
use crate::trace::{Given, MemorySink, Run};
use machine::units::Position;
use std::cell::Cell;
use std::io;

/// Words of the buffer.
const WORDS: usize = 1 << 18;
/// Most words that a step can take: a page, a header and two addresses.
const WORDS_PER_STEP: u64 = 4;
/// Room that is always left: a block that goes on behind an instruction that Rust executed.
const MARGIN: usize = 256;
/// Events that are worth a chunk.
const MANY_EVENTS: usize = 1 << 14;

/// Bit 63 and bits 48 to 62 of a header, as bits 15 and 0 to 14.
pub(crate) const TAKEN: u16 = 1 << 15;
/// Where in a header those bits are, in bytes.
pub(crate) const END_OFFSET: i32 = 6;

/// The header of a whole run of a block.
pub(crate) fn header(block: BlockId) -> u32 {
    block.0 << 2
}

/// Marks a word as a page.
pub(crate) const PAGE: u64 = 1;

/// What Rust did.
#[derive(Debug)]
pub(super) struct Event {
    /// The word that it comes before.
    pub(super) at: u32,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Map {
        page: u64,
        frame: u64,
    },
    Space(u64),
    Instruction {
        pc: u64,
        cpl: u8,
        branch: Option<Branch>,
        taken: bool,
        accesses: u32,
    },
    Iterations {
        pc: u64,
        cpl: u8,
        count: u64,
        accesses: u32,
    },
    Elements {
        pc: u64,
        cpl: u8,
        run: Run,
    },
    Delivery {
        pc: u64,
        cpl: u8,
        how: (u8, bool, bool),
        accesses: u32,
    },
}

/// Who did what Rust did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) pc: u64,
    pub(crate) cpl: u8,
}

/// See the module.
pub(crate) struct MemoryTrace {
    words: Box<[Cell<u64>]>,
    events: Vec<Event>,
    /// Accesses of the events, in order.
    given: Vec<Given>,
    assembly: Assembly,
    sink: Box<dyn MemorySink>,
    /// Chunks handed out, and where the run may come back to.
    chunks: u64,
    marks: Vec<u64>,
    failure: Option<io::Error>,
}

impl MemoryTrace {
    pub(crate) fn new(sink: Box<dyn MemorySink>, core: &mut Core) -> Self {
        let this = Self {
            words: vec![Cell::new(0); WORDS].into_boxed_slice(),
            events: Vec::new(),
            given: Vec::new(),
            assembly: Assembly::default(),
            sink,
            chunks: 0,
            marks: Vec::new(),
            failure: None,
        };
        this.rewind_buffer(core);
        this
    }

    fn rewind_buffer(&self, core: &mut Core) {
        core.trace = self.words.as_ptr() as u64;
    }

    /// Index of the word that [`Core::trace`] points to.
    fn here(&self, core: &Core) -> usize {
        (core.trace - self.words.as_ptr() as u64) as usize / 8
    }

    /// What the sink said that ends the run.
    pub(crate) fn failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Most steps that may run before [`MemoryTrace::make_room`] is due again.
    pub(crate) fn steps(&self, core: &Core) -> u64 {
        let free = WORDS - MARGIN - self.here(core);
        free as u64 / WORDS_PER_STEP
    }

    /// Empties the buffer if it is rather full.
    pub(crate) fn make_room(&mut self, cache: &CodeCache, core: &mut Core) {
        if self.here(core) > WORDS / 2 || self.events.len() > MANY_EVENTS {
            self.drain(cache, core);
        }
    }

    /// The run goes on in this linear page.
    pub(crate) fn page(&mut self, base: u64, core: &mut Core) {
        self.words[self.here(core)].set(base | PAGE);
        core.trace += 8;
    }

    /// The block that runs was left before its instruction `index`.
    pub(crate) fn rewind(&mut self, facts: &BlockFacts, index: usize, core: &mut Core) {
        let word = &self.words[self.here(core)];
        let header = word.get() & 0x0000_ffff_ffff_ffff;
        if (header >> 32) as usize != index {
            word.set(header | (index as u64) << 48);
            core.trace += 8 + 8 * facts.accesses_before(index) as u64;
        }
        // What came before accesses that are no more comes before what follows.
        let here = self.here(core) as u32;
        for event in self.events.iter_mut().rev() {
            if event.at <= here {
                break;
            }
            event.at = here;
        }
    }

    /// The block that was left last, behind its instruction `index`, did not retire that.
    pub(crate) fn reopen(&mut self, facts: &BlockFacts, index: usize, core: &mut Core) {
        core.trace -= 8 + 8 * facts.accesses_before(index + 1) as u64;
    }

    /// A block goes on at its instruction `index`.
    pub(crate) fn resume(&mut self, id: BlockId, index: usize, cache: &CodeCache, core: &mut Core) {
        let used = self.here(core) + core.budget.max(0) as usize * WORDS_PER_STEP as usize;
        if used + MARGIN > WORDS {
            self.drain(cache, core);
        }
        let word = u64::from(header(id)) | (index as u64) << 32;
        self.words[self.here(core)].set(word);
    }

    fn event(&mut self, what: What, core: &Core) {
        let at = self.here(core) as u32;
        self.events.push(Event { at, what });
    }

    /// A linear page means a frame in the present address space, from access `access` of the block
    /// that runs.
    pub(crate) fn map(&mut self, access: usize, page: u64, frame: u64, core: &Core) {
        let at = (self.here(core) + 1 + access) as u32;
        let what = What::Map { page, frame };
        self.events.push(Event { at, what });
    }

    /// As [`MemoryTrace::map`], between two blocks.
    pub(crate) fn map_now(&mut self, page: u64, frame: u64, core: &Core) {
        self.event(What::Map { page, frame }, core);
    }

    /// The address space changes.
    pub(crate) fn space(&mut self, cr3: u64, core: &Core) {
        self.event(What::Space(cr3), core);
    }

    fn give(&mut self, noted: &[Noted]) -> u32 {
        self.given.extend(noted.iter().map(|access| Given {
            va: access.va,
            gpa: access.gpa,
            second: access.second,
            bytes: access.bytes as u16,
            direction: access.direction,
            system: access.system,
        }));
        noted.len() as u32
    }

    pub(crate) fn instruction(
        &mut self,
        At { pc, cpl }: At,
        branch: Option<Branch>,
        taken: bool,
        noted: &[Noted],
        core: &Core,
    ) {
        let accesses = self.give(noted);
        let what = What::Instruction {
            pc,
            cpl,
            branch,
            taken,
            accesses,
        };
        self.event(what, core);
    }

    pub(crate) fn iterations(
        &mut self,
        At { pc, cpl }: At,
        count: u64,
        noted: &[Noted],
        core: &Core,
    ) {
        let accesses = self.give(noted);
        let what = What::Iterations {
            pc,
            cpl,
            count,
            accesses,
        };
        self.event(what, core);
    }

    pub(crate) fn elements(&mut self, At { pc, cpl }: At, run: Run, core: &Core) {
        self.event(What::Elements { pc, cpl, run }, core);
    }

    /// `how`: vector, whether it is an exception, whether it takes a step of its own.
    pub(crate) fn delivery(
        &mut self,
        At { pc, cpl }: At,
        how: (u8, bool, bool),
        noted: &[Noted],
        core: &Core,
    ) {
        let accesses = self.give(noted);
        let what = What::Delivery {
            pc,
            cpl,
            how,
            accesses,
        };
        self.event(what, core);
    }

    /// The run is now at a position and in an address space that it did not get to by itself.
    pub(crate) fn moved(
        &mut self,
        position: Position,
        cr3: u64,
        cache: &CodeCache,
        core: &mut Core,
    ) {
        self.close(cache, core);
        self.assembly.moved(position, cr3);
    }

    /// The run may come back to here.
    pub(crate) fn mark(&mut self, cache: &CodeCache, core: &mut Core) {
        self.close(cache, core);
        self.marks.push(self.chunks);
    }

    /// The run has come back to the last mark; [`MemoryTrace::moved`] says where that is.
    pub(crate) fn go_back(&mut self, cache: &CodeCache, core: &mut Core) {
        // What it says of mappings still holds: the engine keeps them, too.
        self.drain(cache, core);
        self.assembly.abandon();
        self.chunks = self.marks.pop().expect("replay goes back to marks only");
        if let Err(error) = self.sink.keep(self.chunks) {
            self.failure.get_or_insert(error);
        }
    }

    pub(crate) fn settle(&mut self) {
        self.marks.remove(0);
    }

    /// Completes the trace, at a position that it must have got to.
    pub(crate) fn finish(
        &mut self,
        position: Position,
        cache: &CodeCache,
        core: &mut Core,
    ) -> io::Result<()> {
        self.close(cache, core);
        debug_assert_eq!(self.assembly.builder.position(), position);
        match self.failure.take() {
            Some(error) => Err(error),
            None => self.sink.finish(),
        }
    }

    /// Blocks get new numbers from now on.
    pub(crate) fn forget_blocks(&mut self) {
        self.assembly.forget_blocks();
    }

    fn close(&mut self, cache: &CodeCache, core: &mut Core) {
        self.drain(cache, core);
        self.hand_out();
    }

    fn hand_out(&mut self) {
        let Some(chunk) = self.assembly.take() else {
            return;
        };
        self.chunks += 1;
        if self.failure.is_none()
            && let Err(error) = self.sink.chunk(&chunk)
        {
            self.failure = Some(error);
        }
    }

    /// Puts what is in the buffer and the events together. No block is running, or the one that runs
    /// was rewound.
    pub(crate) fn drain(&mut self, cache: &CodeCache, core: &mut Core) {
        let end = self.here(core);
        let events = std::mem::take(&mut self.events);
        let given = std::mem::take(&mut self.given);
        let mut queue = Queue {
            events: &events,
            given: &given,
        };
        let mut at = 0;
        loop {
            while let Some(what) = queue.due(at) {
                self.assembly.event(what, &mut queue.given);
            }
            if at >= end {
                break;
            }
            at += self
                .assembly
                .word(&self.words[at..end], at, &mut queue, cache);
            if self.assembly.is_full() {
                self.hand_out();
            }
        }
        debug_assert!(
            queue.events.is_empty() && queue.given.is_empty(),
            "events are in order"
        );
        (self.events, self.given) = (events, given);
        self.events.clear();
        self.given.clear();
        self.rewind_buffer(core);
        if self.assembly.is_full() {
            self.hand_out();
        }
    }
}
