//! The process that simulates: one thread per worker, all sharing decoded pages.

use super::configuration::{Configuration, InstrumentArguments};
use super::finding::Finding;
use super::job::Jobs;
use super::messages::{Command, Event, Finished, line};
use super::results::{IntervalResult, Results};
use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::interrupt::Interrupted;
use crate::recording::Source;
use anyhow::{Context, Result};
use checkpoint_dedup::{CacheLimits, RecordingName};
use clap::Args;
use machine::vcpu::Kick;
use std::any::Any;
use std::io::{self, BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Decoded pages and groups that all workers share, in bytes each.
const SHARED_CACHE_BYTES: usize = 256 << 20;

/// Code memory of all engines together, and the least and most of one.
const CODE_BYTES: usize = 1 << 30;
const CODE_BYTES_EACH: (usize, usize) = (8 << 20, 64 << 20);

/// Options of the worker process; only the supervisor gives them.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    #[arg(value_parser = recording_name)]
    name: RecordingName,
    #[arg(long)]
    parallel: usize,
    #[arg(long)]
    out: PathBuf,
    #[arg(long)]
    paranoid: bool,
    /// Takes only what nobody else wants of the processors
    #[arg(long)]
    low_priority: bool,
    #[command(flatten)]
    instruments: InstrumentArguments,
}

/// What the threads of the process share.
struct Shared {
    jobs: Jobs,
    results: Results,
    cancel: Arc<AtomicBool>,
    intervals: Mutex<Receiver<u64>>,
    /// How to kick the engine of each worker.
    kicks: Vec<Mutex<Option<Arc<dyn Kick>>>>,
}

/// Simulates what the supervisor asks for.
pub(crate) fn run(arguments: WorkerArguments, environment: &Environment) -> Result<Exit> {
    if arguments.low_priority {
        // Of this thread and of those that it starts from here on.
        rustix::process::nice(19).context("cannot lower the priority")?;
    }
    let limits = CacheLimits {
        group_bytes: SHARED_CACHE_BYTES / 4,
        page_bytes: SHARED_CACHE_BYTES,
    };
    let repository = environment.open_with(limits)?;
    let source = Source::open(&repository, &arguments.name)?;
    let configuration = Configuration::new(&arguments.instruments, arguments.paranoid);
    let workers = arguments.parallel.max(1);
    let (to_workers, intervals) = channel();
    let cancel: Arc<AtomicBool> = Arc::default();
    let shared = Arc::new(Shared {
        results: Results::create(&arguments.out, &source, &configuration)?,
        jobs: Jobs {
            cpuid: source.note.cpuid()?,
            source,
            configuration,
            code_bytes: (CODE_BYTES / workers).clamp(CODE_BYTES_EACH.0, CODE_BYTES_EACH.1),
            cancel: Arc::clone(&cancel),
        },
        cancel,
        intervals: Mutex::new(intervals),
        kicks: (0..workers).map(|_| Mutex::default()).collect(),
    });
    let listener = Arc::clone(&shared);
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(move || listen(&listener, to_workers))
        .context("cannot start a thread")?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move_worker(&shared, worker)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("workers catch panics"))
    })?;
    match shared.cancel.load(Ordering::Acquire) {
        // Nobody pressed Ctrl-C: what was recorded has ended.
        true if arguments.low_priority => Ok(Exit::Interrupted),
        true => Err(Interrupted.into()),
        false => Ok(Exit::Done),
    }
}

fn move_worker(shared: &Shared, worker: usize) -> impl FnOnce() -> Result<()> + Send {
    move || shared.work(worker)
}

/// Takes the supervisor's commands until it cancels or is gone: it may cancel what it gave last.
fn listen(shared: &Shared, to_workers: Sender<u64>) {
    let mut to_workers = Some(to_workers);
    for line in io::stdin().lock().lines() {
        let command = line.ok().and_then(|line| serde_json::from_str(&line).ok());
        match command {
            Some(Command::Simulate(interval)) => {
                // Without workers there is nobody to tell.
                let _ = to_workers.as_ref().map(|workers| workers.send(interval));
            }
            Some(Command::Last) => to_workers = None,
            Some(Command::Cancel) | None => break,
        }
    }
    shared.cancel();
}

impl Shared {
    fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
        for kick in &self.kicks {
            let kick = kick.lock().expect("no panic under the lock");
            if let Some(kick) = &*kick {
                kick.kick();
            }
        }
    }

    fn next(&self) -> Option<u64> {
        let intervals = self.intervals.lock().expect("no panic under the lock");
        let interval = intervals.recv().ok();
        interval.filter(|_| !self.cancel.load(Ordering::Acquire))
    }

    fn work(&self, worker: usize) -> Result<()> {
        while let Some(interval) = self.next() {
            tell(&Event::Started(interval))?;
            let start = Instant::now();
            let Some(result) = self.simulate(interval, worker) else {
                return Ok(());
            };
            self.results.put(&result)?;
            tell(&Event::Finished(Finished {
                interval,
                verified: result.finding.is_verified(),
                steps: result.instructions,
                trace_bytes: result.trace.as_ref().map_or(0, |trace| trace.bytes),
                host_ns: start.elapsed().as_nanos() as u64,
            }))?;
        }
        Ok(())
    }

    fn simulate(&self, interval: u64, worker: usize) -> Option<IntervalResult> {
        let running = |kick: Arc<dyn Kick>| {
            let mut slot = self.kicks[worker].lock().expect("no panic under the lock");
            *slot = Some(Arc::clone(&kick));
            // The request may have come before there was anything to kick.
            if self.cancel.load(Ordering::Acquire) {
                kick.kick();
            }
        };
        let work = AssertUnwindSafe(|| self.jobs.simulate(interval, &self.results, &running));
        let result = catch_unwind(work).unwrap_or_else(|panic| {
            let message = format!("the simulator panicked: {}", words(&*panic));
            let finding = Finding::Failed { message };
            Some(IntervalResult::without_replay(interval, finding))
        });
        *self.kicks[worker].lock().expect("no panic under the lock") = None;
        result
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// One line, undivided by those of other workers.
fn tell(event: &Event) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line(event).as_bytes())
        .and_then(|()| out.flush())
        .context("the supervisor is gone")
}
