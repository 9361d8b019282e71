//! Recording a guest on any vCPU into memory and replaying its intervals.

mod bus;
mod edited;
pub mod faulty;
pub mod hardware;
mod interrupts;
pub mod like_hardware;
pub mod linux;
pub mod programs;
mod rng;
pub mod toy;

pub use bus::{DMA_PORT, RANDOM_PORT, TestBus};
pub use edited::Edited;
pub use rng::Rng;

use crate::guest::layout;
use kvm_recorder::{Options, Recorder, Summary};
use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::Position;
use machine::vcpu::Vcpu;
use replay_log::{Event, EventPosition};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tcg_sim::replay::{Interval, Limits, Outcome, ReplayVcpu, Report, replay};
use tcg_sim::{Engine, EngineOptions};

/// What is recorded: how its vCPU is made, and how large its RAM is.
#[derive(Clone, Copy)]
pub struct Machine<V> {
    /// Makes a vCPU on this RAM.
    pub vcpu: fn(Arc<Ram>) -> V,
    /// RAM in bytes.
    pub ram_bytes: u64,
}

/// The engine, on the RAM of the tests' bare-metal guests.
pub const ON_ENGINE: Machine<Engine> = Machine {
    vcpu: |ram| engine(ram, false),
    ram_bytes: layout::RAM_BYTES,
};

/// An engine whose code memory is small enough to fill up.
pub fn engine(ram: Arc<Ram>, one_instruction_blocks: bool) -> Engine {
    let options = EngineOptions {
        code_bytes: 1 << 20,
        one_instruction_blocks,
    };
    Engine::new(ram, CpuidTable::x86_64_v2(), options).expect("this host runs the engine")
}

/// Records on `vcpu`, which runs on `ram`, where the guest lies.
pub fn record<V: Vcpu>(
    mut vcpu: V,
    ram: Arc<Ram>,
    start: &CpuState,
    bus: TestBus,
    options: Options,
) -> (MemoryStore, Summary) {
    vcpu.load(start, Position::default())
        .expect("the start state is valid");
    let store = MemoryStore::default();
    let console = Box::new(std::io::sink());
    let recorder =
        Recorder::new(vcpu, bus, ram, options, console).expect("the vCPU can do what is asked");
    let summary = recorder
        .record(Box::new(store.clone()))
        .expect("the guest runs and memory takes it");
    let checkpoints = store.checkpoints().expect("memory does not fail");
    assert_eq!(checkpoints, summary.intervals + 1);
    (store, summary)
}

/// The interval with landmarks that know little of memory. The memory of bare-metal guests is small enough
/// for them to know all of it; of a large guest they know a part, so wrong ones are met, and the right
/// ones found after them.
pub fn vague(mut interval: Interval) -> Interval {
    let vague = |at: &mut EventPosition| {
        if let EventPosition::Landmark(landmark) = at {
            landmark.memory.truncate(6);
        }
    };
    let segment = &mut interval.segment;
    for event in &mut segment.events {
        if let Event::Async(event) = event {
            vague(&mut event.at);
        }
    }
    segment.end.iter_mut().for_each(|end| vague(&mut end.at));
    interval
}

impl<V: ReplayVcpu> Machine<V> {
    /// Records the guest that `load` puts into RAM.
    pub fn record(
        &self,
        bus: TestBus,
        options: Options,
        load: impl FnOnce(&Ram) -> CpuState,
    ) -> (MemoryStore, Summary) {
        let ram = Arc::new(Ram::new(self.ram_bytes).expect("test RAM is small"));
        let vcpu = (self.vcpu)(ram.clone());
        let start = load(&ram);
        record(vcpu, ram, &start, bus, options)
    }

    /// Replays one interval.
    pub fn replay(&self, source: &Arc<dyn CheckpointSource>, number: u64) -> Report {
        let interval = Interval::load(&**source, number).expect("the interval is there");
        self.replay_interval(source, &interval)
    }

    /// Replays one interval, which may have been changed after it was loaded.
    pub fn replay_interval(
        &self,
        source: &Arc<dyn CheckpointSource>,
        interval: &Interval,
    ) -> Report {
        let limits = Limits {
            // User code runs at native speed also where kernel code is emulated.
            max_steps: 2_000_000_000,
            max_backtracks: 200,
            ..Limits::default()
        };
        self.replay_within(source, interval, &limits)
    }

    /// Replays one interval as far as the limits allow.
    pub fn replay_within(
        &self,
        source: &Arc<dyn CheckpointSource>,
        interval: &Interval,
        limits: &Limits,
    ) -> Report {
        let pages = CheckpointPages::new(source.clone(), interval.number);
        let ram = Arc::new(Ram::lazy(self.ram_bytes, Arc::new(pages)).expect("RAM is small"));
        let mut vcpu = (self.vcpu)(ram.clone());
        replay(&mut vcpu, &ram, interval, &**source, limits).expect("a verdict")
    }

    /// Replays all intervals, the last one first, and expects each to be verified.
    pub fn verify(&self, store: MemoryStore, what: &str) -> Vec<Report> {
        let source: Arc<dyn CheckpointSource> = Arc::new(store);
        let intervals = source.checkpoints().expect("memory does not fail") - 1;
        let verified = |number| {
            let report = self.replay(&source, number);
            if let Outcome::Diverged(divergence) = &report.outcome {
                panic!("{what}: {}\n{divergence:#?}", divergence.first);
            }
            report
        };
        (0..intervals).rev().map(verified).collect()
    }

    /// Replays all intervals on several threads; reports in order of intervals.
    pub fn replay_in_parallel(
        &self,
        source: &Arc<dyn CheckpointSource>,
        threads: usize,
    ) -> Vec<Report> {
        let intervals = source.checkpoints().expect("memory does not fail") - 1;
        let next = AtomicU64::new(0);
        let worker = || {
            let mut reports = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= intervals {
                    return reports;
                }
                reports.push((number, self.replay(source, number)));
            }
        };
        let mut all: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("a worker does not panic"))
                .collect()
        });
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, report)| report).collect()
    }
}
