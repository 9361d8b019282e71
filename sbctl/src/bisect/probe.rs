//! An engine that replays and is looked at on its way.

use machine::state::Activity;
use machine::units::Position;
use machine::vcpu::{Exit, Vcpu, VcpuError, VcpuLayer};
use tcg_sim::Engine;
use tcg_sim::replay::{Arrival, Arrived, ReplayVcpu, arrive_by_steps};

/// What ends a replay after the last stop.
const SEEN_ALL: &str = "all stops were seen";

/// Whether an error only says that there is nothing more to see.
pub(super) fn is_end(error: &VcpuError) -> bool {
    matches!(error, VcpuError::Protocol(SEEN_ALL))
}

/// An engine that calls `see` at each stop, and ends the replay at the last.
pub(super) struct Watched<F> {
    engine: Engine,
    /// Ascending.
    stops: Vec<Position>,
    next: usize,
    see: F,
}

impl<F: FnMut(usize, &mut Engine) -> Result<(), VcpuError>> Watched<F> {
    /// `see` gets the number of the stop. A stop that cannot be stood at (between an interrupt's
    /// delivery and what came before it at the same position) is left out.
    pub(super) fn new(engine: Engine, stops: Vec<Position>, see: F) -> Self {
        Self {
            engine,
            stops,
            next: 0,
            see,
        }
    }

    /// Looks where the replay has ended, in case that is a stop.
    pub(super) fn look_at_end(&mut self) -> Result<(), VcpuError> {
        match self.look() {
            Err(error) if !is_end(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn here(&self) -> Position {
        self.engine.position().expect("engines count")
    }

    fn look(&mut self) -> Result<(), VcpuError> {
        let here = self.here();
        while let Some(stop) = self.stops.get(self.next) {
            if *stop > here {
                return Ok(());
            }
            if *stop == here {
                (self.see)(self.next, &mut self.engine)?;
            }
            self.next += 1;
        }
        Err(VcpuError::Protocol(SEEN_ALL))
    }
}

impl<F: FnMut(usize, &mut Engine) -> Result<(), VcpuError>> VcpuLayer for Watched<F> {
    type Below = Engine;

    fn below(&self) -> &Engine {
        &self.engine
    }

    fn below_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        loop {
            self.look()?;
            let stop = self.stops[self.next];
            let goal = until.map_or(stop, |until| until.min(stop));
            match self.engine.run(Some(goal))? {
                Exit::Reached => {}
                exit => return Ok(exit),
            }
            if until.is_some_and(|until| self.here() >= until) {
                return Ok(Exit::Reached);
            }
            // At the boundary after HLT the engine names the stop instead of the halt.
            if self.engine.save()?.activity == Activity::Halted {
                self.look()?;
                return Ok(Exit::Halt);
            }
        }
    }
}

impl<F: FnMut(usize, &mut Engine) -> Result<(), VcpuError>> ReplayVcpu for Watched<F> {
    fn run_to_arrival(
        &mut self,
        arrival: &Arrival,
        until: Option<Position>,
    ) -> Result<Arrived, VcpuError> {
        arrive_by_steps(self, arrival, until)
    }
}
