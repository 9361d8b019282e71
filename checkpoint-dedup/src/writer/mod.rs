//! Writing a recording. The caller collects what changed in a [`Draft`] (a copy in memory, so the
//! guest may go on at once) and publishes it; hashing, search, encoding and writing happen on a
//! pipeline thread and the rayon pool.

mod draft;
pub(crate) mod encode;
mod frames;
mod ingest;
pub(crate) mod packer;
mod pipeline;
mod publish;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

pub use draft::{Draft, LogDraft, SpaceNo};

use crate::error::Error;
use crate::id::{CheckpointNo, RecordingId, RecordingName};
use crate::lock::{self, Lease, Lock, Patience};
use crate::recording::{self, Part, Start};
use crate::repository::{Repository, writing_purpose};
use crate::store::CacheLimits;
use pipeline::{Job, Pipeline};

/// What gives way when pages come faster than they can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Haste {
    /// The search for similar pages, and with it some of the compression.
    #[default]
    GiveWay,
    /// Nothing: whoever hands over pages waits.
    Thorough,
}

/// How to write a recording.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Page spaces: name and number of frames. They stay the same for the whole recording.
    pub spaces: Vec<(String, u32)>,
    /// Anything that describes the recording (the store does not look at it).
    pub note: Vec<u8>,
    /// How long to wait for another writer to finish.
    pub patience: Patience,
    /// Most page decodes that reading one page may take: 1 to 8.
    pub decode_budget: u8,
    /// Level of zstd.
    pub level: i32,
    /// What gives way under load.
    pub haste: Haste,
    /// Drafts that may wait. The memory of each is its changed pages.
    pub queue: usize,
    /// Memory for pages of earlier checkpoints, which new pages are compared with.
    pub page_cache_bytes: usize,
    /// Memory for the table that finds duplicates; beyond it, duplicates of the oldest pages are
    /// stored again.
    pub duplicates_bytes: usize,
    /// Memory for the index that finds similar pages.
    pub similarity_bytes: usize,
    /// Threads that hash and compress. `None` is the current rayon pool, which has one per CPU. All of
    /// them are started by the thread that begins the recording and inherit its niceness.
    pub threads: Option<NonZeroUsize>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            spaces: Vec::new(),
            note: Vec::new(),
            patience: Patience::default(),
            decode_budget: 8,
            level: 3,
            haste: Haste::default(),
            queue: 4,
            page_cache_bytes: 512 << 20,
            duplicates_bytes: 1 << 30,
            similarity_bytes: 64 << 20,
            threads: None,
        }
    }
}

/// What publishing a checkpoint or log segment did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// Pages handed over.
    pub pages: u64,
    /// Of these, equal to what the frame held before.
    pub unchanged: u64,
    /// Same-filled pages.
    pub filled: u64,
    /// Pages that the repository held already.
    pub duplicates: u64,
    /// Pages stored as an edit of others.
    pub deltas: u64,
    /// Pages stored whole.
    pub whole: u64,
    /// Bytes of packs written.
    pub pack_bytes: u64,
    /// Bytes of the manifest or log object written.
    pub manifest_bytes: u64,
    /// Time in the pipeline, without waiting for it.
    pub busy: Duration,
}

/// Result of a publish that goes on in the background.
pub struct Ticket {
    receiver: Receiver<Result<Published, String>>,
}

impl Ticket {
    /// Waits until the publish is durable and visible.
    ///
    /// # Errors
    /// [`Error::WriterStopped`] with the reason; nothing of it is visible then.
    pub fn wait(self) -> Result<Published, Error> {
        let gone = || Err("the pipeline thread ended".to_owned());
        self.receiver
            .recv()
            .unwrap_or_else(|_| gone())
            .map_err(|reason| Error::WriterStopped { reason })
    }
}

/// What is known of a pipeline from outside.
#[derive(Default)]
pub(crate) struct Shared {
    /// Jobs waiting.
    pub(crate) waiting: AtomicUsize,
    failure: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn fail(&self, reason: &str) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| reason.to_owned());
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A job and where its result goes.
type Request = (Job, Sender<Result<Published, String>>);

/// The one writer of a repository. Dropping it without [`Writer::finish`] publishes what is queued
/// and leaves the recording dead.
pub struct Writer {
    sender: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    spaces: Arc<[(String, u32)]>,
    next: CheckpointNo,
    recording: RecordingId,
    name: RecordingName,
    _lock: Lock,
}

impl Writer {
    pub(crate) fn begin(
        repository: Repository,
        name: &RecordingName,
        options: WriterOptions,
    ) -> Result<Self, Error> {
        check_options(&options)?;
        let backend = Arc::clone(&repository.store.backend);
        let lock = lock::exclusive(
            &backend,
            lock::WRITER,
            &writing_purpose(name),
            options.patience,
        )?;
        let caches = CacheLimits {
            group_bytes: options.page_cache_bytes / 8,
            page_bytes: options.page_cache_bytes,
        };
        let start = Start {
            recording: RecordingId::from_bytes(lock::unique()),
            created_unix_ns: lock::unix_ns(SystemTime::now()),
            name: name.clone(),
            note: options.note.clone(),
        };
        // From here on garbage collection spares the series and what this writer finds.
        let lease = Lease::take(
            &backend,
            lock::WRITING,
            &writing_purpose(name),
            start.recording,
        )?;
        if repository.names()?.contains(name) {
            return Err(Error::RecordingExists { name: name.clone() });
        }
        let shared = Arc::new(Shared::default());
        let pipeline = Pipeline::new(
            backend,
            caches,
            start.recording,
            &options,
            Arc::clone(&shared),
            lease,
        )?;
        begin_recording(&repository, name, &start)?;
        let (sender, receiver) = sync_channel(options.queue.max(1));
        let thread = start_threads(options.threads, move || pipeline.run(receiver))?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
            shared,
            spaces: options.spaces.into(),
            next: CheckpointNo(0),
            recording: start.recording,
            name: name.clone(),
            _lock: lock,
        })
    }

    /// The identity of the recording.
    pub fn recording_id(&self) -> RecordingId {
        self.recording
    }

    /// The name of the recording.
    pub fn name(&self) -> &RecordingName {
        &self.name
    }

    /// The number that the next checkpoint gets.
    pub fn next_checkpoint(&self) -> CheckpointNo {
        self.next
    }

    /// Drafts handed over and not yet published. From 1 on the search for similar pages gives way.
    pub fn backlog(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// An empty draft of the next checkpoint.
    pub fn draft(&self) -> Draft {
        Draft::new(Arc::clone(&self.spaces))
    }

    /// Hands the pages of a draft over and empties it, so that a draft of any size takes little
    /// memory. They belong to the next checkpoint that is published, even if the draft is dropped.
    /// Blocks while the queue is full.
    ///
    /// # Errors
    /// [`Error::WriterStopped`] if an earlier publish failed.
    pub fn hand_over(&mut self, draft: &mut Draft) -> Result<(), Error> {
        let empty = self.draft();
        let full = std::mem::replace(&mut draft.changed, empty.changed);
        self.send(Job::Pages(full)).map(drop)
    }

    /// Publishes the next checkpoint: the changes since the one before (since all-zero spaces for
    /// the first). Blocks only while the queue is full.
    ///
    /// # Errors
    /// [`Error::WriterStopped`] if an earlier publish failed.
    pub fn publish(&mut self, draft: Draft) -> Result<Ticket, Error> {
        let job = Job::Checkpoint(self.next, draft);
        let ticket = self.send(job)?;
        self.next = self.next.next();
        Ok(ticket)
    }

    /// Like [`Writer::publish`], but gives the draft back at once if the queue is full: a recorder
    /// adds the next interval's changes to it rather than hold up its guest.
    ///
    /// # Errors
    /// [`Error::WriterStopped`] if an earlier publish failed.
    pub fn try_publish(&mut self, draft: Draft) -> Result<Result<Ticket, Draft>, Error> {
        let (reply, receiver) = channel();
        let Some(sender) = &self.sender else {
            return Err(self.stopped());
        };
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        match sender.try_send((Job::Checkpoint(self.next, draft), reply)) {
            Ok(()) => {
                self.next = self.next.next();
                Ok(Ok(Ticket { receiver }))
            }
            Err(TrySendError::Full((Job::Checkpoint(_, draft), _))) => {
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                Ok(Err(draft))
            }
            Err(_) => Err(self.stopped()),
        }
    }

    /// Publishes log segment `number`, which leads from checkpoint `number` to the next. Its pages
    /// are stored once, wherever else they appear.
    ///
    /// # Errors
    /// [`Error::WriterStopped`] if an earlier publish failed.
    pub fn publish_log(&mut self, number: CheckpointNo, log: LogDraft) -> Result<Ticket, Error> {
        self.send(Job::Log(number, log))
    }

    fn send(&self, job: Job) -> Result<Ticket, Error> {
        if self.shared.failure().is_some() {
            return Err(self.stopped());
        }
        let (reply, receiver) = channel();
        let Some(sender) = &self.sender else {
            return Err(self.stopped());
        };
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        sender.send((job, reply)).map_err(|_| self.stopped())?;
        Ok(Ticket { receiver })
    }

    fn stopped(&self) -> Error {
        let reason = self
            .shared
            .failure()
            .unwrap_or_else(|| "it was stopped".to_owned());
        Error::WriterStopped { reason }
    }

    /// Waits for all that is queued and marks the recording finished.
    ///
    /// # Errors
    /// [`Error::WriterStopped`] if any publish failed; the recording is then dead, not finished.
    pub fn finish(mut self) -> Result<(), Error> {
        let ticket = self.send(Job::Finish)?;
        ticket.wait()?;
        self.close();
        Ok(())
    }

    fn close(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared.fail("the pipeline thread panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

fn check_options(options: &WriterOptions) -> Result<(), Error> {
    let budget = 1..=crate::codec::MAX_COST;
    if !budget.contains(&options.decode_budget) {
        return Err(Error::Refused(format!(
            "decode budget {} is not 1 to {}",
            options.decode_budget,
            budget.end()
        )));
    }
    for (at, (name, frames)) in options.spaces.iter().enumerate() {
        let twice = options.spaces[..at].iter().any(|(other, _)| other == name);
        if name.is_empty() || twice || *frames > recording::MAX_FRAMES {
            return Err(Error::Refused(format!(
                "page space {name:?} with {frames} frames"
            )));
        }
    }
    Ok(())
}

/// Puts the start of a recording, in its series and then under its name.
/// Starts the pipeline on a thread, inside a pool of its own if `threads` says how large.
fn start_threads(
    threads: Option<NonZeroUsize>,
    pipeline: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    const NAME: &str = "sb-store";
    let refused = |e: &dyn std::fmt::Display| Error::Refused(format!("cannot start a thread: {e}"));
    let pool = threads
        .map(|threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads.get())
                .thread_name(|_| NAME.to_owned())
                .build()
        })
        .transpose()
        .map_err(|e| refused(&e))?;
    std::thread::Builder::new()
        .name(NAME.to_owned())
        .spawn(move || match pool {
            Some(pool) => pool.install(pipeline),
            None => pipeline(),
        })
        .map_err(|e| refused(&e))
}

fn begin_recording(
    repository: &Repository,
    name: &RecordingName,
    start: &Start,
) -> Result<(), Error> {
    let backend = &repository.store.backend;
    let object = start.encode();
    backend.put_if_absent(&recording::key(start.recording, Part::Start), &object)?;
    if !backend.put_if_absent(&recording::name_key(name), &object)? {
        return Err(Error::RecordingExists { name: name.clone() });
    }
    Ok(())
}
