//! Stopping at a state, at full speed: how a replay finds a landmark.
//!
//! While a state is looked for, blocks that hold its RIP in one of the frames mapped there end before
//! it, and the block that starts at it compares the general-purpose registers before it runs
//! (`jit/translate/arrive`). What is not inline is here: the comparison before a block is looked up,
//! whose fetch may set accessed bits, and the iterations of a REP instruction.

use super::engine::Engine;
use machine::state::{Gpr, rflags};
use machine::units::Position;
use machine::vcpu::{Exit, Vcpu, VcpuError};

/// A state to stop at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) rip: u64,
    pub(crate) gpr: [u64; 16],
    /// RF does not count.
    pub(crate) rflags: u64,
}

/// A search in progress.
pub(super) struct Search {
    target: Target,
    /// The last boundary that was compared in full, and is not to be compared again.
    checked: Position,
    arrived: bool,
}

impl Engine {
    /// As [`Vcpu::run`], but stops also at the next boundary, the present one excluded, with this RIP
    /// and these registers. `None`: it is there.
    ///
    /// # Errors
    /// Those of [`Vcpu::run`].
    pub(crate) fn run_to_state(
        &mut self,
        target: &Target,
        until: Option<Position>,
    ) -> Result<Option<Exit>, VcpuError> {
        self.soft.watch_for(target.rip);
        let core = &mut self.env().core;
        core.stop_page = (target.rip & !0xfff).wrapping_neg();
        core.stop_gpr = target.gpr.map(u64::wrapping_neg);
        self.search = Some(Search {
            target: *target,
            checked: self.here(),
            arrived: false,
        });
        let exit = self.run(until);
        self.env().core.stop_page = crate::jit::layout::NO_STOP;
        let search = self.search.take().expect("it was set above");
        Ok(Some(exit?).filter(|_| !search.arrived))
    }

    /// Whether the vCPU stands, at the boundary `cpu.rip`, in the state that is looked for. Registers
    /// and flags are in the state block. Compares each boundary once.
    pub(super) fn arrives(&mut self) -> bool {
        let here = self.here();
        let Some(search) = &mut self.search else {
            return false;
        };
        if self.cpu.rip != search.target.rip || here == search.checked {
            return false;
        }
        let core = self.soft.core();
        let found =
            core.gprs() == search.target.gpr && core.rflags() == search.target.rflags & !rflags::RF;
        if !found {
            search.checked = here;
        }
        found
    }

    /// Whether the run is to end at this boundary because of [`Engine::arrives`].
    pub(super) fn has_arrived(&mut self) -> bool {
        let arrives = self.arrives();
        if let Some(search) = &mut self.search {
            search.arrived = arrives;
        }
        arrives
    }

    /// [`Engine::arrives`] at the target of a branch that has retired.
    pub(super) fn arrives_at(&mut self, rip: u64) -> bool {
        if self.search.is_none() {
            return false;
        }
        self.cpu.rip = rip;
        self.arrives()
    }

    /// Most iterations that the REP instruction at `cpu.rip` may do before it must be looked at.
    pub(super) fn iterations_to_target(&self) -> u64 {
        let Some(search) = &self.search else {
            return u64::MAX;
        };
        if self.cpu.rip != search.target.rip {
            return u64::MAX;
        }
        let (now, then) = (
            self.cpu.gpr[Gpr::Rcx as usize],
            search.target.gpr[Gpr::Rcx as usize],
        );
        // The counter has 64 or 32 bits; one stop too many does no harm.
        let wide = now.wrapping_sub(then);
        let narrow = u64::from((now as u32).wrapping_sub(then as u32));
        [wide, narrow]
            .into_iter()
            .filter(|distance| *distance != 0)
            .min()
            .unwrap_or(u64::MAX)
    }
}
