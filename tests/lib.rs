//! Cross-crate tests of SimuBoost, and the machinery they share.
//!
//! Reading order: [`guest`] builds bare-metal guests, [`oracle`] runs them on QEMU, on KVM and on
//! any `machine::vcpu::Vcpu`, [`suite`] holds the tables of system-behaviour cases,
//! [`hostile`] holds guests that mean harm, [`recording`] records guests and replays their intervals,
//! [`differential`] compares the engine with the host CPU on random instruction sequences, [`traced`] says what
//! guests access.

pub mod differential;
pub mod guest;
pub mod hostile;
pub mod oracle;
pub mod recording;
pub mod suite;
pub mod traced;
