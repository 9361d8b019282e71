//! Replay of one interval: from a checkpoint, with a log segment, to the next checkpoint, bit for
//! bit.
//!
//! [`replay`] feeds the reads, delivers interrupts and device writes exactly where they happened,
//! and compares the whole end state. It works on any [`ReplayVcpu`]. Reading order: [`Interval`],
//! [`replay`], [`Report`]; inside, `run` (the events in order), `place` (finding positions), `choice`
//! (going back when a landmark was the wrong one), `verify` (the end state).

mod bisect;
mod choice;
mod engine;
mod place;
mod registers;
mod run;
mod spin;
mod spurious;
mod tables;
mod vcpu;
mod verify;

pub use bisect::{Comparison, FirstDifference, Side, bisect};
pub use engine::{Instrumented, replay_with};
pub use registers::{RegisterDifference, differences as register_differences};
pub use spurious::find_spurious_fault;
pub use vcpu::{Arrival, Arrived, ReplayVcpu, arrive_by_steps};

use machine::checkpoint::{Checkpoint, CheckpointSource, StoreError};
use machine::ram::{Ram, RamError};
use machine::units::{Gfn, Position, Steps};
use machine::vcpu::VcpuError;
use replay_log::{Async, Desync, End, Event, EventPosition, OpenError, PositionKind, Segment};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Why an interval could not be replayed to a verdict. A difference is a verdict, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The vCPU cannot go on.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A page of RAM could not be had, or the log names addresses outside RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The recording could not be read.
    #[error("the recording could not be read: {0}")]
    Source(#[from] StoreError),
    /// The log segment is none.
    #[error("interval {interval}: {error}")]
    Log {
        /// The interval.
        interval: u64,
        /// What is wrong with its log.
        error: OpenError,
    },
    /// The log segment is another interval's.
    #[error("the log of interval {expected} says that it is interval {found}")]
    OtherInterval {
        /// The interval that was asked for.
        expected: u64,
        /// What its segment says.
        found: u64,
    },
    /// [`Limits::cancel`] was set.
    #[error("cancelled")]
    Cancelled,
}

/// Everything about one interval but the pages.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Its number.
    pub number: u64,
    /// The checkpoint it starts from.
    pub start: Arc<Checkpoint>,
    /// The checkpoint it must end in.
    pub end: Arc<Checkpoint>,
    /// Its log.
    pub segment: Segment,
    /// What reads of the time stamp counter gave that are not in the log, where hardware held it still.
    pub frozen_tsc: Option<u64>,
}

impl Interval {
    /// Loads interval `number`.
    ///
    /// # Errors
    /// [`ReplayError::Source`], [`ReplayError::Log`], [`ReplayError::OtherInterval`].
    pub fn load(source: &dyn CheckpointSource, number: u64) -> Result<Self, ReplayError> {
        let segment =
            Segment::read(&source.segment(number)?).map_err(|error| ReplayError::Log {
                interval: number,
                error,
            })?;
        if segment.header.interval != number {
            return Err(ReplayError::OtherInterval {
                expected: number,
                found: segment.header.interval,
            });
        }
        Ok(Self {
            number,
            start: source.checkpoint(number)?,
            end: source.checkpoint(number + 1)?,
            segment,
            frozen_tsc: None,
        })
    }

    /// The position that replay starts at: the recording's where it counts, else 0.
    pub fn start_position(&self) -> Position {
        match self.segment.header.positions {
            PositionKind::Count { start } => start,
            PositionKind::Landmark => Position::default(),
        }
    }

    /// The same interval, recorded while hardware held the time stamp counter still at this number.
    pub fn with_frozen_tsc(mut self, frozen_tsc: Option<u64>) -> Self {
        self.frozen_tsc = frozen_tsc;
        self
    }

    /// The same interval with exact positions, as a verified replay found them
    /// ([`Report::resolved`]), so that the next replay need not search.
    pub fn with_positions(mut self, resolved: &[Position]) -> Self {
        let start = self.start_position();
        self.segment.header.positions = PositionKind::Count { start };
        let asynchronous = self
            .segment
            .events
            .iter_mut()
            .filter_map(|event| match event {
                Event::Async(Async { at, .. }) => Some(at),
                Event::Read(_) => None,
            });
        let end = self.segment.end.iter_mut().map(|End { at, .. }| at);
        for (at, position) in asynchronous.chain(end).zip(resolved) {
            *at = EventPosition::Count(*position);
        }
        self
    }
}

/// How far a replay goes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most steps of the interval. A guest that went another way might otherwise run for ever.
    pub max_steps: u64,
    /// Most steps from one event to the next where the log does not say how many there are. A guest that
    /// took the wrong one of two states that fit a landmark often computes on for long before that
    /// shows; the right one reaches the next event soon.
    pub patience: u64,
    /// Most times that it goes back to an earlier landmark.
    pub max_backtracks: u64,
    /// Most steps on ways that turned out wrong.
    pub max_lost_steps: u64,
    /// Most pages kept to go back; the oldest landmarks are then taken as settled.
    pub max_undo_pages: u64,
    /// Ends the replay when set, once the vCPU has been kicked.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_steps: 1 << 40,
            patience: u64::MAX,
            max_backtracks: 100_000,
            max_lost_steps: u64::MAX,
            max_undo_pages: 1 << 13,
            cancel: None,
        }
    }
}

/// What searching for landmarks took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchCounts {
    /// Landmarks found, those on ways that turned out wrong included.
    pub landmarks: u64,
    /// States looked at: RIP was right.
    pub arrivals: u64,
    /// States whose registers were right and memory was not.
    pub wrong_memory: u64,
    /// Times that a landmark was given up because of what came later.
    pub backtracks: u64,
    /// Landmarks that were taken as settled to save memory.
    pub settled: u64,
    /// Steps on ways that turned out wrong.
    pub lost_steps: u64,
    /// Ways that were given up because [`Limits::patience`] had an end: more of it may find another
    /// verdict.
    pub impatient: u64,
}

/// Where and how an interval differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The first difference.
    pub first: Box<Desync>,
    /// All registers that differ at the end of the interval, if it got there.
    pub registers: Vec<RegisterDifference>,
    /// All frames that differ at the end of the interval, if it got there.
    pub frames: Vec<Gfn>,
}

/// The verdict on an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ends in the state of the next checkpoint, bit for bit.
    Verified,
    /// It does not.
    Diverged(Divergence),
}

/// What a replay came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The verdict.
    pub outcome: Outcome,
    /// Steps from the start of the interval.
    pub steps: Steps,
    /// Frames compared at the end.
    pub frames_compared: u64,
    /// Entries of page tables, among these, in which the recording has accessed or dirty bits as hardware may
    /// set them and the simulator does not. Always 0 where the recording counts.
    pub early_entries: u64,
    /// Position of each asynchronous event that was applied and of the end, in order.
    pub resolved: Vec<Position>,
    /// Reads of a time stamp counter that hardware held still.
    pub frozen_timestamps: u64,
    /// What searching took.
    pub search: SearchCounts,
    /// Of the writes that [`ReplayVcpu::spurious_faults`] counts, those before the last event that was found.
    pub met_furthest: u64,
}

/// Replays an interval on `vcpu`, which runs on `ram`: fresh, its pages those of the checkpoint that
/// the interval starts from. `source` has the contents that the log names and the pages of the
/// checkpoint at the end.
///
/// # Errors
/// [`ReplayError`].
pub fn replay<V: ReplayVcpu>(
    vcpu: &mut V,
    ram: &Ram,
    interval: &Interval,
    source: &dyn CheckpointSource,
    limits: &Limits,
) -> Result<Report, ReplayError> {
    run::Run::new(vcpu, ram, interval, source, limits)?.finish()
}
