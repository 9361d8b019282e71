//! A guest is recorded into memory, and all its intervals are simulated and verified.

use super::check::{Check, Group};
use crate::builtin;
use crate::quantity::Grouped;
use anyhow::{Context, Result, bail};
use kvm_recorder::kvm::{Host, KvmVcpu};
use kvm_recorder::{Kicks, Length, Options, Positions, Recorder};
use machine::board::Board;
use machine::boot::{self, LinuxBoot};
use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::clock::{DEFAULT_STEPS_PER_SECOND, HostClock, InsnClock, VirtualClock};
use machine::cpuid::CpuidTable;
use machine::devices::cmos::DEFAULT_START_UNIX_S;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{Position, VirtualNanos};
use machine::vcpu::Vcpu;
use replay_log::RecordingId;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tcg_sim::replay::{Interval, Limits, Outcome, replay};
use tcg_sim::{Engine, EngineOptions};

const ROUNDS: Group = Group::Rounds;
const RAM_BYTES: u64 = 16 << 20;
/// A guest that takes longer is stopped.
const PATIENCE: Duration = Duration::from_secs(15);
const MILLISECOND: u64 = 1_000_000;

/// What a round came to.
struct Round {
    intervals: u64,
    instructions: u64,
    reads: u64,
    interrupts: u64,
    took: Duration,
}

/// Records on the engine.
pub(super) fn on_engine() -> Check {
    let round = || {
        let options = Options {
            clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
            positions: Positions::Count,
            interval: Length::Steps(1_000_000),
            ..options()
        };
        let (ram, start) = guest(80, MILLISECOND / 10)?;
        let engine = Engine::new(ram.clone(), CpuidTable::of_host(), EngineOptions::default())?;
        round(engine, ram, &start, options)
    };
    check("engine", "the engine", round())
}

/// Records on KVM, if there is one.
pub(super) fn on_kvm(host: Option<&Host>) -> Check {
    let Some(host) = host else {
        return Check::skipped(ROUNDS, "kvm", "not tried without KVM");
    };
    let round = || {
        let options = Options {
            clock: VirtualClock::Host(HostClock::new()),
            positions: Positions::Landmark(Kicks::Prompt),
            interval: Length::Time(VirtualNanos(25 * MILLISECOND)),
            ..options()
        };
        let (ram, start) = guest(20, 5 * MILLISECOND)?;
        let vcpu = KvmVcpu::new(host, ram.clone(), &CpuidTable::of_host())?;
        round(vcpu, ram, &start, options)
    };
    check("kvm", "KVM", round())
}

fn options() -> Options {
    Options {
        recording: RecordingId::default(),
        clock: VirtualClock::Host(HostClock::new()),
        positions: Positions::Count,
        interval: Length::Steps(1),
        stop_after: None,
        queue_pages: Options::DEFAULT_QUEUE_PAGES,
    }
}

fn check(id: &'static str, on: &str, round: Result<Round>) -> Check {
    let round = match round {
        Ok(round) => round,
        Err(error) => return Check::no(ROUNDS, id, format!("on {on}: {error:#}")),
    };
    let Round {
        intervals,
        instructions,
        reads,
        interrupts,
        took,
    } = round;
    let finding = format!(
        "on {on}: all {intervals} intervals end bit for bit in the next checkpoint ({} instructions, {} \
         reads, {} interrupts)",
        Grouped(instructions),
        Grouped(reads),
        Grouped(interrupts)
    );
    Check::ok(ROUNDS, id, finding)
        .measured("intervals", intervals)
        .measured("instructions", instructions)
        .measured("took_ms", took.as_millis() as u64)
}

/// The built-in guest in RAM.
fn guest(ticks: u32, tick_ns: u64) -> Result<(Arc<Ram>, CpuState)> {
    let kernel = builtin::kernel(ticks, tick_ns)?;
    let ram = Arc::new(Ram::new(RAM_BYTES)?);
    let loaded = boot::load(
        &ram,
        &LinuxBoot {
            kernel: &kernel,
            initrd: None,
            command_line: "",
            rng_seed: boot::DEFAULT_RNG_SEED,
        },
    )?;
    Ok((ram, loaded.state))
}

fn round<V: Vcpu>(mut vcpu: V, ram: Arc<Ram>, start: &CpuState, options: Options) -> Result<Round> {
    let started = Instant::now();
    vcpu.load(start, Position::default())?;
    let board = Board::new(RAM_BYTES, DEFAULT_START_UNIX_S);
    let recorder = Recorder::new(vcpu, board, ram, options, Box::new(std::io::sink()))?;
    let store = MemoryStore::default();
    let (done, waits) = channel::<()>();
    let control = recorder.control();
    let recorded = std::thread::scope(|scope| {
        scope.spawn(move || {
            let too_late = waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
            if too_late {
                control.stop();
            }
            too_late
        });
        let recorded = recorder.record(Box::new(store.clone()));
        drop(done);
        recorded
    });
    let summary = recorded.context("recording")?;
    if started.elapsed() >= PATIENCE {
        bail!("the guest did not end within {} s", PATIENCE.as_secs());
    }
    let source: Arc<dyn CheckpointSource> = Arc::new(store);
    let mut instructions = 0;
    for number in 0..summary.intervals {
        instructions += verify(&source, number).with_context(|| format!("interval {number}"))?;
    }
    Ok(Round {
        intervals: summary.intervals,
        instructions,
        reads: summary.events.reads,
        interrupts: summary.events.interrupts,
        took: started.elapsed(),
    })
}

/// Simulates an interval; how many instructions it has.
fn verify(source: &Arc<dyn CheckpointSource>, number: u64) -> Result<u64> {
    /// Some seconds of what a processor executes.
    const MOST_STEPS: u64 = 10_000_000_000;
    let interval = Interval::load(&**source, number)?;
    let pages = CheckpointPages::new(source.clone(), number);
    let ram = Arc::new(Ram::lazy(RAM_BYTES, Arc::new(pages))?);
    let mut engine = Engine::new(ram.clone(), CpuidTable::of_host(), EngineOptions::default())?;
    let limits = Limits {
        max_steps: MOST_STEPS,
        ..Limits::default()
    };
    let report = replay(&mut engine, &ram, &interval, &**source, &limits)?;
    match report.outcome {
        Outcome::Verified => Ok(report.steps.0),
        Outcome::Diverged(divergence) => {
            let first = divergence.first;
            bail!(
                "it does not verify: at RIP {:#x} {} was expected, {} was found",
                first.rip,
                first.expected,
                first.actual
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn a_round_on_the_engine_verifies() {
        let check = on_engine();
        assert_eq!(check.status, Status::Ok, "{check}");
        assert_eq!(check.measured["intervals"], 8, "{check:?}");
    }

    #[test]
    fn a_round_that_fails_says_why() {
        let check = check(
            "engine",
            "the engine",
            Err(anyhow::anyhow!("broken").context("recording")),
        );
        assert_eq!(check.status, Status::No);
        assert_eq!(check.finding, "on the engine: recording: broken");
    }
}
