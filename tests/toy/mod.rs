//! A processor small enough to be obviously deterministic, to test recording and replay by
//! themselves, and random programs for it.

mod cpu;
mod devices;
mod program;

pub use cpu::ToyCpu;
pub use devices::ToyBus;
pub use program::{RAM_BYTES, Rng, load_program, load_spin};
