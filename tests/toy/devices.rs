//! The real board, a source of random numbers, and a device that writes RAM on its own and on demand.

use kvm_recorder::Bus;
use machine::board::{Board, Effects};
use machine::checkpoint::DeviceBlob;
use machine::memory::DeviceMemory;
use machine::units::{GuestPhys, Port, Vector, VirtualNanos};

use super::program::Rng;

/// Reads give random numbers: what no replay can know by itself.
pub(crate) const RANDOM_PORT: u16 = 0x500;
/// A write makes the device write RAM.
pub(crate) const DMA_PORT: u16 = 0x504;

pub(crate) struct ToyBus {
    board: Board,
    random: Rng,
    /// When the device next writes RAM on its own.
    next_write: VirtualNanos,
    write_every_ns: u64,
}

impl ToyBus {
    /// The timer interrupts (vector 8) about every `timer_ns`.
    pub(crate) fn new(ram_bytes: u64, seed: u64, timer_ns: u64, write_every_ns: u64) -> Self {
        let mut board = Board::new(ram_bytes, 0);
        let count = (timer_ns * 1_193_182 / 1_000_000_000).clamp(2, 0xffff) as u32;
        for (port, value) in [
            (0x21, 0xfe),
            (0x43, 0x34),
            (0x40, count & 0xff),
            (0x40, count >> 8),
        ] {
            let _ = board.port_write(Port(port), 1, value, VirtualNanos(0));
        }
        Self {
            board,
            random: Rng::new(seed),
            next_write: VirtualNanos(write_every_ns),
            write_every_ns,
        }
    }

    /// Writes random bytes in the upper half of RAM: few, or whole pages with rags around them.
    fn write_ram(&mut self, memory: &mut DeviceMemory<'_>) {
        let half = super::RAM_BYTES / 2;
        let length = match self.random.below(3) {
            0 => self.random.below(20) + 1,
            1 => 512,
            _ => 5000 + self.random.below(5000),
        };
        let to = half + self.random.below(half - length);
        let bytes: Vec<u8> = (0..length).map(|_| self.random.next() as u8).collect();
        memory.write(GuestPhys(to), &bytes).expect("inside RAM");
    }
}

impl Bus for ToyBus {
    fn advance(&mut self, now: VirtualNanos, memory: &mut DeviceMemory<'_>) {
        self.board.advance(now);
        if now >= self.next_write {
            self.write_ram(memory);
            self.next_write = VirtualNanos(now.0 + self.write_every_ns);
        }
    }

    fn next_deadline(&self) -> Option<VirtualNanos> {
        let board = self.board.next_deadline();
        board.into_iter().chain([self.next_write]).min()
    }

    fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32 {
        match port.0 {
            RANDOM_PORT => self.random.next() as u32,
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

    fn interrupt_pending(&self) -> bool {
        self.board.interrupt_pending()
    }

    fn acknowledge(&mut self) -> Option<Vector> {
        self.board.acknowledge()
    }

    fn console_input(
        &mut self,
        bytes: &[u8],
        now: VirtualNanos,
        _memory: &mut DeviceMemory<'_>,
    ) -> usize {
        self.board.console_input(bytes, now)
    }

    fn save(&self) -> Vec<DeviceBlob> {
        Bus::save(&self.board)
    }
}
