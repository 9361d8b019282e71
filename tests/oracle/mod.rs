//! Ways to run a [`crate::guest::Guest`].

pub mod kvm;
pub mod qemu;
pub mod vcpu;
