//! `sbctl run`: a guest without a recording.

mod report;

use crate::console;
use crate::guest::{Guest, GuestArguments};
use crate::quantity::{Count, Span};
use anyhow::{Context, Result};
use clap::Args;
use kvm_recorder::{Length, Options, Positions, Recorder};
use machine::units::VirtualNanos;
use replay_log::RecordingId;
use report::{EngineTable, FinalState, Report};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `sbctl run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    guest: GuestArguments,
    /// Stop exactly after this many instructions
    #[arg(long, value_name = "COUNT", conflicts_with = "stop_after")]
    stop_after_insns: Option<Count>,
    /// Stop after this much guest time
    #[arg(long, value_name = "TIME")]
    stop_after: Option<Span>,
    /// Write what the run came to as JSON, with a hash of the guest's final state
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print at the end what the engine did, in numbers: where its time may have gone
    #[arg(long)]
    engine_stats: bool,
}

impl RunArguments {
    fn length(&self) -> Option<Length> {
        let insns = self.stop_after_insns.map(|count| Length::Steps(count.0));
        let time = self
            .stop_after
            .map(|span| Length::Time(VirtualNanos(span.0.as_nanos() as u64)));
        insns.or(time)
    }
}

/// Runs the guest to its end.
pub(crate) fn run(arguments: RunArguments) -> Result<ExitCode> {
    let Guest {
        ram,
        mut vcpu,
        board,
        clock,
    } = arguments.guest.prepare()?;
    let options = Options {
        recording: RecordingId::default(),
        clock,
        positions: Positions::Count,
        interval: Length::Steps(u64::MAX),
        stop_after: arguments.length(),
        queue_pages: Options::DEFAULT_QUEUE_PAGES,
    };
    let output = console::output(&arguments.guest.console)?;
    let recorder = Recorder::new(&mut vcpu, board, ram.clone(), options, output)?;
    let raw_mode = console::input(&arguments.guest.console, &recorder.control())?;
    let state = FinalState::default();
    let outcome = recorder.record(Box::new(state.clone()));
    drop(raw_mode);
    let counters = vcpu.counters();
    if arguments.engine_stats {
        eprint!("{}", EngineTable(&counters));
    }
    let report = Report::new(&outcome?, &counters);
    eprintln!("sbctl: {report}");
    let exit_code = report.exit_code();
    if let Some(path) = &arguments.json {
        let json = report.json(state.hash(&ram)?)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(exit_code)
}
