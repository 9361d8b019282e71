//! What a recording came to.

use crate::ending::Ending;
use crate::quantity::{Bytes, Grouped};
use crate::recording::Stored;
use crate::simulate::LiveChecked;
use checkpoint_dedup::RecordingName;
use kvm_recorder::{PositionCounts, Summary};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// The summary of `sbctl record`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    recording: String,
    end: &'static str,
    #[serde(skip)]
    sentence: &'static str,
    /// How the program is called for this repository.
    #[serde(skip)]
    pub(super) sbctl: String,
    /// Absent where the vCPU does not count.
    pub(crate) instructions: Option<u64>,
    guest_time_ns: u64,
    pub(crate) host_time_ns: u64,
    pub(crate) intervals: u64,
    pub(crate) dirty_pages: u64,
    copied_on_write_pages: u64,
    pause_p50_ns: u64,
    pause_p99_ns: u64,
    pause_max_ns: u64,
    /// The same pause without the time in which the host ran something else.
    pause_on_cpu_p99_ns: u64,
    /// For which the guest waited because the store was behind.
    stalled_ns: u64,
    /// Share of the host time for which the guest stood still: pauses and waits.
    held_up: f64,
    pub(crate) log_bytes: u64,
    log_events_bytes: u64,
    reads: u64,
    interrupts: u64,
    device_writes: u64,
    positions: Positions,
    /// For which the guest stood still to take them.
    landmarks_ns: u64,
    /// CPU time of the thread that ran the guest.
    guest_thread_ns: u64,
    pub(crate) store: Stored,
    /// What simulating a sample of the intervals meanwhile came to.
    pub(crate) live_check: LiveChecked,
}

/// How many positions were logged, by kind.
#[derive(Clone, Copy, Debug, Serialize)]
struct Positions {
    count: u64,
    after_io: u64,
    window: u64,
    landmark: u64,
    /// At the position of the event before.
    follows: u64,
}

impl From<PositionCounts> for Positions {
    fn from(counts: PositionCounts) -> Self {
        let PositionCounts {
            count,
            after_io,
            window,
            landmark,
            follows,
        } = counts;
        Self {
            count,
            after_io,
            window,
            landmark,
            follows,
        }
    }
}

impl Report {
    pub(crate) fn new(
        name: &RecordingName,
        summary: &Summary,
        store: Stored,
        guest_thread: Duration,
    ) -> Self {
        let ending = Ending::from(summary.reason);
        let nanos = |time: Duration| time.as_nanos() as u64;
        let pauses = &summary.pauses;
        let held_up = pauses.total() + summary.stalled;
        Self {
            recording: name.to_string(),
            end: ending.code,
            sentence: ending.sentence,
            sbctl: "sbctl".into(),
            instructions: summary.steps.map(|steps| steps.0),
            guest_time_ns: summary.guest_time.0,
            host_time_ns: nanos(summary.host_time),
            intervals: summary.intervals,
            dirty_pages: summary.pages,
            copied_on_write_pages: summary.pages_copied_on_write,
            pause_p50_ns: nanos(pauses.percentile(50)),
            pause_p99_ns: nanos(pauses.percentile(99)),
            pause_max_ns: nanos(pauses.max()),
            pause_on_cpu_p99_ns: nanos(summary.pauses_on_cpu.percentile(99)),
            stalled_ns: nanos(summary.stalled),
            held_up: held_up.as_secs_f64() / summary.host_time.as_secs_f64().max(1e-9),
            log_bytes: summary.log_bytes,
            log_events_bytes: summary.log_raw_bytes,
            reads: summary.events.reads,
            interrupts: summary.events.interrupts,
            device_writes: summary.events.writes,
            positions: Positions::from(summary.positions),
            landmarks_ns: nanos(summary.landmarks.time),
            guest_thread_ns: nanos(guest_thread),
            store,
            live_check: LiveChecked::default(),
        }
    }

    fn write_live_check(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LiveChecked {
            on,
            checked,
            failed,
            first_failed,
            why_not,
        } = &self.live_check;
        if !on {
            return Ok(());
        }
        write!(f, "\n  checked live {checked} of the intervals: ")?;
        match (first_failed, checked) {
            (Some(first), _) => write!(f, "{failed} of them not verified, first {first}")?,
            (None, 0) => f.write_str("no core was idle for long enough")?,
            (None, _) => f.write_str("verified")?,
        }
        match why_not {
            Some(why) => write!(f, "; then no more: {why}"),
            None => Ok(()),
        }
    }
}

fn milliseconds(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host_seconds = self.host_time_ns as f64 / 1e9;
        write!(f, "recording {}: {}", self.recording, self.sentence)?;
        if let Some(instructions) = self.instructions {
            let speed = instructions as f64 / 1e6 / host_seconds.max(1e-9);
            write!(
                f,
                " after {} instructions ({speed:.0} million per second)",
                Grouped(instructions)
            )?;
        }
        let store = &self.store;
        let share = 100.0 * store.stored_bytes as f64 / store.in_bytes.max(1) as f64;
        write!(
            f,
            "
  time         {host_seconds:.1} s, {:.1} s by the guest's clock
  overhead     {:.2} % of the time the guest stood still, for pauses and for the store; first writes to pages cost more
  intervals    {}
  pauses       {:.3} ms median, {:.3} ms p99, {:.3} ms longest ({:.3} ms p99 on the CPU); waited for the store {:.1} ms
  dirty pages  {} ({}), {} of them copied because the guest wrote them again
  stored       {} ({share:.1} %): {} pages edits, {} whole, {} known, {} filled
  log          {} ({} reads, {} interrupts, {} device writes, {} landmarks)",
            self.guest_time_ns as f64 / 1e9,
            100.0 * self.held_up,
            self.intervals,
            milliseconds(self.pause_p50_ns),
            milliseconds(self.pause_p99_ns),
            milliseconds(self.pause_max_ns),
            milliseconds(self.pause_on_cpu_p99_ns),
            milliseconds(self.stalled_ns),
            Grouped(self.dirty_pages),
            Bytes(self.dirty_pages * 4096),
            Grouped(self.copied_on_write_pages),
            Bytes(store.stored_bytes),
            Grouped(store.delta_pages),
            Grouped(store.whole_pages),
            Grouped(store.duplicate_pages + store.unchanged_pages),
            Grouped(store.filled_pages),
            Bytes(self.log_bytes),
            Grouped(self.reads),
            Grouped(self.interrupts),
            Grouped(self.device_writes),
            Grouped(self.positions.landmark),
        )?;
        self.write_live_check(f)?;
        let (sbctl, recording) = (&self.sbctl, &self.recording);
        match self.live_check.first_failed {
            None => write!(f, "\nnext: {sbctl} simulate {recording}"),
            Some(interval) => write!(f, "\nnext: {sbctl} bisect {recording} {interval}"),
        }
    }
}
