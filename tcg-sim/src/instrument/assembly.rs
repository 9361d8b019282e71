//! From the buffer of translated code and the events of Rust to chunks.

use super::facts::BlockFacts;
use super::memory::{Event, PAGE, TAKEN, What};
use crate::exec::cache::CodeCache;
use crate::jit::block::{Block, BlockId};
use crate::trace::{Chunk, ChunkBuilder, Given, TracedAccess, TracedBlock, TracedInsn};
use machine::units::Position;
use std::cell::Cell;
use std::collections::HashMap;

/// A chunk is full at so many addresses or so many bytes of records.
const CHUNK_ADDRESSES: usize = 1 << 17;
const CHUNK_RECORD_BYTES: usize = 1 << 20;

/// Events that are still to come.
pub(super) struct Queue<'a> {
    pub(super) events: &'a [Event],
    pub(super) given: &'a [Given],
}

impl<'a> Queue<'a> {
    /// The next event, if it comes before word `at`.
    pub(super) fn due(&mut self, at: usize) -> Option<&'a What> {
        let (event, rest) = self.events.split_first()?;
        if event.at as usize > at {
            return None;
        }
        self.events = rest;
        Some(&event.what)
    }
}

/// Puts a chunk together.
#[derive(Default)]
pub(super) struct Assembly {
    pub(super) builder: ChunkBuilder,
    /// Numbers of blocks in the chunk, by their numbers in the cache; [`ABSENT`] where it has none.
    local: Vec<u32>,
    /// The blocks that have one.
    present: Vec<u32>,
    page: u64,
    space: u64,
    /// Whether the chunk says which page and which space it begins in.
    placed: bool,
    /// Frames of all pages met so far, by address space.
    spaces: HashMap<u64, HashMap<u64, u64>>,
    /// Frames of pages in the present address space that the chunk says.
    said: HashMap<u64, u64>,
    /// The last pages that need no saying, by low bits of their number.
    recent: Recent,
}

/// No number of a block.
const ABSENT: u32 = u32::MAX;

struct Recent(Box<[u64; 1024]>);

impl Default for Recent {
    fn default() -> Self {
        Self(Box::new([u64::MAX; 1024]))
    }
}

impl Assembly {
    pub(super) fn is_full(&self) -> bool {
        self.builder.addresses() >= CHUNK_ADDRESSES
            || self.builder.record_bytes() >= CHUNK_RECORD_BYTES
    }

    pub(super) fn take(&mut self) -> Option<Chunk> {
        let start = self.builder.position();
        let full = std::mem::replace(&mut self.builder, ChunkBuilder::new(start));
        self.forget_said();
        self.forget_blocks();
        self.placed = false;
        (!full.is_empty()).then(|| full.finish())
    }

    pub(super) fn abandon(&mut self) {
        self.take();
    }

    pub(super) fn moved(&mut self, position: Position, cr3: u64) {
        self.builder = ChunkBuilder::new(position);
        self.space = cr3;
    }

    pub(super) fn forget_blocks(&mut self) {
        for id in self.present.drain(..) {
            self.local[id as usize] = ABSENT;
        }
    }

    fn forget_said(&mut self) {
        self.said.clear();
        self.recent.0.fill(u64::MAX);
    }

    fn place(&mut self) {
        if !std::mem::replace(&mut self.placed, true) {
            self.builder.space(self.space);
            self.builder.page(self.page);
        }
    }

    /// Takes the record at the front of the words, word `at` of the buffer; returns how many it has.
    pub(super) fn word(
        &mut self,
        words: &[Cell<u64>],
        at: usize,
        queue: &mut Queue<'_>,
        cache: &CodeCache,
    ) -> usize {
        let word = words[0].get();
        if word & PAGE != 0 {
            self.page = word & !PAGE;
            if self.placed {
                self.builder.page(self.page);
            }
            return 1;
        }
        let id = word as u32 >> 2;
        let (from, end) = ((word >> 32) as u16, (word >> 48) as u16);
        let block = cache.block(BlockId(id));
        let facts = &block
            .facts
            .as_ref()
            .expect("it was translated for the trace")
            .facts;
        let to = match end & !TAKEN {
            0 => facts.insns.len(),
            to => usize::from(to),
        };
        let (first, behind) = (
            facts.accesses_before(usize::from(from)),
            facts.accesses_before(to),
        );
        if usize::from(from) < to {
            self.place();
            let addresses = &words[1 + first..1 + behind];
            for (index, address) in addresses.iter().enumerate() {
                while let Some(what) = queue.due(at + 1 + first + index) {
                    self.event(what, &mut queue.given);
                }
                let page = address.get() >> 12;
                if self.recent.0[page as usize & 1023] != page {
                    self.meet(page, index);
                }
            }
            self.builder.addresses_of(addresses.iter().map(Cell::get));
            let local = self.local(id, block, facts);
            self.builder
                .run(local, from as u8, to as u8, end & TAKEN != 0);
        }
        1 + behind
    }

    fn local(&mut self, id: u32, block: &Block, facts: &BlockFacts) -> u32 {
        match self.local.get(id as usize) {
            Some(&local) if local != ABSENT => local,
            _ => self.new_local(id, traced(block, facts)),
        }
    }

    #[cold]
    fn new_local(&mut self, id: u32, block: TracedBlock) -> u32 {
        let index = id as usize;
        if self.local.len() <= index {
            self.local.resize(index + 1, ABSENT);
        }
        self.local[index] = self.builder.block(block);
        self.present.push(id);
        self.local[index]
    }

    /// A page is met, by the address `ahead` of the next, that may have to be said.
    #[cold]
    fn meet(&mut self, page: u64, ahead: usize) {
        self.recent.0[page as usize & 1023] = page;
        let frames = self.spaces.entry(self.space).or_default();
        let frame = *frames
            .get(&page)
            .expect("it was mapped before it was accessed");
        if self.said.insert(page, frame) != Some(frame) {
            self.builder.map(page, frame, ahead);
        }
    }

    pub(super) fn event(&mut self, what: &What, given: &mut &[Given]) {
        if let What::Map { page, frame } = *what {
            let frames = self.spaces.entry(self.space).or_default();
            if frames.insert(page, frame) != Some(frame) {
                self.recent.0[page as usize & 1023] = u64::MAX;
            }
            return;
        }
        if let What::Space(cr3) = *what {
            self.space = cr3;
            self.forget_said();
            if self.placed {
                self.builder.space(cr3);
            }
            return;
        }
        self.place();
        let mut take = |count: u32| {
            let (taken, rest) = given.split_at(count as usize);
            *given = rest;
            taken
        };
        let builder = &mut self.builder;
        match *what {
            What::Instruction {
                pc,
                cpl,
                branch,
                taken,
                accesses,
            } => builder.instruction((pc, cpl), branch, taken, take(accesses)),
            What::Iterations {
                pc,
                cpl,
                count,
                accesses,
            } => builder.iterations((pc, cpl), count, take(accesses)),
            What::Elements { pc, cpl, ref run } => builder.elements((pc, cpl), run),
            What::Delivery {
                pc,
                cpl,
                how,
                accesses,
            } => builder.delivery((pc, cpl), how, take(accesses)),
            What::Map { .. } | What::Space(_) => {}
        }
    }
}

fn traced(block: &Block, facts: &BlockFacts) -> TracedBlock {
    let insns = facts.insns.iter().zip(&block.insns);
    TracedBlock {
        cpl: block.key.mode.cpl(),
        insns: insns
            .map(|(fact, insn)| TracedInsn {
                offset: insn.offset,
                branch: fact.branch,
                first_access: fact.first_access,
            })
            .collect(),
        accesses: facts
            .accesses
            .iter()
            .map(|access| TracedAccess {
                bytes: access.bytes,
                direction: access.direction,
            })
            .collect(),
    }
}
