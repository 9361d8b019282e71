//! A processor small enough to be obviously deterministic, to test recording and replay by
//! themselves, and random programs for it.

mod cpu;
mod devices;
mod program;

pub(crate) use cpu::ToyCpu;
pub(crate) use devices::ToyBus;
pub(crate) use program::{RAM_BYTES, load_program};
