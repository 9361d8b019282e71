//! RAM by host address: for the page walker and the bus, which touch it all the time.
#![expect(
    unsafe_code,
    reason = "reads and writes guest RAM through its host address"
)]

use machine::ram::{PageBytes, Ram};
use machine::units::{Gfn, GuestPhys, PAGE_BYTES};
use std::sync::Arc;

/// Guest RAM as one range of host memory. Callers have prepared the page (`Ram::prepare_read`,
/// `Ram::prepare_write`); no guest code runs meanwhile.
pub(super) struct Direct {
    ram: Arc<Ram>,
    base: *mut u8,
}

// SAFETY: the pointer belongs to `ram`, which may be used from any thread.
unsafe impl Send for Direct {}

impl Direct {
    pub(super) fn new(ram: Arc<Ram>) -> Self {
        let base = ram.host_base();
        Self { ram, base }
    }

    /// Host address of guest-physical 0.
    pub(super) fn base(&self) -> u64 {
        self.base as u64
    }

    fn at(&self, start: GuestPhys, bytes: usize) -> *mut u8 {
        assert!(
            self.ram.contains(start, bytes as u64),
            "callers name ranges inside RAM"
        );
        // SAFETY: inside the mapping, as asserted.
        unsafe { self.base.add(start.0 as usize) }
    }

    pub(super) fn read(&self, start: GuestPhys, into: &mut [u8]) {
        let from = self.at(start, into.len());
        // SAFETY: `at` vouches for the range; `into` is memory of ours, never guest RAM.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }

    pub(super) fn write(&self, start: GuestPhys, from: &[u8]) {
        let to = self.at(start, from.len());
        // SAFETY: as in `read`.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }

    pub(super) fn read_u64(&self, start: GuestPhys) -> u64 {
        let from = self.at(start, 8);
        // SAFETY: `at` vouches for eight bytes.
        unsafe { from.cast::<u64>().read_unaligned() }
    }

    /// The bytes of a frame, while nothing writes to it.
    pub(super) fn page(&self, gfn: Gfn) -> &PageBytes {
        let from = self.at(gfn.base(), PAGE_BYTES as usize);
        // SAFETY: `at` vouches for the page; neither the guest nor devices run while the translator
        // borrows it, since one thread does all three.
        unsafe { &*from.cast::<PageBytes>() }
    }
}
