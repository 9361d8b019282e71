//! A processor small enough to be obviously deterministic, to test recording and replay by
//! themselves, and random programs for it.

mod cpu;
mod program;

pub use cpu::ToyCpu;
pub use program::{RAM_BYTES, load_program};
