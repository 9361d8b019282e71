//! Guests without devices: what they read is drawn from a seed, and interrupts come at fixed steps.

use machine::ram::Ram;
use machine::saved::Blob as _;
use machine::units::{Gfn, Position, Steps, Vector};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::num::NonZeroU64;

/// What stands in for devices. The same values give the same run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// What the values of reads are drawn from.
    pub seed: u64,
    /// An interrupt that comes again and again; taken at the first open window.
    pub interrupt: Option<Periodic>,
}

/// An interrupt source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periodic {
    /// The vector, as an interrupt controller would give it.
    pub vector: Vector,
    /// Steps between two interrupts.
    pub every: NonZeroU64,
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the step asked for.
    Reached,
    /// HLT that nothing wakes.
    Halted,
    /// Triple fault.
    Shutdown,
}

/// Runs a guest up to step `until`. `point` is called at every `every`-th step on the way, at the first
/// boundary there.
///
/// # Errors
/// What the vCPU or `point` says.
pub fn run<V: Vcpu>(
    vcpu: &mut V,
    inputs: &Inputs,
    until: Steps,
    every: NonZeroU64,
    point: &mut dyn FnMut(&mut V) -> Result<(), VcpuError>,
) -> Result<End, VcpuError> {
    let mut reads = Reads(inputs.seed);
    let mut due = inputs.interrupt.map(|source| source.every.get());
    let mut next_point = every.get();
    loop {
        let here = steps(vcpu);
        if here >= next_point {
            point(vcpu)?;
            next_point = (here / every + 1) * every.get();
        }
        if here >= until.0 {
            return Ok(End::Reached);
        }
        if let Some(source) = inputs
            .interrupt
            .filter(|_| due.is_some_and(|due| here >= due))
        {
            if vcpu.interrupt_window_open() {
                vcpu.inject_interrupt(source.vector)?;
                due = Some(here + source.every.get());
                continue;
            }
            vcpu.request_interrupt_window(true);
        }
        let interrupt = due.filter(|due| *due > here).unwrap_or(u64::MAX);
        let stop = until.0.min(next_point).min(interrupt);
        match vcpu.run(Some(Position::at(stop)))? {
            Exit::Reached | Exit::InterruptWindow | Exit::Kicked => {}
            Exit::PortRead { .. } | Exit::MmioRead { .. } => vcpu.complete_read(reads.next())?,
            Exit::TimestampRead => vcpu.complete_read(here)?,
            Exit::PortWrite { .. } | Exit::MmioWrite { .. } => {}
            Exit::Halt if inputs.interrupt.is_some() && vcpu.interrupt_window_open() => {
                due = Some(steps(vcpu));
            }
            Exit::Halt => return Ok(End::Halted),
            Exit::Shutdown => return Ok(End::Shutdown),
        }
    }
}

fn steps(vcpu: &impl Vcpu) -> u64 {
    vcpu.position().unwrap_or_default().steps.0
}

/// The values of reads, one after the other.
struct Reads(u64);

impl Reads {
    /// splitmix64 (public domain): every seed gives a sequence of its own.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }
}

/// A hash of the whole state: the saved registers, then RAM.
///
/// # Errors
/// As [`Vcpu::save`].
pub fn state_hash(vcpu: &mut impl Vcpu, ram: &Ram) -> Result<String, VcpuError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&vcpu.save()?.save().to_blob());
    for gfn in 0..ram.frames() {
        hasher.update(&ram.page(Gfn(gfn)));
    }
    Ok(hasher.finalize().to_hex().to_string())
}
