//! Which pages the guest wrote: from KVM's bitmap of dirty pages, or from its ring.
//!
//! Both are read without protecting pages again until an epoch ends, since each protection costs the
//! guest a fault. Where the kernel refuses an answer, all pages count as written.

use super::error::{KvmError, setup};
use super::host::Host;
use super::ioctls::{self, DirtyRing};
use super::vm::SLOT;
use super::write_guard::WriteGuard;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use machine::ram::{FrameBits, UnaskedWrites};
use machine::units::Gfn;
use std::sync::{Arc, Mutex};

/// Entries of the ring: the guest comes out when about so many pages were written.
const RING_ENTRIES: u32 = 1 << 14;

/// How KVM tells which pages the guest wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyLog {
    /// A ring of page numbers; its cost depends on the pages written.
    Ring,
    /// A bitmap, whose pages are protected again when an epoch ends.
    Bitmap,
    /// A bitmap, whose pages are protected again whenever it is read (before Linux 5.0).
    ProtectedBitmap,
}

impl DirtyLog {
    /// The best that a host has. Not the ring, although it is newer: KVM puts a page there once for each
    /// write that it emulates, so that one REP INS, or a KVM that emulates kernel code, fills it up.
    pub fn best(host: &Host) -> Self {
        match host.capabilities().manual_protect {
            true => Self::Bitmap,
            false => Self::ProtectedBitmap,
        }
    }

    /// Turns it on. Must come before vCPUs exist.
    pub(super) fn enable(self, host: &Host, vm: &VmFd) -> Result<(), KvmError> {
        let (cap, value) = match self {
            Self::ProtectedBitmap => return Ok(()),
            Self::Bitmap => (
                KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
            ),
            Self::Ring => {
                let plain = host.kvm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING.into()) > 0;
                let cap = match plain {
                    true => KVM_CAP_DIRTY_LOG_RING,
                    false => KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
                };
                (cap, DirtyRing::bytes(RING_ENTRIES))
            }
        };
        let mut enable = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        enable.args[0] = value.into();
        vm.enable_cap(&enable)
            .map_err(setup("asking for a log of dirty pages"))
    }
}

enum Source {
    Ring(DirtyRing),
    Bitmap { protects: bool },
}

/// Knows what the guest wrote, and holds its writes back.
pub(super) struct Tracker {
    vm: Arc<VmFd>,
    ram_bytes: u64,
    source: Mutex<Source>,
    guard: Option<WriteGuard>,
}

impl Tracker {
    pub(super) fn new(
        vm: Arc<VmFd>,
        vcpu: &VcpuFd,
        log: DirtyLog,
        ram_bytes: u64,
        guard: Option<WriteGuard>,
    ) -> Result<Self, KvmError> {
        let source = match log {
            DirtyLog::Ring => {
                let ring = DirtyRing::map(vcpu, RING_ENTRIES);
                Source::Ring(ring.map_err(|source| KvmError::Setup {
                    operation: "mapping the ring of dirty pages",
                    source,
                })?)
            }
            DirtyLog::Bitmap => Source::Bitmap { protects: false },
            DirtyLog::ProtectedBitmap => Source::Bitmap { protects: true },
        };
        Ok(Self {
            vm,
            ram_bytes,
            source: Mutex::new(source),
            guard,
        })
    }

    /// Empties the ring, which is full.
    pub(super) fn make_room(&self, mark: &mut dyn FnMut(Gfn)) {
        self.collect(true, mark);
    }

    fn read_bitmap(&self, protects: bool, end: bool, mark: &mut dyn FnMut(Gfn)) -> Option<()> {
        let words = self.vm.get_dirty_log(SLOT, self.ram_bytes as usize).ok()?;
        for (index, word) in words.iter().enumerate() {
            let mut bits = *word;
            while bits != 0 {
                mark(Gfn(64 * index as u64 + u64::from(bits.trailing_zeros())));
                bits &= bits - 1;
            }
        }
        if end && !protects {
            ioctls::clear_dirty_log(&*self.vm, SLOT, self.ram_bytes, &words).ok()?;
        }
        Some(())
    }

    fn read_ring(&self, ring: &mut DirtyRing, end: bool, mark: &mut dyn FnMut(Gfn)) -> Option<()> {
        ring.read(|offset| mark(Gfn(offset)));
        if end && ring.give_back() > 0 {
            ioctls::reset_dirty_rings(&*self.vm).ok()?;
        }
        Some(())
    }
}

impl UnaskedWrites for Tracker {
    fn collect(&self, end: bool, mark: &mut dyn FnMut(Gfn)) {
        let mut source = self.source.lock().expect("no panic under the lock");
        let known = match &mut *source {
            Source::Ring(ring) => self.read_ring(ring, end, mark),
            Source::Bitmap { protects } => self.read_bitmap(*protects, end, mark),
        };
        if known.is_none() {
            let frames = self.ram_bytes / machine::units::PAGE_BYTES;
            (0..frames).for_each(|frame| mark(Gfn(frame)));
        }
    }

    fn can_hold(&self) -> bool {
        self.guard.is_some()
    }

    fn hold(&self, frames: &FrameBits) {
        if let Some(guard) = &self.guard {
            guard.protect(frames);
        }
    }

    fn release(&self, frames: &FrameBits) {
        if let Some(guard) = &self.guard {
            guard.release(frames);
        }
    }
}
