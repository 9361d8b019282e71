//! A virtual CPU on Linux's KVM. All `kvm_*` types of the project are here.
//!
//! The guest has no in-kernel devices: its 8259s and 8254 are those of [`machine::board`], interrupts
//! are injected between two exits, and each access to a port comes out. KVM does not count
//! instructions, so positions are landmarks ([`crate::Positions::Landmark`]).
//!
//! Reading order: [`Host`] (what /dev/kvm offers), [`KvmVcpu`] (the vCPU and its VM); inside, `vm` (how a
//! VM is set up), `exits` (what comes out of KVM_RUN), `state` (the order in which state is read and
//! written; `registers` and `fpu` are the forms it has), `string`, `msrs` (which registers of the model KVM keeps
//! and which are answered here), `kick`, `tsc`, `failure` (what is said of a guest that KVM
//! cannot run), `dirty` and `write_guard` (checkpoints).
//!
//! What the guest can tell is what the engine does: guest-physical space that is not RAM reads as all
//! ones and swallows writes, and MSRs that the CPU model lacks are #GP(0).

mod dirty;
mod error;
pub mod examine;
mod exits;
mod failure;
mod fpu;
mod host;
mod ioctls;
mod kick;
mod msrs;
mod registers;
mod run_page;
mod state;
mod string;
mod tsc;
mod vcpu;
mod vm;
mod write_guard;

pub use dirty::DirtyLog;
pub use error::KvmError;
pub use fpu::to_fpu;
pub use host::{Capabilities, Host};
pub use msrs::to_msrs;
pub use registers::{to_regs, to_sregs};
pub use vcpu::{KvmVcpu, Tracking};
pub use vm::cpuid_entries;
