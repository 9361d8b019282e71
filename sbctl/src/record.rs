//! `sbctl record`: a guest with a recording.

mod drill;
mod report;

use crate::console;
use crate::environment::{Environment, Output, recording_name};
use crate::exit::{Exit, Usage};
use crate::guest::{Clock, ConsoleArgument, Guest, GuestArguments, say_engine};
use crate::progress;
use crate::quantity::{Count, Span};
use crate::recording::{
    Accelerator, HostRecord, IntervalLength, Note, PositionsKind, Source, StoreSink,
};
use crate::simulate::{CheckLive, LiveCheck, Recorded};
use anyhow::{Context, Result};
use checkpoint_dedup::RecordingName;
use clap::{Args, ValueEnum};
use drill::Drill;
use indicatif::ProgressBar;
use kvm_recorder::kvm::KvmError;
use kvm_recorder::{Bus, Kicks, Length, Options, Positions, RecordError, Recorder, Summary};
use machine::units::VirtualNanos;
use machine::vcpu::{Vcpu, VcpuError};
use replay_log::RecordingId;
pub(crate) use report::Report;
use std::io::IsTerminal;
use std::time::Duration;

/// Most steps that a random kick comes late, with `--positions landmark`.
const LATE_BY_STEPS: u64 = 1_000;

/// Options of `sbctl record`.
#[derive(Debug, Args)]
pub(crate) struct RecordArguments {
    /// Name of the recording
    #[arg(long, value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    #[command(flatten)]
    guest: GuestArguments,
    /// Guest time from one checkpoint to the next [default: 1s]
    #[arg(long, value_name = "TIME", conflicts_with = "interval_insns")]
    interval: Option<Span>,
    /// Instructions from one checkpoint to the next
    #[arg(long, value_name = "COUNT")]
    interval_insns: Option<Count>,
    /// How the log says where interrupts came
    #[arg(long, value_enum, default_value_t = PositionsArgument::Count)]
    positions: PositionsArgument,
    /// Seed of the random delays of --positions landmark
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    kick_seed: u64,
    /// Stop after this much guest time
    #[arg(long, value_name = "TIME")]
    stop_after: Option<Span>,
    /// Stop exactly after this many instructions
    #[arg(long, value_name = "COUNT", conflicts_with = "stop_after")]
    stop_after_insns: Option<Count>,
    /// Whether a sample of the intervals is simulated while recording goes on
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = CheckLive::Auto)]
    check_live: CheckLive,
    /// Each time this much guest time has passed, a device writes guest memory behind the log, so that
    /// the interval does not verify
    #[arg(long, value_name = "TIME", hide = true)]
    drill: Option<Span>,
}

/// How positions are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PositionsArgument {
    /// By counting instructions: exact, on the engine only
    Count,
    /// By recognising the guest's state, as recordings of hardware do: the simulator searches
    Landmark,
}

fn length_of(time: Option<Span>, insns: Option<Count>) -> Option<Length> {
    let insns = insns.map(|count| Length::Steps(count.0));
    let time = time.map(|span| Length::Time(VirtualNanos(span.0.as_nanos() as u64)));
    insns.or(time)
}

impl RecordArguments {
    fn on_stdout(&self) -> bool {
        self.guest.console == ConsoleArgument::Stdio
    }

    fn interval(&self) -> Result<Length> {
        const SECOND: Length = Length::Time(VirtualNanos(1_000_000_000));
        match length_of(self.interval, self.interval_insns).unwrap_or(SECOND) {
            Length::Steps(0) | Length::Time(VirtualNanos(0)) => {
                Err(Usage("an interval must be longer than 0".into()).into())
            }
            length => Ok(length),
        }
    }

    fn positions(&self, accel: Accelerator) -> Positions {
        if accel == Accelerator::Kvm {
            return Positions::Landmark(Kicks::Prompt);
        }
        match self.positions {
            PositionsArgument::Count => Positions::Count,
            PositionsArgument::Landmark => Positions::Landmark(Kicks::Random {
                seed: self.kick_seed,
                late_by_steps: LATE_BY_STEPS,
            }),
        }
    }

    fn note<V>(&self, guest: &Guest<V>, interval: Length, accel: Accelerator) -> Note {
        let on_kvm = accel == Accelerator::Kvm;
        Note {
            version: Note::VERSION,
            program: concat!("sbctl ", env!("CARGO_PKG_VERSION")).into(),
            accel,
            clock: match on_kvm {
                true => Clock::Host.name().into(),
                false => self.guest.clock.name().into(),
            },
            positions: match self.positions {
                _ if on_kvm => PositionsKind::Landmark,
                PositionsArgument::Count => PositionsKind::Count,
                PositionsArgument::Landmark => PositionsKind::Landmark,
            },
            interval: match interval {
                Length::Time(time) => IntervalLength::Time(time.0),
                Length::Steps(steps) => IntervalLength::Insns(steps),
            },
            memory_bytes: guest.ram.bytes(),
            kernel: self.guest.kernel.display().to_string(),
            initrd: self
                .guest
                .initrd
                .as_ref()
                .map(|path| path.display().to_string()),
            command_line: guest.command_line.clone(),
            cpuid: Note::cpuid_text(&guest.cpuid),
            host: host_record(),
            frozen_tsc: guest.frozen_tsc,
        }
    }
}

/// The processor that records, for the note.
fn host_record() -> Option<serde_json::Value> {
    match HostRecord::of_here() {
        Ok(record) => Some(record.encode()),
        Err(error) => {
            eprintln!("sbctl: {error}: intervals may not verify on other processors, nor here");
            None
        }
    }
}

/// Records the guest to its end.
pub(crate) fn run(arguments: RecordArguments, environment: &Environment) -> Result<Exit> {
    if arguments.on_stdout() {
        environment.require_stdout_free()?;
    }
    let report = execute(&arguments, environment)?;
    match environment.output {
        Output::Json => environment.finish(&report, &report)?,
        _ => environment.finish_beside_console(&report, &report)?,
    }
    Ok(match environment.interrupt.requested() {
        true => Exit::Interrupted,
        false if report.live_check.failed > 0 => Exit::Unverified,
        false => Exit::Done,
    })
}

/// Records the guest to its end and gives what it came to.
pub(crate) fn execute(arguments: &RecordArguments, environment: &Environment) -> Result<Report> {
    let interval = arguments.interval()?;
    match arguments.guest.accel.choose()? {
        None => {
            let guest = arguments.guest.prepare()?;
            execute_on(guest, Accelerator::Engine, interval, arguments, environment)
        }
        Some(host) => {
            let guest = arguments.guest.prepare_on(&host);
            let outcome = guest.and_then(|guest| {
                execute_on(guest, Accelerator::Kvm, interval, arguments, environment)
            });
            match outcome {
                Err(error) if takes_over(arguments, environment, &error)? => {
                    say_engine(&error);
                    let guest = arguments.guest.prepare()?;
                    execute_on(guest, Accelerator::Engine, interval, arguments, environment)
                }
                outcome => outcome,
            }
        }
    }
}

/// Whether the engine takes over from a KVM that could not run the guest. What was recorded, which is nothing but the
/// start, is removed then.
fn takes_over(
    arguments: &RecordArguments,
    environment: &Environment,
    error: &anyhow::Error,
) -> Result<bool> {
    if !arguments.guest.accel.falls_back() {
        return Ok(false);
    }
    if error.is::<KvmError>() || error.is::<VcpuError>() {
        // There is no recording yet.
        return Ok(true);
    }
    if !matches!(error.downcast_ref(), Some(RecordError::Vcpu(error)) if error.is_of_host()) {
        return Ok(false);
    }
    let repository = environment.open_or_create()?;
    let is_empty = Source::open(&repository, &arguments.name)?
        .intervals()?
        .is_empty();
    if is_empty {
        repository.remove(&arguments.name)?;
    }
    Ok(is_empty)
}

fn execute_on<V: Vcpu>(
    guest: Guest<V>,
    accel: Accelerator,
    interval: Length,
    arguments: &RecordArguments,
    environment: &Environment,
) -> Result<Report> {
    let repository = environment.open_or_create()?;
    let note = arguments.note(&guest, interval, accel);
    let progress = match arguments.on_stdout() && std::io::stdout().is_terminal() {
        true => indicatif::ProgressBar::hidden(),
        false => progress::spinner(),
    };
    let memory_bytes = guest.ram.bytes();
    let (name, note) = (&arguments.name, note.encode());
    let sink = StoreSink::begin(&repository, name, memory_bytes, note, progress.clone())?;
    let options = Options {
        recording: RecordingId(sink.recording_id()),
        clock: guest.clock,
        positions: arguments.positions(accel),
        interval,
        stop_after: length_of(arguments.stop_after, arguments.stop_after_insns),
        queue_pages: Options::DEFAULT_QUEUE_PAGES,
    };
    let output = console::output(&arguments.guest.console)?;
    let (vcpu, board, ram) = (guest.vcpu, guest.board, guest.ram);
    let session = Session {
        arguments,
        environment,
        progress: &progress,
        sink: &sink,
    };
    let (outcome, guest_thread, live) = match arguments.drill {
        None => session.record(Recorder::new(vcpu, board, ram, options, output)?)?,
        Some(Span(every)) => {
            let every = VirtualNanos(every.as_nanos() as u64);
            let board = Drill::new(board, ram.clone(), every);
            session.record(Recorder::new(vcpu, board, ram, options, output)?)?
        }
    };
    progress.set_message("waiting for the store");
    let finished = outcome
        .map_err(anyhow::Error::from)
        .and_then(|summary| Ok((summary, sink.finish()?)));
    progress.finish_and_clear();
    let (summary, stored) = finished.with_context(|| ended_early(&arguments.name))?;
    let mut report = Report::new(&arguments.name, &summary, stored, guest_thread);
    report.live_check = live.finish(environment.interrupt.requested());
    report.sbctl = environment.command();
    Ok(report)
}

/// What a recording needs beside its recorder.
struct Session<'a> {
    arguments: &'a RecordArguments,
    environment: &'a Environment,
    progress: &'a ProgressBar,
    sink: &'a StoreSink,
}

impl Session<'_> {
    /// Records, and gives what came of it, the CPU time that the guest's thread took, and the checks
    /// that go on.
    fn record<V: Vcpu, B: Bus>(
        &self,
        recorder: Recorder<V, B>,
    ) -> Result<(Result<Summary, RecordError>, Duration, LiveCheck)> {
        let control = recorder.control();
        self.environment
            .interrupt
            .on_request(move || control.stop());
        let console = &self.arguments.guest.console;
        let raw_mode = console::input(console, &recorder.control())?;
        let recorded = Recorded {
            repository: self.environment.repository_path()?,
            name: self.arguments.name.clone(),
            sbctl: self.environment.command(),
            progress: self.progress.clone(),
        };
        let live = LiveCheck::start(self.arguments.check_live, recorded);
        let cpu_before = thread_cpu();
        let outcome = recorder.record(Box::new(self.sink.clone()));
        let guest_thread = thread_cpu() - cpu_before;
        drop(raw_mode);
        Ok((outcome, guest_thread, live))
    }
}

/// CPU time of this thread.
pub(crate) fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn ended_early(name: &RecordingName) -> String {
    format!("recording {name} ended early (its complete intervals are kept: `sbctl show {name}`)")
}
