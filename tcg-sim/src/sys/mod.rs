//! The semantics of everything that translated code does not execute natively: privileged and
//! system instructions, far transfers, segment loads, port I/O, string instructions, and the
//! delivery of exceptions and interrupts. 64-bit mode and compatibility mode at CPL 0 to 3, the latter
//! with flat segments (FS and GS may have bases).
//!
//! Must not know the translator, the software TLB or the dispatcher: all memory goes through
//! [`SysBus`], all state through [`CpuState`].
//!
//! Where AMD and Intel differ, [`SysBus::vendor`] decides, by default AMD family 19h (the reference
//! host): SYSENTER and SYSEXIT are #UD in long mode, SYSRET leaves the hidden part of SS alone apart
//! from its DPL and faults on a bad RIP at CPL 3, a null selector in FS or GS clears the base.
//!
//! # Contract of [`execute`]
//! - On entry `cpu.rip` is the address of the instruction and the six arithmetic flags are in
//!   `cpu.rflags`; RIP-relative operands are taken relative to `cpu.rip`.
//! - `Ok`: see [`Outcome`]. The instruction has retired unless the variant says otherwise; `cpu.rip`
//!   is the next instruction, RF is clear (but for IRET), `cpu.shadow` is what holds at the
//!   boundary after the instruction.
//! - `Err`: no register has changed, except that a REP string instruction has completed the iterations
//!   that RCX, RSI and RDI show. Memory has changed where hardware stores before it faults (ENTER, far
//!   CALL). `cpu.rip` is the instruction, as a fault wants it.
//! - After SYSRET on AMD `cpu.rip` may be non-canonical; the fetch there is #GP(0).
//! - Breakpoints are the dispatcher's, with [`debug`]: the bus sees every data access, and says no to
//!   [`SysBus::host_run`] where it must see each element.
//! - Whoever runs instructions without this module clears `cpu.shadow` and RF after each.

pub mod bus;
mod context;
mod control;
pub mod debug;
mod deliver;
mod descriptor;
mod execute;
mod far;
pub mod fault;
mod flags;
pub mod fpu;
mod legacy;
mod misc;
pub mod msr;
mod near;
mod port;
mod run;
mod segment;
mod string;
mod syscall;
mod tables;

pub use bus::{AccessKind, StringOperand, StringRun, SysBus};
pub(crate) use control::offered_cr4;
pub use deliver::deliver;
pub use execute::{execute, finish_port_read, finish_timestamp, handles};
pub use fault::{Event, EventKind, Fault, TripleFault, vector};
pub use fpu::fpu_fault;
/// Whose rules hold where the two architectures differ (each use says what differs).
pub use machine::cpuid::Maker;
pub(crate) use segment::refusal;

/// What [`execute`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Retired. Neither mode nor address space changed; the bases of FS and GS may have.
    Next,
    /// Retired. What translations are keyed by may have changed: CPL, CS, CR0, CR4, EFER, DR7
    /// or the mode bits of RFLAGS (TF, IF, AC, IOPL).
    Mode,
    /// Retired. Cached translations of addresses are void, global ones too if `globals`; the mode may
    /// have changed as well.
    AddressSpace {
        /// Global pages are to be dropped, too.
        globals: bool,
    },
    /// Retired. INVLPG: cached translations of the page that holds this linear address are void.
    InvalidatePage {
        /// The linear address, canonical or not.
        va: u64,
    },
    /// Not retired: a REP string instruction completed `done` iterations and has more to do;
    /// `cpu.rip` is still the instruction.
    RepPartial {
        /// Iterations completed by this call, at least 1.
        done: u64,
    },
    /// Not retired, nothing changed: IN or one element of INS waits for [`finish_port_read`]. The
    /// destination of INS is known to be writable.
    PortRead {
        /// Port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
    },
    /// OUT or one element of OUTS happened.
    PortWrite {
        /// Port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// Value, zero-extended.
        value: u32,
        /// Whether the instruction has retired; false for an element of REP OUTS before the last:
        /// one iteration is done and `cpu.rip` is still the instruction.
        retired: bool,
    },
    /// Not retired, nothing changed: RDTSC or RDMSR of the counter waits for [`finish_timestamp`].
    TimestampRead,
    /// HLT retired and `cpu.activity` is `Halted`.
    Halt,
    /// Not retired, nothing changed: an engine limit, in words.
    Limit(&'static str),
}

#[cfg(test)]
mod tests;
