//! The recording loop: runs a guest on any [`machine::vcpu::Vcpu`], serves its accesses from a
//! [`Bus`], logs everything that crosses inward, and takes a checkpoint at the end of each interval.
//!
//! This crate does not know the inside of the store, nor the simulator. Reading order: [`bus`],
//! [`options`], [`recorder::Recorder`], [`control`], [`summary`]; inside, `journal` (what is logged
//! and at which position) and `checkpointer` (how pages leave while the guest runs on).

mod alarm;
mod background;
pub mod bus;
mod checkpointer;
pub mod control;
mod journal;
pub mod kvm;
mod landmark;
pub mod options;
pub mod recorder;
pub mod summary;
mod walk;

pub use background::yield_to_guest;
pub use bus::{Bus, BusLayer};
pub use control::{ConsoleInput, Control};
pub use options::{Kicks, Length, Options, Positions};
pub use recorder::{RecordError, Recorder};
pub use summary::{LandmarkCost, PositionCounts, Summary};
