//! The one way by which devices reach RAM.
//!
//! A replay has no devices: it repeats the bytes that they wrote. So each write goes to the log, and
//! RAM, dirty tracking and the vCPU's cached code change together or not at all. No slice of guest
//! RAM leaves this handle.

use crate::ram::{Ram, RamError};
use crate::units::GuestPhys;
use crate::vcpu::Vcpu;

/// Where device writes are recorded.
pub trait DmaLog {
    /// `bytes` were just written to RAM from `start`, at the vCPU's present position.
    fn dma(&mut self, start: GuestPhys, bytes: &[u8]);
}

/// RAM as a device sees it, between two exits of the vCPU.
pub struct DeviceMemory<'a> {
    ram: &'a Ram,
    vcpu: &'a mut dyn Vcpu,
    log: &'a mut dyn DmaLog,
}

impl<'a> DeviceMemory<'a> {
    /// The handle for one round of device work. `ram` is the RAM that `vcpu` runs on.
    pub fn new(ram: &'a Ram, vcpu: &'a mut dyn Vcpu, log: &'a mut dyn DmaLog) -> Self {
        Self { ram, vcpu, log }
    }

    /// Whether all of `start .. start + bytes` is RAM.
    pub fn contains(&self, start: GuestPhys, bytes: u64) -> bool {
        self.ram.contains(start, bytes)
    }

    /// Reads bytes; reading leaves no trace.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] for an address the guest made up, [`RamError::Load`].
    pub fn read(&self, start: GuestPhys, into: &mut [u8]) -> Result<(), RamError> {
        self.ram.read(start, into)
    }

    /// Reads a little-endian 16-bit number.
    ///
    /// # Errors
    /// Those of [`DeviceMemory::read`].
    pub fn read_u16(&self, start: GuestPhys) -> Result<u16, RamError> {
        let mut bytes = [0; 2];
        self.read(start, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads a little-endian 32-bit number.
    ///
    /// # Errors
    /// Those of [`DeviceMemory::read`].
    pub fn read_u32(&self, start: GuestPhys) -> Result<u32, RamError> {
        let mut bytes = [0; 4];
        self.read(start, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian 64-bit number.
    ///
    /// # Errors
    /// Those of [`DeviceMemory::read`].
    pub fn read_u64(&self, start: GuestPhys) -> Result<u64, RamError> {
        let mut bytes = [0; 8];
        self.read(start, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes bytes: marks the pages dirty, drops stale code, logs. An empty write does nothing.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] for an address the guest made up, [`RamError::Load`]; then nothing
    /// was written and nothing logged.
    pub fn write(&mut self, start: GuestPhys, bytes: &[u8]) -> Result<(), RamError> {
        self.ram.write(start, bytes)?;
        if !bytes.is_empty() {
            self.vcpu.ram_written(start, bytes.len() as u64);
            self.log.dma(start, bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::CpuState;
    use crate::units::{Gfn, PAGE_BYTES, Position, Vector};
    use crate::vcpu::{Exit, Kick, VcpuError};
    use std::sync::Arc;

    /// A vCPU that only notes what it is told about RAM.
    #[derive(Default)]
    struct Notes(Vec<(GuestPhys, u64)>);

    impl Vcpu for Notes {
        fn run(&mut self, _until: Option<Position>) -> Result<Exit, VcpuError> {
            Err(VcpuError::Protocol("does not run"))
        }
        fn complete_read(&mut self, _value: u64) -> Result<(), VcpuError> {
            Err(VcpuError::Protocol("does not run"))
        }
        fn position(&self) -> Option<Position> {
            None
        }
        fn interrupt_window_open(&self) -> bool {
            false
        }
        fn request_interrupt_window(&mut self, _wanted: bool) {}
        fn inject_interrupt(&mut self, _vector: Vector) -> Result<(), VcpuError> {
            Err(VcpuError::Protocol("does not run"))
        }
        fn save(&mut self) -> Result<CpuState, VcpuError> {
            Ok(CpuState::default())
        }
        fn load(&mut self, _state: &CpuState, _position: Position) -> Result<(), VcpuError> {
            Ok(())
        }
        fn ram_written(&mut self, start: GuestPhys, bytes: u64) {
            self.0.push((start, bytes));
        }
        fn arm_write_tracking(&mut self) {}
        fn kick_handle(&self) -> Arc<dyn Kick> {
            struct Nothing;
            impl Kick for Nothing {
                fn kick(&self) {}
            }
            Arc::new(Nothing)
        }
    }

    #[derive(Default)]
    struct Log(Vec<(GuestPhys, Vec<u8>)>);

    impl DmaLog for Log {
        fn dma(&mut self, start: GuestPhys, bytes: &[u8]) {
            self.0.push((start, bytes.to_vec()));
        }
    }

    #[test]
    fn a_device_write_is_logged_marked_dirty_and_told_to_the_vcpu() {
        let ram = Ram::new(4 * PAGE_BYTES).unwrap();
        let (mut vcpu, mut log) = (Notes::default(), Log::default());
        let mut memory = DeviceMemory::new(&ram, &mut vcpu, &mut log);
        memory
            .write(GuestPhys(0x1ffe), &[1, 2, 3, 4, 5, 6, 7, 8])
            .unwrap();
        assert_eq!(memory.read_u16(GuestPhys(0x1ffe)).unwrap(), 0x0201);
        assert_eq!(memory.read_u32(GuestPhys(0x1ffe)).unwrap(), 0x0403_0201);
        assert_eq!(
            memory.read_u64(GuestPhys(0x1ffe)).unwrap(),
            0x0807_0605_0403_0201
        );
        assert_eq!(log.0, [(GuestPhys(0x1ffe), vec![1, 2, 3, 4, 5, 6, 7, 8])]);
        assert_eq!(vcpu.0, [(GuestPhys(0x1ffe), 8)]);
        assert_eq!(ram.dirty_frames(), [Gfn(1), Gfn(2)]);
    }

    #[test]
    fn a_write_that_leaves_ram_does_nothing_at_all() {
        let ram = Ram::new(PAGE_BYTES).unwrap();
        let (mut vcpu, mut log) = (Notes::default(), Log::default());
        let mut memory = DeviceMemory::new(&ram, &mut vcpu, &mut log);
        assert!(!memory.contains(GuestPhys(0xfff), 2));
        for start in [0xfff, 0x1000, u64::MAX] {
            let refused = memory.write(GuestPhys(start), &[1, 2]);
            assert!(matches!(refused, Err(RamError::OutOfRange { .. })));
            assert!(memory.read_u16(GuestPhys(start)).is_err());
        }
        memory.write(GuestPhys(0), &[]).unwrap();
        assert_eq!((log.0.len(), vcpu.0.len()), (0, 0));
        assert_eq!(ram.dirty_frames(), []);
        assert_eq!(ram.page(Gfn(0)), [0; PAGE_BYTES as usize]);
    }
}
