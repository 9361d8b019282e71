//! What a simulation will take, before it begins.

use super::configuration::{Configuration, Instrument};
use super::memory::available_bytes;
use super::results::{Results, Speed};
use crate::cores::cpus;
use crate::quantity::{Bytes, Grouped};
use crate::recording::Source;
use anyhow::Result;
use std::fmt;
use std::time::Duration;

/// Memory of a worker beside the pages that its interval writes: tables, translations, pages that it reads. With
/// 1 to 64 workers on intervals of 0.1 s they took 12 to 19 MiB each.
const WORKER_BYTES: u64 = 16 << 20;
/// Memory of the worker process that all workers share.
const SHARED_BYTES: u64 = 384 << 20;
/// Result of an interval without a trace.
const RESULT_BYTES: u64 = 2 << 10;
/// Where nothing is known of this host.
const GUESSED_SPEED: f64 = 100e6;
/// With a memory trace: times as slow, and bytes per instruction.
const TRACING_SLOWER: f64 = 5.0;
const TRACE_BYTES: f64 = 1.0;

/// What a simulation will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Prediction {
    pub(super) workers: usize,
    /// Workers that have a CPU and an interval each.
    pub(super) busy: usize,
    intervals: u64,
    /// Absent where the recording does not count.
    instructions: Option<u64>,
    time: Option<Duration>,
    memory_bytes: u64,
    disk_bytes: u64,
    from: SpeedFrom,
}

/// Where the speed is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpeedFrom {
    EarlierRun,
    Guess,
}

/// Predicts, and chooses the number of workers if it was not asked for.
pub(super) fn predict(
    source: &Source,
    results: &Results,
    configuration: &Configuration,
    intervals: &[u64],
    asked: Option<usize>,
) -> Result<Prediction> {
    let mut instructions = Some(0);
    let mut pages = Vec::with_capacity(intervals.len());
    for &number in intervals {
        pages.push(source.changed(number)?.len() as u64);
        let positions = [source.position(number)?, source.position(number + 1)?];
        instructions = match (instructions, positions) {
            (Some(sum), [Some(start), Some(end)]) => {
                let steps = end.steps.0.saturating_sub(start.steps.0);
                Some(u64::saturating_add(sum, steps))
            }
            _ => None,
        };
    }
    pages.sort_unstable_by_key(|&pages| std::cmp::Reverse(pages));
    let most_pages = pages.first().copied().unwrap_or(0);
    let workers = asked.unwrap_or_else(|| default_workers(WORKER_BYTES + page_bytes(most_pages)));
    let at_once = workers.min(intervals.len()).max(1);
    // At worst the intervals that write most are simulated at once.
    let written = page_bytes(pages.iter().take(at_once).sum());
    let busy = at_once.min(cpus());
    let (speed, from) = match results.speed()? {
        Some(speed) => (speed, SpeedFrom::EarlierRun),
        None => (guess(configuration), SpeedFrom::Guess),
    };
    let per_second = speed.instructions_per_worker_second.max(1.0) * busy as f64;
    let seconds = instructions.map(|count| count as f64 / per_second);
    let traces = instructions.map_or(0.0, |count| count as f64 * speed.bytes_per_instruction);
    Ok(Prediction {
        workers,
        busy,
        intervals: intervals.len() as u64,
        instructions,
        time: seconds.map(|seconds| Duration::from_secs_f64(seconds.min(1e9))),
        memory_bytes: SHARED_BYTES + at_once as u64 * WORKER_BYTES + written,
        disk_bytes: intervals.len() as u64 * RESULT_BYTES + traces as u64,
        from,
    })
}

/// What is usual, where nothing is known of this host.
fn guess(configuration: &Configuration) -> Speed {
    let traced = configuration.has(Instrument::Mem);
    let (slower, bytes_per_instruction) = match traced {
        true => (TRACING_SLOWER, TRACE_BYTES),
        false => (1.0, 0.0),
    };
    Speed {
        instructions_per_worker_second: GUESSED_SPEED / slower,
        bytes_per_instruction,
    }
}

/// The pages that an interval writes, and as many that it only reads.
fn page_bytes(pages: u64) -> u64 {
    2 * 4096 * pages
}

fn default_workers(worker_bytes: u64) -> usize {
    let for_workers = available_bytes().saturating_sub(SHARED_BYTES);
    let fit = for_workers / worker_bytes.max(1);
    cpus()
        .min(usize::try_from(fit).unwrap_or(usize::MAX))
        .max(1)
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} intervals", self.intervals)?;
        if let (Some(instructions), Some(time)) = (self.instructions, self.time) {
            let basis = match self.from {
                SpeedFrom::EarlierRun => "as the last run here",
                SpeedFrom::Guess => "a guess, there was no run here",
            };
            write!(
                f,
                ", {} instructions, about {} ({basis})",
                Grouped(instructions),
                Roughly(time),
            )?;
        }
        write!(
            f,
            "; {} workers, about {} of memory, {} on disk",
            self.workers,
            Bytes(self.memory_bytes),
            Bytes(self.disk_bytes),
        )
    }
}

/// A duration to one digit or two.
struct Roughly(Duration);

impl fmt::Display for Roughly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ ..120 => write!(f, "{} s", seconds.max(1)),
            seconds @ 120..7200 => write!(f, "{} min", seconds / 60),
            seconds => write!(f, "{} h", seconds / 3600),
        }
    }
}
