//! Records a Linux guest on the engine into memory, replays every interval, and says what it took:
//!
//! `linux_recording [--image minimal|work] [--memory-mib N] [--append OPTIONS] [--clock insn|host]
//! [--ips N] [--positions count|prompt|random] [--late STEPS] [--seed N] [--interval-ms N | --interval-insns N]
//! [--stop-insns N] [--threads N] [--console FILE] [--replay no]`

use anyhow::{Context, bail};
use kvm_recorder::{Kicks, Length, Options, Positions, Summary};
use machine::checkpoint::CheckpointSource;
use machine::checkpoint::memory::MemoryStore;
use machine::clock::{DEFAULT_STEPS_PER_SECOND, HostClock, InsnClock, VirtualClock};
use machine::units::VirtualNanos;
use replay_log::RecordingId;
use simuboost_tests::recording::linux::Linux;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tcg_sim::EngineOptions;
use tcg_sim::replay::{Limits, Outcome, ReplayError, Report, SearchCounts};

struct Arguments {
    linux: Linux,
    clock: VirtualClock,
    positions: String,
    late: u64,
    seed: u64,
    interval: Length,
    stop_after: Option<Length>,
    threads: usize,
    console: Option<String>,
    replay: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        linux: Linux {
            image: "minimal".into(),
            ram_bytes: 256 << 20,
            append: String::new(),
            engine: EngineOptions::default(),
        },
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions: "count".into(),
        late: 1_000,
        seed: 1,
        interval: Length::Steps(250_000_000),
        stop_after: None,
        threads: 1,
        console: None,
        replay: true,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--image" => parsed.linux.image = value,
            "--memory-mib" => parsed.linux.ram_bytes = value.parse::<u64>()? << 20,
            "--append" => parsed.linux.append = value,
            "--clock" if value == "host" => parsed.clock = VirtualClock::Host(HostClock::new()),
            "--clock" => {}
            "--ips" => {
                let rate = value.parse()?;
                parsed.clock = VirtualClock::Insn(InsnClock::new(rate));
            }
            "--positions" => parsed.positions = value,
            "--late" => parsed.late = value.parse()?,
            "--seed" => parsed.seed = value.parse()?,
            "--interval-ms" => {
                let nanos = value.parse::<u64>()? * 1_000_000;
                parsed.interval = Length::Time(VirtualNanos(nanos));
            }
            "--interval-insns" => parsed.interval = Length::Steps(value.parse()?),
            "--stop-insns" => parsed.stop_after = Some(Length::Steps(value.parse()?)),
            "--threads" => parsed.threads = value.parse()?,
            "--console" => parsed.console = Some(value),
            "--replay" => parsed.replay = value != "no",
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(parsed)
}

fn positions(arguments: &Arguments) -> anyhow::Result<Positions> {
    Ok(match arguments.positions.as_str() {
        "count" => Positions::Count,
        "prompt" => Positions::Landmark(Kicks::Prompt),
        "random" => Positions::Landmark(Kicks::Random {
            seed: arguments.seed,
            late_by_steps: arguments.late,
        }),
        other => bail!("unknown positions {other}"),
    })
}

fn main() -> anyhow::Result<()> {
    let arguments = arguments()?;
    let options = Options {
        recording: RecordingId([7; 16]),
        clock: arguments.clock.clone(),
        positions: positions(&arguments)?,
        interval: arguments.interval,
        stop_after: arguments.stop_after,
        queue_pages: Options::DEFAULT_QUEUE_PAGES,
    };
    let console: Box<dyn std::io::Write + Send> = match &arguments.console {
        Some(path) => Box::new(std::fs::File::create(path)?),
        None => Box::new(std::io::sink()),
    };
    let store = MemoryStore::default();
    let summary = arguments
        .linux
        .record(options, console, Box::new(store.clone()))?;
    print_summary(&summary);
    if arguments.replay {
        replay_all(&arguments, store)?;
    }
    Ok(())
}

fn print_summary(summary: &Summary) {
    println!(
        "{}: {:?}, {:?}",
        summary.reason, summary.events, summary.positions
    );
    let steps = summary.steps.map_or(0, |steps| steps.0);
    let million = steps as f64 / 1e6;
    let seconds = summary.host_time.as_secs_f64();
    println!(
        "recorded {million:.0} M steps in {seconds:.2} s ({:.0} M/s), {} intervals, {} pages, \
         log {} bytes ({:.1} per M steps)",
        million / seconds,
        summary.intervals,
        summary.pages,
        summary.log_bytes,
        summary.log_bytes as f64 / million,
    );
    let pauses = &summary.pauses;
    println!(
        "pause p50 {:?} p99 {:?} max {:?}, stalled {:?}",
        pauses.percentile(50),
        pauses.percentile(99),
        pauses.max(),
        summary.stalled,
    );
    let pauses = &summary.pauses_on_cpu;
    println!(
        "pause on CPU p50 {:?} p99 {:?} max {:?}",
        pauses.percentile(50),
        pauses.percentile(99),
        pauses.max(),
    );
    let landmarks = summary.landmarks;
    if landmarks.taken > 0 {
        println!(
            "{} landmarks taken, {:?} and {:.1} pages each, {:.2} % of the recording",
            landmarks.taken,
            landmarks.time / landmarks.taken as u32,
            landmarks.pages as f64 / landmarks.taken as f64,
            100.0 * landmarks.time.as_secs_f64() / seconds,
        );
    }
}

#[derive(Default)]
struct Totals {
    verified: u64,
    failed: u64,
    steps: u64,
    search: SearchCounts,
    longest: Duration,
}

fn replay_all(arguments: &Arguments, store: MemoryStore) -> anyhow::Result<()> {
    let source: Arc<dyn CheckpointSource> = Arc::new(store);
    let intervals = source
        .checkpoints()
        .map_err(|error| anyhow::anyhow!(error))?
        - 1;
    let (totals, start) = (Mutex::new(Totals::default()), Instant::now());
    let limits = Limits::default();
    let each = |number: u64, report: Result<Report, ReplayError>| {
        let mut totals = totals.lock().expect("no panic under the lock");
        totals.longest = totals.longest.max(start.elapsed());
        note(&mut totals, number, report);
    };
    arguments
        .linux
        .replay_all(&source, arguments.threads, &limits, each);
    let totals = totals.into_inner().expect("no panic under the lock");
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "verified {} of {intervals} in {seconds:.2} s ({:.0} M steps/s); {:?}",
        totals.verified,
        totals.steps as f64 / 1e6 / seconds,
        totals.search,
    );
    if totals.failed > 0 {
        bail!("{} intervals did not verify", totals.failed);
    }
    Ok(())
}

fn note(totals: &mut Totals, number: u64, report: Result<Report, ReplayError>) {
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            totals.failed += 1;
            println!("interval {number}: {error}");
            return;
        }
    };
    totals.steps += report.steps.0;
    totals.search.landmarks += report.search.landmarks;
    totals.search.arrivals += report.search.arrivals;
    totals.search.wrong_memory += report.search.wrong_memory;
    totals.search.backtracks += report.search.backtracks;
    totals.search.settled += report.search.settled;
    match &report.outcome {
        Outcome::Verified => totals.verified += 1,
        Outcome::Diverged(divergence) => {
            totals.failed += 1;
            println!("{}", divergence.first);
            for (index, event) in &divergence.first.events {
                println!("    {index}: {event}");
            }
            for register in &divergence.registers {
                println!("    {register}");
            }
            println!("    frames {:?}", divergence.frames);
            println!("    {:?}", report.search);
        }
    }
}
