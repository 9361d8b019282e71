//! Guests that mean harm: arbitrary bytes as code at CPL 0 and CPL 3, among page tables that point at
//! themselves, outside RAM and at each other.
//!
//! [`case::run`] is a function of bytes, for any fuzzer: the bytes become a guest ([`image`]) that
//! runs in the engine's ways to work ([`trial`]), which must agree, stop at every position asked for,
//! obey a kick and touch nothing outside guest RAM ([`guards`]). [`random`] makes bytes that reach
//! far.

pub mod case;
pub mod guards;
pub mod image;
pub mod random;
pub mod state;
pub mod trial;
pub mod watchdog;
