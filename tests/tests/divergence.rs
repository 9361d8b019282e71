//! Whatever breaks determinism is found at the right place: by replay, and to the step by comparing
//! two replays.

use iced_x86::code_asm::*;
use kvm_recorder::{Kicks, Length, Options, Positions, Recorder};
use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::clock::{DEFAULT_STEPS_PER_SECOND, InsnClock, VirtualClock};
use machine::ram::Ram;
use machine::units::{GuestPhys, Position, VirtualNanos};
use machine::vcpu::Vcpu;
use replay_log::{EventPosition, Observation, RecordingId};
use simuboost_tests::guest::{Guest, layout};
use simuboost_tests::recording::faulty::{FaultyEngine, UnloggedDevice};
use simuboost_tests::recording::programs::{DEVICE_WINDOW, Program};
use simuboost_tests::recording::{TestBus, engine};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tcg_sim::replay::{
    Comparison, FirstDifference, Interval, Limits, Outcome, ReplayVcpu, Report, Side, bisect,
    replay,
};

fn options(positions: Positions) -> Options {
    Options {
        recording: RecordingId([6; 16]),
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions,
        interval: Length::Time(VirtualNanos(30_000)),
        stop_after: Some(Length::Steps(100_000)),
        queue_pages: 64,
    }
}

fn random_kicks() -> Positions {
    Positions::Landmark(Kicks::Random {
        seed: 4,
        late_by_steps: 1_000,
    })
}

/// Records the guest with everything; a device may write RAM unlogged.
fn record(
    positions: Positions,
    write: Option<(VirtualNanos, GuestPhys, [u8; 8])>,
) -> Arc<dyn CheckpointSource> {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("test RAM is small"));
    let start = Program::everything(60).load(&ram);
    let mut vcpu = engine(ram.clone(), false);
    vcpu.load(&start, Position::default())
        .expect("the start state is valid");
    let bus = UnloggedDevice {
        bus: TestBus::new(layout::RAM_BYTES, 3, DEVICE_WINDOW, 23_000),
        ram: ram.clone(),
        write,
    };
    let store = MemoryStore::default();
    let console = Box::new(std::io::sink());
    let recorder =
        Recorder::new(vcpu, bus, ram, options(positions), console).expect("the engine counts");
    recorder
        .record(Box::new(store.clone()))
        .expect("the guest runs");
    Arc::new(store)
}

fn intervals(source: &Arc<dyn CheckpointSource>) -> u64 {
    source.checkpoints().expect("memory does not fail") - 1
}

fn lazy_ram(source: &Arc<dyn CheckpointSource>, number: u64) -> Arc<Ram> {
    let pages = CheckpointPages::new(source.clone(), number);
    Arc::new(Ram::lazy(layout::RAM_BYTES, Arc::new(pages)).expect("test RAM is small"))
}

fn limits() -> Limits {
    Limits {
        max_steps: 1_000_000,
        ..Limits::default()
    }
}

fn replayed(source: &Arc<dyn CheckpointSource>, interval: &Interval) -> Report {
    let ram = lazy_ram(source, interval.number);
    let mut vcpu = engine(ram.clone(), false);
    replay(&mut vcpu, &ram, interval, &**source, &limits()).expect("a verdict")
}

fn compared<B: ReplayVcpu>(
    source: &Arc<dyn CheckpointSource>,
    interval: &Interval,
    second: impl FnOnce(Arc<Ram>) -> B,
) -> Comparison {
    let rams = [(); 2].map(|()| lazy_ram(source, interval.number));
    let (mut one, mut two) = (engine(rams[0].clone(), false), second(rams[1].clone()));
    let first = Side {
        vcpu: &mut one,
        ram: &rams[0],
    };
    let second = Side {
        vcpu: &mut two,
        ram: &rams[1],
    };
    bisect(first, second, interval, &**source, &limits()).expect("a verdict")
}

fn difference(comparison: Comparison) -> Box<FirstDifference> {
    match comparison {
        Comparison::Differ(found) => found,
        Comparison::Same { outcome, .. } => panic!("no difference, but {outcome:?}"),
    }
}

#[test]
fn both_modes_of_the_engine_do_the_same() {
    for positions in [Positions::Count, random_kicks()] {
        let source = record(positions, None);
        for number in 0..intervals(&source) {
            let interval = Interval::load(&*source, number).expect("it is there");
            let report = replayed(&source, &interval);
            let interval = interval.with_positions(&report.resolved);
            let same = compared(&source, &interval, |ram| engine(ram, true));
            let expected = Comparison::Same {
                steps: report.steps,
                outcome: Outcome::Verified,
            };
            assert_eq!(same, expected, "interval {number}");
        }
    }
}

#[test]
fn a_step_that_one_replay_gets_wrong_is_found() {
    let source = record(Positions::Count, None);
    let interval = Interval::load(&*source, 2).expect("it is there");
    let start = interval.start_position().steps.0;
    let steps = replayed(&source, &interval).steps.0;
    for after in [1, 2, 17, steps / 2, steps - 1, steps] {
        let (after, rip) = (start + after, Arc::new(AtomicU64::new(0)));
        let found = difference(compared(&source, &interval, |ram| FaultyEngine {
            engine: engine(ram, false),
            after,
            bit: (15, 62),
            rip: rip.clone(),
        }));
        assert_eq!(found.agreed, Position::at(after - 1), "{found:?}");
        assert_eq!(found.rip, rip.load(Ordering::Relaxed), "{found:?}");
        assert_eq!(found.registers.len(), 1, "{found:?}");
        let register = &found.registers[0];
        assert_eq!(register.name, "R15");
        assert_eq!(register.expected ^ register.actual, 1 << 62);
    }
}

#[test]
fn what_a_device_did_unlogged_is_found() {
    // Memory that no piece of the guest touches: the end state shows it.
    let quiet = GuestPhys(DEVICE_WINDOW.end + 0x3_0000);
    let write = (VirtualNanos(70_000), quiet, [0xa5; 8]);
    for positions in [Positions::Count, random_kicks()] {
        let source = record(positions, Some(write));
        let mut diverged = Vec::new();
        for number in 0..intervals(&source) {
            let interval = Interval::load(&*source, number).expect("it is there");
            if let Outcome::Diverged(found) = replayed(&source, &interval).outcome {
                assert_eq!(found.frames, [quiet.gfn()]);
                assert_eq!(found.first.interval, number);
                let bytes = Observation::Memory {
                    address: quiet,
                    bytes: vec![0xa5; 8],
                };
                assert_eq!(found.first.expected, bytes);
                diverged.push(number);
            }
        }
        assert_eq!(diverged.len(), 1, "one interval has the write");
    }
    // Memory that the guest counts in: the next check of registers shows it.
    let ticks = GuestPhys(layout::DATA + 0xff08);
    let write = (VirtualNanos(70_000), ticks, 50_u64.to_le_bytes());
    let source = record(Positions::Count, Some(write));
    let wrong: Vec<_> = (0..intervals(&source))
        .map(|number| Interval::load(&*source, number).expect("it is there"))
        .map(|interval| replayed(&source, &interval))
        .filter_map(|report| match report.outcome {
            Outcome::Diverged(found) => Some(found),
            Outcome::Verified => None,
        })
        .collect();
    assert_eq!(wrong.len(), 1);
}

/// A guest that waits in a loop for an interrupt, which pushes and pops so that it writes all the time,
/// and for which memory is as it was after each round, or not.
fn waiting(counts: bool) -> (Arc<dyn CheckpointSource>, Interval) {
    let mut guest = Guest::new();
    guest
        .code_at(layout::CODE, layout::CODE, |a| {
            let mut top = a.create_label();
            a.mov(rsi, layout::DATA)?;
            a.set_label(&mut top)?;
            a.push(rbx)?;
            a.pop(rcx)?;
            a.pause()?;
            if counts {
                a.inc(qword_ptr(rsi))?;
            }
            a.jmp(top)
        })
        .expect("it assembles");
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("test RAM is small"));
    ram.write(GuestPhys(0), guest.ram()).expect("it fits");
    let mut vcpu = engine(ram.clone(), false);
    let mut start = guest.state.clone();
    start.rip = layout::CODE;
    vcpu.load(&start, Position::default())
        .expect("the start state is valid");
    let bus = TestBus::new(layout::RAM_BYTES, 3, DEVICE_WINDOW, u64::MAX / 2);
    let options = Options {
        interval: Length::Steps(1_000_000),
        stop_after: Some(Length::Steps(500_000)),
        ..options(random_kicks())
    };
    let store = MemoryStore::default();
    let console = Box::new(std::io::sink());
    let recorder = Recorder::new(vcpu, bus, ram, options, console).expect("the engine counts");
    recorder
        .record(Box::new(store.clone()))
        .expect("the guest runs");
    let interval = Interval::load(&store, 0).expect("it is there");
    (Arc::new(store), interval)
}

#[test]
fn a_wait_for_what_never_comes_ends() {
    for counts in [false, true] {
        let (source, mut interval) = waiting(counts);
        assert_eq!(replayed(&source, &interval).outcome, Outcome::Verified);
        let end = interval.segment.end.as_mut().expect("the log is complete");
        let EventPosition::Landmark(landmark) = &mut end.at else {
            panic!("the guest does nothing but run");
        };
        landmark.gpr[9] ^= 1;
        let ram = lazy_ram(&source, 0);
        let mut vcpu = engine(ram.clone(), false);
        let limits = Limits {
            max_steps: 200_000_000,
            ..Limits::default()
        };
        let report = replay(&mut vcpu, &ram, &interval, &*source, &limits).expect("a verdict");
        let Outcome::Diverged(found) = report.outcome else {
            panic!("that state is never met");
        };
        let expected = match counts {
            false => Observation::Spins,
            true => Observation::StepLimit,
        };
        assert_eq!(found.first.actual, expected);
    }
}
