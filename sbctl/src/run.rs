//! `sbctl run`: a guest without a recording.

mod report;

use crate::console;
use crate::environment::{Environment, Output};
use crate::exit::Exit;
use crate::guest::{ConsoleArgument, GuestArguments};
use crate::quantity::{Count, Span};
use crate::record::thread_cpu;
use anyhow::Result;
use clap::Args;
use kvm_recorder::{Length, Options, Positions, RecordError, Recorder, Summary};
use machine::board::Board;
use machine::units::VirtualNanos;
use machine::vcpu::Vcpu;
use replay_log::RecordingId;
use report::{EngineTable, FinalState, Report};
use tcg_sim::EngineOptions;
use tcg_sim::selfcheck::{Plan, SelfChecked};

/// Options of `sbctl run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    execution: Execution,
    /// Compare the engine's ways to execute with each other while the guest runs, one step in a hundred
    #[arg(long)]
    paranoid: bool,
}

/// Which guest runs, and how long.
#[derive(Debug, Args)]
pub(crate) struct Execution {
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

impl Execution {
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
    let plan = arguments.paranoid.then(Plan::default);
    execute(&arguments.execution, plan, environment)
}

/// Runs the guest, compared with itself if there is a plan for that.
pub(crate) fn execute(
    arguments: &Execution,
    plan: Option<Plan>,
    environment: &Environment,
) -> Result<Exit> {
    let on_stdout = arguments.guest.console == ConsoleArgument::Stdio;
    if on_stdout {
        environment.require_stdout_free()?;
    }
    let mut guest = arguments.guest.prepare()?;
    let options = Options {
        recording: RecordingId::default(),
        clock: guest.clock,
        positions: Positions::Count,
        interval: Length::Steps(u64::MAX),
        stop_after: arguments.length(),
        queue_pages: Options::DEFAULT_QUEUE_PAGES,
    };
    let (ram, board, console) = (guest.ram, guest.board, &arguments.guest.console);
    let output = console::output(console)?;
    let session = Session {
        console,
        environment,
        state: FinalState::default(),
    };
    let state = session.state.clone();
    let cpu_before = thread_cpu();
    let mut counters = None;
    let (summary, compared) = match plan {
        None => {
            let vcpu = &mut guest.vcpu;
            let recorder = Recorder::new(vcpu, board, ram.clone(), options, output)?;
            let summary = session.record(recorder)?;
            counters = Some(guest.vcpu.counters());
            (summary, None)
        }
        Some(plan) => {
            let engine = EngineOptions::default();
            let vcpu = SelfChecked::around(guest.vcpu, ram.clone(), guest.cpuid, engine, plan)?;
            let progress = vcpu.progress();
            let recorder = Recorder::new(vcpu, board, ram.clone(), options, output)?;
            let summary = session.record(recorder)?;
            (summary, Some(progress.end().map_err(RecordError::from)?))
        }
    };
    let mut report = Report::new(&summary, thread_cpu() - cpu_before);
    report.set_compared(compared);
    if let Some(counters) = &counters {
        report.set_engine(counters);
        if arguments.engine_stats {
            eprint!("{}", EngineTable(counters));
        }
    }
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

/// What a run needs beside its vCPU.
struct Session<'a> {
    console: &'a ConsoleArgument,
    environment: &'a Environment,
    state: FinalState,
}

impl Session<'_> {
    fn record<V: Vcpu>(self, recorder: Recorder<V, Board>) -> Result<Summary> {
        let control = recorder.control();
        self.environment
            .interrupt
            .on_request(move || control.stop());
        let raw_mode = console::input(self.console, &recorder.control())?;
        let outcome = recorder.record(Box::new(self.state));
        drop(raw_mode);
        Ok(outcome?)
    }
}
