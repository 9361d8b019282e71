//! `sbctl demo`: the main job, end to end, for whoever sees it for the first time.

mod guest;
mod init;

use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::quantity::{Bytes, Grouped};
use crate::record::{self, RecordArguments};
use crate::simulate::{self, Configuration, SimulateArguments};
use anyhow::{Context, Result};
use checkpoint_dedup::{RecordingName, Repository};
use clap::{Args, Parser};
use guest::DemoGuest;
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

/// Options of `sbctl demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Name of the recording [default: demo, or demo-2 and so on where that is taken]
    #[arg(long, value_name = "NAME", value_parser = recording_name)]
    name: Option<RecordingName>,
    /// Use the built-in bare-metal guest instead of Linux
    #[arg(long)]
    bare_metal: bool,
}

/// Parses options as if they had been typed.
#[derive(Parser)]
struct Typed<T: Args> {
    #[command(flatten)]
    arguments: T,
}

fn typed<T: Args>(options: &[&str]) -> Result<T> {
    let line = std::iter::once("sbctl").chain(options.iter().copied());
    let parsed = Typed::<T>::try_parse_from(line).context("the demo's own options")?;
    Ok(parsed.arguments)
}

/// What the demo came to.
#[derive(Debug, Serialize)]
struct Summary {
    guest: String,
    record: record::Report,
    simulate: simulate::Report,
    host_time_ns: u64,
}

/// Records, simulates, proves and explains.
pub(crate) fn run(arguments: DemoArguments, environment: &Environment) -> Result<Exit> {
    let start = Instant::now();
    let repository = environment.open_or_create()?;
    let name = match arguments.name {
        Some(name) => name,
        None => free_name(&repository)?,
    };
    let directory = simulate::beside(&environment.repository_path()?).join("demo-guest");
    let guest = match arguments.bare_metal {
        true => DemoGuest::bare_metal(&directory)?,
        false => DemoGuest::find(&directory)?,
    };
    eprintln!("\n1. Recording: {}", guest.what);
    let console = guest.console.display().to_string();
    let to_console = format!("file:{console}");
    let mut options = vec!["--name", name.as_str(), "--console", &to_console];
    options.extend(guest.options.iter().map(String::as_str));
    let recorded = record::execute(&typed::<RecordArguments>(&options)?, environment)?;
    if environment.interrupt.requested() {
        return Ok(Exit::Interrupted);
    }
    eprintln!("{recorded}");
    eprintln!(
        "\n2. Simulating all {} intervals in parallel, each with a trace of every memory access",
        recorded.intervals
    );
    let options = [
        name.as_str(),
        "--instrument",
        "count",
        "--instrument",
        "mem",
    ];
    let simulation = typed::<SimulateArguments>(&options)?;
    let configuration = Configuration::new(&simulation.instruments, false);
    let simulated = simulate::execute(&simulation.common, &configuration, environment)?;
    eprintln!("{simulated}");
    let summary = Summary {
        guest: guest.what,
        record: recorded,
        simulate: simulated,
        host_time_ns: start.elapsed().as_nanos() as u64,
    };
    eprintln!();
    environment.finish(
        &summary,
        Explained {
            summary: &summary,
            name: &name,
            console: &console,
            sbctl: &environment.command(),
        },
    )?;
    Ok(summary.simulate.exit())
}

fn free_name(repository: &Repository) -> Result<RecordingName> {
    let taken: Vec<String> = repository
        .recordings()?
        .into_iter()
        .map(|recording| recording.name.to_string())
        .collect();
    let names = (1..).map(|number| match number {
        1 => "demo".to_owned(),
        number => format!("demo-{number}"),
    });
    let mut free = names.filter(|name| !taken.contains(name));
    let name = free.next().expect("there are endless names");
    Ok(RecordingName::new(&name)?)
}

/// The summary for a newcomer.
struct Explained<'a> {
    summary: &'a Summary,
    name: &'a RecordingName,
    console: &'a str,
    /// How the program is called for this repository.
    sbctl: &'a str,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = self.summary;
        let (record, simulate) = (&summary.record, &summary.simulate);
        let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
        writeln!(
            f,
            "What happened, in {:.0} s:",
            seconds(summary.host_time_ns)
        )?;
        writeln!(
            f,
            "  A whole machine ran ({}), and was recorded while it did:\n  {} instructions in \
             {:.1} s, with {} checkpoints. Its memory changed by {}, of which {}\n  were stored. \
             Everything that entered the machine took {} of log.",
            summary.guest,
            Grouped(record.instructions.unwrap_or(0)),
            seconds(record.host_time_ns),
            record.intervals + 1,
            Bytes(record.dirty_pages * 4096),
            Bytes(record.store.stored_bytes),
            Bytes(record.log_bytes),
        )?;
        writeln!(
            f,
            "  Then each interval was simulated by itself, several at a time, in {:.1} s, and every\n  \
             one of its {} memory accesses was written to a trace ({}).",
            seconds(simulate.host_time_ns),
            Grouped(simulate.traced_accesses.unwrap_or(0)),
            Bytes(simulate.trace_bytes.unwrap_or(0)),
        )?;
        match simulate.exit() {
            Exit::Done => writeln!(
                f,
                "  All {} simulations ended, bit for bit, in the next checkpoint of the recording: \
                 registers\n  and memory. So the traces are those of the run that was recorded.",
                simulate.intervals
            )?,
            _ => writeln!(
                f,
                "  Only {} of {} simulations ended in the next checkpoint: that is a bug, please \
                 report it.",
                simulate.verified, simulate.intervals
            )?,
        }
        self.write_what_next(f)
    }
}

impl Explained<'_> {
    fn write_what_next(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            summary,
            name,
            console,
            sbctl,
        } = self;
        writeln!(f, "\nWhere to look next:")?;
        let traces = &summary.simulate.out;
        for (command, what) in [
            (format!("less {console}"), "what the guest printed"),
            (
                format!("{sbctl} show {name}"),
                "the recording, interval by interval",
            ),
            (
                format!("{sbctl} log {name} --interval 3"),
                "what entered the machine in interval 3",
            ),
            (
                format!("{sbctl} diff {name} 3 4"),
                "what interval 3 changed",
            ),
            (
                format!("{sbctl} verify {name} --paranoid"),
                "prove it in the engine's slow mode too",
            ),
            (format!("ls {traces}"), "counts and traces of each interval"),
            (
                format!("sbctl trace {traces}/00000003.trace"),
                "what is in one of the traces",
            ),
            ("sbctl record --help".into(), "record a guest of your own"),
        ] {
            writeln!(f, "  {command}\n      {what}")?;
        }
        Ok(())
    }
}
