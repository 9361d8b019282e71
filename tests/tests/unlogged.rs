//! A device whose answers are not what the log says: the interval in which it lied is found.

use kvm_recorder::{Length, Options, Positions, Recorder};
use machine::checkpoint::CheckpointSource;
use machine::checkpoint::memory::MemoryStore;
use machine::clock::{DEFAULT_STEPS_PER_SECOND, InsnClock, VirtualClock};
use machine::ram::Ram;
use machine::units::Position;
use machine::vcpu::{Exit, Vcpu, VcpuError, VcpuLayer};
use replay_log::RecordingId;
use simuboost_tests::guest::layout;
use simuboost_tests::recording::programs::{DEVICE_WINDOW, Program};
use simuboost_tests::recording::{ON_ENGINE, RANDOM_PORT, TestBus, engine};
use std::sync::Arc;
use tcg_sim::Engine;
use tcg_sim::replay::Outcome;

/// An engine that gives the guest another answer than the device with random numbers did, once.
struct Liar {
    engine: Engine,
    /// Reads of random numbers.
    reads: u64,
    random: bool,
    /// The one that is answered wrongly; its position is kept.
    lie_at: u64,
    lied: Arc<std::sync::Mutex<Option<Position>>>,
}

impl VcpuLayer for Liar {
    type Below = Engine;

    fn below(&self) -> &Engine {
        &self.engine
    }

    fn below_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        let exit = self.engine.run(until)?;
        self.random = matches!(exit, Exit::PortRead { port, .. } if port.0 == RANDOM_PORT);
        Ok(exit)
    }
    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        self.reads += u64::from(self.random);
        if !self.random || self.reads != self.lie_at {
            return self.engine.complete_read(value);
        }
        *self.lied.lock().expect("no panic under the lock") = self.engine.position();
        self.engine.complete_read(value ^ 1)
    }
}

/// Records a guest that reads a random port and keeps what it read, with one read answered wrongly.
fn record(lie_at: u64) -> (MemoryStore, Option<Position>) {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("test RAM is small"));
    let start = Program::everything(60).load(&ram);
    let lied = Arc::default();
    let mut vcpu = Liar {
        engine: engine(ram.clone(), false),
        reads: 0,
        random: false,
        lie_at,
        lied: Arc::clone(&lied),
    };
    Vcpu::load(&mut vcpu, &start, Position::default()).expect("the start state is valid");
    let options = Options {
        recording: RecordingId([6; 16]),
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions: Positions::Count,
        interval: Length::Steps(10_000),
        stop_after: Some(Length::Steps(100_000)),
        queue_pages: 64,
    };
    let bus = TestBus::new(layout::RAM_BYTES, 9, DEVICE_WINDOW, 23_000);
    let store = MemoryStore::default();
    let recorder = Recorder::new(vcpu, bus, ram, options, Box::new(std::io::sink()));
    let recorder = recorder.expect("the engine counts");
    recorder
        .record(Box::new(store.clone()))
        .expect("the guest runs");
    let lied = *lied.lock().expect("no panic under the lock");
    (store, lied)
}

#[test]
fn an_answer_that_is_not_in_the_log_is_found_in_its_interval() {
    let (mut lies, mut found) = (0, 0);
    for lie_at in [1, 2, 5, 9, 20, 40] {
        let (store, lied) = record(lie_at);
        let source: Arc<dyn CheckpointSource> = Arc::new(store);
        let intervals = source.checkpoints().expect("memory does not fail") - 1;
        let guilty = lied.map(|position| position.steps.0 / 10_000);
        lies += u64::from(guilty.is_some());
        for number in 0..intervals {
            let report = ON_ENGINE.replay(&source, number);
            let diverged = matches!(report.outcome, Outcome::Diverged(_));
            let innocent = Some(number) != guilty;
            assert!(!(diverged && innocent), "lie {lie_at}, interval {number}");
            found += u64::from(diverged);
        }
    }
    // A lie that the guest forgets leaves nothing to find.
    assert!(
        lies > 0 && 2 * found > lies,
        "{found} of {lies} lies were found"
    );
    eprintln!("{found} of {lies} lies were found");
}
