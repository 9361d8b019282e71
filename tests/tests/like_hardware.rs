//! What processors do that the engine does not is no divergence: accessed bits of paths that were given up,
//! RF of faults that are the host's. Recorded on an engine that does such things and does not count; and on
//! recordings into which single bits were put.

use iced_x86::code_asm::*;
use kvm_recorder::{Kicks, Length, Options, Positions, Summary};
use machine::checkpoint::CheckpointSource;
use machine::checkpoint::memory::MemoryStore;
use machine::clock::{DEFAULT_STEPS_PER_SECOND, HostClock, InsnClock, VirtualClock};
use machine::msr::FROZEN_TSC;
use machine::ram::Ram;
use machine::units::{GuestPhys, VirtualNanos};
use replay_log::{Observation, RecordingId};
use simuboost_tests::guest::{Guest, asm, layout};
use simuboost_tests::oracle::vcpu::ram_of;
use simuboost_tests::recording::hardware::Kind;
use simuboost_tests::recording::like_hardware::{LikeHardware, Speculated};
use simuboost_tests::recording::programs::Program;
use simuboost_tests::recording::{Edited, ON_ENGINE, RANDOM_PORT, TestBus, engine, record};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tcg_sim::replay::{Interval, Outcome, Report};

const MILLISECOND: u64 = 1_000_000;
const WINDOW: Range<u64> = layout::FREE..layout::FREE + 0x10000;

fn recorded(kind: Kind) -> (MemoryStore, Summary, Arc<Speculated>) {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("RAM is small"));
    let start = kind.guest().load(&ram);
    let vcpu = LikeHardware::new(engine(ram.clone(), false), ram.clone(), 7);
    let speculated = vcpu.speculated.clone();
    let options = Options {
        recording: RecordingId([8; 16]),
        clock: VirtualClock::Host(HostClock::new()),
        positions: Positions::Landmark(Kicks::Prompt),
        interval: Length::Time(VirtualNanos(10 * MILLISECOND)),
        stop_after: Some(Length::Time(VirtualNanos(100 * MILLISECOND))),
        queue_pages: 64,
    };
    let bus = TestBus::new(layout::RAM_BYTES, 5, WINDOW, MILLISECOND).at_random_times();
    let (store, summary) = record(vcpu, ram, &start, bus, options);
    (store, summary, speculated)
}

/// Every rule gives positions, and every one is found.
#[test]
fn what_hardware_does_on_its_own_is_no_divergence() {
    let (mut windows, mut landmarks, mut early, mut wrong) = (0, 0, 0, 0);
    let (mut accessed, mut resume_flags) = (0, 0);
    // The engine looks for kicks after so many steps, each of which takes long in strings.
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Strings) {
        let (store, summary, speculated) = recorded(kind);
        for report in ON_ENGINE.verify(store, &format!("{kind:?}")) {
            early += report.early_entries;
            wrong += report.search.backtracks;
        }
        let positions = summary.positions;
        windows += positions.window;
        landmarks += positions.landmark;
        accessed += speculated.accessed.load(Ordering::Relaxed);
        resume_flags += speculated.resume_flags.load(Ordering::Relaxed);
        eprintln!("{kind:?}: {positions:?}, {speculated:?}");
    }
    eprintln!("{early} early entries, {wrong} wrong landmarks");
    assert!(windows > 20 && landmarks > 200, "{windows} {landmarks}");
    assert!(
        accessed > 20 && resume_flags > 20,
        "{accessed} {resume_flags}"
    );
    assert!(early > 0);
    assert_eq!(wrong, 0);
}

/// A guest that reads the time stamp counter now and then, recorded where nobody sees that.
fn reads_timestamps() -> Arc<dyn CheckpointSource> {
    let mut guest = Guest::new();
    let emit = |a: &mut CodeAssembler| {
        let (mut top, mut wait) = (a.create_label(), a.create_label());
        asm!(a;
            mov(edx, u32::from(RANDOM_PORT));
            set_label(&mut top);
            mov(ecx, 2000);
            set_label(&mut wait);
            add(r9, rcx);
            dec(ecx);
            jne(wait);
            rdtsc();
            shl(rdx, 32);
            add(r8, rax);
            add(r8, rdx);
            mov(edx, u32::from(RANDOM_PORT));
            in_(eax, dx);
            jmp(top));
        Ok(())
    };
    guest.code(emit).expect("it assembles");
    let ram = ram_of(&guest);
    let vcpu = LikeHardware::new(engine(ram.clone(), false), ram.clone(), 3);
    let options = Options {
        recording: RecordingId([4; 16]),
        clock: VirtualClock::Host(HostClock::new()),
        positions: Positions::Landmark(Kicks::Prompt),
        interval: Length::Time(VirtualNanos(2 * MILLISECOND)),
        stop_after: Some(Length::Time(VirtualNanos(10 * MILLISECOND))),
        queue_pages: 64,
    };
    let bus = TestBus::new(layout::RAM_BYTES, 5, WINDOW, MILLISECOND).at_random_times();
    let (store, _) = record(vcpu, ram, &guest.state, bus, options);
    Arc::new(store)
}

#[test]
fn a_stray_rdtsc_replays_where_the_counter_stood_still_and_is_named_where_it_did_not() {
    let source = reads_timestamps();
    let intervals = source.checkpoints().expect("memory does not fail") - 1;
    let mut reads = 0;
    for number in 0..intervals {
        let interval = Interval::load(&*source, number).expect("it is there");
        let frozen = interval.clone().with_frozen_tsc(Some(FROZEN_TSC));
        let report = ON_ENGINE.replay_interval(&source, &frozen);
        assert_eq!(report.outcome, Outcome::Verified, "interval {number}");
        reads += report.frozen_timestamps;
        let steps = frozen.with_positions(&report.resolved);
        let again = ON_ENGINE.replay_interval(&source, &steps);
        assert_eq!(
            again.outcome,
            Outcome::Verified,
            "interval {number} by counts"
        );
        if report.frozen_timestamps == 0 {
            continue;
        }
        let Outcome::Diverged(found) = ON_ENGINE.replay_interval(&source, &interval).outcome else {
            panic!("nobody knows what was read");
        };
        let unrecorded = Observation::UnrecordedTimestamp {
            cpl: 0,
            cr3: layout::PML4,
        };
        assert_eq!(found.first.actual, unrecorded, "{}", found.first);
        let message = found.first.to_string();
        assert!(
            message.contains("CPL 0, CR3 0x30000") && message.contains("RIP 0x400"),
            "{message}"
        );
    }
    assert!(reads > 10, "{reads}");
}

fn recorded_on_the_engine(positions: Positions) -> MemoryStore {
    let options = Options {
        recording: RecordingId([9; 16]),
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions,
        interval: Length::Time(VirtualNanos(30_000)),
        stop_after: Some(Length::Steps(60_000)),
        queue_pages: 64,
    };
    let bus = TestBus::new(layout::RAM_BYTES, 3, WINDOW, 23_000);
    let program = Program::everything(60);
    let (store, _) = ON_ENGINE.record(bus, options, |ram| program.load(ram));
    store
}

/// The first interval, with a bit of the checkpoint at its end flipped.
fn replayed_with(store: &MemoryStore, at: GuestPhys, bit: usize) -> Report {
    let mut edited = Edited::new(store.clone());
    let in_page = 8 * (at.0 % 4096) as usize + bit;
    edited.page_bit = Some((1, at.gfn(), in_page));
    let source: Arc<dyn CheckpointSource> = Arc::new(edited);
    ON_ENGINE.replay(&source, 0)
}

#[test]
fn only_bits_that_hardware_may_set_early_may_differ_and_only_in_tables() {
    const ACCESSED: usize = 5;
    const DIRTY: usize = 6;
    /// The entry for a linear address in the table of the first 2 MiB.
    const fn entry(va: u64) -> GuestPhys {
        GuestPhys(layout::TABLES + 0x2000 + 8 * (va >> 12))
    }
    let untouched = entry(layout::USER_END);
    let only_read = entry(layout::IDT);
    let written = entry(layout::KERNEL_STACK - 8);
    let rows = [
        (untouched, ACCESSED, true),
        (only_read, DIRTY, true),
        (only_read, ACCESSED, true),
        // The simulator wrote there, and hardware must have.
        (written, DIRTY, false),
        // Anything else in a table, and anything in a page that is none.
        (untouched, 3, false),
        (GuestPhys(layout::KERNEL_STACK - 8), ACCESSED, false),
    ];
    let landmarks = recorded_on_the_engine(Positions::Landmark(Kicks::Prompt));
    let counts = recorded_on_the_engine(Positions::Count);
    for (at, bit, allowed) in rows {
        let report = replayed_with(&landmarks, at, bit);
        let what = format!("bit {bit} of {at}: {:?}", report.outcome);
        assert_eq!(report.outcome == Outcome::Verified, allowed, "{what}");
        assert_eq!(report.early_entries, u64::from(allowed), "{what}");
        // What counts is no hardware.
        let report = replayed_with(&counts, at, bit);
        assert!(matches!(report.outcome, Outcome::Diverged(_)), "{what}");
    }
}
