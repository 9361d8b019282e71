//! Ways to run a [`crate::guest::Guest`].

pub mod qemu;
pub mod vcpu;
