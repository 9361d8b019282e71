//! The real board, a source of random numbers, and a device that writes RAM on its own and on
//! demand.

use super::Rng;
use kvm_recorder::BusLayer;
use machine::board::{Board, Effects};
use machine::memory::DeviceMemory;
use machine::units::{GuestPhys, Port, VirtualNanos};
use std::ops::Range;

/// Reads give random numbers: what no replay can know by itself.
pub const RANDOM_PORT: u16 = 0x500;
/// A write makes the device write RAM.
pub const DMA_PORT: u16 = 0x504;

/// The devices of a test guest.
pub struct TestBus {
    board: Board,
    random: Rng,
    /// Guest-physical range that the device writes to.
    window: Range<u64>,
    /// When the device next writes RAM on its own.
    next_write: VirtualNanos,
    write_every_ns: u64,
    at_random_times: bool,
}

impl TestBus {
    /// Devices whose random numbers have this seed, on `ram_bytes` of RAM. A device writes to
    /// `window` every `write_every_ns` and when told.
    pub fn new(ram_bytes: u64, seed: u64, window: Range<u64>, write_every_ns: u64) -> Self {
        Self {
            board: Board::new(ram_bytes, 0),
            random: Rng::new(seed),
            window,
            next_write: VirtualNanos(write_every_ns),
            write_every_ns,
            at_random_times: false,
        }
    }

    /// The device writes as often as before on the average, and nobody knows when.
    pub fn at_random_times(mut self) -> Self {
        self.at_random_times = true;
        self
    }

    fn gap_ns(&mut self) -> u64 {
        match self.at_random_times {
            true => self.random.below(2 * self.write_every_ns),
            false => self.write_every_ns,
        }
    }

    /// Sets up interrupts of the timer about every `timer_ns`, as the guest's firmware could have:
    /// IRQ 0 is vector 8.
    pub fn start_timer(&mut self, timer_ns: u64) {
        let count = (timer_ns * 1_193_182 / 1_000_000_000).clamp(2, 0xffff) as u32;
        for (port, value) in [
            (0x21, 0xfe),
            (0x43, 0x34),
            (0x40, count & 0xff),
            (0x40, count >> 8),
        ] {
            let _ = self.board.port_write(Port(port), 1, value, VirtualNanos(0));
        }
    }

    /// Writes random bytes: few, a sector, or whole pages with rags around them.
    fn write_ram(&mut self, memory: &mut DeviceMemory<'_>) {
        let length = match self.random.below(3) {
            0 => self.random.below(20) + 1,
            1 => 512,
            _ => 5000 + self.random.below(5000),
        };
        let space = self.window.end - self.window.start - length;
        let to = self.window.start + self.random.below(space);
        let bytes: Vec<u8> = (0..length).map(|_| self.random.bits() as u8).collect();
        memory
            .write(GuestPhys(to), &bytes)
            .expect("the window is inside RAM");
    }
}

impl BusLayer for TestBus {
    type Below = Board;

    fn below(&self) -> &Board {
        &self.board
    }

    fn below_mut(&mut self) -> &mut Board {
        &mut self.board
    }

    fn advance(&mut self, now: VirtualNanos, memory: &mut DeviceMemory<'_>) {
        self.board.advance(now);
        if now >= self.next_write {
            self.write_ram(memory);
            self.next_write = VirtualNanos(now.0 + self.gap_ns());
        }
    }

    fn writes_ram_unasked(&self) -> bool {
        true
    }

    fn next_deadline(&self) -> Option<VirtualNanos> {
        let board = self.board.next_deadline();
        board.into_iter().chain([self.next_write]).min()
    }

    fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32 {
        match port.0 {
            RANDOM_PORT => self.random.bits() as u32,
            _ => self.board.port_read(port, size, now),
        }
    }

    fn port_write(
        &mut self,
        port: Port,
        size: u8,
        value: u32,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        if port.0 == DMA_PORT {
            self.write_ram(memory);
            return Effects::default();
        }
        self.board.port_write(port, size, value, now)
    }
}
