//! The runtime around translated code.

mod access;
mod arrive;
mod blocks;
mod bus;
pub(crate) mod cache;
mod counters;
mod direct;
mod edge;
mod engine;
mod faulting;
mod fpu;
mod frames;
mod host;
mod image;
mod instruments;
mod operand;
mod pieces;
mod remembered;
mod soft;
mod space;
mod step;
mod traps;
mod vcpu;

pub(crate) use arrive::Target;
pub use counters::EngineCounters;
pub use engine::{Engine, EngineOptions};
pub(crate) use host::HostCpu;
pub use remembered::SpuriousFault;

use crate::sys;
use machine::cpuid::CpuidTable;
use machine::state::{CpuState, cr0, efer};
use machine::vcpu::VcpuError;

/// Refuses states that no CPU can be in (a damaged checkpoint), and those that the engine cannot run:
/// it does long mode with the features of the CPU model.
fn validate(state: &CpuState, cpuid: &CpuidTable) -> Result<(), VcpuError> {
    let wrong = |what: &str| Err(VcpuError::InvalidState(what.into()));
    match state.validate() {
        // SYSRET on AMD leaves any RIP behind: the fetch there is #GP.
        Err(invalid) if invalid.register == "RIP" && state.segs[1].long_mode() => {}
        Err(invalid) => return wrong(&invalid.to_string()),
        Ok(()) => {}
    }
    if state.cr4 & !sys::offered_cr4(cpuid) != 0 {
        return wrong("CR4 has bits set that the CPU model does not offer");
    }
    if state.cr0 & (cr0::PE | cr0::PG) != cr0::PE | cr0::PG || state.msrs.efer & efer::LMA == 0 {
        return wrong("the engine runs long mode only: CR0.PE, CR0.PG and EFER.LMA must be set");
    }
    if state.fpu.mxcsr & !fpu::mxcsr_mask() != 0 {
        return wrong("MXCSR has reserved bits set");
    }
    Ok(())
}
