//! What the recording loop needs of the devices.

use machine::board::{Board, Effects};
use machine::checkpoint::DeviceBlob;
use machine::memory::{DeviceMemory, DmaLog};
use machine::saved::Blob;
use machine::units::{GuestPhys, Port, Vector, VirtualNanos};

/// The devices of a machine, as the vCPU's thread sees them between two exits. They change RAM only
/// through the handle that they are given, so never in reads.
pub trait Bus {
    /// Lets time pass.
    fn advance(&mut self, now: VirtualNanos, memory: &mut DeviceMemory<'_>);

    /// Whether [`Bus::advance`] or [`Bus::console_input`] may write RAM. If not, landmarks are taken
    /// only where something is logged.
    fn writes_ram_unasked(&self) -> bool {
        true
    }

    /// The next instant at which something happens although nobody touches a device.
    fn next_deadline(&self) -> Option<VirtualNanos>;

    /// The guest reads `size` (1, 2 or 4) bytes; zero-extended.
    fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32;

    /// The guest writes the low `size` (1, 2 or 4) bytes of `value`.
    fn port_write(
        &mut self,
        port: Port,
        size: u8,
        value: u32,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects;

    /// The guest reads `size` (1 to 8) bytes of space that is not RAM. All ones where nothing is.
    fn mmio_read(&mut self, address: GuestPhys, size: u8, now: VirtualNanos) -> u64 {
        let _ = (address, now);
        u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
    }

    /// The guest writes `size` (1 to 8) bytes of space that is not RAM.
    fn mmio_write(
        &mut self,
        address: GuestPhys,
        size: u8,
        value: u64,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        let _ = (address, size, value, now, memory);
        Effects::default()
    }

    /// The guest reads the time stamp counter, which ticks once per nanosecond.
    fn timestamp(&mut self, now: VirtualNanos) -> u64 {
        now.0
    }

    /// Whether the interrupt controllers ask for an interrupt now.
    fn interrupt_pending(&self) -> bool;

    /// Acknowledges the request: the vector that is then injected, or none if it was withdrawn.
    fn acknowledge(&mut self) -> Option<Vector>;

    /// Offers console input; returns how many bytes were taken.
    fn console_input(
        &mut self,
        bytes: &[u8],
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> usize;

    /// The state of all devices.
    fn save(&self) -> Vec<DeviceBlob>;
}

impl Bus for Board {
    fn advance(&mut self, now: VirtualNanos, _memory: &mut DeviceMemory<'_>) {
        self.advance(now);
    }

    fn writes_ram_unasked(&self) -> bool {
        // Its devices have no DMA.
        false
    }

    fn next_deadline(&self) -> Option<VirtualNanos> {
        self.next_deadline()
    }

    fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32 {
        self.port_read(port, size, now)
    }

    fn port_write(
        &mut self,
        port: Port,
        size: u8,
        value: u32,
        now: VirtualNanos,
        _memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        self.port_write(port, size, value, now)
    }

    fn interrupt_pending(&self) -> bool {
        self.interrupt_pending()
    }

    fn acknowledge(&mut self) -> Option<Vector> {
        self.acknowledge()
    }

    fn console_input(
        &mut self,
        bytes: &[u8],
        now: VirtualNanos,
        _memory: &mut DeviceMemory<'_>,
    ) -> usize {
        self.console_input(bytes, now)
    }

    fn save(&self) -> Vec<DeviceBlob> {
        vec![DeviceBlob {
            name: "board".into(),
            bytes: self.save().to_blob(),
        }]
    }
}

/// Devices around others. What a layer does not say itself, those below do.
#[expect(missing_docs, reason = "the methods are those of Bus")]
pub trait BusLayer {
    /// What is below.
    type Below: Bus;

    /// The devices below.
    fn below(&self) -> &Self::Below;

    /// The devices below.
    fn below_mut(&mut self) -> &mut Self::Below;

    fn advance(&mut self, now: VirtualNanos, memory: &mut DeviceMemory<'_>) {
        self.below_mut().advance(now, memory);
    }
    fn writes_ram_unasked(&self) -> bool {
        self.below().writes_ram_unasked()
    }
    fn next_deadline(&self) -> Option<VirtualNanos> {
        self.below().next_deadline()
    }
    fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32 {
        self.below_mut().port_read(port, size, now)
    }
    fn port_write(
        &mut self,
        port: Port,
        size: u8,
        value: u32,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        self.below_mut().port_write(port, size, value, now, memory)
    }
    fn mmio_read(&mut self, address: GuestPhys, size: u8, now: VirtualNanos) -> u64 {
        self.below_mut().mmio_read(address, size, now)
    }
    fn mmio_write(
        &mut self,
        address: GuestPhys,
        size: u8,
        value: u64,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        self.below_mut()
            .mmio_write(address, size, value, now, memory)
    }
    fn timestamp(&mut self, now: VirtualNanos) -> u64 {
        self.below_mut().timestamp(now)
    }
    fn interrupt_pending(&self) -> bool {
        self.below().interrupt_pending()
    }
    fn acknowledge(&mut self) -> Option<Vector> {
        self.below_mut().acknowledge()
    }
    fn console_input(
        &mut self,
        bytes: &[u8],
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> usize {
        self.below_mut().console_input(bytes, now, memory)
    }
    fn save(&self) -> Vec<DeviceBlob> {
        self.below().save()
    }
}

impl<L: BusLayer> Bus for L {
    fn advance(&mut self, now: VirtualNanos, memory: &mut DeviceMemory<'_>) {
        BusLayer::advance(self, now, memory);
    }
    fn writes_ram_unasked(&self) -> bool {
        BusLayer::writes_ram_unasked(self)
    }
    fn next_deadline(&self) -> Option<VirtualNanos> {
        BusLayer::next_deadline(self)
    }
    fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32 {
        BusLayer::port_read(self, port, size, now)
    }
    fn port_write(
        &mut self,
        port: Port,
        size: u8,
        value: u32,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        BusLayer::port_write(self, port, size, value, now, memory)
    }
    fn mmio_read(&mut self, address: GuestPhys, size: u8, now: VirtualNanos) -> u64 {
        BusLayer::mmio_read(self, address, size, now)
    }
    fn mmio_write(
        &mut self,
        address: GuestPhys,
        size: u8,
        value: u64,
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> Effects {
        BusLayer::mmio_write(self, address, size, value, now, memory)
    }
    fn timestamp(&mut self, now: VirtualNanos) -> u64 {
        BusLayer::timestamp(self, now)
    }
    fn interrupt_pending(&self) -> bool {
        BusLayer::interrupt_pending(self)
    }
    fn acknowledge(&mut self) -> Option<Vector> {
        BusLayer::acknowledge(self)
    }
    fn console_input(
        &mut self,
        bytes: &[u8],
        now: VirtualNanos,
        memory: &mut DeviceMemory<'_>,
    ) -> usize {
        BusLayer::console_input(self, bytes, now, memory)
    }
    fn save(&self) -> Vec<DeviceBlob> {
        BusLayer::save(self)
    }
}

/// Bytes that a device wrote to RAM. They are there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceWrite {
    pub(crate) to: GuestPhys,
    pub(crate) bytes: Vec<u8>,
}

/// What devices wrote since it was last logged.
#[derive(Default)]
pub(crate) struct Writes(pub(crate) Vec<DeviceWrite>);

impl DmaLog for Writes {
    fn dma(&mut self, start: GuestPhys, bytes: &[u8]) {
        self.0.push(DeviceWrite {
            to: start,
            bytes: bytes.to_vec(),
        });
    }
}
