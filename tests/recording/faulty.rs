//! Things that break determinism on purpose.

use kvm_recorder::{Bus, BusLayer};
use machine::memory::DeviceMemory;
use machine::ram::Ram;
use machine::units::{GuestPhys, Position, Vector, VirtualNanos};
use machine::vcpu::{Exit, Vcpu, VcpuError, VcpuLayer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tcg_sim::Engine;
use tcg_sim::replay::{Arrival, Arrived, ReplayVcpu};

/// An engine that gets one bit of a register wrong in one step.
pub struct FaultyEngine {
    /// The engine.
    pub engine: Engine,
    /// The step is the one that ends here.
    pub after: u64,
    /// The register, in encoding order, and the bit.
    pub bit: (usize, u32),
    /// RIP before that step, once it was made.
    pub rip: Arc<AtomicU64>,
}

impl FaultyEngine {
    fn steps(&self) -> u64 {
        self.engine.position().unwrap_or_default().steps.0
    }

    /// Does something to the engine, and the mistake if that was the step.
    fn act<T>(
        &mut self,
        act: impl FnOnce(&mut Engine) -> Result<T, VcpuError>,
    ) -> Result<T, VcpuError> {
        let before = self.steps();
        let result = act(&mut self.engine)?;
        if before < self.after && self.steps() >= self.after {
            let mut state = self.engine.save()?;
            state.gpr[self.bit.0] ^= 1 << self.bit.1;
            let here = self.engine.position().unwrap_or_default();
            self.engine.load(&state, here)?;
        }
        Ok(result)
    }

    fn note_rip(&mut self) -> Result<(), VcpuError> {
        if self.steps() + 1 == self.after {
            self.rip.store(self.engine.rip()?, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl VcpuLayer for FaultyEngine {
    type Below = Engine;

    fn below(&self) -> &Engine {
        &self.engine
    }

    fn below_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        for stop in [self.after - 1, self.after].map(Position::at) {
            let is_ahead = self.steps() < stop.steps.0;
            if is_ahead && until.is_none_or(|until| until >= stop) {
                let exit = self.act(|engine| engine.run(Some(stop)))?;
                if exit != Exit::Reached {
                    return Ok(exit);
                }
            }
            self.note_rip()?;
        }
        self.engine.run(until)
    }
    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        self.act(|engine| engine.complete_read(value))
    }
    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError> {
        self.note_rip()?;
        self.act(|engine| engine.inject_interrupt(vector))
    }
}

impl ReplayVcpu for FaultyEngine {
    fn run_to_arrival(
        &mut self,
        arrival: &Arrival,
        until: Option<Position>,
    ) -> Result<Arrived, VcpuError> {
        self.engine.run_to_arrival(arrival, until)
    }
}

/// Devices of which one writes RAM once behind the back of the log.
pub struct UnloggedDevice<B> {
    /// The other devices.
    pub bus: B,
    /// RAM, past the handle that logs.
    pub ram: Arc<Ram>,
    /// When, where and what it writes, until it has.
    pub write: Option<(VirtualNanos, GuestPhys, [u8; 8])>,
}

impl<B: Bus> BusLayer for UnloggedDevice<B> {
    type Below = B;

    fn below(&self) -> &B {
        &self.bus
    }

    fn below_mut(&mut self) -> &mut B {
        &mut self.bus
    }

    fn advance(&mut self, now: VirtualNanos, memory: &mut DeviceMemory<'_>) {
        self.bus.advance(now, memory);
        if let Some((_, at, bytes)) = self.write.take_if(|(due, _, _)| now >= *due) {
            self.ram.write(at, &bytes).expect("the address is in RAM");
        }
    }
}
