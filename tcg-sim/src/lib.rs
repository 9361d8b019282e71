//! The exact x86-64 engine: a same-ISA dynamic translator with a software MMU.
//!
//! It must not know KVM, devices or the inside of the store. Reading order: [`Engine`] (the vCPU),
//! `jit` (from guest to host instructions), `exec` (the runtime around translated code), [`mmu`] and
//! [`sys`] (what the architecture says, in plain Rust), [`instrument`] (what is learned on the way), [`trace`] (and how it is stored), [`replay`] (one interval, on any vCPU).

mod exec;
pub mod instrument;
mod jit;
pub mod mmu;
pub mod replay;
pub mod selfcheck;
pub mod sys;
pub mod trace;

pub use exec::{Engine, EngineCounters, EngineOptions, SpuriousFault};
