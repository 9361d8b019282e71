//! The engine as a vCPU that replays.

use super::vcpu::{Arrival, Arrived, ReplayVcpu, arrive_by_steps};
use crate::Engine;
use machine::units::Position;
use machine::vcpu::VcpuError;

impl ReplayVcpu for Engine {
    fn run_to_arrival(
        &mut self,
        arrival: &Arrival,
        until: Option<Position>,
    ) -> Result<Arrived, VcpuError> {
        arrive_by_steps(self, arrival, until)
    }
}
