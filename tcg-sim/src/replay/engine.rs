//! The engine as a vCPU that replays, with instruments.

use super::vcpu::{Arrival, Arrived, ReplayVcpu};
use super::{Interval, Limits, ReplayError, Report, replay};
use crate::Engine;
use crate::exec::Target;
use crate::instrument::{Counts, Instruments};
use machine::checkpoint::CheckpointSource;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{Gfn, Position};
use machine::vcpu::VcpuError;
use std::collections::BTreeSet;

impl ReplayVcpu for Engine {
    fn run_to_arrival(
        &mut self,
        arrival: &Arrival,
        until: Option<Position>,
    ) -> Result<Arrived, VcpuError> {
        let Arrival { rip, gpr, rflags } = *arrival;
        let exit = self.run_to_state(&Target { rip, gpr, rflags }, until)?;
        Ok(exit.map_or(Arrived::Here, Arrived::Exit))
    }

    fn rewind(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError> {
        self.rewind_to(state, position);
        Ok(())
    }

    fn walked(&self, gfn: Gfn) -> bool {
        self.page_tables().was_walked(gfn)
    }

    fn root_tables(&self) -> BTreeSet<Gfn> {
        self.page_tables().roots().clone()
    }

    fn mark(&mut self) {
        self.mark_instruments();
    }

    fn go_back(&mut self) {
        self.rewind_instruments();
    }

    fn settle(&mut self) {
        self.settle_instruments();
    }
}

/// What a replay with instruments came to. What they learned is to be trusted as far as the report
/// says that the interval is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instrumented {
    /// The verdict.
    pub report: Report,
    /// What was counted, if that was asked for.
    pub counts: Option<Counts>,
}

/// [`replay`] on an engine with instruments. Where the recording has landmarks, what was learned on
/// ways that turned out wrong is not in the result.
///
/// # Errors
/// Those of [`replay`].
pub fn replay_with(
    engine: &mut Engine,
    ram: &Ram,
    interval: &Interval,
    source: &dyn CheckpointSource,
    limits: &Limits,
    instruments: Instruments,
) -> Result<Instrumented, ReplayError> {
    let counted = instruments.counts();
    engine.set_instruments(instruments);
    let report = replay(engine, ram, interval, source, limits)?;
    let finished = engine.finish_trace();
    finished.map_err(|source| VcpuError::Host {
        operation: "completing the memory trace",
        source,
    })?;
    Ok(Instrumented {
        report,
        counts: counted.then(|| engine.counts()),
    })
}
