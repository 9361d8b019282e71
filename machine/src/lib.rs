//! What the guest machine *is*: units, architectural CPU state, guest-physical memory, devices,
//! virtual time and the contract of a virtual CPU.
//!
//! This crate knows neither KVM nor the engine nor the store. Reading order: [`units`],
//! [`state::CpuState`], [`ram::Ram`], [`vcpu::Vcpu`] and its [`vcpu::Exit`]s, [`board::Board`] and
//! the [`devices`] on it, [`memory::DeviceMemory`], [`clock::VirtualClock`], [`saved`],
//! [`checkpoint`].

pub mod board;
pub mod boot;
pub mod checkpoint;
pub mod clock;
pub mod conformance;
pub mod cpuid;
pub mod devices;
pub mod memory;
pub mod msr;
pub mod ram;
pub mod saved;
pub mod state;
pub mod units;
pub mod vcpu;
