//! `sbctl run`: a guest without a recording.

mod report;

use crate::console;
use crate::environment::{Environment, Output};
use crate::exit::Exit;
use crate::guest::{ConsoleArgument, Guest, GuestArguments};
use crate::quantity::{Count, Span};
use anyhow::Result;
use clap::Args;
use kvm_recorder::{Length, Options, Positions, Recorder};
use machine::units::VirtualNanos;
use replay_log::RecordingId;
use report::{EngineTable, FinalState, Report};

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
pub(crate) fn run(arguments: RunArguments, environment: &Environment) -> Result<Exit> {
    let on_stdout = arguments.guest.console == ConsoleArgument::Stdio;
    if on_stdout {
        environment.require_stdout_free()?;
    }
    let Guest {
        ram,
        mut vcpu,
        board,
        clock,
        ..
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
    let control = recorder.control();
    environment.interrupt.on_request(move || control.stop());
    let raw_mode = console::input(&arguments.guest.console, &recorder.control())?;
    let state = FinalState::default();
    let outcome = recorder.record(Box::new(state.clone()));
    drop(raw_mode);
    let counters = vcpu.counters();
    if arguments.engine_stats {
        eprint!("{}", EngineTable(&counters));
    }
    let mut report = Report::new(&outcome?, &counters);
    if environment.output != Output::Text {
        report.set_state_hash(state.hash(&ram)?);
    }
    match environment.output {
        Output::Json => environment.finish(&report, &report)?,
        _ => environment.finish_beside_console(&report, &report)?,
    }
    Ok(match environment.interrupt.requested() {
        true => Exit::Interrupted,
        false => report.exit(),
    })
}
