//! One page space of one checkpoint.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Chain, layer_of, read_content};
use crate::error::Error;
use crate::id::{Frame, PAGE_BYTES, Page, PageRef, fill_of, write_fill};
use crate::map::{Content, Layer};
use crate::store::Store;

/// Pages that one task restores.
const RESTORE_PAGES: usize = 512;

/// A page space of a checkpoint; cheap to clone, readable from any thread.
#[derive(Clone)]
pub struct SpaceView {
    store: Arc<Store>,
    name: Arc<str>,
    frames: u32,
    chain: Arc<Chain>,
    /// The whole map, where the layers hold more entries than there are frames.
    flat: Option<Arc<Layer>>,
}

impl SpaceView {
    pub(super) fn new(store: Arc<Store>, name: &str, frames: u32, chain: Chain) -> Self {
        let mut view = Self {
            store,
            name: name.into(),
            frames,
            chain: Arc::new(chain),
            flat: None,
        };
        if view.layers().map(Layer::len).sum::<usize>() > frames as usize {
            view.flat = Some(Arc::new(view.full_map()));
            view.chain = Arc::default();
        }
        view
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Frames in the space; valid frames are below.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        let layered = self
            .chain
            .iter()
            .filter_map(|entry| layer_of(entry, &self.name));
        self.flat.as_deref().into_iter().chain(layered)
    }

    pub(crate) fn content(&self, frame: Frame) -> Result<Content, Error> {
        if frame.0 >= self.frames {
            return Err(Error::NotInCheckpoint {
                what: format!("frame {frame} of {:?} ({} frames)", self.name, self.frames),
            });
        }
        let found = self.layers().find_map(|layer| layer.get(frame));
        Ok(found.unwrap_or(Content::Fill(0)))
    }

    /// What a frame holds, without reading it. Frames with equal references hold equal pages.
    ///
    /// # Errors
    /// [`Error::NotInCheckpoint`] for a frame beyond the space.
    pub fn page_ref(&self, frame: Frame) -> Result<PageRef, Error> {
        Ok(self.content(frame)?.to_ref(&self.store.index))
    }

    /// Reads the page in a frame.
    ///
    /// # Errors
    /// [`Error::NotInCheckpoint`], [`Error::Damaged`], [`Error::Missing`]; never wrong bytes.
    pub fn read(&self, frame: Frame, page: &mut Page) -> Result<(), Error> {
        read_content(&self.store, self.content(frame)?, page)
    }

    /// The frames whose content is not zero, ascending.
    pub fn nonzero_frames(&self) -> Vec<Frame> {
        let map = self.full_map();
        map.iter()
            .filter(|(_, content)| *content != Content::Fill(0))
            .map(|(f, _)| f)
            .collect()
    }

    /// The frames in one layer.
    pub(crate) fn full_map(&self) -> Layer {
        let mut map = Layer::default();
        for layer in self.layers().collect::<Vec<_>>().into_iter().rev() {
            map = map.merge(layer);
        }
        map
    }

    /// Reads the whole space into `memory`, on all threads of the current rayon pool.
    ///
    /// # Errors
    /// As [`SpaceView::read`]; [`Error::Refused`] if `memory` has another size.
    pub fn restore(&self, memory: &mut [u8]) -> Result<(), Error> {
        if memory.len() != self.frames as usize * PAGE_BYTES {
            return Err(Error::Refused(format!(
                "{:?} has {} bytes, the target {}",
                self.name,
                self.frames as usize * PAGE_BYTES,
                memory.len()
            )));
        }
        let map = self.full_map();
        let mut contents = map.iter().peekable();
        let (mut fills, mut items) = (Vec::new(), Vec::new());
        for (frame, page) in (0..).map(Frame).zip(memory.as_chunks_mut().0) {
            match contents.next_if(|(named, _)| *named == frame) {
                Some((_, Content::Item(item))) => items.push((item, page)),
                Some((_, Content::Fill(word))) => fills.push((word, page)),
                None => fills.push((0, page)),
            }
        }
        fills.par_iter_mut().for_each(|(word, page)| {
            // Fresh memory is zero already, and touching it would cost the caller real pages.
            if fill_of(page) != Some(*word) {
                write_fill(*word, page);
            }
        });
        // In the order in which they are stored, so that each group is decoded once.
        items.par_sort_unstable_by_key(|(item, _)| *item);
        items
            .par_chunks_mut(RESTORE_PAGES)
            .try_for_each(|items| self.store.pages_into(items))
    }
}
