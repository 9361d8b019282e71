//! The recording loop and interval replay by themselves, on a toy processor.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "../toy/mod.rs"]
mod toy;

use kvm_recorder::{Kicks, Length, Options, Positions, Recorder, Summary};
use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::clock::{DEFAULT_STEPS_PER_SECOND, HostClock, InsnClock, VirtualClock};
use machine::ram::Ram;
use machine::units::{Position, VirtualNanos};
use machine::vcpu::Vcpu;
use replay_log::RecordingId;
use std::sync::Arc;
use tcg_sim::replay::{Interval, Limits, Outcome, Report, replay};
use toy::{RAM_BYTES, ToyBus, ToyCpu, load_program};

fn insn_clock() -> VirtualClock {
    VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND))
}

fn options(clock: VirtualClock, positions: Positions, interval: Length) -> Options {
    Options {
        recording: RecordingId([3; 16]),
        clock,
        positions,
        interval,
        stop_after: Some(Length::Steps(60_000)),
        queue_pages: 8,
    }
}

fn random_kicks(seed: u64) -> Positions {
    Positions::Landmark(Kicks::Random {
        seed,
        late_by_steps: 300,
    })
}

fn record(
    seed: u64,
    load: impl Fn(&Ram) -> machine::state::CpuState,
    options: Options,
) -> (MemoryStore, Summary) {
    let ram = Arc::new(Ram::new(RAM_BYTES).unwrap());
    let mut vcpu = ToyCpu::new(ram.clone());
    vcpu.load(&load(&ram), Position::default()).unwrap();
    let bus = ToyBus::new(RAM_BYTES, seed, 4_000, 7_000);
    let store = MemoryStore::default();
    let recorder = Recorder::new(vcpu, bus, ram, options, Box::new(std::io::sink())).unwrap();
    let summary = recorder.record(Box::new(store.clone())).unwrap();
    assert_eq!(store.checkpoints().unwrap(), summary.intervals + 1);
    (store, summary)
}

fn replay_one(source: &Arc<dyn CheckpointSource>, number: u64) -> Report {
    let interval = Interval::load(&**source, number).unwrap();
    replay_interval(source, &interval)
}

fn replay_interval(source: &Arc<dyn CheckpointSource>, interval: &Interval) -> Report {
    let pages = CheckpointPages::new(source.clone(), interval.number);
    let ram = Arc::new(Ram::lazy(RAM_BYTES, Arc::new(pages)).unwrap());
    let mut vcpu = ToyCpu::new(ram.clone());
    let limits = Limits {
        max_steps: 1_000_000,
        ..Limits::default()
    };
    replay(&mut vcpu, &ram, interval, &**source, &limits).unwrap()
}

/// Replays all intervals, last first, and expects them verified.
fn verify(store: MemoryStore, what: &str) -> Vec<Report> {
    let source: Arc<dyn CheckpointSource> = Arc::new(store);
    let intervals = source.checkpoints().unwrap() - 1;
    let verified = |number| {
        let report = replay_one(&source, number);
        if let Outcome::Diverged(divergence) = &report.outcome {
            panic!("{what}: {} {divergence:#?}", divergence.first);
        }
        report
    };
    (0..intervals).rev().map(verified).collect()
}

#[test]
fn every_interval_of_random_programs_verifies_with_counts() {
    for seed in 0..60 {
        let interval = match seed % 2 {
            0 => Length::Steps(1_000 + 777 * seed),
            _ => Length::Time(VirtualNanos(9_000 + 1_000 * seed)),
        };
        let options = options(insn_clock(), Positions::Count, interval);
        let (store, summary) = record(seed, |ram| load_program(ram, seed), options);
        let reports = verify(store, &format!("seed {seed}"));
        let steps: u64 = reports.iter().map(|report| report.steps.0).sum();
        assert_eq!(
            Some(steps),
            summary.steps.map(|steps| steps.0),
            "seed {seed}"
        );
    }
}

#[test]
fn every_interval_of_random_programs_verifies_with_landmarks() {
    let (mut rule, mut wrong) = ([0; 4], 0);
    for seed in 0..60 {
        let interval = Length::Time(VirtualNanos(8_000 + 700 * seed));
        let options = options(insn_clock(), random_kicks(seed), interval);
        let (store, summary) = record(seed, |ram| load_program(ram, seed), options);
        let positions = summary.positions;
        assert_eq!(positions.count, 0);
        rule[0] += positions.after_io;
        rule[1] += positions.window;
        rule[2] += positions.landmark;
        rule[3] += positions.follows;
        for report in verify(store, &format!("seed {seed}")) {
            wrong += report.search.backtracks;
        }
    }
    assert!(rule.iter().all(|count| *count > 20), "{rule:?}");
    eprintln!("events by rule {rule:?}, wrong landmarks {wrong}");
}

#[test]
fn recordings_on_the_hosts_clock_verify() {
    for (seed, positions) in [
        (1, Positions::Count),
        (2, Positions::Landmark(Kicks::Prompt)),
        (3, random_kicks(3)),
    ] {
        let clock = VirtualClock::Host(HostClock::new());
        let options = options(clock, positions, Length::Time(VirtualNanos(400_000)));
        let (store, summary) = record(seed, |ram| load_program(ram, seed), options);
        assert!(summary.intervals > 0);
        verify(store, &format!("seed {seed}"));
    }
}
