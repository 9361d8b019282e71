//! Finding a state at full speed finds what stepping finds.

use machine::ram::Ram;
use machine::state::{CpuState, rflags};
use machine::units::{Gfn, PAGE_BYTES, Position};
use machine::vcpu::{Exit, Vcpu};
use simuboost_tests::guest::layout;
use simuboost_tests::recording::programs::Program;
use simuboost_tests::recording::{Rng, engine};
use std::sync::Arc;
use tcg_sim::Engine;
use tcg_sim::replay::{Arrival, Arrived, ReplayVcpu, arrive_by_steps};

const STEPS: u64 = 6_000;

/// A random guest on an engine of its own, without devices: reads give numbers that depend on the
/// position alone, halts are passed over.
struct Guest {
    engine: Engine,
    ram: Arc<Ram>,
}

impl Guest {
    fn new(program: &Program) -> Self {
        let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("test RAM is small"));
        let start = program.load(&ram);
        let mut engine = engine(ram.clone(), false);
        engine
            .load(&start, Position::default())
            .expect("the start state is valid");
        Self { engine, ram }
    }

    /// Deals with an exit; false if the guest ends.
    fn handle(&mut self, exit: Exit) -> bool {
        match exit {
            Exit::PortRead { .. } | Exit::MmioRead { .. } | Exit::TimestampRead => {
                let at = self.engine.position().expect("the engine counts");
                let value = Rng::new(at.steps.0 ^ at.rep_iterations << 40).bits();
                self.engine.complete_read(value).expect("a read waits");
                true
            }
            Exit::Halt => {
                let mut state = self.engine.save().expect("nothing waits");
                let at = self.engine.position().expect("the engine counts");
                state.activity = machine::state::Activity::Running;
                self.engine.load(&state, at).expect("a state of its own");
                true
            }
            Exit::PortWrite { .. } | Exit::MmioWrite { .. } => true,
            Exit::Reached | Exit::Shutdown | Exit::InterruptWindow | Exit::Kicked => false,
        }
    }

    fn state_at(&mut self, until: Position) -> Option<CpuState> {
        loop {
            let exit = self.engine.run(Some(until)).expect("the guest runs");
            if exit == Exit::Reached {
                return Some(self.engine.save().expect("nothing waits"));
            }
            if !self.handle(exit) {
                return None;
            }
        }
    }

    /// All places up to `until` where the state has these registers.
    fn places(&mut self, wanted: &Arrival, until: Position, fast: bool) -> Vec<Position> {
        let mut found = Vec::new();
        loop {
            let engine = &mut self.engine;
            let arrived = match fast {
                true => engine.run_to_arrival(wanted, Some(until)),
                false => arrive_by_steps(engine, wanted, Some(until)),
            };
            match arrived.expect("the guest runs") {
                Arrived::Here => {}
                // What an exit leads to is not met on the way to anything: the caller looks there.
                Arrived::Exit(exit) if self.handle(exit) => {}
                Arrived::Exit(_) => return found,
            }
            let state = self.engine.save().expect("nothing waits");
            if arrival(&state) == *wanted {
                found.extend(self.engine.position());
            }
        }
    }

    fn assert_equals(&mut self, other: &mut Self, what: &str) {
        let state = self.engine.save().expect("nothing waits");
        assert_eq!(state, other.engine.save().expect("nothing waits"), "{what}");
        for gfn in (0..self.ram.frames()).map(Gfn) {
            assert_eq!(
                self.ram.page(gfn),
                other.ram.page(gfn),
                "{what}: frame {gfn}"
            );
        }
    }

    /// The same engine, its caches warm, at the start of the guest again.
    fn again(mut self, program: &Program) -> Self {
        let fresh = Guest::new(program);
        for gfn in (0..self.ram.frames()).map(Gfn) {
            let page = fresh.ram.page(gfn);
            if self.ram.page(gfn) != page {
                self.ram.write(gfn.base(), &page).expect("the frame is RAM");
                self.engine.ram_written(gfn.base(), PAGE_BYTES);
            }
        }
        let Guest { mut engine, .. } = fresh;
        let start = engine.save().expect("nothing waits");
        self.engine
            .rewind(&start, Position::default())
            .expect("a state that it was in");
        self
    }
}

fn arrival(state: &CpuState) -> Arrival {
    Arrival {
        rip: state.rip,
        gpr: state.gpr,
        rflags: state.rflags,
    }
}

/// A state of the guest to look for, and where it was met: any, or one inside a REP instruction.
fn target(program: &Program, rng: &mut Rng) -> Option<(CpuState, Position)> {
    let mut scout = Guest::new(program);
    let first = 1 + rng.below(STEPS);
    let (rep_iterations, tries) = match rng.below(2) {
        0 => (0, 1),
        _ => (1 + rng.below(8), 500),
    };
    for steps in first..first + tries {
        let at = Position {
            rep_iterations,
            ..Position::at(steps)
        };
        let state = scout.state_at(at)?;
        if tries == 1 || state.rflags & rflags::RF != 0 {
            return Some((state, scout.engine.position()?));
        }
    }
    None
}

#[test]
fn states_are_found_at_full_speed_where_stepping_finds_them() {
    let (mut wanted, mut repeated, mut inside) = (0, 0, 0);
    for seed in 0..40 {
        let program = Program::random(seed);
        let mut rng = Rng::new(seed);
        // One engine looks for several states in a row, so that earlier ones leave their traces.
        let mut fast = Guest::new(&program);
        for _ in 0..6 {
            let Some((state, at)) = target(&program, &mut rng) else {
                continue;
            };
            let until = at.max(Position::at(STEPS));
            let mut slow = Guest::new(&program);
            let expected = slow.places(&arrival(&state), until, false);
            let found = fast.places(&arrival(&state), until, true);
            assert!(expected.contains(&at), "guest {seed}, {at}");
            assert_eq!(expected, found, "guest {seed}, {at}");
            slow.assert_equals(&mut fast, &format!("guest {seed}, {at}"));
            wanted += 1;
            repeated += u64::from(expected.len() > 1);
            inside += u64::from(state.rflags & rflags::RF != 0);
            fast = fast.again(&program);
        }
    }
    eprintln!("{wanted} states, {repeated} met more than once, {inside} inside REP");
    assert!(wanted > 100 && repeated > 20 && inside > 20);
}
