//! What several test and bench targets share.
//!
//! Reading order: [`guest`] builds bare-metal guests, [`oracle`] runs them on QEMU, on KVM and on
//! any `machine::vcpu::Vcpu`, [`suite`] holds the tables of system-behaviour cases and their golden
//! files.

pub mod guest;
pub mod oracle;
pub mod suite;
