//! `sbctl simulate N`: all intervals of a recording, in parallel, each proven to end in the next
//! checkpoint.
//!
//! This process plans, supervises and reports; a process of its own simulates (`worker`), with one
//! thread per worker, all sharing decoded pages. If that process dies, the intervals that were
//! under way run again, each in a process of its own, so that only the guilty one fails. Reading
//! order: `configuration` (what makes results comparable), `results` (where they lie), `job` (one
//! interval), `worker`, `supervisor`, `predict`, `report`.

mod configuration;
mod finding;
mod job;
mod live;
mod memory;
mod messages;
mod predict;
mod process;
mod report;
mod results;
mod supervisor;
mod trace;
mod worker;

pub(crate) use configuration::{Configuration, InstrumentArguments};
pub(crate) use finding::{Finding, LoggedEvent, Mode, Register};
pub(crate) use job::{Jobs, is_cancelled};
pub(crate) use live::{CheckLive, LiveCheck, LiveChecked, Recorded};
pub(crate) use memory::available_bytes;
pub(crate) use report::{Merged, Report};
pub(crate) use results::{Results, beside};
pub(crate) use worker::{WorkerArguments, run as work};

use crate::environment::{Environment, recording_name};
use crate::exit::{Exit, Usage};
use crate::recording::{HostArguments, Source};
use anyhow::{Result, bail};
use checkpoint_dedup::{RecordingName, RecordingState};
use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use supervisor::{Order, Supervisor};

/// Most workers: each has a thread and its engine's mappings, and a process may have 65,530 of those.
const MOST_WORKERS: usize = 4096;

/// Options of `sbctl simulate`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SimulateArguments {
    #[command(flatten)]
    pub(crate) instruments: InstrumentArguments,
    #[command(flatten)]
    pub(crate) common: CommonSimulateArguments,
}

/// Options of `sbctl verify`.
#[derive(Clone, Debug, Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    pub(crate) common: CommonSimulateArguments,
}

/// Options that `simulate` and `verify` share.
#[derive(Clone, Debug, Args)]
pub(crate) struct CommonSimulateArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    pub(crate) name: RecordingName,
    /// Workers [default: the CPUs of this process, fewer where memory is short]
    #[arg(long, short, value_name = "COUNT")]
    parallel: Option<usize>,
    /// Only these intervals: A..B without B, A.., ..B, or one number
    #[arg(long, value_name = "A..B")]
    intervals: Option<Selection>,
    /// Only every N-th interval, beginning with the I-th (1 to N): the I-th of N batch jobs
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Simulate intervals of a running recording as they are published, until it ends
    #[arg(long)]
    follow: bool,
    /// Simulate again what is done already
    #[arg(long)]
    force: bool,
    /// Execute every interval a second time, in blocks of one instruction
    #[arg(long)]
    pub(crate) paranoid: bool,
    #[command(flatten)]
    host: HostArguments,
    /// Where results go [default: beside the repository, REPOSITORY-results/NAME-ID]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// A choice of intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Selection {
    start: u64,
    /// Excluded.
    end: u64,
}

impl FromStr for Selection {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "A..B, A.., ..B or one number is expected";
        let number = |text: &str| text.parse::<u64>().map_err(|_| FORM);
        let (start, end) = match text.split_once("..") {
            None => {
                let start = number(text)?;
                (start, start.checked_add(1).ok_or(FORM)?)
            }
            Some((start, end)) => {
                let start = if start.is_empty() { 0 } else { number(start)? };
                let end = if end.is_empty() {
                    u64::MAX
                } else {
                    number(end)?
                };
                (start, end)
            }
        };
        match start < end {
            true => Ok(Self { start, end }),
            false => Err("the range is empty: the second number is excluded"),
        }
    }
}

/// Every `of`-th interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    /// From 0.
    index: u64,
    of: u64,
}

impl FromStr for Shard {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "I/N with I from 1 to N is expected";
        let (index, of) = text.split_once('/').ok_or(FORM)?;
        let index: u64 = index.parse().map_err(|_| FORM)?;
        let of: u64 = of.parse().map_err(|_| FORM)?;
        match (1..=of).contains(&index) {
            true => Ok(Self {
                index: index - 1,
                of,
            }),
            false => Err(FORM),
        }
    }
}

impl CommonSimulateArguments {
    fn check(&self) -> Result<(), Usage> {
        match self.parallel {
            Some(0) => Err(Usage("--parallel must be at least 1".into())),
            Some(workers) if workers > MOST_WORKERS => {
                Err(Usage(format!("--parallel must be at most {MOST_WORKERS}")))
            }
            _ => Ok(()),
        }
    }

    fn selects(&self, interval: u64) -> bool {
        self.intervals
            .is_none_or(|range| (range.start..range.end).contains(&interval))
    }

    fn wants(&self, interval: u64) -> bool {
        let sharded = self
            .shard
            .is_none_or(|shard| interval % shard.of == shard.index);
        self.selects(interval) && sharded
    }
}

/// Simulates with instruments.
pub(crate) fn run(arguments: SimulateArguments, environment: &Environment) -> Result<Exit> {
    let configuration = Configuration::new(&arguments.instruments, arguments.common.paranoid);
    simulate(&arguments.common, &configuration, environment)
}

/// Simulates without instruments, to prove.
pub(crate) fn verify(arguments: VerifyArguments, environment: &Environment) -> Result<Exit> {
    let configuration = Configuration::bare(arguments.common.paranoid);
    simulate(&arguments.common, &configuration, environment)
}

fn simulate(
    arguments: &CommonSimulateArguments,
    configuration: &Configuration,
    environment: &Environment,
) -> Result<Exit> {
    let report = execute(arguments, configuration, environment)?;
    environment.finish(&report, &report)?;
    Ok(report.exit())
}

/// Simulates and gives what it came to.
pub(crate) fn execute(
    arguments: &CommonSimulateArguments,
    configuration: &Configuration,
    environment: &Environment,
) -> Result<Report> {
    arguments.check()?;
    let repository = environment.open()?;
    let source = Source::open(&repository, &arguments.name)?;
    let host = source.host();
    host.admit(&arguments.name, arguments.host)?;
    let root = match &arguments.out {
        Some(path) => path.clone(),
        None => Results::default_root(&environment.repository_path()?, &source),
    };
    let results = Results::create(&root, &source, configuration)?;
    let mut wanted: BTreeSet<u64> = BTreeSet::new();
    wanted.extend(
        source
            .intervals()?
            .filter(|number| arguments.wants(*number)),
    );
    let state = source.refresh()?.state;
    let may_come = arguments.follow && state == RecordingState::Running;
    // A shard may have nothing to do: there are more batch jobs than intervals.
    let selected = source.intervals()?.any(|number| arguments.selects(number));
    if !selected && !may_come {
        bail!(nothing_to_do(&source, arguments)?);
    }
    let done = match arguments.force {
        true => BTreeSet::new(),
        false => results.verified(&wanted)?,
    };
    let todo: Vec<u64> = wanted.difference(&done).copied().collect();
    let prediction = predict::predict(&source, &results, configuration, &todo, arguments.parallel)?;
    if !todo.is_empty() {
        eprintln!("sbctl: {prediction}");
    }
    let order = Order {
        name: &arguments.name,
        configuration,
        root: &root,
        parallel: prediction.workers,
        follow: arguments.follow,
        wants: &|number| arguments.wants(number),
    };
    let start = std::time::Instant::now();
    let path = environment.repository_path()?;
    let supervisor = Supervisor::new(order, environment, &path, &source, &results);
    let ran = supervisor.run(todo, &mut wanted)?;
    let host_time = start.elapsed();
    results.note_speed(&ran, host_time, prediction.busy)?;
    let merged = Merged::collect(&source, &results, configuration)?;
    results.write_merged(&merged)?;
    let mut report = Report::new(&merged, &results, &wanted, &ran, host_time);
    report.sbctl = environment.command();
    report.host = Some(host);
    report.state = source.refresh()?.state.as_str();
    Ok(report)
}

fn nothing_to_do(source: &Source, arguments: &CommonSimulateArguments) -> Result<String> {
    let name = &arguments.name;
    let intervals = source.intervals()?;
    Ok(match intervals.is_empty() {
        true => format!("recording {name} has no complete interval"),
        false => format!(
            "none of the intervals {} to {} of recording {name} was asked for",
            intervals.start,
            intervals.end - 1
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_and_shards_are_read() {
        for (text, start, end) in [
            ("3", 3, 4),
            ("3..7", 3, 7),
            ("3..", 3, u64::MAX),
            ("..7", 0, 7),
            ("..", 0, u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Selection { start, end }), "{text}");
        }
        for text in [
            "",
            "7..3",
            "3..3",
            "a",
            "1..b",
            "-1",
            "18446744073709551615",
        ] {
            assert!(text.parse::<Selection>().is_err(), "{text}");
        }
        assert_eq!("2/4".parse(), Ok(Shard { index: 1, of: 4 }));
        for text in ["", "0/4", "5/4", "1", "1/0", "a/b"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
