//! What instruments cost on Linux, and whether they learn the same in all ways of running:
//! `instruments [--image minimal] [--stop STEPS] [--interval STEPS] [--rounds N] [--check EVERY]`.
//!
//! Records the image, then replays the last whole interval without instruments, with counts, with the
//! memory trace dropped chunk by chunk, and with the trace stored in a temporary file, in turn for some
//! rounds, and prints the least processor time of each. With `--check` it compares instead the traces
//! of every N-th interval in normal and in one-instruction blocks, access for access, and the counts.

use anyhow::{Context, bail};
use kvm_recorder::{Length, Options, Positions};
use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::clock::{DEFAULT_STEPS_PER_SECOND, InsnClock, VirtualClock};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use replay_log::RecordingId;
use simuboost_tests::recording::linux::Linux;
use std::io;
use std::sync::{Arc, Mutex};
use tcg_sim::instrument::{Counts, Instruments};
use tcg_sim::replay::{Instrumented, Interval, Limits, Outcome, replay_with};
use tcg_sim::trace::{Chunk, MemorySink, TraceWriter};
use tcg_sim::{Engine, EngineOptions};

const RAM_BYTES: u64 = 256 << 20;

struct Asked {
    image: String,
    stop: u64,
    interval: u64,
    rounds: u32,
    check: Option<u64>,
}

fn asked() -> anyhow::Result<Asked> {
    let mut asked = Asked {
        image: "minimal".to_owned(),
        stop: 3_000_000_000,
        interval: 500_000_000,
        rounds: 3,
        check: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--image" => asked.image = value,
            "--stop" => asked.stop = value.parse()?,
            "--interval" => asked.interval = value.parse()?,
            "--rounds" => asked.rounds = value.parse()?,
            "--check" => asked.check = Some(value.parse()?),
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(asked)
}

/// Drops all chunks, but counts accesses.
#[derive(Clone, Default)]
struct Nowhere(Arc<Mutex<u64>>);

impl MemorySink for Nowhere {
    fn chunk(&mut self, chunk: &Chunk) -> io::Result<()> {
        *self.0.lock().expect("no panic under the lock") += chunk.accesses();
        Ok(())
    }

    fn keep(&mut self, _chunks: u64) -> io::Result<()> {
        Err(io::Error::other("positions of the recording are counts"))
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn replay(
    source: &Arc<dyn CheckpointSource>,
    number: u64,
    one_instruction_blocks: bool,
    instruments: Instruments,
) -> anyhow::Result<Instrumented> {
    let interval = Interval::load(&**source, number)?;
    let pages = CheckpointPages::new(source.clone(), number);
    let ram = Arc::new(Ram::lazy(RAM_BYTES, Arc::new(pages))?);
    let options = EngineOptions {
        one_instruction_blocks,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(ram.clone(), CpuidTable::x86_64_v2(), options)?;
    let limits = Limits::default();
    let result = replay_with(
        &mut engine,
        &ram,
        &interval,
        &**source,
        &limits,
        instruments,
    )?;
    match &result.report.outcome {
        Outcome::Verified => Ok(result),
        Outcome::Diverged(divergence) => bail!("interval {number}: {}", divergence.first),
    }
}

/// Processor time of this process so far, in seconds.
#[expect(unsafe_code, reason = "std has no name for it")]
fn processor_seconds() -> f64 {
    // SAFETY: a zeroed timespec is valid, and the call only writes to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() -> anyhow::Result<()> {
    let asked = asked()?;
    let linux = Linux {
        image: asked.image.clone(),
        ram_bytes: RAM_BYTES,
        append: String::new(),
        engine: EngineOptions::default(),
    };
    let options = Options {
        recording: RecordingId([8; 16]),
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions: Positions::Count,
        interval: Length::Steps(asked.interval),
        stop_after: Some(Length::Steps(asked.stop)),
        queue_pages: Options::DEFAULT_QUEUE_PAGES,
    };
    let store = MemoryStore::default();
    linux.record(options, Box::new(io::sink()), Box::new(store.clone()))?;
    let source: Arc<dyn CheckpointSource> = Arc::new(store);
    match asked.check {
        Some(every) => check(&source, every),
        None => measure(&source, &asked),
    }
}

fn check(source: &Arc<dyn CheckpointSource>, every: u64) -> anyhow::Result<()> {
    let intervals = source
        .checkpoints()
        .map_err(|error| anyhow::anyhow!(error))?
        - 1;
    let (mut checked, mut total, mut accesses) = (0, Counts::default(), 0);
    for number in (0..intervals).step_by(every.max(1) as usize) {
        let [one, normal] = [true, false].map(|one| {
            let chunks = Arc::new(Mutex::new(Vec::<Chunk>::new()));
            let instruments = Instruments::none()
                .with_counts()
                .with_memory_trace(Box::new(chunks.clone()));
            let result = replay(source, number, one, instruments)?;
            let chunks = std::mem::take(&mut *chunks.lock().expect("no panic under the lock"));
            anyhow::Ok((chunks, result.counts.context("counts were asked for")?))
        });
        let (one, normal) = (one?, normal?);
        if one.1 != normal.1 {
            bail!("interval {number}: counts {:?} and {:?}", one.1, normal.1);
        }
        let items = |chunks: &[Chunk]| chunks.iter().flat_map(Chunk::items).count();
        let mut folded = Counts::default();
        let pairs =
            (one.0.iter().flat_map(Chunk::items)).zip(normal.0.iter().flat_map(Chunk::items));
        for (left, right) in pairs {
            if left != right {
                bail!("interval {number}: {left:?} and {right:?}");
            }
            left.count(&mut folded);
        }
        if items(&one.0) != items(&normal.0) || folded != one.1 {
            bail!("interval {number}: one trace is longer, or not what was counted");
        }
        checked += 1;
        total += one.1;
        accesses += one.0.iter().map(Chunk::accesses).sum::<u64>();
    }
    println!("{checked} of {intervals} intervals alike, {accesses} accesses\n{total:#?}");
    Ok(())
}

fn measure(source: &Arc<dyn CheckpointSource>, asked: &Asked) -> anyhow::Result<()> {
    let intervals = source
        .checkpoints()
        .map_err(|error| anyhow::anyhow!(error))?
        - 1;
    let number = intervals.checked_sub(1).context("nothing was recorded")?;
    let names = ["none", "count", "mem, dropped", "mem, stored"];
    let mut least = [f64::INFINITY; 4];
    let (mut counts, mut steps, mut stored) = (Counts::default(), 0, 0);
    let accesses = Nowhere::default();
    for _ in 0..asked.rounds {
        for (way, least) in least.iter_mut().enumerate() {
            let file = tempfile::tempfile()?;
            let instruments = match way {
                0 => Instruments::none(),
                1 => Instruments::none().with_counts(),
                2 => {
                    *accesses.0.lock().expect("no panic under the lock") = 0;
                    Instruments::none().with_memory_trace(Box::new(accesses.clone()))
                }
                _ => {
                    let writer = TraceWriter::new(file.try_clone()?, number)?;
                    Instruments::none().with_memory_trace(Box::new(writer))
                }
            };
            let begin = processor_seconds();
            let result = replay(source, number, false, instruments)?;
            *least = least.min(processor_seconds() - begin);
            counts = result.counts.unwrap_or(counts);
            steps = result.report.steps.0;
            stored = file.metadata()?.len();
        }
    }
    println!("interval {number} of {intervals}, {steps} steps");
    for (name, seconds) in names.iter().zip(least) {
        println!(
            "{name:13} {seconds:7.2} s  {:5.2} x none",
            seconds / least[0]
        );
    }
    let accesses = *accesses.0.lock().expect("no panic under the lock");
    let each = stored as f64 / accesses as f64;
    println!("trace: {accesses} accesses, {stored} bytes, {each:.2} bytes an access");
    println!("{counts:#?}");
    Ok(())
}
