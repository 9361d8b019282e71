//! Differential fuzzing of the engine against the host CPU.
//!
//! A [`generator`] makes a [`case`]: a sequence of instructions and the state it starts in. Two
//! [`side`]s execute it, the host CPU ([`native`]) and a virtual CPU ([`guest`]); [`compare`] says
//! where their ends differ, and [`minimise`] makes what differs small enough to read. [`fuzzer`] joins
//! them. Everything follows from a seed.

pub mod case;
pub mod compare;
pub mod forms;
pub mod fuzzer;
pub mod generator;
pub mod guest;
pub mod image;
pub mod layout;
pub mod minimise;
pub mod native;
pub mod registers;
pub mod rng;
pub mod side;
pub mod text;
mod values;
pub mod vendor;
