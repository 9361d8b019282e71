//! `sbctl bisect N K`: the first point at which an interval goes another way.
//!
//! First the two modes of the engine are compared with each other, side by side: if they differ, the
//! first instruction after which they do is found. If they agree, the recording is what differs: then it narrows down what the recording allows, which
//! is the events of the log and, for memory that differs at the end, the instruction that wrote it
//! last.

mod against;
mod code;
mod probe;
mod search;

use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::interrupt::Interrupted;
use crate::progress;
use crate::recording::{HostArguments, Source};
use crate::simulate::{Configuration, Finding, Jobs, Mode, is_cancelled};
use against::Against;
use anyhow::Result;
use checkpoint_dedup::{CacheLimits, RecordingName};
use clap::Args;
use machine::checkpoint::CheckpointSource;
use machine::vcpu::Kick;
use search::{ModesDiffer, Searcher};
use serde::Serialize;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tcg_sim::replay::Interval;

/// Code memory of each engine.
const CODE_BYTES: usize = 64 << 20;

/// Options of `sbctl bisect`.
#[derive(Debug, Args)]
pub(crate) struct BisectArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    /// The interval
    #[arg(value_name = "K")]
    interval: u64,
    #[command(flatten)]
    host: HostArguments,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    recording: String,
    interval: u64,
    /// What a simulation of the interval finds.
    finding: Finding,
    /// Where the two modes of the engine differ first, if they do.
    modes_differ: Option<ModesDiffer>,
    /// Where the recording differs, if the modes agree and the interval is not verified.
    recording_differs: Option<Against>,
}

/// Finds where an interval goes another way.
pub(crate) fn run(arguments: BisectArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open_with(CacheLimits {
        page_bytes: 256 << 20,
        ..CacheLimits::default()
    })?;
    let source = Source::open(&repository, &arguments.name)?;
    source.host().admit(&arguments.name, arguments.host)?;
    let cancel: Arc<AtomicBool> = Arc::default();
    let kick = kick_on_request(environment, &cancel);
    let jobs = Jobs {
        cpuid: source.note.cpuid()?,
        configuration: Configuration::bare(false),
        code_bytes: CODE_BYTES,
        cancel,
        source,
    };
    let report = match bisect(&jobs, &arguments, &kick) {
        Err(error) if is_cancelled(&error) => return Err(Interrupted.into()),
        other => other?,
    };
    environment.finish(&report, &report)?;
    Ok(
        match report.finding.is_verified() && report.modes_differ.is_none() {
            true => Exit::Done,
            false => Exit::Unverified,
        },
    )
}

type Kicker = dyn Fn(Arc<dyn Kick>);

/// Ctrl-C ends the engine that runs.
fn kick_on_request(environment: &Environment, cancel: &Arc<AtomicBool>) -> Box<Kicker> {
    let running: Arc<Mutex<Option<Arc<dyn Kick>>>> = Arc::default();
    let (slot, flag) = (Arc::clone(&running), Arc::clone(cancel));
    environment.interrupt.on_request(move || {
        flag.store(true, Ordering::Release);
        if let Some(kick) = &*slot.lock().expect("no panic under the lock") {
            kick.kick();
        }
    });
    Box::new(move |kick| *running.lock().expect("no panic under the lock") = Some(kick))
}

fn bisect(jobs: &Jobs, arguments: &BisectArguments, kick: &Kicker) -> Result<Report> {
    let progress = progress::spinner();
    progress.set_message("simulating the interval");
    let number = arguments.interval;
    let recorded: Arc<dyn CheckpointSource> = Arc::new(jobs.source.interval(number)?);
    let frozen_tsc = jobs.source.note.frozen_tsc;
    let interval = Interval::load(&*recorded, number)?.with_frozen_tsc(frozen_tsc);
    let start = interval.start_position();
    let replayed = jobs.replay(&interval, &recorded, Mode::Blocks, kick)?;
    let finding = Finding::of(&replayed, Mode::Blocks, start);
    // What was found need not be searched again.
    let interval = interval.with_positions(&replayed.resolved);
    let searcher = Searcher {
        jobs,
        interval: &interval,
        recorded: &recorded,
        kick,
    };
    progress.set_message("comparing the two modes of the engine");
    let modes_differ = searcher.modes()?;
    let recording_differs = match (&modes_differ, &replayed.outcome) {
        (None, tcg_sim::replay::Outcome::Diverged(divergence)) => {
            progress.set_message("looking for what differs from the recording");
            Some(searcher.against(&replayed, divergence)?)
        }
        _ => None,
    };
    progress.finish_and_clear();
    Ok(Report {
        recording: arguments.name.to_string(),
        interval: number,
        finding,
        modes_differ,
        recording_differs,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "interval {}: {}", self.interval, self.finding)?;
        match (&self.modes_differ, &self.recording_differs) {
            (Some(differ), _) => differ.fmt(f),
            (None, Some(against)) => {
                writeln!(f, "both modes of the engine agree; the recording differs:")?;
                against.fmt(f)
            }
            (None, None) => f.write_str("both modes of the engine agree"),
        }
    }
}
