//! How a replay says that it went another way than the recording.

use crate::event::{Event, ReadSource};
use crate::position::{EventPosition, IoSteps};
use machine::units::{GuestPhys, Position};
use std::fmt;

/// Something seen at a point of an execution: the expected or the actual side of a mismatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The guest reads.
    Read(ReadSource),
    /// The guest reads the time stamp counter with an instruction that hardware answers unseen.
    UnrecordedTimestamp {
        /// At this privilege level.
        cpl: u8,
        /// In this address space.
        cr3: u64,
    },
    /// An asynchronous event, or the end, has its place here.
    Place(EventPosition),
    /// The guest passed the place without stopping there.
    Passed,
    /// The guest halted.
    Halted,
    /// The guest is in shutdown after a triple fault.
    Shutdown,
    /// The log has no more events and no end.
    LogEnds,
    /// The replay was told to go no further.
    StepLimit,
    /// The guest runs in a loop that changes nothing, waiting for what the recording does not have here.
    Spins,
    /// The value of a register.
    Register {
        /// Its name.
        name: String,
        /// Its value.
        value: u128,
    },
    /// A hash of the general-purpose registers, RIP and RFLAGS.
    RegisterHash(u64),
    /// The interrupt window.
    Window {
        /// Whether it is open.
        open: bool,
    },
    /// Bytes of memory.
    Memory {
        /// First byte.
        address: GuestPhys,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The exact position.
    Position(Position),
}

/// The first point at which a replay differs from its recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "interval {interval}: expected {expected}, found {actual} at {} (after I/O step {io_steps}), \
     RIP {rip:#x}",
    Where(*position)
)]
pub struct Desync {
    /// The interval.
    pub interval: u64,
    /// Exact position of the replay, where known. In recordings without counts it is relative to
    /// the start of the interval.
    pub position: Option<Position>,
    /// I/O steps that the replay had completed in the interval.
    pub io_steps: IoSteps,
    /// RIP of the replay.
    pub rip: u64,
    /// What the recording has there.
    pub expected: Observation,
    /// What the replay did.
    pub actual: Observation,
    /// Index in the segment of the event that was next.
    pub next_event: usize,
    /// Events around it, with their indices.
    pub events: Vec<(usize, Event)>,
}

/// How many events before and after the next one a report shows.
const CONTEXT: usize = 4;

impl Desync {
    /// The events around index `next` of a segment.
    pub fn context(events: &[Event], next: usize) -> Vec<(usize, Event)> {
        let last = events.len().min(next.saturating_add(CONTEXT));
        let first = next.saturating_sub(CONTEXT).min(last);
        (first..last).map(|i| (i, events[i].clone())).collect()
    }
}

struct Where(Option<Position>);

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(position) => position.fmt(f),
            None => f.write_str("an uncounted position"),
        }
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(source) => source.fmt(f),
            Self::UnrecordedTimestamp { cpl, cr3 } => write!(
                f,
                "a read of the time stamp counter at CPL {cpl}, CR3 {cr3:#x}, whose answer by the processor could \
                 not be recorded (the counter is hidden from guests; this program uses it all the same)"
            ),
            Self::Place(position) => write!(f, "an event {position}"),
            Self::Passed => f.write_str("the place already passed"),
            Self::Halted => f.write_str("a halted guest"),
            Self::Shutdown => f.write_str("a triple fault"),
            Self::LogEnds => f.write_str("the end of a cut log"),
            Self::StepLimit => f.write_str("the step limit of the replay"),
            Self::Spins => f.write_str("a loop that changes nothing"),
            Self::Register { name, value } => write!(f, "{name} = {value:#x}"),
            Self::RegisterHash(hash) => write!(f, "registers {hash:016x}"),
            Self::Window { open: true } => f.write_str("an open interrupt window"),
            Self::Window { open: false } => f.write_str("a closed interrupt window"),
            Self::Memory { address, bytes } => write!(f, "{bytes:02x?} at {address}"),
            Self::Position(position) => position.fmt(f),
        }
    }
}
