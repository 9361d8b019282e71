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
use simuboost_tests::recording::programs::DEVICE_WINDOW;
use simuboost_tests::recording::{Machine, TestBus, record};
use std::sync::Arc;
use tcg_sim::replay::Report;
use tcg_sim::{Engine, EngineOptions};

const MACHINE: Machine<Engine> = Machine {
    vcpu: engine,
    ram_bytes: layout::RAM_BYTES,
};

fn engine(ram: Arc<Ram>) -> Engine {
    let options = EngineOptions {
        code_bytes: 1 << 20,
        ..EngineOptions::default()
    };
    Engine::new(ram, CpuidTable::x86_64_v2(), options).expect("this host runs the engine")
}

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
    let bus = TestBus::new(layout::RAM_BYTES, 11, DEVICE_WINDOW, 5 * MILLISECOND + 77);
    record(vcpu, ram, &start, bus, options())
}

fn verified(host: &Host, kind: Kind) -> (Summary, Vec<Report>) {
    let (store, summary) = recorded(host, kind);
    let reports = MACHINE.verify(store, &format!("{kind:?}"));
    let steps: u64 = reports.iter().map(|report| report.steps.0).sum();
    eprintln!(
        "{kind:?}: {:?} {steps} {:?}",
        summary.positions, summary.events
    );
    (summary, reports)
}

macro_rules! one {
    ($($name:ident: $kind:expr;)*) => {
        $(#[test]
        fn $name() {
            let Some(host) = host() else { return };
            verified(&host, $kind);
        })*
    };
}
one! {
    compute: Kind::Compute;
    memory: Kind::Memory;
    strings: Kind::Strings;
    faults: Kind::Faults;
    windows: Kind::Windows;
    ports: Kind::Ports;
    devices: Kind::Devices;
    self_modifying: Kind::SelfModifying;
    user: Kind::User;
}
