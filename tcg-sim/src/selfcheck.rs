//! The engine compared with itself while a guest runs.
//!
//! [`SelfChecked`] is a vCPU: an engine that works as ever, and beside it, for windows of the
//! execution that a [`Plan`] names, four more ways to the same state. Each starts at the window's first
//! position from a copy of registers and RAM, hence with no translation and no cached address, and
//! gets what the devices gave the first: in blocks, and in one-instruction blocks whose every access is
//! checked in Rust, without instruments and with all. At the window's end registers and all of RAM must
//! be the same five times. Where they are not, [`Divergence`] names the first step that differs.
//!
//! [`bare`] runs guests that have no devices this way.

pub mod bare;
mod difference;
mod window;

pub use difference::{Divergence, FirstDifference, Way};

use crate::exec::{Engine, EngineOptions};
use machine::cpuid::CpuidTable;
use machine::ram::{Ram, RamError};
use machine::state::CpuState;
use machine::units::{GuestPhys, Position, Steps, Vector};
use machine::vcpu::{Exit, Vcpu, VcpuError, VcpuLayer};
use std::sync::{Arc, Mutex, MutexGuard};
use window::{Call, Window};

/// Which parts of an execution are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Steps from the start of one window to the start of the next.
    pub every: u64,
    /// Steps of a window, at least 1 and at most `every`; where it equals `every`, all is compared.
    pub length: u64,
    /// Step at which the first window starts.
    pub from: u64,
}

impl Default for Plan {
    /// One step in a hundred, in windows short enough to go unnoticed.
    fn default() -> Self {
        Self {
            every: 50_000_000,
            length: 500_000,
            from: 0,
        }
    }
}

/// What was compared so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Windows that ended in the same state each time.
    pub windows: u64,
    /// Steps in them.
    pub steps: u64,
}

/// What was found, to be read while the vCPU belongs to another and after it is gone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    compared: Compared,
    at_the_end: Option<VcpuError>,
}

impl Progress {
    /// The counts now.
    pub fn get(&self) -> Compared {
        self.found().compared
    }

    /// What the last window came to, which is compared when the vCPU is dropped.
    ///
    /// # Errors
    /// [`VcpuError::Diverged`], or why it could not be compared.
    pub fn end(&self) -> Result<Compared, VcpuError> {
        let mut found = self.found();
        match found.at_the_end.take() {
            None => Ok(found.compared),
            Some(error) => Err(error),
        }
    }

    fn add(&self, steps: u64) {
        let mut found = self.found();
        found.compared.windows += 1;
        found.compared.steps += steps;
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().expect("no panic under the lock")
    }
}

/// An engine that is compared with itself.
pub struct SelfChecked {
    engine: Engine,
    ram: Arc<Ram>,
    ways: window::Ways,
    plan: Plan,
    /// The window that is open.
    window: Option<Window>,
    /// Step at which the next window opens or the open one closes.
    turn: u64,
    progress: Progress,
}

impl SelfChecked {
    /// An engine over `ram` that is compared as `plan` says. Takes twice the memory of the guest again
    /// while windows are compared.
    ///
    /// # Errors
    /// As [`Engine::new`], or memory that the host refuses.
    pub fn new(
        ram: Arc<Ram>,
        cpuid: CpuidTable,
        options: EngineOptions,
        plan: Plan,
    ) -> Result<Self, VcpuError> {
        let engine = Engine::new(ram.clone(), cpuid.clone(), options.clone())?;
        Self::around(engine, ram, cpuid, options, plan)
    }

    /// As [`Self::new`], around an engine that already is at its first position.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn around(
        engine: Engine,
        ram: Arc<Ram>,
        cpuid: CpuidTable,
        options: EngineOptions,
        plan: Plan,
    ) -> Result<Self, VcpuError> {
        if plan.length == 0 || plan.length > plan.every {
            return Err(VcpuError::Protocol(
                "a window has at least one step and at most the distance to the next",
            ));
        }
        let ways = window::Ways::new(ram.bytes(), &cpuid, &options)?;
        Ok(Self {
            engine,
            ram,
            ways,
            plan,
            window: None,
            turn: plan.from,
            progress: Progress::default(),
        })
    }

    /// Counts of what was compared.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Gives the way that starts cold another CPUID table, so that tests see how a difference is found.
    ///
    /// # Errors
    /// As [`Self::new`].
    #[doc(hidden)]
    pub fn replace_cold_table(&mut self, cpuid: CpuidTable) -> Result<(), VcpuError> {
        self.ways.replace_cold(&cpuid)
    }

    fn here(&self) -> Position {
        self.engine.position_now()
    }

    fn record(&mut self, call: Call) {
        if let Some(window) = &mut self.window {
            window.calls.push(call);
        }
    }

    /// Closes and opens windows that are due.
    fn take_turn(&mut self) -> Result<(), VcpuError> {
        if self.here().steps.0 < self.turn {
            return Ok(());
        }
        self.close()?;
        let here = self.here();
        let Plan {
            every,
            length,
            from,
        } = self.plan;
        let into = (here.steps.0.max(from) - from) % every;
        if into < length {
            let state = self.engine.save()?;
            self.ways.remember(&self.ram).map_err(lost)?;
            self.window = Some(Window::at(here, state));
            self.turn = here.steps.0 + (length - into);
        } else {
            self.turn = here.steps.0 + (every - into);
        }
        Ok(())
    }

    /// Compares the open window up to here, if there is one.
    fn close(&mut self) -> Result<(), VcpuError> {
        let Some(window) = self.window.take() else {
            return Ok(());
        };
        let (state, end) = (self.engine.save()?, self.here());
        if end == window.start {
            return Ok(());
        }
        match self.ways.compare(&window, &state, end, &self.ram)? {
            None => self.progress.add(end.steps.0 - window.start.steps.0),
            Some(divergence) => return Err(VcpuError::Diverged(Box::new(divergence))),
        }
        Ok(())
    }
}

fn lost(source: RamError) -> VcpuError {
    VcpuError::PageLoad {
        address: GuestPhys(0),
        source: Box::new(source),
    }
}

impl Drop for SelfChecked {
    /// Compares what of the last window was executed.
    fn drop(&mut self) {
        // Where a run broke off before a read had its value there is no state to compare.
        if self.engine.save().is_ok()
            && let Err(error) = self.close()
        {
            self.progress.found().at_the_end = Some(error);
        }
    }
}

impl VcpuLayer for SelfChecked {
    type Below = Engine;

    fn below(&self) -> &Engine {
        &self.engine
    }

    fn below_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        loop {
            self.take_turn()?;
            let turn = Position {
                steps: Steps(self.turn),
                rep_iterations: 0,
            };
            let bound = until.map_or(turn, |until| until.min(turn));
            let exit = self.engine.run(Some(bound))?;
            let end = self.here();
            self.record(Call::Run { exit, end });
            let own_bound = exit == Exit::Reached && until.is_none_or(|until| end < until);
            if !own_bound {
                return Ok(exit);
            }
        }
    }

    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        self.engine.complete_read(value)?;
        self.record(Call::CompleteRead(value));
        Ok(())
    }

    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError> {
        self.engine.inject_interrupt(vector)?;
        self.record(Call::Inject(vector));
        Ok(())
    }

    fn load(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError> {
        self.window = None;
        self.turn = position.steps.0.max(self.plan.from);
        self.engine.load(state, position)
    }

    fn ram_written(&mut self, start: GuestPhys, bytes: u64) {
        if self.window.is_some() {
            let mut content = vec![0; bytes as usize];
            // Bytes beyond RAM were not written either.
            if self.ram.read(start, &mut content).is_ok() {
                self.record(Call::RamWritten { start, content });
            }
        }
        self.engine.ram_written(start, bytes);
    }
}
