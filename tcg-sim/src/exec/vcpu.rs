//! The engine behind the vCPU contract.

use super::engine::Engine;
use super::{fpu, traps};
use crate::sys::{self, Event, EventKind, Fault, Outcome};
use machine::state::{Activity, CpuState, Shadow};
use machine::units::{GuestPhys, PAGE_BYTES, Position, Vector};
use machine::vcpu::{Exit, Kick, Vcpu, VcpuError};
use std::sync::Arc;

const WAITS: VcpuError = VcpuError::Protocol("a read waits for its value");

impl Vcpu for Engine {
    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        if self.pending.is_some() {
            return Err(WAITS);
        }
        let (start, end) = self.soft.cache.code.range();
        let gate = self.soft.cache.code.gates().trap;
        let routed = traps::route(start, end, gate).map_err(|source| VcpuError::Host {
            operation: "installing trap handlers",
            source,
        })?;
        fpu::enter(&mut self.soft.env().core, &self.cpu.fpu);
        let result = self.run_loop(until);
        fpu::snapshot(&mut self.soft.env().core, &mut self.cpu.fpu);
        fpu::leave();
        drop(routed);
        let resume_flag = self.cpu.rflags & machine::state::rflags::RF;
        self.pull();
        self.cpu.rflags |= resume_flag;
        result
    }

    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        let pending = self
            .pending
            .take()
            .ok_or(VcpuError::Protocol("no read waits"))?;
        let instruction = &pending.instruction;
        let armed = pending.alone && self.cpu.dr7 & 0xff != 0;
        self.soft.watched = armed.then(Vec::new);
        let (cpu, soft) = (&mut self.cpu, &mut self.soft);
        let outcome = match pending.port {
            None => Ok(sys::finish_timestamp(instruction, cpu, soft, value)),
            Some(_) => sys::finish_port_read(instruction, cpu, soft, value as u32),
        };
        let trap = outcome.map(|outcome| matches!(outcome, Outcome::RepPartial { .. }));
        match outcome {
            Ok(Outcome::RepPartial { done }) => {
                self.soft.probed().iterate(done, None);
                self.iterated(done);
            }
            Ok(_) => {
                self.soft.probed().retire(None);
                self.add_steps(1);
                self.rep_iterations = 0;
            }
            Err(fault) => {
                self.add_steps(1);
                self.deliver(Event::fault(fault));
            }
        }
        self.push();
        self.mode_changed();
        if let (true, Ok(mid_rep)) = (pending.alone, trap) {
            self.trap_after_read(&pending, mid_rep);
        }
        Ok(())
    }

    fn rip(&mut self) -> Result<u64, VcpuError> {
        if self.pending.is_some() {
            return Err(WAITS);
        }
        Ok(self.cpu.rip)
    }

    fn position(&self) -> Option<Position> {
        Some(self.position_now())
    }

    fn interrupt_window_open(&self) -> bool {
        self.pending.is_none()
            && self.cpu.rflags & machine::state::rflags::IF != 0
            && self.cpu.shadow == Shadow::None
            && self.cpu.activity != Activity::Shutdown
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window_requested = wanted;
    }

    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError> {
        if !self.interrupt_window_open() {
            return Err(VcpuError::Protocol("the interrupt window is not open"));
        }
        let kind = EventKind::External {
            mid_rep: self.rep_iterations != 0,
        };
        self.cpu.activity = Activity::Running;
        self.add_steps(1);
        self.deliver(Event {
            kind,
            fault: Fault::plain(vector.0),
        });
        Ok(())
    }

    fn save(&mut self) -> Result<CpuState, VcpuError> {
        if self.pending.is_some() {
            return Err(WAITS);
        }
        Ok(self.cpu.clone())
    }

    fn load(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError> {
        super::validate(state, &self.soft.cpuid)?;
        self.soft.reset();
        self.rewind_to(state, position);
        Ok(())
    }

    fn ram_written(&mut self, start: GuestPhys, bytes: u64) {
        let end = start.0.saturating_add(bytes).min(self.soft.ram.bytes());
        let mut at = start.0;
        while at < end {
            let here = (PAGE_BYTES - at % PAGE_BYTES).min(end - at);
            self.soft.ram_changed(GuestPhys(at), here);
            at += here;
        }
    }

    fn arm_write_tracking(&mut self) {
        self.soft.flush_write_tags();
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }
}

impl Engine {
    /// Which frames were walked as page tables.
    pub(crate) fn page_tables(&self) -> &super::frames::Frames {
        &self.soft.frames
    }

    /// As [`Vcpu::load`] of a state that this engine was in, but keeps what is cached.
    pub fn rewind_to(&mut self, state: &CpuState, position: Position) {
        self.cpu = state.clone();
        self.pending = None;
        (self.step_alone, self.begun) = (false, false);
        self.soft.switch_space(state.cr3);
        self.push();
        self.mode_changed();
        self.env().core.budget = 0;
        self.deadline = position.steps.0;
        self.rep_iterations = position.rep_iterations;
        self.soft.probed().moved(position, state.cr3);
    }
}
