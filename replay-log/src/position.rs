//! Where in an execution something happened.

use crate::digest;
use machine::state::{CpuState, Gpr};
use machine::units::{Gfn, GuestPhys, Position};
use std::fmt;

/// A count of architectural I/O steps since the start of the interval: one IN or OUT, one element
/// of INS or OUTS, one MMIO access, one time stamp read, one HLT. Not one exit of some hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoSteps(pub u64);

impl fmt::Display for IoSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A position in a log. Only vCPUs that count give [`EventPosition::Count`]; the others are the
/// landmark rules 1 to 3, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventPosition {
    /// After this many steps and REP iterations since the start of the recording.
    Count(Position),
    /// Rule 1: right after I/O step `n` of the interval (0: at its start), before another
    /// instruction has begun.
    AfterIo(IoSteps),
    /// Rule 2: the first open interrupt window after I/O step `n`, or after the previous
    /// asynchronous event of the log where that came later, the window having been asked for before
    /// the guest was entered again.
    Window(IoSteps),
    /// Rule 3: a state after an asynchronous kick.
    Landmark(Box<Landmark>),
    /// Right after the previous asynchronous event, at the same boundary: nothing has run since.
    Follows,
}

/// Rule 3: a state that is recognised when it is met. Where several states in a row match, the
/// first is meant unless it leads to a contradiction later; states that are equal in full are
/// interchangeable for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landmark {
    /// I/O steps completed before it. The state lies before the next one.
    pub io_steps: IoSteps,
    /// General-purpose registers in encoding order.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// [`digest::state_digest`] of the whole register file.
    pub state: [u8; 16],
    /// Facts about memory that hold there.
    pub memory: Vec<Fingerprint>,
}

/// A fact about guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fingerprint {
    /// [`digest::page_hash`] of a frame.
    Page {
        /// The frame.
        gfn: Gfn,
        /// Its hash.
        hash: [u8; 16],
    },
    /// [`digest::table_hash`] of a frame: bits 5 and 6 of every quadword are taken as
    /// zero, because hardware sets accessed and dirty bits before the access that needs them is done.
    Table {
        /// The frame.
        gfn: Gfn,
        /// Its hash.
        hash: [u8; 16],
    },
    /// A little-endian quadword.
    Word {
        /// Its address, a multiple of 8.
        address: GuestPhys,
        /// Its value.
        value: u64,
    },
}

/// What every asynchronous event carries besides its position, to catch a desync at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// RIP.
    pub rip: u64,
    /// RCX, the iteration count of a REP in progress.
    pub rcx: u64,
    /// [`digest::register_hash`].
    pub registers: u64,
}

impl Check {
    /// The check for a state.
    pub fn of(cpu: &CpuState) -> Self {
        Self {
            rip: cpu.rip,
            rcx: cpu.gpr[Gpr::Rcx as usize],
            registers: digest::register_hash(cpu),
        }
    }
}

impl Landmark {
    /// Most facts about memory in one landmark.
    pub const MEMORY_MAX: usize = 4096;

    /// Whether the registers of `cpu`, whose RIP has been compared, are those of this landmark.
    pub fn matches_registers(&self, cpu: &CpuState) -> bool {
        self.gpr == cpu.gpr && self.rflags == cpu.rflags && self.state == digest::state_digest(cpu)
    }
}

impl EventPosition {
    /// The number of I/O steps before it, where the position says.
    pub fn io_steps(&self) -> Option<IoSteps> {
        match self {
            Self::Count(_) | Self::Follows => None,
            Self::AfterIo(n) | Self::Window(n) => Some(*n),
            Self::Landmark(landmark) => Some(landmark.io_steps),
        }
    }
}

impl fmt::Display for EventPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(position) => write!(f, "at {position}"),
            Self::AfterIo(n) => write!(f, "after I/O step {n}"),
            Self::Window(n) => write!(f, "at the first open window after I/O step {n}"),
            Self::Landmark(landmark) => write!(
                f,
                "at a landmark after I/O step {} ({} facts about memory)",
                landmark.io_steps,
                landmark.memory.len()
            ),
            Self::Follows => f.write_str("right after the previous event"),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rip,
            rcx,
            registers,
        } = self;
        write!(f, "RIP {rip:#x}, RCX {rcx:#x}, registers {registers:016x}")
    }
}
