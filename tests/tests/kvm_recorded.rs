//! Guests that are recorded on /dev/kvm and simulated by the engine, interval by interval: two
//! independent ways to execute them. A device kicks them at random times.

use kvm_recorder::kvm::{Host, KvmVcpu};
use kvm_recorder::{Kicks, Length, Options, Positions, Summary};
use machine::checkpoint::memory::MemoryStore;
use machine::clock::{HostClock, VirtualClock};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::units::VirtualNanos;
use replay_log::RecordingId;
use simuboost_tests::guest::layout;
use simuboost_tests::oracle::kvm::host;
use simuboost_tests::recording::hardware::Kind;
use simuboost_tests::recording::{ON_ENGINE, TestBus, record};
use std::ops::Range;
use std::sync::Arc;
use tcg_sim::replay::Report;

/// Where the device writes: few pages, so that landmarks hold the hash of each page that was written.
const WINDOW: Range<u64> = layout::FREE..layout::FREE + 0x10000;

const MILLISECOND: u64 = 1_000_000;

fn options() -> Options {
    Options {
        recording: RecordingId([7; 16]),
        clock: VirtualClock::Host(HostClock::new()),
        positions: Positions::Landmark(Kicks::Prompt),
        interval: Length::Time(VirtualNanos(100 * MILLISECOND)),
        stop_after: Some(Length::Time(VirtualNanos(1500 * MILLISECOND))),
        queue_pages: 64,
    }
}

fn recorded(host: &Host, kind: Kind) -> (MemoryStore, Summary) {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("RAM is small"));
    let start = kind.guest().load(&ram);
    let vcpu = KvmVcpu::new(host, ram.clone(), &CpuidTable::x86_64_v2()).expect("a VM");
    let bus = TestBus::new(layout::RAM_BYTES, 11, WINDOW, 5 * MILLISECOND);
    let bus = bus.at_random_times();
    record(vcpu, ram, &start, bus, options())
}

/// What the intervals of one guest, all verified, came to.
#[derive(Debug, Default)]
struct Verified {
    /// Positions in the middle of nowhere: by rules 2 and 3.
    landmarks: u64,
    /// Positions that were found somewhere else first.
    ambiguous: u64,
    inside_strings: usize,
}

/// Records the guest and proves every interval.
fn verified(host: &Host, kind: Kind) -> Verified {
    let (store, summary) = recorded(host, kind);
    let reports = ON_ENGINE.verify(store, &format!("{kind:?}"));
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum();
    let resolved = reports.iter().flat_map(|report| &report.resolved);
    let rules = summary.positions;
    let verified = Verified {
        landmarks: rules.window + rules.landmark,
        ambiguous: sum(|report| report.search.backtracks),
        inside_strings: resolved.filter(|at| at.rep_iterations != 0).count(),
    };
    let (steps, early) = (
        sum(|report| report.steps.0),
        sum(|report| report.early_entries),
    );
    eprintln!("{kind:?}: {steps} steps, {verified:?}, {rules:?}, {early} early entries");
    // Only windows that are reported where they open are positions.
    assert!(rules.window == 0 || host.exact_windows().expect("it was tried"));
    verified
}

/// No position is missed (each event is found again and each end state is right) and none is ambiguous.
#[test]
fn guests_recorded_on_kvm_verify_on_the_engine() {
    let Some(host) = host() else { return };
    let all = Kind::ALL.map(|kind| verified(&host, kind));
    let landmarks: u64 = all.iter().map(|one| one.landmarks).sum();
    assert!(
        landmarks >= 2_000,
        "only {landmarks} positions after asynchronous kicks"
    );
    let ambiguous: u64 = all.iter().map(|one| one.ambiguous).sum();
    assert_eq!(ambiguous, 0, "of {landmarks}");
    let [.., strings, _, _] = &all;
    assert!(strings.inside_strings > 0, "{strings:?}");
}
