//! The whole idea once through on bare metal: the engine records a guest, and every interval is
//! simulated from its checkpoint and ends bit-exactly; whatever is damaged is found where it is.

use kvm_recorder::{Kicks, Length, Options, Positions, Summary};
use machine::checkpoint::CheckpointSource;
use machine::checkpoint::memory::MemoryStore;
use machine::clock::{DEFAULT_STEPS_PER_SECOND, HostClock, InsnClock, VirtualClock};
use machine::units::{Gfn, GuestPhys, VirtualNanos};
use replay_log::{
    Async, Content, Effect, Event, EventPosition, Observation, Read, ReadSource, RecordingId,
};
use simuboost_tests::guest::layout;
use simuboost_tests::recording::programs::{DEVICE_WINDOW, Program};
use simuboost_tests::recording::{Edited, ON_ENGINE, TestBus, vague};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tcg_sim::replay::{Divergence, Interval, Limits, Outcome, Report};

fn insn_clock() -> VirtualClock {
    VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND))
}

fn host_clock() -> VirtualClock {
    VirtualClock::Host(HostClock::new())
}

fn random_kicks(seed: u64) -> Positions {
    Positions::Landmark(Kicks::Random {
        seed,
        late_by_steps: 1_000,
    })
}

fn record(program: &Program, seed: u64, options: Options) -> (MemoryStore, Summary) {
    let bus = TestBus::new(layout::RAM_BYTES, seed, DEVICE_WINDOW, 23_000);
    ON_ENGINE.record(bus, options, |ram| program.load(ram))
}

fn options(clock: VirtualClock, positions: Positions, interval: Length) -> Options {
    Options {
        recording: RecordingId([5; 16]),
        clock,
        positions,
        interval,
        stop_after: Some(Length::Steps(100_000)),
        queue_pages: 64,
    }
}

fn assert_verified(reports: &[Report], what: &str) {
    for report in reports {
        if let Outcome::Diverged(divergence) = &report.outcome {
            panic!("{what}: {}\n{divergence:#?}", divergence.first);
        }
    }
}

#[test]
fn the_guest_with_everything_verifies_with_counts_in_both_clocks_and_with_landmarks() {
    everything_verifies([
        (insn_clock(), Positions::Count, 20_000),
        (insn_clock(), random_kicks(1), 20_000),
        (host_clock(), Positions::Count, 2_000_000),
    ]);
}

/// An interval that began inside REP INS or OUTS lost that it did, because landmarks have no count of
/// iterations: an interrupt there pushed RF clear in the replay.
#[test]
fn the_guest_with_everything_verifies_with_landmarks_and_the_host_clock() {
    everything_verifies([
        (host_clock(), random_kicks(2), 2_000_000),
        (host_clock(), Positions::Landmark(Kicks::Prompt), 2_000_000),
    ]);
}

fn everything_verifies<const N: usize>(rows: [(VirtualClock, Positions, u64); N]) {
    let program = Program::everything(60);
    for (clock, positions, nanos) in rows {
        let what = format!("{positions:?} {clock:?}");
        let interval = Length::Time(VirtualNanos(nanos));
        let (store, summary) = record(&program, 7, options(clock, positions, interval));
        assert!(summary.intervals > 1, "{what}: {summary:?}");
        assert!(summary.events.interrupts > 10, "{what}: {summary:?}");
        assert!(summary.events.writes > 10, "{what}: {summary:?}");
        let serial = ON_ENGINE.verify(store.clone(), &what);
        let source: Arc<dyn CheckpointSource> = Arc::new(store);
        let mut parallel = ON_ENGINE.replay_in_parallel(&source, 4);
        assert_verified(&parallel, &what);
        parallel.reverse();
        assert_eq!(serial, parallel, "{what}");
    }
}

/// How many random guests: on demand more, for hours.
fn guests() -> u64 {
    let asked = std::env::var("SB_ONCE_THROUGH_GUESTS").ok();
    asked.map_or(1_000, |n| n.parse().expect("a number of guests"))
}

/// Records the guest of this seed and verifies all its intervals.
fn random_guest(seed: u64) -> (Summary, Vec<Report>) {
    let program = Program::random(seed);
    let interval = match seed % 3 {
        0 => Length::Steps(3_000 + seed % 5_000),
        _ => Length::Time(VirtualNanos(5_000 + 31 * (seed % 1_000))),
    };
    let positions = match seed % 2 {
        0 => Positions::Count,
        _ => random_kicks(seed),
    };
    let options = Options {
        stop_after: Some(Length::Steps(50_000)),
        ..options(insn_clock(), positions, interval)
    };
    let (store, summary) = record(&program, seed, options);
    let mut reports = ON_ENGINE.verify(store.clone(), &format!("guest {seed}"));
    if summary.positions.landmark > 0 {
        reports.extend(with_vague_landmarks(seed, Arc::new(store)));
    }
    (summary, reports)
}

/// Replays all intervals with less to find the landmarks by.
fn with_vague_landmarks(seed: u64, source: Arc<dyn CheckpointSource>) -> Vec<Report> {
    let replay = |number| {
        let interval = Interval::load(&*source, number).expect("the interval is there");
        let interval = vague(interval);
        let limits = Limits {
            max_steps: 2_000_000,
            max_backtracks: 10_000,
            ..Limits::default()
        };
        let report = ON_ENGINE.replay_within(&source, &interval, &limits);
        assert_eq!(report.outcome, Outcome::Verified, "guest {seed}, {number}");
        report
    };
    (0..source.checkpoints().expect("memory does not fail") - 1)
        .map(replay)
        .collect()
}

/// A kick at the boundary after HLT was reported instead of the halt, which then was counted as an
/// I/O step of the next interval.
#[test]
fn a_checkpoint_right_after_a_halt_counts_it_in_the_interval_that_ends() {
    random_guest(104_081);
}

#[test]
fn random_guests_verify() {
    let (next, guests) = (AtomicU64::new(0), guests());
    let totals = Mutex::new(Totals::default());
    let first = std::env::var("SB_ONCE_THROUGH_SEED").ok();
    let first: u64 = first.map_or(0, |n| n.parse().expect("a seed"));
    let worker = || {
        loop {
            let seed = first + next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + guests {
                return;
            }
            let (summary, reports) = random_guest(seed);
            totals.lock().unwrap().add(&summary, &reports);
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(worker);
        }
    });
    let totals = totals.into_inner().unwrap();
    eprintln!("{guests} guests from seed {first}: {totals:?}");
    let Totals {
        count,
        after_io,
        window,
        landmark,
        backtracks,
        ..
    } = totals;
    for (what, found) in [
        ("counts", count),
        ("rule 1", after_io),
        ("rule 2", window),
        ("rule 3", landmark),
        ("wrong landmarks", backtracks),
    ] {
        assert!(found >= guests / 10, "too few {what}: {totals:?}");
    }
}

/// What the random guests came to: a test of nothing would pass too.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    intervals: u64,
    steps: u64,
    reads: u64,
    interrupts: u64,
    writes: u64,
    count: u64,
    after_io: u64,
    window: u64,
    landmark: u64,
    follows: u64,
    arrivals: u64,
    backtracks: u64,
}

impl Totals {
    fn add(&mut self, summary: &Summary, reports: &[Report]) {
        self.intervals += summary.intervals;
        self.reads += summary.events.reads;
        self.interrupts += summary.events.interrupts;
        self.writes += summary.events.writes;
        self.count += summary.positions.count;
        self.after_io += summary.positions.after_io;
        self.window += summary.positions.window;
        self.landmark += summary.positions.landmark;
        self.follows += summary.positions.follows;
        for report in reports {
            self.steps += report.steps.0;
            self.arrivals += report.search.arrivals;
            self.backtracks += report.search.backtracks;
        }
    }
}

/// A recording with events of every kind in its interval 2, with counts or landmarks.
fn sample(positions: Positions) -> MemoryStore {
    let program = Program::everything(60);
    let interval = Length::Time(VirtualNanos(30_000));
    record(&program, 3, options(insn_clock(), positions, interval)).0
}

const DAMAGED: u64 = 2;

fn divergence(report: Report) -> Divergence {
    match report.outcome {
        Outcome::Diverged(divergence) => {
            assert_eq!(divergence.first.interval, DAMAGED);
            divergence
        }
        Outcome::Verified => panic!("the damage was not noticed"),
    }
}

fn replay_edited(edited: Edited) -> Divergence {
    let source: Arc<dyn CheckpointSource> = Arc::new(edited);
    divergence(ON_ENGINE.replay(&source, DAMAGED))
}

#[test]
fn a_flipped_bit_in_a_page_is_found_at_its_address() {
    for positions in [Positions::Count, random_kicks(4)] {
        let store = sample(positions);
        let end = store.checkpoint(DAMAGED + 1).unwrap();
        for (index, bit) in [
            (0, 0),
            (end.changed.len() / 2, 12_345),
            (end.changed.len() - 1, 32_767),
        ] {
            let gfn: Gfn = end.changed[index];
            let mut edited = Edited::new(store.clone());
            edited.page_bit = Some((DAMAGED + 1, gfn, bit));
            let found = replay_edited(edited);
            assert_eq!(found.frames, [gfn]);
            assert_eq!(found.registers, []);
            let at = GuestPhys(gfn.base().0 + (bit as u64 / 64) * 8);
            match (&found.first.expected, &found.first.actual) {
                (
                    Observation::Memory {
                        address,
                        bytes: expected,
                    },
                    Observation::Memory { bytes: actual, .. },
                ) => {
                    assert_eq!(*address, at);
                    let mut repaired = expected.clone();
                    repaired[bit / 8 % 8] ^= 1 << (bit % 8);
                    assert_eq!(&repaired, actual);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_a_register_is_found_by_its_name() {
    for positions in [Positions::Count, random_kicks(4)] {
        let mut edited = Edited::new(sample(positions));
        edited.checkpoint = Some((DAMAGED + 1, |end| end.cpu.gpr[10] ^= 1 << 40));
        let found = replay_edited(edited);
        assert_eq!(found.registers.len(), 1);
        assert_eq!(found.registers[0].name, "R10");
        assert_eq!(
            found.registers[0].expected ^ found.registers[0].actual,
            1 << 40
        );
        assert_eq!(found.frames, []);
    }
    // Where the interval starts with it, the first check of registers sees it.
    let mut edited = Edited::new(sample(Positions::Count));
    edited.checkpoint = Some((DAMAGED, |start| start.cpu.gpr[12] ^= 1));
    let found = replay_edited(edited);
    let first = first_asynchronous(&found.first.events);
    assert_eq!(Some(found.first.next_event), first, "{}", found.first);
}

fn first_asynchronous(events: &[(usize, Event)]) -> Option<usize> {
    let mut events = events.iter();
    events
        .find(|(_, event)| matches!(event, Event::Async(_)))
        .map(|(index, _)| *index)
}

#[test]
fn a_flipped_bit_in_a_log_cuts_it_there() {
    for positions in [Positions::Count, random_kicks(4)] {
        let store = sample(positions);
        let whole = Interval::load(&store, DAMAGED).unwrap();
        let bytes = store.segment(DAMAGED).unwrap().len();
        // Headers of segments are 64 bytes; damage there is an error before anything runs.
        for bit in [64 * 8, 80 * 8 + 3, bytes * 4, bytes * 8 - 1] {
            let mut edited = Edited::new(store.clone());
            edited.segment = Some((
                DAMAGED,
                Box::new(move |segment| segment[bit / 8] ^= 1 << (bit % 8)),
            ));
            let found = replay_edited(edited);
            assert_eq!(found.first.expected, Observation::LogEnds, "bit {bit}");
            let kept = found.first.next_event;
            assert!(kept == 0 || kept == whole.segment.events.len(), "{kept}");
        }
        let mut edited = Edited::new(store);
        edited.segment = Some((DAMAGED, Box::new(|segment| segment[40] ^= 1)));
        assert!(Interval::load(&edited, DAMAGED).is_err());
    }
}

/// Changes one event of an interval and replays it; the index of the event and what was found.
fn with_event(
    store: &MemoryStore,
    mut change: impl FnMut(&mut Event) -> bool,
) -> (usize, Divergence) {
    let mut interval = Interval::load(store, DAMAGED).expect("the interval is there");
    let index = interval.segment.events.iter_mut().position(&mut change);
    let index = index.expect("there is such an event");
    let source: Arc<dyn CheckpointSource> = Arc::new(store.clone());
    (
        index,
        divergence(ON_ENGINE.replay_interval(&source, &interval)),
    )
}

#[test]
fn a_wrong_event_is_found_where_it_is_or_as_soon_as_it_shows() {
    let store = sample(Positions::Count);
    let (index, found) = with_event(&store, |event| match event {
        Event::Read(Read {
            source: ReadSource::Port { port, .. },
            ..
        }) => {
            port.0 ^= 1;
            true
        }
        _ => false,
    });
    assert_eq!(found.first.next_event, index, "a read of another port");
    let (index, found) = with_event(&store, |event| match event {
        Event::Async(Async {
            at: EventPosition::Count(position),
            ..
        }) => {
            position.steps.0 += 1;
            true
        }
        _ => false,
    });
    assert_eq!(found.first.next_event, index, "an event one step late");
    let (index, found) = with_event(&store, |event| match event {
        Event::Async(event) => {
            event.check.registers ^= 1;
            true
        }
        Event::Read(_) => false,
    });
    assert_eq!(found.first.next_event, index, "other registers");
    let (index, found) = with_event(&store, |event| match event {
        Event::Read(read) => {
            read.value ^= 1;
            true
        }
        Event::Async(_) => false,
    });
    assert!(found.first.next_event > index, "another value");
    let (index, found) = with_event(&store, |event| match event {
        Event::Async(Async {
            effect: Effect::Interrupt(vector),
            ..
        }) => {
            vector.0 ^= 1;
            true
        }
        _ => false,
    });
    assert!(found.first.next_event > index, "another vector");
}

#[test]
fn a_wrong_byte_of_a_device_is_found() {
    for positions in [Positions::Count, random_kicks(4)] {
        let store = sample(positions);
        let mut changed = None;
        let (index, found) = with_event(&store, |event| match event {
            Event::Async(Async {
                effect:
                    Effect::Write {
                        to,
                        content: Content::Inline(bytes),
                    },
                ..
            }) => {
                bytes[0] ^= 0x10;
                changed = Some(to.gfn());
                true
            }
            _ => false,
        });
        let frame = changed.expect("a device wrote");
        // Either the guest read it and went another way, or it is still there at the end.
        assert!(found.first.next_event > index, "{found:?}");
        assert!(
            found.frames.is_empty() || found.frames.contains(&frame),
            "{found:?}"
        );
    }
}

#[test]
fn positions_that_a_replay_found_need_no_search_the_next_time() {
    let store = sample(random_kicks(9));
    let source: Arc<dyn CheckpointSource> = Arc::new(store);
    for number in 0..source.checkpoints().unwrap() - 1 {
        let interval = Interval::load(&*source, number).unwrap();
        let searched = ON_ENGINE.replay_interval(&source, &interval);
        assert_verified(std::slice::from_ref(&searched), "searched");
        let counted = interval.with_positions(&searched.resolved);
        let again = ON_ENGINE.replay_interval(&source, &counted);
        assert_verified(std::slice::from_ref(&again), "with positions");
        assert_eq!(again.search, Default::default());
        assert_eq!(again.resolved, searched.resolved);
        assert_eq!(again.steps, searched.steps);
    }
}
