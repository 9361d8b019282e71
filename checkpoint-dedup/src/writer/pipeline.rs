//! The thread that turns drafts into published objects, and what it remembers between them.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use super::draft::{Draft, DraftSpace, LogDraft};
use super::encode::Diligence;
use super::frames::FrameTable;
use super::packer::Packer;
use super::{Haste, Published, Request, Shared, WriterOptions};
use crate::backend::Backend;
use crate::codec::sample::SampleIndex;
use crate::condemned;
use crate::error::Error;
use crate::id::{CheckpointNo, RecordingId};
use crate::index::{Fingerprints, Item, segment};
use crate::lock::{self, Lease};
use crate::map::Layer;
use crate::recording::{self, End, Part};
use crate::store::{CacheLimits, Store};

/// Packs that are published before their directories are gathered in an index segment.
const PACKS_PER_SEGMENT: usize = 64;

/// How often the pipeline looks for packs that garbage collection wants to delete.
const HONOUR_EVERY: Duration = Duration::from_millis(300);

/// What can be asked of the pipeline.
pub(super) enum Job {
    /// Changed pages of the next checkpoint, ahead of the rest.
    Pages(Vec<DraftSpace>),
    Checkpoint(CheckpointNo, Draft),
    Log(CheckpointNo, LogDraft),
    Finish,
}

/// One page space between checkpoints.
pub(super) struct SpaceState {
    pub(super) name: String,
    pub(super) frames: u32,
    pub(super) now: FrameTable,
}

/// The state of the writer.
pub(super) struct Pipeline {
    pub(super) store: Store,
    pub(super) recording: RecordingId,
    pub(super) spaces: Vec<SpaceState>,
    pub(super) fingerprints: Fingerprints,
    pub(super) similar: SampleIndex,
    pub(super) packer: Packer,
    pub(super) parent: [u8; 32],
    pub(super) last: Option<CheckpointNo>,
    /// The number of the next checkpoint.
    pub(super) next: CheckpointNo,
    /// Pages of the next checkpoint that are stored already, per space.
    pub(super) early: Vec<Layer>,
    early_done: Published,
    /// Packs that nothing new may refer to.
    pub(super) condemned: HashSet<u32>,
    lease: Lease,
    haste: Haste,
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
        recording: RecordingId,
        options: &WriterOptions,
        shared: Arc<Shared>,
        lease: Lease,
    ) -> Result<Self, Error> {
        let store = Store::new(backend, caches);
        let mut fingerprints = Fingerprints::new(options.duplicates_bytes);
        // Listed after the lease was taken and before the packs are: a pack that is deleted from
        // now on is either condemned here or waits for an acknowledgement.
        let (condemned, _) = condemned::list(&*store.backend)?;
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
        });
        let mut pipeline = Self {
            packer: Packer::new(&store, options.level),
            store,
            recording,
            spaces: spaces.collect(),
            fingerprints,
            similar: SampleIndex::new(options.similarity_bytes),
            parent: [0; 32],
            last: None,
            next: CheckpointNo(0),
            early: Vec::new(),
            early_done: Published::default(),
            condemned: HashSet::new(),
            lease,
            haste: options.haste,
            budget: options.decode_budget,
            level: options.level,
            diligence: Diligence::Full,
            done: Published::default(),
            uncovered: Vec::new(),
            shared,
        };
        pipeline.honour(&condemned)?;
        Ok(pipeline)
    }

    /// Refers to nothing in condemned packs from now on, and says so. Only between jobs, and with
    /// no page stored ahead of its checkpoint: everything found so far is published then.
    fn honour(&mut self, lists: &[condemned::Condemned]) -> Result<(), Error> {
        let packs = lists.iter().flat_map(|list| &list.packs);
        let condemned: HashSet<u32> = packs.map(|&id| self.store.index.number(id)).collect();
        if condemned != self.condemned {
            // Not everything that was stored is in a manifest: a page that was replaced before its
            // checkpoint was complete is not.
            let gone = |item: Item| condemned.contains(&item.pack);
            self.similar.forget(gone);
            self.spaces
                .iter_mut()
                .for_each(|space| space.now.forget(gone));
            self.condemned = condemned;
        }
        self.lease
            .acknowledge(lists.iter().map(|list| list.id).collect())
    }

    fn look_for_condemned(&mut self) {
        if !self.early.is_empty() || self.shared.failure().is_some() {
            return;
        }
        // A failure only holds up garbage collection.
        if let Ok((lists, _)) = condemned::list(&*self.store.backend) {
            let _ = self.honour(&lists);
        }
    }

    /// Works until the last sender is gone. After a failure everything else is refused: the
    /// state in memory may be ahead of what is stored.
    pub(super) fn run(mut self, jobs: Receiver<Request>) {
        let mut looked = Instant::now();
        loop {
            if looked.elapsed() >= HONOUR_EVERY {
                self.look_for_condemned();
                looked = Instant::now();
            }
            let (job, reply) = match jobs.recv_timeout(HONOUR_EVERY) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
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
        self.diligence = match self.haste {
            Haste::GiveWay => Diligence::for_backlog(waiting),
            Haste::Thorough => Diligence::Full,
        };
        match job {
            Job::Pages(changed) => {
                self.done = self.early_done;
                self.pages(&changed)?;
                self.early_done = self.done;
            }
            Job::Checkpoint(number, draft) => {
                self.done = std::mem::take(&mut self.early_done);
                self.checkpoint(number, &draft)?;
            }
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
            written_unix_ns: lock::unix_ns(SystemTime::now()),
            last,
            complete: true,
        };
        let key = recording::key(self.recording, Part::End(last));
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
