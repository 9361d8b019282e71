//! The engine as a vCPU that replays.

use super::vcpu::{Arrival, Arrived, ReplayVcpu};
use crate::Engine;
use crate::exec::Target;
use machine::state::CpuState;
use machine::units::Position;
use machine::vcpu::VcpuError;

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
}
