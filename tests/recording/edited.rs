//! A recording with something wrong in it.

use machine::checkpoint::memory::MemoryStore;
use machine::checkpoint::{Checkpoint, CheckpointSource, StoreError};
use machine::ram::PageBytes;
use machine::units::Gfn;
use std::sync::Arc;

/// Changes what a source says about a checkpoint, by number.
type EditCheckpoint = fn(&mut Checkpoint);

/// Changes the bytes of a segment.
type EditSegment = Box<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// A recording of which some answers are changed.
pub struct Edited {
    /// The recording as it was made.
    pub recording: MemoryStore,
    /// A bit to flip in a page: checkpoint, frame, bit in the page.
    pub page_bit: Option<(u64, Gfn, usize)>,
    /// A change of a checkpoint.
    pub checkpoint: Option<(u64, EditCheckpoint)>,
    /// A change of a segment.
    pub segment: Option<(u64, EditSegment)>,
}

impl Edited {
    /// The recording as it is.
    pub fn new(recording: MemoryStore) -> Self {
        Self {
            recording,
            page_bit: None,
            checkpoint: None,
            segment: None,
        }
    }
}

impl CheckpointSource for Edited {
    fn checkpoints(&self) -> Result<u64, StoreError> {
        self.recording.checkpoints()
    }

    fn checkpoint(&self, number: u64) -> Result<Arc<Checkpoint>, StoreError> {
        let mut checkpoint = self.recording.checkpoint(number)?;
        if let Some((_, edit)) = self.checkpoint.filter(|(at, _)| *at == number) {
            edit(Arc::make_mut(&mut checkpoint));
        }
        Ok(checkpoint)
    }

    fn page(&self, number: u64, gfn: Gfn, page: &mut PageBytes) -> Result<(), StoreError> {
        CheckpointSource::page(&self.recording, number, gfn, page)?;
        if let Some((_, _, bit)) = self.page_bit.filter(|(n, g, _)| (*n, *g) == (number, gfn)) {
            page[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    fn content(&self, id: &[u8; 32], page: &mut PageBytes) -> Result<(), StoreError> {
        CheckpointSource::content(&self.recording, id, page)
    }

    fn segment(&self, interval: u64) -> Result<Vec<u8>, StoreError> {
        let mut segment = self.recording.segment(interval)?;
        if let Some((_, edit)) = self.segment.as_ref().filter(|(at, _)| *at == interval) {
            edit(&mut segment);
        }
        Ok(segment)
    }
}
