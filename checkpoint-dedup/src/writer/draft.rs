//! What a caller hands over.

use std::sync::Arc;

use crate::error::Error;
use crate::id::{Frame, PAGE_BYTES, Page, PageId};

/// Number of a page space in [`crate::WriterOptions::spaces`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SpaceNo(pub usize);

/// Pages of one space.
#[derive(Default)]
pub(crate) struct DraftSpace {
    pub(crate) frames: Vec<Frame>,
    /// One page per frame, in the same order.
    pub(crate) data: Vec<u8>,
}

/// The changes of one checkpoint, copied.
pub struct Draft {
    spaces: Arc<[(String, u32)]>,
    pub(crate) changed: Vec<DraftSpace>,
    pub(crate) blobs: Vec<(String, Vec<u8>)>,
}

impl Draft {
    pub(crate) fn new(spaces: Arc<[(String, u32)]>) -> Self {
        let changed = spaces.iter().map(|_| DraftSpace::default()).collect();
        Self {
            spaces,
            changed,
            blobs: Vec::new(),
        }
    }

    /// Adds a changed frame. If a frame is added twice, the later content counts.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no such space or frame.
    pub fn put_page(&mut self, space: SpaceNo, frame: Frame, page: &Page) -> Result<(), Error> {
        let frames = self.spaces.get(space.0).map(|(_, frames)| *frames);
        if frames.is_none_or(|frames| frame.0 >= frames) {
            return Err(Error::Refused(format!(
                "space {} has no frame {frame}",
                space.0
            )));
        }
        let changed = &mut self.changed[space.0];
        changed.frames.push(frame);
        changed.data.extend_from_slice(page);
        Ok(())
    }

    /// Adds a named blob: CPU and device state, configuration, or whole files. A name that was
    /// added before is replaced.
    pub fn put_blob(&mut self, name: &str, bytes: Vec<u8>) {
        self.blobs.retain(|(known, _)| known != name);
        self.blobs.push((name.to_owned(), bytes));
    }

    /// Pages added so far.
    pub fn pages(&self) -> usize {
        self.changed.iter().map(|space| space.frames.len()).sum()
    }
}

impl DraftSpace {
    /// The pages by ascending frame, the last one put of each.
    pub(crate) fn sorted(&self) -> Vec<(Frame, &Page)> {
        let (pages, _) = self.data.as_chunks::<PAGE_BYTES>();
        let mut all: Vec<(Frame, usize)> = self.frames.iter().copied().zip(0..).collect();
        all.sort_unstable();
        let mut out: Vec<(Frame, &Page)> = Vec::with_capacity(all.len());
        for (frame, at) in all {
            if out.last().is_some_and(|(last, _)| *last == frame) {
                out.pop();
            }
            out.push((frame, &pages[at]));
        }
        out
    }
}

/// One log segment on its way: its bytes, and the pages that they refer to by [`PageId`].
#[derive(Default)]
pub struct LogDraft {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ids: Vec<PageId>,
    pub(crate) data: Vec<u8>,
}

impl LogDraft {
    /// A segment with these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }

    /// Adds a page that the segment refers to and returns the id to refer to it by.
    pub fn put_page(&mut self, page: &Page) -> PageId {
        let id = PageId::of(page);
        self.ids.push(id);
        self.data.extend_from_slice(page);
        id
    }

    /// Sets the bytes, once the ids of all pages are known.
    pub fn set_bytes(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }
}
