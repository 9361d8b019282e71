//! The thread that turns drafts into published objects, and what it remembers between them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Instant, SystemTime};

use super::draft::{Draft, LogDraft};
use super::encode::Diligence;
use super::frames::FrameTable;
use super::packer::Packer;
use super::{Published, Request, Shared, WriterOptions};
use crate::backend::Backend;
use crate::codec::sample::SampleIndex;
use crate::error::Error;
use crate::id::{CheckpointNo, RecordingId, RecordingName};
use crate::index::{Fingerprints, segment};
use crate::lock;
use crate::map::Layer;
use crate::recording::{self, End, Part};
use crate::store::{CacheLimits, Store};

/// Packs that are published before their directories are gathered in an index segment.
const PACKS_PER_SEGMENT: usize = 64;

/// What can be asked of the pipeline.
pub(super) enum Job {
    Checkpoint(CheckpointNo, Draft),
    Log(CheckpointNo, LogDraft),
    Finish,
}

/// One page space between checkpoints.
pub(super) struct SpaceState {
    pub(super) name: String,
    pub(super) frames: u32,
    pub(super) now: FrameTable,
    /// Layers not merged yet, per power of eight.
    pub(super) levels: Vec<Vec<Arc<Layer>>>,
}

/// The state of the writer.
pub(super) struct Pipeline {
    pub(super) store: Store,
    pub(super) name: RecordingName,
    pub(super) recording: RecordingId,
    pub(super) spaces: Vec<SpaceState>,
    pub(super) fingerprints: Fingerprints,
    pub(super) similar: SampleIndex,
    pub(super) packer: Packer,
    pub(super) parent: [u8; 32],
    pub(super) last: Option<CheckpointNo>,
    pub(super) budget: u8,
    pub(super) level: i32,
    pub(super) diligence: Diligence,
    pub(super) done: Published,
    /// Packs published since the last index segment.
    pub(super) uncovered: Vec<segment::Covered>,
    shared: Arc<Shared>,
}

impl Pipeline {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        caches: CacheLimits,
        name: &RecordingName,
        recording: RecordingId,
        options: &WriterOptions,
        shared: Arc<Shared>,
    ) -> Result<Self, Error> {
        let store = Store::new(backend, caches);
        let mut fingerprints = Fingerprints::default();
        let mut found = Vec::new();
        store
            .index
            .refresh_with(&mut |pack, prints| found.push((pack, prints)))?;
        for (pack, prints) in found {
            fingerprints.add_pack(pack, &prints);
        }
        let spaces = options.spaces.iter().map(|(name, frames)| SpaceState {
            name: name.clone(),
            frames: *frames,
            now: FrameTable::new(*frames),
            levels: Vec::new(),
        });
        Ok(Self {
            packer: Packer::new(&store, options.level),
            store,
            name: name.clone(),
            recording,
            spaces: spaces.collect(),
            fingerprints,
            similar: SampleIndex::new(options.similarity_bytes),
            parent: [0; 32],
            last: None,
            budget: options.decode_budget,
            level: options.level,
            diligence: Diligence::Full,
            done: Published::default(),
            uncovered: Vec::new(),
            shared,
        })
    }

    /// Works until the last sender is gone. After a failure everything else is refused: the
    /// state in memory may be ahead of what is stored.
    pub(super) fn run(mut self, jobs: Receiver<Request>) {
        for (job, reply) in jobs {
            let waiting = self.shared.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
            let result = match self.shared.failure() {
                Some(reason) => Err(reason),
                None => self.work(job, waiting).map_err(|error| error.to_string()),
            };
            if let Err(reason) = &result {
                self.shared.fail(reason);
            }
            // The caller may not care.
            let _ = reply.send(result);
        }
    }

    fn work(&mut self, job: Job, waiting: usize) -> Result<Published, Error> {
        let start = Instant::now();
        self.done = Published::default();
        self.diligence = Diligence::for_backlog(waiting);
        match job {
            Job::Checkpoint(number, draft) => self.checkpoint(number, &draft)?,
            Job::Log(number, log) => self.log(number, &log)?,
            Job::Finish => self.finish()?,
        }
        self.done.busy = start.elapsed();
        Ok(self.done)
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.publish_segment(1)?;
        let Some(last) = self.last else {
            return Err(Error::Refused(
                "a recording without checkpoints cannot finish".to_owned(),
            ));
        };
        let end = End {
            recording: self.recording,
            finished_unix_ns: lock::unix_ns(SystemTime::now()),
            last,
        };
        let key = recording::key(&self.name, Part::End);
        self.store.backend.put_if_absent(&key, &end.encode())?;
        Ok(())
    }

    /// Publishes the pack being filled, if it holds anything.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        if self.packer.is_empty() {
            return Ok(());
        }
        let next = Packer::new(&self.store, self.level);
        let packer = std::mem::replace(&mut self.packer, next);
        let number = packer.number;
        let (bytes, covered) = packer.publish(&self.store)?;
        self.done.pack_bytes += bytes;
        self.fingerprints.add_pack(number, &covered.fingerprints);
        self.uncovered.push(covered);
        self.publish_segment(PACKS_PER_SEGMENT)
    }

    fn publish_segment(&mut self, at_least: usize) -> Result<(), Error> {
        if self.uncovered.len() >= at_least {
            segment::publish(&*self.store.backend, &self.uncovered)?;
            self.uncovered.clear();
        }
        Ok(())
    }
}
