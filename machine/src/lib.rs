//! What the guest machine *is*: units, architectural CPU state, guest-physical memory, devices,
//! virtual time and the contract of a virtual CPU.
//!
//! This crate knows neither KVM nor the engine nor the store. Reading order: [`units`],
//! [`state::CpuState`], [`ram::Ram`], [`vcpu::Vcpu`] and its [`vcpu::Exit`]s.

pub mod checkpoint;
pub mod cpuid;
pub mod ram;
pub mod state;
pub mod units;
pub mod vcpu;
