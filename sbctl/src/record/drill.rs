//! A drill: a device that writes guest memory now and then without a word in the log. A recording with
//! it shows what is seen of one that cannot be simulated.

use kvm_recorder::Bus;
use machine::board::Effects;
use machine::checkpoint::DeviceBlob;
use machine::memory::DeviceMemory;
use machine::ram::Ram;
use machine::units::{GuestPhys, Port, Vector, VirtualNanos};
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

impl<B: Bus> Bus for Drill<B> {
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
    fn writes_ram_unasked(&self) -> bool {
        self.bus.writes_ram_unasked()
    }
    fn next_deadline(&self) -> Option<VirtualNanos> {
        self.bus.next_deadline()
    }
    fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32 {
        self.bus.port_read(port, size, now)
    }
    fn port_write(
        &mut self,
        port: Port,
        size: u8,
        value: u32,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        self.bus.port_write(port, size, value, now, memory)
    }
    fn interrupt_pending(&self) -> bool {
        self.bus.interrupt_pending()
    }
    fn acknowledge(&mut self) -> Option<Vector> {
        self.bus.acknowledge()
    }
    fn console_input(
        &mut self,
        bytes: &[u8],
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> usize {
        self.bus.console_input(bytes, now, memory)
    }
    fn save(&self) -> Vec<DeviceBlob> {
        self.bus.save()
    }
}
