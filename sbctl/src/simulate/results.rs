//! Results of intervals on disk.
//!
//! ```text
//! ROOT/recording.json              which recording the results are of
//! ROOT/CONFIGURATION/00000012.json the result of interval 12
//! ROOT/CONFIGURATION/00000012.trace its memory trace, with the instrument `mem`
//! ROOT/CONFIGURATION/merged.json   all of them, in order
//! ROOT/CONFIGURATION/speed.json    how fast this host was, for predictions
//! ```
//!
//! Results hold nothing that depends on how they came about, so they are equal for every number of
//! workers. A result is complete when it is there: it is written beside its place and renamed.

use super::configuration::Configuration;
use super::finding::Finding;
use super::report::Merged;
use super::supervisor::Ran;
use super::trace::TraceResult;
use crate::recording::Source;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tcg_sim::SpuriousFault;
use tcg_sim::instrument::Counts;
use tcg_sim::replay::SearchCounts;

/// The version of the files here.
const VERSION: u32 = 1;

/// The result of one interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IntervalResult {
    pub(crate) version: u32,
    pub(crate) interval: u64,
    #[serde(flatten)]
    pub(crate) finding: Finding,
    /// Instructions and deliveries simulated; 0 if it failed.
    pub(crate) instructions: u64,
    pub(crate) pages_compared: u64,
    /// What searching for landmarks took.
    pub(crate) search: Search,
    /// Entries of page tables whose accessed and dirty bits hardware had set earlier.
    #[serde(default)]
    pub(crate) early_entries: u64,
    /// The page fault without which the interval diverges, and which cannot be logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spurious_fault: Option<Fault>,
    /// With the instrument `count`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) counts: Option<Counts>,
    /// With the instrument `mem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<TraceResult>,
}

/// What searching for landmarks took; all 0 where the recording counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Search {
    pub(crate) landmarks: u64,
    pub(crate) arrivals: u64,
    pub(crate) wrong_memory: u64,
    pub(crate) backtracks: u64,
    pub(crate) settled: u64,
    #[serde(default)]
    pub(crate) lost_steps: u64,
}

/// A page fault that hardware took for a translation that it remembered; hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) rip: String,
    pub(crate) address: String,
}

impl From<SpuriousFault> for Fault {
    fn from(SpuriousFault { rip, address }: SpuriousFault) -> Self {
        Self {
            rip: format!("{rip:#x}"),
            address: format!("{address:#x}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "verifies with a page fault at RIP {} for {}: the guest had made that page writable without a flush, \
             and the processor remembered that it was not",
            self.rip, self.address
        )
    }
}

impl From<SearchCounts> for Search {
    fn from(counts: SearchCounts) -> Self {
        let SearchCounts {
            landmarks,
            arrivals,
            wrong_memory,
            backtracks,
            settled,
            lost_steps,
            impatient: _,
        } = counts;
        Self {
            landmarks,
            arrivals,
            wrong_memory,
            backtracks,
            settled,
            lost_steps,
        }
    }
}

impl Search {
    pub(crate) fn add(&mut self, other: Self) {
        self.landmarks += other.landmarks;
        self.arrivals += other.arrivals;
        self.wrong_memory += other.wrong_memory;
        self.backtracks += other.backtracks;
        self.settled += other.settled;
        self.lost_steps += other.lost_steps;
    }
}

impl IntervalResult {
    /// The result of an interval that could not be simulated.
    pub(crate) fn without_replay(interval: u64, finding: Finding) -> Self {
        Self {
            version: VERSION,
            interval,
            finding,
            instructions: 0,
            pages_compared: 0,
            search: Search::default(),
            early_entries: 0,
            spurious_fault: None,
            counts: None,
            trace: None,
        }
    }
}

/// Which recording results are of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OfRecording {
    version: u32,
    recording: String,
    id: String,
}

/// How fast this host was.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Speed {
    pub(crate) instructions_per_worker_second: f64,
    /// Bytes of results per instruction.
    #[serde(default)]
    pub(crate) bytes_per_instruction: f64,
}

/// The results of one recording and configuration.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    directory: PathBuf,
}

impl Results {
    /// Where results go unless something else is said.
    pub(crate) fn default_root(repository: &Path, source: &Source) -> PathBuf {
        let id = source.id_text();
        let name = format!("{}-{}", source.info().name, &id[..8]);
        beside(repository).join(name)
    }

    /// Opens or makes the results of a configuration.
    pub(crate) fn create(
        root: &Path,
        source: &Source,
        configuration: &Configuration,
    ) -> Result<Self> {
        let this = OfRecording {
            version: VERSION,
            recording: source.info().name.to_string(),
            id: source.id_text(),
        };
        let path = root.join("recording.json");
        let found = read_json::<OfRecording>(&path)?;
        if let Some(found) = found.as_ref().filter(|found| found.id != this.id) {
            bail!(
                "{} holds results of another recording, {} ({})",
                root.display(),
                found.recording,
                found.id
            );
        }
        let directory = root.join(configuration.key());
        std::fs::create_dir_all(&directory).with_context(|| {
            let path = directory.display();
            format!("cannot make {path} for the results; --out DIR puts them elsewhere")
        })?;
        if found.is_none() {
            write_json(&path, &this)?;
        }
        Ok(Self { directory })
    }

    /// Opens results that are there already; none if there are none of this configuration.
    pub(crate) fn open(
        root: &Path,
        source: &Source,
        configuration: &Configuration,
    ) -> Result<Option<Self>> {
        let directory = root.join(configuration.key());
        let found = read_json::<OfRecording>(&root.join("recording.json"))?;
        let same = found.is_some_and(|found| found.id == source.id_text());
        Ok((same && directory.is_dir()).then_some(Self { directory }))
    }

    /// Takes over the result of an interval from other results, unless a proven one is here.
    pub(crate) fn take(&self, other: &Self, interval: u64) -> Result<()> {
        let proven = |result: &IntervalResult| result.finding.is_verified();
        match (self.get(interval)?, other.get(interval)?) {
            (Some(here), _) if proven(&here) => Ok(()),
            (_, Some(there)) => {
                if let Some(trace) = &there.trace {
                    // Whoever wrote the result may have written anything there.
                    let name = trace_name(interval);
                    if trace.file != name {
                        bail!(
                            "the result of interval {interval} in {} names another trace, {:?}",
                            other.directory.display(),
                            trace.file
                        );
                    }
                    self.take_file(other, &name)?;
                }
                self.put(&there)
            }
            (_, None) => Ok(()),
        }
    }

    fn take_file(&self, other: &Self, name: &str) -> Result<()> {
        let place = self.directory.join(name);
        let beside = place.with_extension(format!("trace-new-{}", std::process::id()));
        std::fs::copy(other.directory.join(name), &beside)
            .and_then(|_| std::fs::rename(&beside, &place))
            .with_context(|| format!("cannot copy {name} to {}", self.directory.display()))
    }

    /// Where the memory trace of an interval belongs.
    pub(super) fn trace_path(&self, interval: u64) -> PathBuf {
        self.directory.join(trace_name(interval))
    }

    /// The folder.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, interval: u64) -> PathBuf {
        self.directory.join(format!("{interval:08}.json"))
    }

    /// The result of an interval, if there is one that this build can read.
    pub(crate) fn get(&self, interval: u64) -> Result<Option<IntervalResult>> {
        let found = read_json::<IntervalResult>(&self.path(interval))?;
        Ok(found.filter(|result| result.version == VERSION && result.interval == interval))
    }

    /// Keeps a result.
    pub(crate) fn put(&self, result: &IntervalResult) -> Result<()> {
        write_json(&self.path(result.interval), result)
    }

    /// Those of `intervals` that are proven, and whose traces are there where there should be one.
    pub(crate) fn verified(&self, intervals: &BTreeSet<u64>) -> Result<BTreeSet<u64>> {
        let mut verified = BTreeSet::new();
        for &interval in intervals {
            let result = self.get(interval)?;
            if result.is_some_and(|result| result.finding.is_verified() && self.has_trace(&result))
            {
                verified.insert(interval);
            }
        }
        Ok(verified)
    }

    fn has_trace(&self, result: &IntervalResult) -> bool {
        let Some(trace) = &result.trace else {
            return true;
        };
        let found = std::fs::metadata(self.trace_path(result.interval));
        found.is_ok_and(|found| found.len() == trace.bytes)
    }

    /// Keeps the whole result.
    pub(crate) fn write_merged(&self, merged: &Merged) -> Result<()> {
        write_json(&self.directory.join("merged.json"), merged)
    }

    /// How fast this host was, if it is known.
    pub(crate) fn speed(&self) -> Result<Option<Speed>> {
        read_json(&self.directory.join("speed.json"))
    }

    /// Remembers how fast this host was while `busy` workers had a CPU each.
    pub(super) fn note_speed(&self, ran: &Ran, host_time: Duration, busy: usize) -> Result<()> {
        let seconds = host_time.as_secs_f64() * busy.max(1) as f64;
        if ran.instructions == 0 || seconds < 0.1 {
            return Ok(());
        }
        let speed = Speed {
            instructions_per_worker_second: ran.instructions as f64 / seconds,
            bytes_per_instruction: ran.trace_bytes as f64 / ran.instructions as f64,
        };
        write_json(&self.directory.join("speed.json"), &speed)
    }
}

fn trace_name(interval: u64) -> String {
    format!("{interval:08}.trace")
}

/// The folder beside a repository for what is made from its recordings: nothing that is not the
/// store's own belongs inside.
pub(crate) fn beside(repository: &Path) -> PathBuf {
    let mut name = repository.as_os_str().to_owned();
    name.push("-results");
    name.into()
}

/// Reads a file; none if it is not there or was torn by a crash.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    // Several processes may write the same result.
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
