//! The recording loop and interval replay by themselves, on a toy processor.

use kvm_recorder::{Kicks, Length, Options, Positions, Recorder, Summary};
use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{Checkpoint, CheckpointSink, CheckpointSource, StoreError};
use machine::clock::{DEFAULT_STEPS_PER_SECOND, HostClock, InsnClock, VirtualClock};
use machine::ram::{PageBytes, Ram};
use machine::units::{Gfn, Position, VirtualNanos};
use machine::vcpu::{Exit, Vcpu, VcpuError, VcpuLayer};
use replay_log::{EndReason, RecordingId};
use simuboost_tests::recording::toy::{RAM_BYTES, ToyCpu, load_program};
use simuboost_tests::recording::{Machine, TestBus};
use std::sync::Arc;
use std::time::Duration;
use tcg_sim::replay::{Interval, Limits, Outcome};

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

/// As long as more patience can lead to another verdict, the report says so.
#[test]
fn a_search_with_too_little_patience_says_so_until_it_has_enough() {
    let mut tries = 0;
    for seed in 0..12 {
        let interval = Length::Time(VirtualNanos(30_000));
        let (store, _) = record(seed, options(insn_clock(), random_kicks(seed), interval));
        let source: Arc<dyn CheckpointSource> = Arc::new(store);
        for number in 0..source.checkpoints().unwrap() - 1 {
            let interval = Interval::load(&*source, number).unwrap();
            let patient = MACHINE.replay_interval(&source, &interval);
            let mut limits = Limits {
                patience: 1,
                ..Limits::default()
            };
            let mut report = MACHINE.replay_within(&source, &interval, &limits);
            while report.outcome != Outcome::Verified {
                assert!(report.search.impatient > 0, "seed {seed}: {report:#?}");
                tries += 1;
                limits.patience *= 4;
                report = MACHINE.replay_within(&source, &interval, &limits);
            }
            assert_eq!(report.resolved, patient.resolved, "seed {seed}");
        }
    }
    assert!(tries > 50, "{tries}");
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

/// Passes everything on to memory, slowly, and fails at a checkpoint if asked to.
struct Slow {
    to: MemoryStore,
    page_takes: Duration,
    fails_at: Option<u64>,
}

impl CheckpointSink for Slow {
    fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        if self.fails_at == Some(checkpoint.number) {
            return Err("the disk is full".into());
        }
        self.to.begin(checkpoint)
    }

    fn page(&mut self, gfn: Gfn, content: &PageBytes) -> Result<(), StoreError> {
        std::thread::sleep(self.page_takes);
        CheckpointSink::page(&mut self.to, gfn, content)
    }

    fn content(&mut self, id: [u8; 32], content: &PageBytes) -> Result<(), StoreError> {
        CheckpointSink::content(&mut self.to, id, content)
    }

    fn publish(&mut self, segment: Option<&[u8]>) -> Result<(), StoreError> {
        self.to.publish(segment)
    }
}

fn recorder(seed: u64, options: Options) -> Recorder<ToyCpu, TestBus> {
    let ram = Arc::new(Ram::new(RAM_BYTES).expect("test RAM is small"));
    let mut vcpu = ToyCpu::new(ram.clone());
    vcpu.load(&load_program(&ram, seed), Position::default())
        .expect("the start state is valid");
    let bus = TestBus::new(RAM_BYTES, seed, RAM_BYTES / 2..RAM_BYTES, 7_000);
    Recorder::new(vcpu, bus, ram, options, Box::new(std::io::sink())).expect("these vCPUs count")
}

#[test]
fn a_slow_store_holds_the_guest_back_and_gets_the_right_pages() {
    let interval = Length::Steps(4_000);
    let mut options = options(insn_clock(), Positions::Count, interval);
    options.queue_pages = 2;
    let store = MemoryStore::default();
    let sink = Slow {
        to: store.clone(),
        page_takes: Duration::from_micros(300),
        fails_at: None,
    };
    let summary = recorder(5, options).record(Box::new(sink)).unwrap();
    assert!(summary.stalled > Duration::ZERO, "{summary:?}");
    assert!(summary.pages_copied_on_write > 0, "{summary:?}");
    MACHINE.verify(store, "slow store");
}

#[test]
fn a_store_that_fails_ends_the_recording_and_what_was_published_stays() {
    for fails_at in [0, 1, 5] {
        let interval = Length::Steps(4_000);
        let options = options(insn_clock(), Positions::Count, interval);
        let store = MemoryStore::default();
        let sink = Slow {
            to: store.clone(),
            page_takes: Duration::ZERO,
            fails_at: Some(fails_at),
        };
        let error = recorder(5, options).record(Box::new(sink)).unwrap_err();
        assert!(error.to_string().contains("the disk is full"), "{error}");
        assert_eq!(store.checkpoints().unwrap(), fails_at);
        if fails_at > 1 {
            MACHINE.verify(store, "before the failure");
        }
    }
}

#[test]
fn a_stop_from_outside_ends_with_a_closing_checkpoint() {
    let clock = VirtualClock::Host(HostClock::new());
    let interval = Length::Time(VirtualNanos(3_000_000));
    let options = Options {
        stop_after: None,
        ..options(clock, Positions::Count, interval)
    };
    // This guest does not end by itself.
    let recorder = recorder(3, options);
    let control = recorder.control();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        control.stop();
    });
    let store = MemoryStore::default();
    let summary = recorder.record(Box::new(store.clone())).unwrap();
    stopper.join().unwrap();
    assert_eq!(summary.reason, EndReason::Stopped);
    MACHINE.verify(store, "stopped");
}

#[test]
fn options_that_need_counts_are_refused_where_there_are_none() {
    let base = Options {
        stop_after: None,
        ..options(
            VirtualClock::Host(HostClock::new()),
            Positions::Landmark(Kicks::Prompt),
            Length::Time(VirtualNanos(1)),
        )
    };
    let with = |change: fn(&mut Options)| {
        let mut options = base.clone();
        change(&mut options);
        options
    };
    let rows = [
        (base.clone(), false),
        (with(|o| o.positions = Positions::Count), true),
        (with(|o| o.clock = insn_clock()), true),
        (with(|o| o.positions = random_kicks(1)), true),
        (with(|o| o.interval = Length::Steps(5)), true),
        (with(|o| o.stop_after = Some(Length::Steps(5))), true),
    ];
    for (options, refused) in rows {
        let ram = Arc::new(Ram::new(RAM_BYTES).unwrap());
        let vcpu = Uncounted(ToyCpu::new(ram.clone()));
        let bus = TestBus::new(RAM_BYTES, 0, 0..RAM_BYTES, 1_000);
        let what = format!("{options:?}");
        let recorder = Recorder::new(vcpu, bus, ram, options, Box::new(std::io::sink()));
        assert_eq!(recorder.is_err(), refused, "{what}");
    }
}

/// Keeps its counts to itself, as hardware does.
struct Uncounted(ToyCpu);

impl VcpuLayer for Uncounted {
    type Below = ToyCpu;

    fn below(&self) -> &ToyCpu {
        &self.0
    }

    fn below_mut(&mut self) -> &mut ToyCpu {
        &mut self.0
    }

    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        match until {
            None => self.0.run(None),
            Some(_) => Err(VcpuError::Protocol("does not count")),
        }
    }

    fn position(&self) -> Option<Position> {
        None
    }
}

#[test]
fn a_vcpu_without_counts_is_recorded_by_landmarks() {
    for seed in [2, 3, 6] {
        let clock = VirtualClock::Host(HostClock::new());
        let interval = Length::Time(VirtualNanos(1_000_000));
        let options = Options {
            stop_after: Some(Length::Time(VirtualNanos(12_000_000))),
            ..options(clock, Positions::Landmark(Kicks::Prompt), interval)
        };
        let ram = Arc::new(Ram::new(RAM_BYTES).unwrap());
        let mut vcpu = Uncounted(ToyCpu::new(ram.clone()));
        let start = load_program(&ram, seed);
        Vcpu::load(&mut vcpu, &start, Position::default()).unwrap();
        let mut bus = TestBus::new(RAM_BYTES, seed, RAM_BYTES / 2..RAM_BYTES, 170_000);
        bus.start_timer(100_000);
        let store = MemoryStore::default();
        let recorder = Recorder::new(vcpu, bus, ram, options, Box::new(std::io::sink())).unwrap();
        let summary = recorder.record(Box::new(store.clone())).unwrap();
        assert!(summary.steps.is_none());
        MACHINE.verify(store, &format!("seed {seed}"));
    }
}
