//! Who sees writes to RAM before they happen, and who knows of those that nobody was asked for.

use super::{FrameBits, PageBytes, Ram};
use crate::units::Gfn;

/// Sees each page of RAM just before its first write of an epoch.
pub trait WriteObserver: Send + Sync {
    /// The page still has the content of the start of the epoch, and keeps it until this returns.
    fn before_first_write(&self, gfn: Gfn, before: Before<'_>);
}

/// Writes that reach RAM without [`Ram::prepare_write`]: those of a vCPU that runs on hardware.
pub trait UnaskedWrites: Send + Sync {
    /// Calls `mark` for each frame written in this epoch, or for more; again for some, perhaps. With
    /// `end` the next epoch begins.
    fn collect(&self, end: bool, mark: &mut dyn FnMut(Gfn));

    /// Whether writes can be held back.
    fn can_hold(&self) -> bool;

    /// From now on the first write to each of these frames waits until [`Ram::let_write`] was called
    /// for the frame, or the frames are released. Only while the vCPU does not run.
    fn hold(&self, frames: &FrameBits);

    /// Ends that.
    fn release(&self, frames: &FrameBits);
}

/// A page that is about to be written.
#[derive(Clone, Copy)]
pub struct Before<'a> {
    ram: &'a Ram,
    gfn: Gfn,
}

impl<'a> Before<'a> {
    pub(super) fn new(ram: &'a Ram, gfn: Gfn) -> Self {
        Self { ram, gfn }
    }

    /// A copy of its content.
    pub fn copy(&self) -> Box<PageBytes> {
        self.ram.boxed_page(self.gfn)
    }
}
