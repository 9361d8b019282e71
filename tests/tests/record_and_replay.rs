//! The recording loop and interval replay by themselves, on a toy processor.

use kvm_recorder::{Kicks, Length, Options, Positions, Summary};
use machine::checkpoint::memory::MemoryStore;
use machine::clock::{DEFAULT_STEPS_PER_SECOND, HostClock, InsnClock, VirtualClock};
use machine::units::VirtualNanos;
use replay_log::RecordingId;
use simuboost_tests::recording::toy::{RAM_BYTES, ToyCpu, load_program};
use simuboost_tests::recording::{Machine, TestBus};

const MACHINE: Machine<ToyCpu> = Machine {
    vcpu: ToyCpu::new,
    ram_bytes: RAM_BYTES,
};

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

fn record(seed: u64, options: Options) -> (MemoryStore, Summary) {
    let mut bus = TestBus::new(RAM_BYTES, seed, RAM_BYTES / 2..RAM_BYTES, 7_000);
    bus.start_timer(4_000);
    MACHINE.record(bus, options, |ram| load_program(ram, seed))
}

#[test]
fn every_interval_of_random_programs_verifies_with_counts() {
    for seed in 0..60 {
        let interval = match seed % 2 {
            0 => Length::Steps(1_000 + 777 * seed),
            _ => Length::Time(VirtualNanos(9_000 + 1_000 * seed)),
        };
        let options = options(insn_clock(), Positions::Count, interval);
        let (store, summary) = record(seed, options);
        let reports = MACHINE.verify(store, &format!("seed {seed}"));
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
        let (store, summary) = record(seed, options);
        let positions = summary.positions;
        assert_eq!(positions.count, 0);
        rule[0] += positions.after_io;
        rule[1] += positions.window;
        rule[2] += positions.landmark;
        rule[3] += positions.follows;
        for report in MACHINE.verify(store, &format!("seed {seed}")) {
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
        let (store, summary) = record(seed, options);
        assert!(summary.intervals > 0);
        MACHINE.verify(store, &format!("seed {seed}"));
    }
}
