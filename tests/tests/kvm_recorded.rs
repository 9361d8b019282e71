//! Guests that are recorded on /dev/kvm and simulated by the engine, interval by interval: two
//! independent ways to execute them.

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
    let bus = TestBus::new(layout::RAM_BYTES, 11, WINDOW, 5 * MILLISECOND + 77);
    record(vcpu, ram, &start, bus, options())
}

/// Records the guest and proves every interval; how many positions the log has.
fn verified(host: &Host, kind: Kind) -> u64 {
    let (store, summary) = recorded(host, kind);
    let reports = ON_ENGINE.verify(store, &format!("{kind:?}"));
    let steps: u64 = reports.iter().map(|report| report.steps.0).sum();
    let backtracks: u64 = reports.iter().map(|report| report.search.backtracks).sum();
    let positions = summary.positions;
    eprintln!(
        "{kind:?}: {steps} steps, {positions:?}, {:?}, {backtracks} wrong landmarks",
        summary.events
    );
    positions.after_io + positions.window + positions.landmark + positions.follows
}

/// No position is missed: each event is found again and each end state is right.
#[test]
fn guests_recorded_on_kvm_verify_on_the_engine() {
    let Some(host) = host() else { return };
    let positions: u64 = Kind::ALL.map(|kind| verified(&host, kind)).iter().sum();
    assert!(positions >= 2_000, "only {positions} positions");
}
