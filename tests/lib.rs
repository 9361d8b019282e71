//! Cross-crate tests of SimuBoost, and the machinery they share.
//!
//! Reading order: [`guest`] builds bare-metal guests, [`oracle`] runs them on QEMU, on KVM and on
//! any `machine::vcpu::Vcpu`; [`recording`] records guests and replays intervals; [`differential`] compares random instruction sequences with the host
//! CPU.

pub mod differential;
pub mod guest;
pub mod oracle;
pub mod recording;
