//! A time stamp counter that stands still while the guest runs.
//!
//! KVM has no exit for RDTSC. Where it can scale the counter, it runs at the slowest rate that there is, and
//! each time before the guest is entered its offset is set anew, so that the guest reads the same number unless
//! the counter happens to tick meanwhile: with a probability of the time in the guest over a millisecond.

use super::error::io_error;
use super::host::Capabilities;
use super::ioctls;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use machine::msr::{FROZEN_TSC, number};
use std::io;

/// The slowest rate that KVM can be told.
const RATE_KHZ: u32 = 1;

/// The counter of one vCPU.
pub(super) struct FrozenTsc {
    offset: u64,
}

impl FrozenTsc {
    /// Slows the counter down. None where this host's KVM cannot.
    pub(super) fn start(vcpu: &VcpuFd, capabilities: Capabilities) -> Option<Self> {
        if !capabilities.tsc_scaling || !capabilities.tsc_offset {
            return None;
        }
        vcpu.set_tsc_khz(RATE_KHZ).ok()?;
        let mut this = Self { offset: 0 };
        this.freeze(vcpu).ok()?;
        (read(vcpu).ok()?.abs_diff(FROZEN_TSC) <= 1).then_some(this)
    }

    /// Makes the counter what it was. To be called before the guest is entered.
    pub(super) fn freeze(&mut self, vcpu: &VcpuFd) -> io::Result<()> {
        let next = next_offset(self.offset, read(vcpu)?);
        if next != self.offset {
            ioctls::set_tsc_offset(vcpu, next)?;
            self.offset = next;
        }
        Ok(())
    }
}

/// The offset with which a counter that now reads `now` reads [`FROZEN_TSC`].
fn next_offset(offset: u64, now: u64) -> u64 {
    offset.wrapping_add(FROZEN_TSC.wrapping_sub(now))
}

/// The guest's counter, by KVM's own arithmetic.
fn read(vcpu: &VcpuFd) -> io::Result<u64> {
    let entry = kvm_msr_entry {
        index: number::TSC,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).expect("one is few");
    match vcpu.get_msrs(&mut msrs).map_err(io_error)? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_follows_the_hosts_counter() {
        // A host that counts, a KVM that scales and adds the offset.
        let (mut offset, khz) = (0_u64, 2_400_000_u64);
        for host in [0, 5_000_000_000_u64, 5_000_100_000, 1 << 60, u64::MAX] {
            let scaled = host / khz;
            offset = next_offset(offset, scaled.wrapping_add(offset));
            assert_eq!(scaled.wrapping_add(offset), FROZEN_TSC);
            // Within the same millisecond nothing changes.
            assert_eq!(next_offset(offset, scaled.wrapping_add(offset)), offset);
            assert_eq!((scaled + 1).wrapping_add(offset), FROZEN_TSC + 1);
        }
    }
}
