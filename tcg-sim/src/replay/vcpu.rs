//! What replay needs of a vCPU beyond [`Vcpu`].

use machine::state::CpuState;
use machine::units::{Gfn, Position};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::collections::BTreeSet;

/// A state to stop at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// RIP.
    pub rip: u64,
    /// General-purpose registers in encoding order.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
}

/// Why [`ReplayVcpu::run_to_arrival`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// The vCPU stands at a boundary with the RIP asked for.
    Here,
    /// As [`Vcpu::run`].
    Exit(Exit),
}

/// A vCPU that can replay: it counts, and it finds states.
pub trait ReplayVcpu: Vcpu {
    /// Runs like [`Vcpu::run`], but stops also at the next boundary, the present one excluded, with
    /// the RIP of `arrival`; boundaries between iterations of a REP string instruction included. It
    /// must stop if the general-purpose registers and RFLAGS (but for RF) are those of `arrival` too, and
    /// may pass on if any of them differs.
    ///
    /// # Errors
    /// Those of [`Vcpu::run`].
    fn run_to_arrival(
        &mut self,
        arrival: &Arrival,
        until: Option<Position>,
    ) -> Result<Arrived, VcpuError>;

    /// Goes back to a state that this vCPU was in, after RAM went back and it was told so by
    /// [`Vcpu::ram_written`]. As [`Vcpu::load`], but what is cached may stay.
    ///
    /// # Errors
    /// Those of [`Vcpu::load`].
    fn rewind(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError> {
        self.load(state, position)
    }

    /// Whether the frame was walked as a page table since the last load.
    fn walked(&self, _gfn: Gfn) -> bool {
        false
    }

    /// The tables that translation started from since the last load.
    fn root_tables(&self) -> BTreeSet<Gfn> {
        BTreeSet::new()
    }

    /// Replay may come back to here ([`ReplayVcpu::go_back`]): what instruments have learned so far
    /// is kept apart.
    fn mark(&mut self) {}

    /// What instruments have learned since the last mark that is left is void, and the mark with it.
    fn go_back(&mut self) {}

    /// Replay will not come back to the oldest mark.
    fn settle(&mut self) {}
}

/// [`ReplayVcpu::run_to_arrival`] for any vCPU that counts, one step or iteration at a time.
///
/// # Errors
/// Those of [`Vcpu::run`]; [`VcpuError::Protocol`] if the vCPU does not count.
pub fn arrive_by_steps<V: Vcpu + ?Sized>(
    vcpu: &mut V,
    arrival: &Arrival,
    until: Option<Position>,
) -> Result<Arrived, VcpuError> {
    loop {
        let here = vcpu
            .position()
            .ok_or(VcpuError::Protocol("replay needs a vCPU that counts"))?;
        if until.is_some_and(|until| here >= until) {
            return Ok(Arrived::Exit(Exit::Reached));
        }
        let next = Position {
            rep_iterations: here.rep_iterations + 1,
            ..here
        };
        match vcpu.run(Some(next))? {
            Exit::Reached if vcpu.rip()? == arrival.rip => return Ok(Arrived::Here),
            Exit::Reached => {}
            exit => return Ok(Arrived::Exit(exit)),
        }
    }
}
