//! Calls that the kvm-ioctls crate has no name for.
#![expect(unsafe_code, reason = "ioctl is untyped")]

use kvm_bindings::{
    KVM_DIRTY_LOG_PAGE_OFFSET, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clear_dirty_log,
    kvm_device_attr, kvm_dirty_gfn, kvm_interrupt, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use machine::units::PAGE_BYTES;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`, include/uapi/linux/kvm.h.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// Queues an external interrupt, which is delivered when the guest is entered.
pub(super) fn interrupt(vcpu: &impl AsRawFd, vector: u8) -> io::Result<()> {
    let request = kvm_interrupt { irq: vector.into() };
    // SAFETY: this request reads a `kvm_interrupt`, which `request` is.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const request) })
}

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;

/// Sets the offset of the guest's time stamp counter (Documentation/virt/kvm/devices/vcpu.rst, 4.1).
pub(super) fn set_tsc_offset(vcpu: &impl AsRawFd, offset: u64) -> io::Result<()> {
    let request = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw const offset) as u64,
        flags: 0,
    };
    // SAFETY: this request reads a `kvm_device_attr`, and for this attribute eight bytes from where it says,
    // which `offset` are.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the FPU's state. The image has no component beyond the first page: only programs that asked the
/// kernel for such components (AMX) have any.
pub(super) fn set_xsave(vcpu: &VcpuFd, image: &kvm_xsave) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it would write, which is one page as long as this process
    // has not asked for components that need more; nothing here does.
    unsafe { vcpu.set_xsave(image) }.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)`.
const KVM_CLEAR_DIRTY_LOG: libc::c_ulong = 0xc018_aec0;

/// `_IO(KVMIO, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;

/// Takes the bits of `words` out of the bitmap of dirty pages, and protects those pages.
pub(super) fn clear_dirty_log(
    vm: &impl AsRawFd,
    slot: u32,
    bytes: u64,
    words: &[u64],
) -> io::Result<()> {
    let pages = bytes / PAGE_BYTES;
    assert!(
        words.len() as u64 * 64 >= pages,
        "the bitmap covers the slot"
    );
    let mut request = kvm_clear_dirty_log {
        slot,
        num_pages: pages as u32,
        first_page: 0,
        ..Default::default()
    };
    request.__bindgen_anon_1.dirty_bitmap = words.as_ptr().cast_mut().cast();
    // SAFETY: this request reads a `kvm_clear_dirty_log` and, from where it says, a bit for each page,
    // which was asserted to be there; it does not write the bitmap.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, &raw const request) })
}

/// Takes back entries of rings that were given back, and protects their pages.
pub(super) fn reset_dirty_rings(vm: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: this request has no argument.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) })
}

/// The ring of pages that one vCPU wrote.
pub(super) struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    count: u32,
    /// The first entry that was not given back, and the first that was not read; both only grow.
    kept: u32,
    unread: u32,
}

// SAFETY: the ring is shared memory that this value alone maps; nothing in it belongs to a thread.
unsafe impl Send for DirtyRing {}

/// Flags of an entry, Documentation/virt/kvm/api.rst, 8.29.
const DIRTY: u32 = 1;
const GIVEN_BACK: u32 = 2;

impl DirtyRing {
    /// Bytes of a ring.
    pub(super) fn bytes(entries: u32) -> u32 {
        entries * size_of::<kvm_dirty_gfn>() as u32
    }

    /// Maps the ring, which was enabled with as many entries, a power of two.
    pub(super) fn map(vcpu: &VcpuFd, count: u32) -> io::Result<Self> {
        let offset = libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_BYTES as libc::off_t;
        // SAFETY: asks for a new mapping of the vCPU's ring, at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::bytes(count) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            entries: at.cast(),
            count,
            kept: 0,
            unread: 0,
        })
    }

    fn flags(&self, index: u32) -> &AtomicU32 {
        let at = index & (self.count - 1);
        // SAFETY: the index is inside the mapping, which lives as long as `self`; the kernel changes
        // flags meanwhile, hence the atomic.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entries.add(at as usize)).flags) }
    }

    /// Shows the entries that were not read yet: page numbers within the one slot.
    pub(super) fn read(&mut self, mut show: impl FnMut(u64)) {
        while self.unread.wrapping_sub(self.kept) < self.count
            && self.flags(self.unread).load(Ordering::Acquire) & DIRTY != 0
        {
            let at = self.unread & (self.count - 1);
            // SAFETY: as in `flags`; the kernel does not write an entry until it is given back.
            show(unsafe { (*self.entries.add(at as usize)).offset });
            self.unread = self.unread.wrapping_add(1);
        }
    }

    /// Gives all entries that were read back; [`reset_dirty_rings`] must follow. How many they were.
    pub(super) fn give_back(&mut self) -> u32 {
        let count = self.unread.wrapping_sub(self.kept);
        for index in 0..count {
            self.flags(self.kept.wrapping_add(index))
                .store(DIRTY | GIVEN_BACK, Ordering::Release);
        }
        self.kept = self.unread;
        count
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: unmaps what `map` mapped; no reference into it outlives a call.
        unsafe { libc::munmap(self.entries.cast(), Self::bytes(self.count) as usize) };
    }
}
