//! A recording that is kept in memory.

use super::{Checkpoint, CheckpointSink, CheckpointSource, StoreError};
use crate::ram::PageBytes;
use crate::units::{Gfn, PAGE_BYTES};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Why [`MemoryStore`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryStoreError {
    /// A sink was called out of order.
    #[error("checkpoint sink called out of order: {0}")]
    Order(&'static str),
    /// There is no such checkpoint.
    #[error("no checkpoint {0}")]
    NoCheckpoint(u64),
    /// There is no such interval.
    #[error("no interval {0}")]
    NoInterval(u64),
    /// No content has this id.
    #[error("no stored content {0:02x?}")]
    NoContent([u8; 32]),
}

type Pages = BTreeMap<Gfn, Box<PageBytes>>;

#[derive(Default)]
struct Kept {
    open: Option<(Arc<Checkpoint>, Pages)>,
    published: Vec<(Arc<Checkpoint>, Pages)>,
    segments: Vec<Vec<u8>>,
    contents: BTreeMap<[u8; 32], Box<PageBytes>>,
}

/// Both ends of a recording in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Kept>>);

impl MemoryStore {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no panic while the store is locked")
    }
}

impl CheckpointSink for MemoryStore {
    fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut kept = self.kept();
        if kept.open.is_some() || kept.published.len() as u64 != checkpoint.number {
            return Err(MemoryStoreError::Order("begin").into());
        }
        kept.open = Some((Arc::new(checkpoint.clone()), Pages::new()));
        Ok(())
    }

    fn page(&mut self, gfn: Gfn, content: &PageBytes) -> Result<(), StoreError> {
        let mut kept = self.kept();
        let (_, pages) = kept.open.as_mut().ok_or(MemoryStoreError::Order("page"))?;
        match pages.insert(gfn, Box::new(*content)) {
            None => Ok(()),
            Some(_) => Err(MemoryStoreError::Order("a page came twice").into()),
        }
    }

    fn content(&mut self, id: [u8; 32], content: &PageBytes) -> Result<(), StoreError> {
        self.kept().contents.insert(id, Box::new(*content));
        Ok(())
    }

    fn publish(&mut self, segment: Option<&[u8]>) -> Result<(), StoreError> {
        let mut kept = self.kept();
        let (checkpoint, pages) = kept.open.take().ok_or(MemoryStoreError::Order("publish"))?;
        if !checkpoint.changed.iter().eq(pages.keys()) {
            return Err(MemoryStoreError::Order("pages missing or not announced").into());
        }
        if segment.is_some() != (checkpoint.number > 0) {
            return Err(MemoryStoreError::Order("segment missing or not expected").into());
        }
        kept.published.push((checkpoint, pages));
        kept.segments.extend(segment.map(<[u8]>::to_vec));
        Ok(())
    }
}

impl CheckpointSource for MemoryStore {
    fn checkpoints(&self) -> Result<u64, StoreError> {
        Ok(self.kept().published.len() as u64)
    }

    fn checkpoint(&self, number: u64) -> Result<Arc<Checkpoint>, StoreError> {
        let kept = self.kept();
        let found = usize::try_from(number)
            .ok()
            .and_then(|index| kept.published.get(index));
        let (checkpoint, _) = found.ok_or(MemoryStoreError::NoCheckpoint(number))?;
        Ok(checkpoint.clone())
    }

    fn page(&self, number: u64, gfn: Gfn, page: &mut PageBytes) -> Result<(), StoreError> {
        let kept = self.kept();
        let until = usize::try_from(number)
            .ok()
            .and_then(|index| kept.published.get(..=index))
            .ok_or(MemoryStoreError::NoCheckpoint(number))?;
        let newest = until.iter().rev().find_map(|(_, pages)| pages.get(&gfn));
        *page = newest.map_or([0; PAGE_BYTES as usize], |content| **content);
        Ok(())
    }

    fn content(&self, id: &[u8; 32], page: &mut PageBytes) -> Result<(), StoreError> {
        let kept = self.kept();
        let found = kept.contents.get(id);
        *page = **found.ok_or(MemoryStoreError::NoContent(*id))?;
        Ok(())
    }

    fn segment(&self, interval: u64) -> Result<Vec<u8>, StoreError> {
        let kept = self.kept();
        let found = usize::try_from(interval)
            .ok()
            .and_then(|index| kept.segments.get(index));
        Ok(found.ok_or(MemoryStoreError::NoInterval(interval))?.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::CpuState;
    use crate::units::VirtualNanos;

    fn checkpoint(number: u64, changed: &[u64]) -> Checkpoint {
        Checkpoint {
            number,
            cpu: CpuState::default(),
            position: None,
            time: VirtualNanos(number),
            devices: Vec::new(),
            ram_bytes: 16 * PAGE_BYTES,
            changed: changed.iter().copied().map(Gfn).collect(),
        }
    }

    #[test]
    fn a_page_is_that_of_the_newest_checkpoint_up_to_the_one_asked_for() {
        let mut store = MemoryStore::default();
        store.begin(&checkpoint(0, &[1, 2])).unwrap();
        CheckpointSink::page(&mut store, Gfn(2), &[2; 4096]).unwrap();
        CheckpointSink::page(&mut store, Gfn(1), &[1; 4096]).unwrap();
        store.publish(None).unwrap();
        store.begin(&checkpoint(1, &[2])).unwrap();
        CheckpointSink::page(&mut store, Gfn(2), &[9; 4096]).unwrap();
        store.publish(Some(b"log")).unwrap();
        let mut page = [0xff; 4096];
        let rows = [(0, 1, 1), (0, 2, 2), (1, 1, 1), (1, 2, 9), (1, 5, 0)];
        for (number, gfn, expected) in rows {
            CheckpointSource::page(&store, number, Gfn(gfn), &mut page).unwrap();
            assert_eq!(page, [expected; 4096], "checkpoint {number} frame {gfn}");
        }
        assert_eq!(store.segment(0).unwrap(), b"log");
        assert!(store.segment(1).is_err());
        assert!(store.checkpoint(2).is_err());
    }

    #[test]
    fn calls_out_of_order_are_refused() {
        let mut store = MemoryStore::default();
        assert!(store.begin(&checkpoint(1, &[])).is_err());
        assert!(CheckpointSink::page(&mut store, Gfn(0), &[0; 4096]).is_err());
        store.begin(&checkpoint(0, &[3])).unwrap();
        assert!(store.publish(None).is_err(), "page 3 never came");
    }
}
