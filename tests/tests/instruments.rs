//! Instruments learn the same whatever way the engine takes, and change nothing.

use kvm_recorder::{Kicks, Length, Options, Positions};
use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::clock::{DEFAULT_STEPS_PER_SECOND, InsnClock, VirtualClock};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::units::{Position, Steps, VirtualNanos};
use machine::vcpu::{Exit, Vcpu};
use replay_log::RecordingId;
use simuboost_tests::differential::generator::Generator;
use simuboost_tests::differential::guest::Guest as Sequences;
use simuboost_tests::differential::image::Images;
use simuboost_tests::differential::layout::IMAGE_BYTES;
use simuboost_tests::guest::layout;
use simuboost_tests::recording::programs::{DEVICE_WINDOW, Program};
use simuboost_tests::recording::{Machine, TestBus, vague};
use std::sync::{Arc, Mutex};
use tcg_sim::instrument::{Counts, Instruments};
use tcg_sim::replay::{Instrumented, Interval, Limits, Outcome, replay_with};
use tcg_sim::trace::{Chunk, Item};
use tcg_sim::{Engine, EngineOptions};

fn engine(ram: Arc<Ram>, options: EngineOptions) -> Engine {
    Engine::new(ram, CpuidTable::x86_64_v2(), options).expect("this host runs the engine")
}

fn ways() -> [EngineOptions; 3] {
    let one = EngineOptions {
        code_bytes: 1 << 20,
        one_instruction_blocks: true,
    };
    let normal = EngineOptions {
        one_instruction_blocks: false,
        ..one
    };
    // So little code memory that all translations are dropped again and again.
    let cramped = EngineOptions {
        code_bytes: 64 << 10,
        ..normal
    };
    [one, normal, cramped]
}

fn record(seed: u64, positions: Positions) -> Arc<dyn CheckpointSource> {
    let interval = match positions {
        Positions::Count => Length::Steps(3_000 + seed % 5_000),
        Positions::Landmark(_) => Length::Time(VirtualNanos(5_000 + 31 * seed)),
    };
    let machine = Machine {
        vcpu: |ram| engine(ram, EngineOptions::default()),
        ram_bytes: layout::RAM_BYTES,
    };
    let bus = TestBus::new(layout::RAM_BYTES, seed, DEVICE_WINDOW, 23_000);
    let options = Options {
        recording: RecordingId([6; 16]),
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions,
        interval,
        stop_after: Some(Length::Steps(30_000)),
        queue_pages: 64,
    };
    let program = Program::random(seed);
    let (store, _): (MemoryStore, _) = machine.record(bus, options, |ram| program.load(ram));
    Arc::new(store)
}

fn replay(
    source: &Arc<dyn CheckpointSource>,
    interval: &Interval,
    options: EngineOptions,
    instruments: Instruments,
) -> Instrumented {
    let pages = CheckpointPages::new(source.clone(), interval.number);
    let ram = Arc::new(Ram::lazy(layout::RAM_BYTES, Arc::new(pages)).expect("RAM is small"));
    let mut engine = engine(ram.clone(), options);
    let limits = Limits {
        max_steps: 1_000_000,
        ..Limits::default()
    };
    let result = replay_with(&mut engine, &ram, interval, &**source, &limits, instruments);
    let result = result.expect("a verdict");
    // Instruments change nothing: the interval ends where it did without them.
    assert_eq!(result.report.outcome, Outcome::Verified);
    result
}

fn intervals(source: &Arc<dyn CheckpointSource>) -> Vec<Interval> {
    let count = source.checkpoints().expect("memory does not fail") - 1;
    (0..count)
        .map(|number| Interval::load(&**source, number).expect("the interval is there"))
        .collect()
}

/// Steps are retired instructions and deliveries; debug traps share a step, but these guests have
/// none.
fn assert_counts_cover_steps(counts: &Counts, steps: Steps) {
    let counted = counts.all_instructions() + counts.exceptions + counts.interrupts;
    assert_eq!(counted, steps.0, "{counts:?}");
}

#[test]
fn counts_are_the_same_in_all_ways_of_running() {
    let mut total = Counts::default();
    for seed in 0..30 {
        let source = record(seed, Positions::Count);
        for interval in intervals(&source) {
            let counted = ways().map(|options| {
                let result = replay(
                    &source,
                    &interval,
                    options,
                    Instruments::none().with_counts(),
                );
                let counts = result.counts.expect("counts were asked for");
                assert_counts_cover_steps(&counts, result.report.steps);
                counts
            });
            let what = format!("guest {seed}, interval {}", interval.number);
            assert_eq!(counted[0], counted[1], "{what}: normal blocks");
            assert_eq!(counted[0], counted[2], "{what}: few translations");
            total += counted[0];
        }
    }
    // Every kind was there to be counted.
    let Counts {
        instructions,
        branches,
        branches_taken,
        data,
        system,
        exceptions,
        interrupts,
        rep_iterations,
    } = total;
    assert!(instructions[0] > 0 && instructions[3] > 0, "{total:?}");
    assert!(branches > branches_taken && branches_taken > 0, "{total:?}");
    assert!(data.read_bytes > data.reads && data.written_bytes > data.writes);
    assert!(system.reads > 0 && interrupts > 0 && rep_iterations > 0);
    assert_eq!(exceptions, 0, "{total:?}");
}

/// The trace of an interval, and what was counted at the same time.
fn trace(
    source: &Arc<dyn CheckpointSource>,
    interval: &Interval,
    options: EngineOptions,
) -> (Vec<Chunk>, Instrumented) {
    let chunks = Arc::new(Mutex::new(Vec::new()));
    let instruments = Instruments::none()
        .with_counts()
        .with_memory_trace(Box::new(chunks.clone()));
    let result = replay(source, interval, options, instruments);
    let chunks = std::mem::take(&mut *chunks.lock().expect("no panic under the lock"));
    (chunks, result)
}

fn items(chunks: &[Chunk]) -> impl Iterator<Item = Item> {
    chunks.iter().flat_map(|chunk| chunk.items())
}

fn fold(chunks: &[Chunk]) -> Counts {
    let mut counts = Counts::default();
    items(chunks).for_each(|item| item.count(&mut counts));
    counts
}

fn assert_equal_traces(left: &[Chunk], right: &[Chunk], what: &str) {
    let mut before = std::collections::VecDeque::new();
    let (mut left, mut right) = (items(left), items(right));
    loop {
        let pair = (left.next(), right.next());
        assert_eq!(pair.0, pair.1, "{what}; before: {before:#?}");
        let (Some(item), _) = pair else { return };
        before.push_back(item);
        if before.len() > 6 {
            before.pop_front();
        }
    }
}

#[test]
fn traces_are_the_same_in_all_ways_of_running_and_agree_with_counts() {
    let mut accesses = 0;
    for seed in 0..30 {
        let source = record(seed, Positions::Count);
        for interval in intervals(&source) {
            let what = format!("guest {seed}, interval {}", interval.number);
            let traces = ways().map(|options| {
                let (chunks, result) = trace(&source, &interval, options);
                let counts = result.counts.expect("counts were asked for");
                assert_eq!(fold(&chunks), counts, "{what}");
                let start = interval.start_position();
                let end = *result.report.resolved.last().expect("the end is resolved");
                assert_eq!(chunks.first().expect("steps").start(), start, "{what}");
                assert_eq!(chunks.last().expect("steps").end(), end, "{what}");
                for pair in chunks.windows(2) {
                    assert_eq!(pair[0].end(), pair[1].start(), "{what}");
                }
                chunks
            });
            assert_equal_traces(&traces[0], &traces[1], &format!("{what}: normal blocks"));
            assert_equal_traces(&traces[0], &traces[2], &format!("{what}: few translations"));
            accesses += traces[0].iter().map(Chunk::accesses).sum::<u64>();
        }
    }
    assert!(accesses > 100_000, "{accesses}");
}

#[test]
fn what_was_learned_on_wrong_ways_to_a_landmark_does_not_count() {
    let mut backtracks = 0;
    for seed in 0..60 {
        let kicks = Kicks::Random {
            seed,
            late_by_steps: 1_000,
        };
        let source = record(seed, Positions::Landmark(kicks));
        for interval in intervals(&source).into_iter().map(vague) {
            let [_, normal, _] = ways();
            let (chunks, searched) = trace(&source, &interval, normal.clone());
            backtracks += searched.report.search.backtracks;
            let known = interval.with_positions(&searched.report.resolved);
            let (expected, again) = trace(&source, &known, normal);
            assert_eq!(searched.counts, again.counts, "guest {seed}");
            assert_equal_traces(&expected, &chunks, &format!("guest {seed}"));
        }
    }
    assert!(backtracks > 0, "no landmark was wrong at first");
}

/// Runs a guest without devices for `steps` steps, in pieces that end at every multiple of `piece`.
fn run_in_pieces(program: &Program, steps: u64, piece: u64, cold: bool) -> (Counts, u64) {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("RAM is small"));
    let start = program.load(&ram);
    let mut engine = engine(ram, EngineOptions::default());
    engine
        .load(&start, Position::default())
        .expect("a valid state");
    engine.set_instruments(Instruments::none().with_counts());
    let (mut sum, mut goal) = (Counts::default(), 0);
    while goal < steps {
        goal = (goal + piece).min(steps);
        loop {
            match engine.run(Some(Position::at(goal))).expect("no limits") {
                Exit::Reached => break,
                Exit::PortRead { .. } | Exit::TimestampRead => {
                    engine.complete_read(0x55).expect("a read waits");
                }
                Exit::PortWrite { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if cold {
            sum += engine.counts();
            engine.set_instruments(Instruments::none().with_counts());
            engine.drop_caches();
        }
    }
    sum += engine.counts();
    let end = engine.save().expect("no read waits");
    (
        sum,
        end.rip
            ^ end
                .gpr
                .iter()
                .fold(0, |hash: u64, r| hash.rotate_left(5) ^ r),
    )
}

/// The trace of a guest without devices, with instruments chosen anew at every multiple of `piece`.
fn trace_in_pieces(program: &Program, steps: u64, piece: u64) -> Vec<Chunk> {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("RAM is small"));
    let start = program.load(&ram);
    let mut engine = engine(ram, EngineOptions::default());
    engine
        .load(&start, Position::default())
        .expect("a valid state");
    let chunks = Arc::new(Mutex::new(Vec::new()));
    for goal in (piece..=steps).step_by(piece as usize) {
        let sink = Box::new(chunks.clone());
        engine.set_instruments(Instruments::none().with_memory_trace(sink));
        while engine.run(Some(Position::at(goal))).expect("no limits") != Exit::Reached {}
        engine.finish_trace().expect("memory does not fail");
    }
    std::mem::take(&mut *chunks.lock().expect("no panic under the lock"))
}

#[test]
fn traces_of_pieces_join_to_that_of_the_whole() {
    let program = Program::quiet(5);
    let whole = trace_in_pieces(&program, 20_000, 20_000);
    for piece in [5_000, 40] {
        let pieces = trace_in_pieces(&program, 20_000, piece);
        assert!(
            pieces.len() as u64 >= 20_000 / piece,
            "{} chunks",
            pieces.len()
        );
        assert_equal_traces(&whole, &pieces, &format!("pieces of {piece}"));
    }
}

#[test]
fn counts_of_pieces_add_up_cold_and_warm() {
    let program = Program::quiet(3);
    let whole = run_in_pieces(&program, 40_000, 40_000, false);
    assert!(whole.0.data.writes > 1_000, "{:?}", whole.0);
    for piece in [1_000, 37, 1] {
        for cold in [false, true] {
            let steps = if cold && piece == 1 { 4_000 } else { 40_000 };
            let expected = run_in_pieces(&program, steps, steps, false);
            let sum = run_in_pieces(&program, steps, piece, cold);
            assert_eq!(sum, expected, "pieces of {piece}, cold: {cold}");
        }
    }
}

/// The trace of the differential fuzzer's sequences, which fault everywhere and mid-way.
#[test]
fn traces_of_random_sequences_are_the_same_in_both_modes() {
    let images = Images::default();
    let mut sides = [true, false].map(|one_instruction_blocks| {
        let options = EngineOptions {
            one_instruction_blocks,
            ..EngineOptions::default()
        };
        Sequences::new(
            &images,
            0,
            |ram| Engine::new(ram, CpuidTable::x86_64_v2(), options),
            |engine, state| engine.load(state, Position::at(0)),
        )
        .expect("this host runs the engine")
    });
    let mut generator = Generator::default();
    let (mut compared, mut accesses) = (0, 0);
    let mut memories = [(); 2].map(|()| Box::new([0; IMAGE_BYTES]));
    for seed in 0..sequences() {
        let case = generator.case(seed);
        let mut traces = Vec::new();
        for (side, memory) in sides.iter_mut().zip(&mut memories) {
            let chunks = Arc::new(Mutex::new(Vec::new()));
            let instruments = Instruments::none()
                .with_counts()
                .with_memory_trace(Box::new(chunks.clone()));
            side.vcpu().set_instruments(instruments);
            let reset = side.reset(&case, &images, memory);
            reset.expect("the image is in RAM");
            let ended = side.run(&case, memory);
            let engine = side.vcpu();
            if ended.is_err() {
                // An instruction that the engine does not know ends the case in both modes.
                continue;
            }
            engine.finish_trace().expect("memory does not fail");
            let chunks = std::mem::take(&mut *chunks.lock().expect("no panic under the lock"));
            assert_eq!(fold(&chunks), engine.counts(), "sequence {seed}");
            traces.push(chunks);
        }
        if let [one, normal] = &traces[..] {
            assert_equal_traces(one, normal, &format!("sequence {seed}"));
            compared += 1;
            accesses += one.iter().map(Chunk::accesses).sum::<u64>();
        } else {
            assert!(traces.is_empty(), "sequence {seed} ends otherwise");
        }
    }
    assert!(compared > sequences() * 9 / 10, "{compared} sequences");
    assert!(accesses > 5 * compared, "{accesses} accesses");
}

/// How many random sequences: on demand more.
fn sequences() -> u64 {
    let asked = std::env::var("SB_TRACED_SEQUENCES").ok();
    asked.map_or(2_000, |n| n.parse().expect("a number of sequences"))
}
