//! Simulating intervals of a recording while it is being made, so that nobody learns after two hours
//! that it cannot be simulated.
//!
//! One worker process of low priority simulates one interval at a time, each time the newest that is
//! published: a sample, since recording is faster. Unless it was asked for, it only does so while
//! a core has nothing else to do.

use super::configuration::Configuration;
use super::memory::available_bytes;
use super::messages::{Command, Event};
use super::process::{Priority, Process, Worker};
use super::results::{IntervalResult, Results};
use crate::cores::{SpareMeter, cores};
use crate::recording::Source;
use anyhow::{Context, Result, bail};
use checkpoint_dedup::{RecordingName, Repository};
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it looks for new intervals, and for the end.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_FOR_END: Duration = Duration::from_millis(50);
/// Cores that a recording with checks takes: one for the guest, one for the store, one for the checks.
const CORES: usize = 3;
/// CPUs that must have had nothing to do.
const SPARE: f64 = 0.8;
/// Memory that must be free.
const FREE_BYTES: u64 = 1 << 30;
/// How long a check that was asked for may go on when the recording has ended.
const AT_THE_END: Duration = Duration::from_secs(30);

/// Whether intervals are checked while a guest is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckLive {
    /// While a core has nothing else to do
    Auto,
    /// Never
    No,
    /// All the time, with low priority; at least one interval
    Yes,
}

/// What checking a recording while it was made came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct LiveChecked {
    /// Whether it was tried.
    pub(crate) on: bool,
    /// Intervals that were simulated to their end.
    pub(crate) checked: u64,
    /// Of these, those that are not verified.
    pub(crate) failed: u64,
    /// The first of these, in the order in which they were checked.
    pub(crate) first_failed: Option<u64>,
    /// Why nothing was checked, or no more.
    pub(crate) why_not: Option<String>,
}

/// Where the recording is.
pub(crate) struct Recorded {
    pub(crate) repository: PathBuf,
    pub(crate) name: RecordingName,
    /// How the program is called for this repository.
    pub(crate) sbctl: String,
    /// Warnings go above it.
    pub(crate) progress: ProgressBar,
}

/// Checks that are going on.
pub(crate) struct LiveCheck {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<LiveChecked>>,
    outcome: LiveChecked,
}

impl LiveCheck {
    /// Begins, if that is wanted. The recording may have just begun.
    pub(crate) fn start(wanted: CheckLive, recorded: Recorded) -> Self {
        let mut this = Self {
            ending: Arc::default(),
            thread: None,
            outcome: LiveChecked::default(),
        };
        let why_not = match wanted {
            CheckLive::No => Some("--check-live=no".into()),
            CheckLive::Auto if cores() < CORES => Some(format!(
                "no core to spare: that takes {CORES}, here are {}",
                cores()
            )),
            CheckLive::Auto | CheckLive::Yes => None,
        };
        if why_not.is_some() {
            this.outcome.why_not = why_not;
            return this;
        }
        let mut checker = Checker {
            wanted,
            recorded,
            ending: Arc::clone(&this.ending),
            done: BTreeSet::new(),
            meter: SpareMeter::new(),
            outcome: LiveChecked {
                on: true,
                ..LiveChecked::default()
            },
        };
        let thread = std::thread::Builder::new().name("live check".into());
        match thread.spawn(move || checker.run()) {
            Ok(thread) => this.thread = Some(thread),
            Err(error) => this.outcome.why_not = Some(format!("cannot start a thread: {error}")),
        }
        this
    }

    /// The recording has ended.
    pub(crate) fn finish(mut self) -> LiveChecked {
        self.end();
        std::mem::take(&mut self.outcome)
    }

    fn end(&mut self) {
        self.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            self.outcome = thread.join().expect("the live check does not panic");
        }
    }
}

impl Drop for LiveCheck {
    fn drop(&mut self) {
        self.end();
    }
}

struct Checker {
    wanted: CheckLive,
    recorded: Recorded,
    ending: Arc<AtomicBool>,
    /// Intervals that were checked.
    done: BTreeSet<u64>,
    meter: SpareMeter,
    outcome: LiveChecked,
}

/// The process that simulates, and where it leaves results.
struct Simulator {
    results: Results,
    process: Process,
}

impl Drop for Simulator {
    /// Nobody waits for what is under way.
    fn drop(&mut self) {
        self.process.send(Command::Cancel);
        while self.process.events.recv().is_ok() {}
        // Whatever it says, there is nothing left to be done about it.
        let _ = self.process.end();
    }
}

impl Checker {
    fn run(&mut self) -> LiveChecked {
        if let Err(error) = self.check_until_the_end() {
            let why = format!("{error:#}");
            self.say(&format!(
                "no more intervals are checked while they are recorded: {why}"
            ));
            self.outcome.why_not = Some(why);
        }
        std::mem::take(&mut self.outcome)
    }

    fn ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Whether there is no need for further checks.
    fn is_over(&self) -> bool {
        self.ending() && (self.wanted == CheckLive::Auto || self.outcome.checked > 0)
    }

    fn check_until_the_end(&mut self) -> Result<()> {
        let mut source = None;
        let mut simulator: Option<Simulator> = None;
        while !self.is_over() {
            let last_look = self.ending();
            // The recording is visible a moment after it has begun.
            source = source.or_else(|| self.open().ok());
            match self.next(source.as_ref())? {
                Some(interval) => {
                    let simulator = match &mut simulator {
                        Some(simulator) => simulator,
                        None => simulator.insert(self.simulator(source.clone())?),
                    };
                    self.check(interval, simulator)?;
                }
                None if last_look => break,
                None => std::thread::park_timeout(LOOK),
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<Source> {
        let repository = Repository::open(&self.recorded.repository)?;
        Source::open(&repository, &self.recorded.name)
    }

    fn simulator(&self, source: Option<Source>) -> Result<Simulator> {
        let source = source.context("there is no recording")?;
        let configuration = Configuration::bare(false);
        let root = Results::default_root(&self.recorded.repository, &source);
        let worker = Worker {
            repository: &self.recorded.repository,
            name: &self.recorded.name,
            configuration: &configuration,
            root: &root,
            parallel: 1,
            priority: Priority::Low,
        };
        Ok(Simulator {
            results: Results::create(&root, &source, &configuration)?,
            process: Process::start(&worker)?,
        })
    }

    /// The newest interval that was not checked, if one may be checked now.
    fn next(&mut self, source: Option<&Source>) -> Result<Option<u64>> {
        let spare = self.meter.spare();
        if self.wanted == CheckLive::Auto && (spare < SPARE || available_bytes() < FREE_BYTES) {
            return Ok(None);
        }
        let intervals = source.map(Source::intervals).transpose()?.unwrap_or(0..0);
        let newest = intervals.last();
        Ok(newest.filter(|interval| !self.done.contains(interval)))
    }

    fn check(&mut self, interval: u64, simulator: &mut Simulator) -> Result<()> {
        simulator.process.send(Command::Simulate(interval));
        let mut ended = None;
        loop {
            if self.ending() {
                let patience = match self.wanted {
                    CheckLive::Yes => AT_THE_END,
                    CheckLive::Auto | CheckLive::No => Duration::ZERO,
                };
                if ended.get_or_insert_with(Instant::now).elapsed() >= patience {
                    // Dropping the simulator cancels what is under way.
                    self.done.insert(interval);
                    self.wanted = CheckLive::Auto;
                    return Ok(());
                }
            }
            match simulator.process.events.recv_timeout(LOOK_FOR_END) {
                Ok(Event::Finished(_)) => break,
                Ok(Event::Started(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the process that simulated interval {interval} died")
                }
            }
        }
        self.done.insert(interval);
        let result = simulator.results.get(interval)?;
        self.note(&result.context("the result of an interval is gone")?);
        Ok(())
    }

    fn note(&mut self, result: &IntervalResult) {
        self.outcome.checked += 1;
        if result.finding.is_verified() {
            return;
        }
        self.outcome.failed += 1;
        let interval = result.interval;
        if self.outcome.first_failed.is_some() {
            return;
        }
        self.outcome.first_failed = Some(interval);
        let finding = result.finding.to_string();
        let finding = finding.lines().next().unwrap_or_default();
        let Recorded { name, sbctl, .. } = &self.recorded;
        self.say(&format!(
            "WARNING: interval {interval} of {name} does not verify: {finding}\n\
             recording goes on, but what comes may not verify either; look at it with:\n  \
             {sbctl} bisect {name} {interval}"
        ));
    }

    /// On standard error, where the terminal may be in raw mode.
    fn say(&self, text: &str) {
        let text = format!("sbctl: {text}\n");
        let text = match std::io::stderr().is_terminal() {
            true => text.replace('\n', "\r\n"),
            false => text,
        };
        self.recorded.progress.suspend(|| eprint!("{text}"));
    }
}
