//! Checkpoints and logs on their way into the repository.
//!
//! Called on the recorder's sink thread; hashing, search for similar pages, encoding and writing
//! happen on the store's own threads. The segment of an interval is published before the checkpoint
//! that ends it, so whoever sees checkpoint k + 1 finds segment k. What waits for the store is
//! bounded in bytes: beyond that the sink's thread waits, then the recorder's queue fills, then the
//! guest stands still and the summary says for how long.

use super::moment::Moment;
use super::{CPU_BLOB, DEVICE_BLOB, MOMENT_BLOB, RAM_SPACE};
use crate::cores::cpus;
use checkpoint_dedup::{
    CheckpointNo, Draft, Error, Frame, LogDraft, Patience, Published, RecordingName, Repository,
    SpaceNo, Ticket, Writer, WriterOptions,
};
use indicatif::ProgressBar;
use machine::checkpoint::{Checkpoint, CheckpointSink, StoreError};
use machine::ram::PageBytes;
use machine::saved::Blob;
use machine::units::{Gfn, PAGE_BYTES};
use replay_log::{Async, Content, Effect, Event, Segment};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};

/// Most bytes of pages that wait for the store.
const MOST_WAITING_BYTES: u64 = 256 << 20;

/// Jobs that the store's queue takes; what bounds the memory is [`MOST_WAITING_BYTES`].
const STORE_QUEUE: usize = 64;

/// What came into the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stored {
    /// Pages of checkpoints and logs.
    pub(crate) pages: u64,
    /// Of these, equal to what the frame held before.
    pub(crate) unchanged_pages: u64,
    /// Of these, filled with one value.
    pub(crate) filled_pages: u64,
    /// Of these, in the repository already.
    pub(crate) duplicate_pages: u64,
    /// Of these, stored as an edit of other pages.
    pub(crate) delta_pages: u64,
    /// Of these, stored whole.
    pub(crate) whole_pages: u64,
    /// Bytes of all pages as they came.
    pub(crate) in_bytes: u64,
    /// Bytes of packs, manifests and log segments written.
    pub(crate) stored_bytes: u64,
    /// Of these, manifests and log segments.
    pub(crate) manifest_bytes: u64,
    /// Time that the store's thread worked.
    pub(crate) busy_ns: u64,
    /// Most bytes of pages that waited for the store: what a crash would have lost beside the open
    /// interval.
    pub(crate) most_waiting_bytes: u64,
}

impl Stored {
    fn add(&mut self, published: &Published) {
        self.pages += published.pages;
        self.unchanged_pages += published.unchanged;
        self.filled_pages += published.filled;
        self.duplicate_pages += published.duplicates;
        self.delta_pages += published.deltas;
        self.whole_pages += published.whole;
        self.in_bytes += published.pages * PAGE_BYTES;
        self.stored_bytes += published.pack_bytes + published.manifest_bytes;
        self.manifest_bytes += published.manifest_bytes;
        self.busy_ns += published.busy.as_nanos() as u64;
    }
}

/// The sink of one recording. Clones share it, so that whoever gave one to the recorder can finish
/// the recording with the other.
#[derive(Clone)]
pub(crate) struct StoreSink(Arc<Mutex<State>>);

struct State {
    writer: Option<Writer>,
    open: Option<(u64, Draft)>,
    /// Pages that logs refer to: how many references are still to come, and the page.
    contents: HashMap<[u8; 32], (u64, Box<PageBytes>)>,
    waiting: VecDeque<(Ticket, u64)>,
    waiting_bytes: u64,
    stored: Stored,
    progress: ProgressBar,
}

/// One CPU is the guest's.
fn threads_beside_the_guest() -> NonZeroUsize {
    NonZeroUsize::new(cpus() - 1).unwrap_or(NonZeroUsize::MIN)
}

impl StoreSink {
    /// Begins a recording.
    ///
    /// # Errors
    /// Those of [`Repository::write`].
    pub(crate) fn begin(
        repository: &Repository,
        name: &RecordingName,
        memory_bytes: u64,
        note: Vec<u8>,
        progress: ProgressBar,
    ) -> Result<Self, Error> {
        let frames = u32::try_from(memory_bytes / PAGE_BYTES)
            .map_err(|_| Error::Refused("a guest of 16 TiB or more".into()))?;
        let options = WriterOptions {
            spaces: vec![(RAM_SPACE.into(), frames)],
            note,
            patience: Patience::default(),
            queue: STORE_QUEUE,
            threads: Some(threads_beside_the_guest()),
            ..WriterOptions::default()
        };
        // The store's threads inherit the niceness of the thread that starts them.
        let start = || {
            kvm_recorder::yield_to_guest();
            repository.write(name, options)
        };
        let writer = std::thread::scope(|scope| scope.spawn(start).join())
            .expect("starting a writer does not panic")?;
        Ok(Self(Arc::new(Mutex::new(State {
            writer: Some(writer),
            open: None,
            contents: HashMap::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            stored: Stored::default(),
            progress,
        }))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the sink is locked")
    }

    /// The identity of the recording.
    pub(crate) fn recording_id(&self) -> [u8; 16] {
        let state = self.state();
        let writer = state
            .writer
            .as_ref()
            .expect("the recording is not finished");
        *writer.recording_id().as_bytes()
    }

    /// Waits until everything is durable and marks the recording as complete.
    ///
    /// # Errors
    /// The first failure of the store; the recording then counts as dead, and what it published
    /// stays.
    pub(crate) fn finish(&self) -> Result<Stored, Error> {
        let mut state = self.state();
        state.settle(0)?;
        let writer = state.writer.take().expect("a recording is finished once");
        writer.finish()?;
        Ok(state.stored)
    }
}

impl State {
    fn writer(&mut self) -> Result<&mut Writer, Error> {
        let finished = || Error::Refused("the recording is finished".into());
        self.writer.as_mut().ok_or_else(finished)
    }

    fn handed_over(&mut self, ticket: Ticket, bytes: u64) -> Result<(), Error> {
        self.waiting.push_back((ticket, bytes));
        self.waiting_bytes += bytes;
        self.stored.most_waiting_bytes = self.stored.most_waiting_bytes.max(self.waiting_bytes);
        self.settle(MOST_WAITING_BYTES)
    }

    /// Waits until at most `most_bytes` wait for the store.
    fn settle(&mut self, most_bytes: u64) -> Result<(), Error> {
        while self.waiting_bytes > most_bytes || most_bytes == 0 {
            let Some((ticket, bytes)) = self.waiting.pop_front() else {
                break;
            };
            self.stored.add(&ticket.wait()?);
            self.waiting_bytes -= bytes;
        }
        Ok(())
    }

    fn log_draft(&mut self, segment: &[u8]) -> Result<(LogDraft, u64), StoreError> {
        let mut draft = LogDraft::new(segment.to_vec());
        let mut pages = 0;
        // Without whole pages from devices there is nothing to look for.
        if !self.contents.is_empty() {
            for id in contents_of(&Segment::read(segment)?) {
                let Some((references, page)) = self.contents.get_mut(&id) else {
                    continue;
                };
                draft.put_page(page);
                pages += 1;
                *references -= 1;
                if *references == 0 {
                    self.contents.remove(&id);
                }
            }
        }
        Ok((draft, pages * PAGE_BYTES))
    }
}

/// The stored pages that a segment refers to, once per reference.
fn contents_of(segment: &Segment) -> Vec<[u8; 32]> {
    let id = |event: &Event| match event {
        Event::Async(Async {
            effect:
                Effect::Write {
                    content: Content::Page { id, .. },
                    ..
                },
            ..
        }) => Some(id.0),
        _ => None,
    };
    segment.events.iter().filter_map(id).collect()
}

impl CheckpointSink for StoreSink {
    fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut state = self.state();
        let mut draft = state.writer()?.draft();
        draft.put_blob(CPU_BLOB, checkpoint.cpu.save().to_blob());
        draft.put_blob(MOMENT_BLOB, Moment::of(checkpoint).encode());
        for device in &checkpoint.devices {
            let name = format!("{DEVICE_BLOB}{}", device.name);
            draft.put_blob(&name, device.bytes.clone());
        }
        state.open = Some((checkpoint.number, draft));
        let seconds = checkpoint.time.0 as f64 / 1e9;
        let message = format!(
            "checkpoint {} at {seconds:.1} s of guest time",
            checkpoint.number
        );
        state.progress.set_message(message);
        Ok(())
    }

    fn page(&mut self, gfn: Gfn, content: &PageBytes) -> Result<(), StoreError> {
        let mut state = self.state();
        let (_, draft) = state.open.as_mut().expect("begin comes before pages");
        let frame = u32::try_from(gfn.0).map_err(|_| format!("frame {gfn} is out of range"))?;
        Ok(draft.put_page(SpaceNo(0), Frame(frame), content)?)
    }

    fn content(&mut self, id: [u8; 32], content: &PageBytes) -> Result<(), StoreError> {
        let mut state = self.state();
        let entry = state
            .contents
            .entry(id)
            .or_insert_with(|| (0, Box::new(*content)));
        entry.0 += 1;
        Ok(())
    }

    fn publish(&mut self, segment: Option<&[u8]>) -> Result<(), StoreError> {
        let mut state = self.state();
        let (number, draft) = state.open.take().expect("begin comes before publish");
        if let Some(segment) = segment {
            let (log, bytes) = state.log_draft(segment)?;
            let interval = u32::try_from(number - 1)?;
            let ticket = state.writer()?.publish_log(CheckpointNo(interval), log)?;
            state.handed_over(ticket, bytes + segment.len() as u64)?;
        }
        let bytes = draft.pages() as u64 * PAGE_BYTES;
        let ticket = state.writer()?.publish(draft)?;
        Ok(state.handed_over(ticket, bytes)?)
    }
}
