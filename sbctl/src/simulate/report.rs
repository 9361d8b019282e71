//! What a simulation came to.

use super::configuration::{Configuration, Instrument};
use super::results::{Fault, IntervalResult, Results, Search};
use super::supervisor::Ran;
use crate::exit::Exit;
use crate::quantity::{Bytes, Grouped};
use crate::recording::{Accelerator, HostMatch, Source};
use anyhow::Result;
use checkpoint_dedup::RecordingState;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use tcg_sim::instrument::Counts;

/// What all results of a configuration come to. Depends on nothing but them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Merged {
    version: u32,
    recording: String,
    id: String,
    configuration: Configuration,
    /// What a verified interval is evidence of: the recording was made by these.
    evidence: Vec<&'static str>,
    /// Intervals of the recording, as far as it was published.
    intervals: u64,
    verified: u64,
    /// Intervals without a result.
    missing: Vec<u64>,
    instructions: u64,
    pages_compared: u64,
    search: Search,
    /// With the instrument `count`.
    counts: Option<Counts>,
    /// With the instrument `mem`: accesses in all traces, and their bytes on disk.
    traced_accesses: Option<u64>,
    trace_bytes: Option<u64>,
    /// In order.
    results: Vec<IntervalResult>,
}

/// What a run of `simulate` came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    recording: String,
    /// How the program is called for this repository.
    #[serde(skip)]
    pub(crate) sbctl: String,
    id: String,
    /// How the processor that recorded compares with this host's. Absent where nothing was simulated.
    pub(crate) host: Option<HostMatch>,
    /// Of the recording: finished, running or dead.
    pub(crate) state: &'static str,
    evidence: Vec<&'static str>,
    /// Intervals that were asked for.
    pub(crate) intervals: u64,
    /// Of these, proven.
    pub(crate) verified: u64,
    /// Of these, simulated by this run; the others were done before.
    simulated: u64,
    instructions: u64,
    pub(crate) host_time_ns: u64,
    instructions_per_second: f64,
    /// Of the intervals that were asked for, with the instrument `count`.
    counts: Option<Counts>,
    /// Of the intervals that were asked for, with the instrument `mem`.
    pub(crate) traced_accesses: Option<u64>,
    pub(crate) trace_bytes: Option<u64>,
    crashes: u64,
    interrupted: bool,
    pub(crate) out: String,
    /// Intervals that were asked for and are not verified.
    failures: Vec<IntervalResult>,
    /// Intervals that were asked for and have no result.
    missing: Vec<u64>,
    /// Verified intervals that need a page fault which cannot be logged.
    explained: Vec<Explained>,
    /// Entries of page tables whose accessed and dirty bits hardware had set earlier.
    early_entries: u64,
}

/// An interval with the page fault without which it diverges.
#[derive(Clone, Debug, Serialize)]
struct Explained {
    interval: u64,
    spurious_fault: Fault,
}

impl Merged {
    /// Reads all results.
    pub(crate) fn collect(
        source: &Source,
        results: &Results,
        configuration: &Configuration,
    ) -> Result<Self> {
        let mut merged = Self {
            version: 1,
            recording: source.info().name.to_string(),
            id: source.id_text(),
            configuration: configuration.clone(),
            evidence: evidence(source, configuration),
            intervals: 0,
            verified: 0,
            missing: Vec::new(),
            instructions: 0,
            pages_compared: 0,
            search: Search::default(),
            counts: configuration.has(Instrument::Count).then(Counts::default),
            traced_accesses: configuration.has(Instrument::Mem).then_some(0),
            trace_bytes: configuration.has(Instrument::Mem).then_some(0),
            results: Vec::new(),
        };
        for interval in source.intervals()? {
            merged.intervals += 1;
            let Some(result) = results.get(interval)? else {
                merged.missing.push(interval);
                continue;
            };
            merged.verified += u64::from(result.finding.is_verified());
            merged.instructions += result.instructions;
            merged.pages_compared += result.pages_compared;
            merged.search.add(result.search);
            if let (Some(sum), Some(counts)) = (&mut merged.counts, result.counts) {
                *sum += counts;
            }
            if let Some(trace) = &result.trace {
                merged.traced_accesses = merged.traced_accesses.map(|sum| sum + trace.accesses);
                merged.trace_bytes = merged.trace_bytes.map(|sum| sum + trace.bytes);
            }
            merged.results.push(result);
        }
        Ok(merged)
    }
}

fn evidence(source: &Source, configuration: &Configuration) -> Vec<&'static str> {
    let recorder = match source.note.accel {
        Accelerator::Engine => "same engine",
        Accelerator::Kvm => "hardware",
    };
    let other = configuration.paranoid.then_some("one-instruction blocks");
    [recorder].into_iter().chain(other).collect()
}

impl Report {
    pub(super) fn new(
        merged: &Merged,
        results: &Results,
        wanted: &BTreeSet<u64>,
        ran: &Ran,
        host_time: Duration,
    ) -> Self {
        let asked = |result: &&IntervalResult| wanted.contains(&result.interval);
        let all = || merged.results.iter().filter(asked);
        let counts = merged
            .counts
            .map(|_| all().filter_map(|result| result.counts).sum());
        let traces = || all().filter_map(|result| result.trace.as_ref());
        let sum_accesses = |_| traces().map(|trace| trace.accesses).sum();
        let sum_bytes = |_| traces().map(|trace| trace.bytes).sum();
        let failures = all();
        let failures = failures.filter(|result| !result.finding.is_verified());
        let failures: Vec<IntervalResult> = failures.cloned().collect();
        let missing = merged.missing.iter().copied();
        let missing: Vec<u64> = missing.filter(|number| wanted.contains(number)).collect();
        let explained = |result: &IntervalResult| {
            let (interval, fault) = (result.interval, result.spurious_fault.clone());
            fault.map(|spurious_fault| Explained {
                interval,
                spurious_fault,
            })
        };
        let intervals = wanted.len() as u64;
        Self {
            explained: all().filter_map(explained).collect(),
            early_entries: all().map(|result| result.early_entries).sum(),
            recording: merged.recording.clone(),
            sbctl: "sbctl".into(),
            id: merged.id.clone(),
            host: None,
            state: "",
            evidence: merged.evidence.clone(),
            intervals,
            verified: intervals - failures.len() as u64 - missing.len() as u64,
            simulated: ran.intervals,
            instructions: ran.instructions,
            host_time_ns: host_time.as_nanos() as u64,
            instructions_per_second: ran.instructions as f64 / host_time.as_secs_f64().max(1e-9),
            counts,
            traced_accesses: merged.traced_accesses.map(sum_accesses),
            trace_bytes: merged.trace_bytes.map(sum_bytes),
            crashes: ran.crashes,
            interrupted: ran.interrupted,
            out: results.directory().display().to_string(),
            failures,
            missing,
        }
    }

    /// What results that others made come to.
    pub(crate) fn of_merge(merged: &Merged, results: &Results, wanted: &BTreeSet<u64>) -> Self {
        let (ran, time) = (Ran::default(), Duration::ZERO);
        Self::new(merged, results, wanted, &ran, time)
    }

    /// How the command ends.
    pub(crate) fn exit(&self) -> Exit {
        match (self.verified == self.intervals, self.interrupted) {
            (_, true) => Exit::Interrupted,
            (true, false) => Exit::Done,
            (false, false) => Exit::Unverified,
        }
    }
}

impl Report {
    fn write_instruments(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(counts) = &self.counts {
            let Counts {
                instructions,
                branches,
                branches_taken,
                data,
                exceptions,
                interrupts,
                ..
            } = counts;
            let kernel = instructions[..3].iter().sum();
            writeln!(
                f,
                "  executed   {} kernel and {} user instructions, {} branches ({:.0} % taken)",
                Grouped(kernel),
                Grouped(instructions[3]),
                Grouped(*branches),
                100.0 * *branches_taken as f64 / (*branches).max(1) as f64,
            )?;
            writeln!(
                f,
                "  memory     {} reads, {} writes; {} exceptions, {} interrupts",
                Grouped(data.reads),
                Grouped(data.writes),
                Grouped(*exceptions),
                Grouped(*interrupts),
            )?;
        }
        if let (Some(accesses), Some(bytes)) = (self.traced_accesses, self.trace_bytes) {
            writeln!(
                f,
                "  trace      {} accesses in {} ({:.2} bytes each)",
                Grouped(accesses),
                Bytes(bytes),
                bytes as f64 / accesses.max(1) as f64,
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for result in &self.failures {
            writeln!(f, "interval {} {}", result.interval, result.finding)?;
        }
        if let Some(first) = self.failures.first() {
            let interval = first.interval;
            writeln!(
                f,
                "next: {} bisect {} {interval}",
                self.sbctl, self.recording
            )?;
        }
        for Explained {
            interval,
            spurious_fault,
        } in &self.explained
        {
            writeln!(f, "interval {interval} {spurious_fault}")?;
        }
        let evidence = self.evidence.join(", ");
        writeln!(
            f,
            "verified {} of {} ({evidence})",
            self.verified, self.intervals
        )?;
        if self.simulated > 0 {
            let seconds = self.host_time_ns as f64 / 1e9;
            writeln!(
                f,
                "  simulated  {} intervals, {} instructions in {seconds:.1} s ({:.0} million per \
                 second)",
                self.simulated,
                Grouped(self.instructions),
                self.instructions_per_second / 1e6,
            )?;
        }
        let before = self.intervals - self.simulated.min(self.intervals);
        if before > 0 && self.missing.is_empty() {
            writeln!(f, "  before     {before} intervals were done already")?;
        }
        if self.early_entries > 0 {
            let entries = Grouped(self.early_entries);
            writeln!(
                f,
                "  early      {entries} page-table entries had accessed or dirty bits set by hardware before their time"
            )?;
        }
        self.write_instruments(f)?;
        if self.state == RecordingState::Dead.as_str() {
            writeln!(
                f,
                "  recording  its recorder died, so it ends before the guest did"
            )?;
        }
        if !self.missing.is_empty() {
            writeln!(f, "  not done   {} intervals", self.missing.len())?;
        }
        write!(f, "  results    {}", self.out)
    }
}
