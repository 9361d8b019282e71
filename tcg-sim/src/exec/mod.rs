//! The runtime around translated code.

mod access;
mod arrive;
mod bus;
pub(crate) mod cache;
mod counters;
mod direct;
mod engine;
mod faulting;
mod fpu;
mod frames;
mod host;
mod image;
mod operand;
mod soft;
mod space;
mod step;
mod traps;
mod vcpu;

pub(crate) use arrive::Target;
pub use counters::EngineCounters;
pub use engine::{Engine, EngineOptions};
pub(crate) use host::HostCpu;

use machine::state::{CpuState, cr0, efer};
use machine::vcpu::VcpuError;

/// Refuses states that the engine cannot run: it does long mode.
fn validate(state: &CpuState) -> Result<(), VcpuError> {
    let wrong = |what: &str| Err(VcpuError::InvalidState(what.into()));
    if state.cr0 & (cr0::PE | cr0::PG) != cr0::PE | cr0::PG || state.msrs.efer & efer::LMA == 0 {
        return wrong("the engine runs long mode only: CR0.PE, CR0.PG and EFER.LMA must be set");
    }
    if state.fpu.mxcsr & !fpu::mxcsr_mask() != 0 {
        return wrong("MXCSR has reserved bits set");
    }
    Ok(())
}
