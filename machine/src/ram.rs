//! Guest RAM with dirty tracking, copy-on-write checkpoints and lazy loading.
//!
//! RAM is one range from guest-physical 0. Writers are the vCPU and, between two of its exits, the
//! devices through one logging handle. Both call [`Ram::prepare_write`] before the first write of an
//! epoch to a page; that is the single place where pages are loaded, captured for a checkpoint that
//! is being taken, and marked dirty.

mod frames;
mod writes;

pub use frames::{FrameBits, FrameSet};
pub use writes::{Before, UnaskedWrites, WriteObserver};

use crate::units::{Gfn, GuestPhys, PAGE_BYTES};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The content of one page.
pub type PageBytes = [u8; PAGE_BYTES as usize];

/// Where pages come from that have not been touched yet.
pub trait PageSource: Send + Sync {
    /// Fills `page` with the content of `gfn`.
    ///
    /// # Errors
    /// Whatever keeps the page from being had; the vCPU stops with it.
    fn load(
        &self,
        gfn: Gfn,
        page: &mut PageBytes,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Why an access to RAM failed.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// Not RAM.
    #[error("guest-physical range {start} + {bytes} bytes is outside RAM of {ram_bytes} bytes")]
    OutOfRange {
        /// First byte.
        start: GuestPhys,
        /// Length.
        bytes: u64,
        /// RAM size.
        ram_bytes: u64,
    },
    /// The size asked for is not a positive multiple of the page size.
    #[error("RAM of {0} bytes: the size must be a positive multiple of 4096")]
    Size(u64),
    /// The host has no memory or address space.
    #[error("cannot map {bytes} bytes of guest RAM: {reason}")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The host's answer.
        reason: String,
    },
    /// A page could not be loaded.
    #[error("guest page {gfn} could not be loaded: {source}")]
    Load {
        /// The page.
        gfn: Gfn,
        /// What the source said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Guest RAM: frames 0 to `size / 4096`.
pub struct Ram {
    memory: GuestMemoryMmap<()>,
    bytes: u64,
    /// Written in this epoch.
    dirty: FrameSet,
    /// Not loaded from `source` yet.
    absent: FrameSet,
    any_absent: AtomicBool,
    source: Option<Arc<dyn PageSource>>,
    observer: RwLock<Option<Arc<dyn WriteObserver>>>,
    unasked: RwLock<Option<Arc<dyn UnaskedWrites>>>,
    /// Serialises the loading of pages.
    loading: Mutex<()>,
}

impl Ram {
    /// RAM of `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`RamError::Size`] or [`RamError::Map`].
    pub fn new(bytes: u64) -> Result<Self, RamError> {
        Self::build(bytes, None)
    }

    /// RAM whose pages are loaded from `source` when they are first touched.
    ///
    /// # Errors
    /// [`RamError::Size`] or [`RamError::Map`].
    pub fn lazy(bytes: u64, source: Arc<dyn PageSource>) -> Result<Self, RamError> {
        Self::build(bytes, Some(source))
    }

    fn build(bytes: u64, source: Option<Arc<dyn PageSource>>) -> Result<Self, RamError> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(RamError::Size(bytes));
        }
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).map_err(|e| {
                RamError::Map {
                    bytes,
                    reason: e.to_string(),
                }
            })?;
        let frames = bytes / PAGE_BYTES;
        Ok(Self {
            memory,
            bytes,
            dirty: FrameSet::empty(frames),
            absent: match &source {
                Some(_) => FrameSet::full(frames),
                None => FrameSet::empty(frames),
            },
            any_absent: AtomicBool::new(source.is_some()),
            source,
            observer: RwLock::new(None),
            unasked: RwLock::new(None),
            loading: Mutex::new(()),
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of frames.
    pub fn frames(&self) -> u64 {
        self.bytes / PAGE_BYTES
    }

    /// Whether all of `start .. start + bytes` is RAM.
    pub fn contains(&self, start: GuestPhys, bytes: u64) -> bool {
        start
            .0
            .checked_add(bytes)
            .is_some_and(|end| end <= self.bytes)
    }

    /// Host address of guest-physical 0, for vCPU implementations only. Whoever writes through it
    /// has called [`Ram::prepare_write`] for the page in this epoch, whoever reads has called
    /// [`Ram::prepare_read`] for the page once.
    pub fn host_base(&self) -> *mut u8 {
        self.memory
            .get_host_address(GuestAddress(0))
            .expect("RAM has at least one page, so address 0 is mapped")
    }

    /// Loads the page if it has not been touched before.
    ///
    /// # Errors
    /// [`RamError::Load`].
    pub fn prepare_read(&self, gfn: Gfn) -> Result<(), RamError> {
        if !self.any_absent.load(Ordering::Relaxed) || !self.absent.contains(gfn) {
            return Ok(());
        }
        let _guard = self
            .loading
            .lock()
            .expect("no panic while the loading lock is held");
        self.load_locked(gfn)
    }

    fn load_locked(&self, gfn: Gfn) -> Result<(), RamError> {
        let Some(source) = self.source.as_ref().filter(|_| self.absent.contains(gfn)) else {
            return Ok(());
        };
        let mut page = [0; PAGE_BYTES as usize];
        source
            .load(gfn, &mut page)
            .map_err(|source| RamError::Load { gfn, source })?;
        self.memory
            .write_slice(&page, GuestAddress(gfn.base().0))
            .expect("the frame is inside RAM");
        self.absent.remove(gfn);
        Ok(())
    }

    /// Must precede the first write of an epoch to a page (calling it again is harmless): loads the
    /// page, shows it to the observer, marks it dirty.
    ///
    /// # Errors
    /// [`RamError::Load`].
    pub fn prepare_write(&self, gfn: Gfn) -> Result<(), RamError> {
        if self.dirty.contains(gfn) {
            return Ok(());
        }
        self.prepare_read(gfn)?;
        let observer = self.observer.read().expect("observers do not panic");
        if let Some(observer) = &*observer {
            observer.before_first_write(gfn, Before::new(self, gfn));
        }
        drop(observer);
        self.dirty.insert(gfn);
        Ok(())
    }

    /// The page was written without asking.
    pub fn mark_dirty(&self, gfn: Gfn) {
        self.dirty.insert(gfn);
    }

    /// Whether the page was written in this epoch.
    pub fn is_dirty(&self, gfn: Gfn) -> bool {
        self.dirty.contains(gfn)
    }

    /// Says who knows of writes that are made without asking, or that there are none any more.
    pub fn set_unasked_writes(&self, writes: Option<Arc<dyn UnaskedWrites>>) {
        *self.unasked.write().expect("no panic under the lock") = writes;
    }

    fn unasked(&self) -> Option<Arc<dyn UnaskedWrites>> {
        self.unasked
            .read()
            .expect("no panic under the lock")
            .clone()
    }

    fn collect(&self, end: bool) {
        if let Some(writes) = self.unasked() {
            writes.collect(end, &mut |gfn| {
                self.dirty.insert(gfn);
            });
        }
    }

    /// Whether observers see all pages before they are written. If not, an observer must have what it
    /// wants before the vCPU goes on.
    pub fn holds_writes(&self) -> bool {
        self.unasked().is_none_or(|writes| writes.can_hold())
    }

    /// A write without asking waits for this page: shows it to the observer, then calls `go_on`. Epochs do
    /// not change meanwhile.
    pub fn let_write(&self, gfn: Gfn, go_on: impl FnOnce()) {
        let observer = self.observer.read().expect("observers do not panic");
        if let Some(observer) = &*observer {
            observer.before_first_write(gfn, Before::new(self, gfn));
        }
        go_on();
    }

    /// The observer has all that it wants of these frames.
    pub fn release(&self, frames: &FrameBits) {
        if let Some(writes) = self.unasked() {
            writes.release(frames);
        }
    }

    /// The frames written in this epoch, in order.
    pub fn dirty_frames(&self) -> Vec<Gfn> {
        self.dirty_bits().iter().collect()
    }

    /// The frames written in this epoch, at a cost that does not depend on their number.
    pub fn dirty_bits(&self) -> FrameBits {
        self.collect(false);
        self.dirty.bits()
    }

    /// The frames that were never touched, in order. Empty unless loading is lazy.
    pub fn absent_frames(&self) -> Vec<Gfn> {
        if self.any_absent.load(Ordering::Relaxed) {
            self.absent.bits().iter().collect()
        } else {
            Vec::new()
        }
    }

    /// Ends an epoch and starts the next: returns the frames written in the old one and sets who sees
    /// first writes in the new one. The vCPU's write tracking must be armed again before it runs
    /// ([`crate::vcpu::Vcpu::arm_write_tracking`]). The time it takes depends on the size of RAM, not
    /// on how much was written.
    pub fn begin_epoch(&self, observer: Option<Arc<dyn WriteObserver>>) -> FrameBits {
        // Held until writes are: `let_write` for a write of the old epoch waits, and then asks the new
        // observer.
        let mut current = self.observer.write().expect("observers do not panic");
        self.collect(true);
        let frames = self.dirty.take();
        *current = observer;
        if let (Some(writes), true) = (self.unasked(), current.is_some()) {
            writes.hold(&frames);
        }
        frames
    }

    /// As [`Ram::page`], on the heap.
    pub fn boxed_page(&self, gfn: Gfn) -> Box<PageBytes> {
        let mut page = Box::new([0; PAGE_BYTES as usize]);
        self.memory
            .read_slice(&mut *page, GuestAddress(gfn.base().0))
            .expect("callers name frames inside RAM");
        page
    }

    /// A copy of the page as it is now. Call it while nothing can write the page: the vCPU does not
    /// run, or whoever observes writes holds the first one back.
    pub fn page(&self, gfn: Gfn) -> PageBytes {
        let mut page = [0; PAGE_BYTES as usize];
        self.memory
            .read_slice(&mut page, GuestAddress(gfn.base().0))
            .expect("callers name frames inside RAM");
        page
    }

    /// Reads bytes while the vCPU does not run.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`], [`RamError::Load`].
    pub fn read(&self, start: GuestPhys, into: &mut [u8]) -> Result<(), RamError> {
        self.each_frame(start, into.len() as u64, |gfn| self.prepare_read(gfn))?;
        self.memory
            .read_slice(into, GuestAddress(start.0))
            .map_err(|_| self.out_of_range(start, into.len() as u64))
    }

    /// Writes bytes while the vCPU does not run; it must be told with
    /// [`crate::vcpu::Vcpu::ram_written`]. Devices use the logging handle instead.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`], [`RamError::Load`]; then nothing was written.
    pub fn write(&self, start: GuestPhys, from: &[u8]) -> Result<(), RamError> {
        self.each_frame(start, from.len() as u64, |gfn| self.prepare_write(gfn))?;
        self.memory
            .write_slice(from, GuestAddress(start.0))
            .map_err(|_| self.out_of_range(start, from.len() as u64))
    }

    fn each_frame(
        &self,
        start: GuestPhys,
        bytes: u64,
        mut visit: impl FnMut(Gfn) -> Result<(), RamError>,
    ) -> Result<(), RamError> {
        if !self.contains(start, bytes) {
            return Err(self.out_of_range(start, bytes));
        }
        if bytes == 0 {
            return Ok(());
        }
        (start.gfn().0..=GuestPhys(start.0 + bytes - 1).gfn().0).try_for_each(|g| visit(Gfn(g)))
    }

    fn out_of_range(&self, start: GuestPhys, bytes: u64) -> RamError {
        RamError::OutOfRange {
            start,
            bytes,
            ram_bytes: self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn an_epoch_reports_each_written_frame_once_and_shows_its_old_content() {
        struct Seen(Mutex<Vec<(Gfn, u8)>>);
        impl WriteObserver for Seen {
            fn before_first_write(&self, gfn: Gfn, before: Before<'_>) {
                self.0.lock().unwrap().push((gfn, before.copy()[0]));
            }
        }
        let ram = Ram::new(16 * PAGE_BYTES).unwrap();
        ram.write(GuestPhys(0x3000), &[7]).unwrap();
        let seen = Arc::new(Seen(Mutex::new(Vec::new())));
        assert!(ram.begin_epoch(Some(seen.clone())).iter().eq([Gfn(3)]));
        ram.write(GuestPhys(0x2fff), &[1, 2]).unwrap();
        ram.write(GuestPhys(0x3001), &[3]).unwrap();
        assert_eq!(*seen.0.lock().unwrap(), [(Gfn(2), 0), (Gfn(3), 7)]);
        assert_eq!(ram.dirty_frames(), [Gfn(2), Gfn(3)]);
    }

    #[test]
    fn lazy_pages_are_loaded_once_on_first_touch() {
        struct Pattern(AtomicU64);
        impl PageSource for Pattern {
            fn load(
                &self,
                gfn: Gfn,
                page: &mut PageBytes,
            ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                self.0.fetch_add(1, Ordering::Relaxed);
                page.fill(gfn.0 as u8 + 1);
                Ok(())
            }
        }
        let source = Arc::new(Pattern(AtomicU64::new(0)));
        let ram = Ram::lazy(4 * PAGE_BYTES, source.clone()).unwrap();
        let mut two = [0; 2];
        ram.read(GuestPhys(0x1fff), &mut two).unwrap();
        assert_eq!(two, [2, 3]);
        ram.write(GuestPhys(0x1000), &[9]).unwrap();
        ram.read(GuestPhys(0x1000), &mut two).unwrap();
        assert_eq!((two, source.0.load(Ordering::Relaxed)), ([9, 2], 2));
        assert_eq!(ram.absent_frames(), [Gfn(0), Gfn(3)]);
    }

    #[test]
    fn accesses_outside_ram_are_refused_whole() {
        let ram = Ram::new(PAGE_BYTES).unwrap();
        assert!(ram.write(GuestPhys(0xfff), &[1, 2]).is_err());
        assert!(ram.read(GuestPhys(u64::MAX), &mut [0; 2]).is_err());
        assert_eq!(ram.dirty_frames(), []);
    }
}
