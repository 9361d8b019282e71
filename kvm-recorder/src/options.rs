//! What is recorded, and how.

use machine::clock::VirtualClock;
use machine::units::VirtualNanos;
use replay_log::RecordingId;

/// How positions are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Exact counts. Only for vCPUs that count.
    Count,
    /// Landmark rules 1 to 3; the log holds no counts.
    Landmark(Kicks),
}

/// When a guest that does not exit by itself is interrupted to attend to a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kicks {
    /// When the deadline comes: the vCPU stops wherever it happens to be.
    Prompt,
    /// At a random point after it, as a hypervisor would. Only for vCPUs that count.
    Random {
        /// Seed of the random numbers.
        seed: u64,
        /// Most steps that a kick comes late.
        late_by_steps: u64,
    },
}

/// A length of guest execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// In steps. Only for vCPUs that count.
    Steps(u64),
    /// In virtual time.
    Time(VirtualNanos),
}

/// How to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Names the recording in its segments.
    pub recording: RecordingId,
    /// Where virtual time comes from. The instruction clock is only for vCPUs that count.
    pub clock: VirtualClock,
    /// How positions are logged.
    pub positions: Positions,
    /// Length of an interval, at least 1. The last one may be shorter.
    pub interval: Length,
    /// When to stop, if not when the guest does.
    pub stop_after: Option<Length>,
    /// Pages that may wait for the store; the guest waits when there are more.
    pub queue_pages: usize,
}

impl Options {
    /// 64 MiB.
    pub const DEFAULT_QUEUE_PAGES: usize = 16384;
}
