//! A drill: a device that writes guest memory now and then without a word in the log. A recording with
//! it shows what is seen of one that cannot be simulated.

use kvm_recorder::{Bus, BusLayer};
use machine::memory::DeviceMemory;
use machine::ram::Ram;
use machine::units::{GuestPhys, VirtualNanos};
use std::sync::Arc;

/// Devices of which one breaks the rule.
pub(super) struct Drill<B> {
    bus: B,
    /// Past the handle that logs.
    ram: Arc<Ram>,
    every: VirtualNanos,
    due: VirtualNanos,
    writes: u64,
}

impl<B> Drill<B> {
    pub(super) fn new(bus: B, ram: Arc<Ram>, every: VirtualNanos) -> Self {
        Self {
            bus,
            ram,
            every,
            due: every,
            writes: 0,
        }
    }
}

impl<B: Bus> BusLayer for Drill<B> {
    type Below = B;

    fn below(&self) -> &B {
        &self.bus
    }

    fn below_mut(&mut self) -> &mut B {
        &mut self.bus
    }

    fn advance(&mut self, now: VirtualNanos, memory: &mut DeviceMemory<'_>) {
        self.bus.advance(now, memory);
        if now >= self.due {
            self.due.0 = now.0.saturating_add(self.every.0);
            self.writes += 1;
            // The end of memory, which guests seldom use.
            let at = GuestPhys(self.ram.bytes() - 8);
            let written = self.ram.write(at, &self.writes.to_le_bytes());
            written.expect("the address is in RAM");
        }
    }
}
