//! Instruments: what can be learned from a run beside its result.
//!
//! Instruments are chosen for an engine ([`crate::Engine::set_instruments`]) and are part of the key
//! of each translation, so what is not asked for costs nothing. The translator notes the static facts
//! of each block while it emits it ([`facts`]); what happens at run time is then a matter of which
//! blocks ran and where they were left, plus what Rust did itself ([`probe`]). So an instrument has
//! three sources: blocks with their facts, instructions that ran alone or in Rust, and deliveries.
//! Nothing is noted before the instruction, the iteration or the delivery that it belongs to is
//! complete.
//!
//! `docs/instruments.md` defines what is counted.

mod assembly;
mod counts;
pub(crate) mod facts;
pub(crate) mod memory;
pub(crate) mod probe;

pub use counts::{Accesses, Counts};

use crate::trace::MemorySink;

/// What an engine is to learn.
#[derive(Default)]
pub struct Instruments {
    count: bool,
    memory: Option<Box<dyn MemorySink>>,
}

impl Instruments {
    /// Nothing: translations are those of an engine without instruments.
    pub fn none() -> Self {
        Self::default()
    }

    /// [`Counts`] as well.
    #[must_use]
    pub fn with_counts(mut self) -> Self {
        self.count = true;
        self
    }

    /// Whether [`Counts`] are among it.
    pub fn counts(&self) -> bool {
        self.count
    }

    /// Every access to memory as well, which goes to `sink`.
    #[must_use]
    pub fn with_memory_trace(mut self, sink: Box<dyn MemorySink>) -> Self {
        self.memory = Some(sink);
        self
    }

    pub(crate) fn set(&self) -> InstrumentSet {
        let count = u8::from(self.count) * InstrumentSet::COUNT.0;
        let memory = u8::from(self.memory.is_some()) * InstrumentSet::MEMORY.0;
        InstrumentSet(count | memory)
    }
}

/// The part of [`Instruments`] that translations depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct InstrumentSet(u8);

impl InstrumentSet {
    pub(crate) const COUNT: Self = Self(1);
    pub(crate) const MEMORY: Self = Self(2);

    /// Whether all of `other` are in it.
    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and then writes the same bytes, as one access.
    Update,
}

impl Direction {
    /// Whether memory is read.
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether memory is written.
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}
