//! What a recording came to.

use machine::units::{Steps, VirtualNanos};
use replay_log::EndReason;
use std::time::Duration;

/// Events by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Reads of ports, MMIO and time.
    pub reads: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// Device writes.
    pub writes: u64,
}

/// Asynchronous events and ends by kind of position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PositionCounts {
    /// Exact counts.
    pub count: u64,
    /// Rule 1.
    pub after_io: u64,
    /// Rule 2.
    pub window: u64,
    /// Rule 3.
    pub landmark: u64,
    /// At the boundary of the event before.
    pub follows: u64,
}

/// What taking landmarks cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LandmarkCost {
    /// Landmarks taken; more than were logged where devices may write RAM unasked.
    pub taken: u64,
    /// Host time that the guest stood still for them.
    pub time: Duration,
    /// Pages hashed.
    pub pages: u64,
}

/// How long the guest stood still for checkpoints, from saving its registers until it could go on: by
/// the clock, or only what its thread spent on a processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pauses(Vec<Duration>);

impl Pauses {
    pub(crate) fn add(&mut self, pause: Duration) {
        self.0.push(pause);
    }

    /// The pause that `percent` (0 to 100) of all do not exceed; zero if there was none.
    pub fn percentile(&self, percent: u32) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent.min(100) as usize).div_ceil(100);
        let index = rank.saturating_sub(1);
        sorted.get(index).copied().unwrap_or_default()
    }

    /// All together.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.percentile(100)
    }
}

/// What a recording came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Why it ended.
    pub reason: EndReason,
    /// Steps, where the vCPU counts.
    pub steps: Option<Steps>,
    /// Virtual time at the end.
    pub guest_time: VirtualNanos,
    /// Host time from the first instruction to the last page stored.
    pub host_time: Duration,
    /// Intervals; there is one checkpoint more.
    pub intervals: u64,
    /// Pages of all checkpoints.
    pub pages: u64,
    /// Of these, pages copied by the guest's thread because it wanted to write them before the
    /// background had copied them.
    pub pages_copied_on_write: u64,
    /// Pauses for checkpoints, the first and the last left out.
    pub pauses: Pauses,
    /// The same pauses without the time in which the host ran something else: much less than
    /// [`Summary::pauses`] means that the host was too busy.
    pub pauses_on_cpu: Pauses,
    /// Host time for which the guest waited because too many pages waited for the store.
    pub stalled: Duration,
    /// Bytes of all segments.
    pub log_bytes: u64,
    /// Bytes of all events before compression.
    pub log_raw_bytes: u64,
    /// Events by kind.
    pub events: EventCounts,
    /// Positions by kind.
    pub positions: PositionCounts,
    /// What landmarks cost.
    pub landmarks: LandmarkCost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.percentile(50), Duration::ZERO);
        for micros in (1..=100).rev() {
            pauses.add(Duration::from_micros(micros));
        }
        for (percent, micros) in [(0, 1), (1, 1), (50, 50), (99, 99), (100, 100)] {
            assert_eq!(pauses.percentile(percent), Duration::from_micros(micros));
        }
    }
}
