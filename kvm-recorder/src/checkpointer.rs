//! How the pages of a checkpoint leave while the guest runs on.
//!
//! At a checkpoint the guest stands still only until the set of pages written since the last one is
//! known and write tracking is armed. Then each of these pages is copied once: by the copier's
//! thread, or by the guest's thread just before it writes the page again. Copies wait in a queue of
//! bounded length for the sink's thread, which alone talks to the store.
//!
//! Which of the two copies a page is settled by one atomic bit per page. A guest that wants to write a
//! page that the copier has just begun to copy waits for it, less than a microsecond unless the host
//! takes the copier off its processor. Nothing in the pause depends on how much was written.

use crate::background::yield_to_guest;
use crate::journal::Closed;
use crate::options::Options;
use machine::checkpoint::{Checkpoint, CheckpointSink, StoreError};
use machine::ram::{Before, FrameBits, FrameSet, PageBytes, Ram, WriteObserver};
use machine::units::Gfn;
use replay_log::{ContentId, SegmentSummary};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the copier looks whether the guest's thread has sent its pages.
const UNSENT: Duration = Duration::from_micros(50);

/// What waits for the sink.
enum Job {
    /// The checkpoint and the frames that changed, which are not in it yet.
    Begin(Box<Checkpoint>, FrameBits),
    Page(Gfn, Box<PageBytes>),
    Content(ContentId, Box<PageBytes>),
    Publish(Option<Box<Closed>>),
}

/// The queue to the sink. Sending to a sink that has failed does nothing: the failure is found when
/// the next checkpoint is taken.
#[derive(Clone)]
struct Queue {
    jobs: SyncSender<Job>,
    stalled_ns: Arc<AtomicU64>,
}

impl Queue {
    /// Waits for room; the time is counted as a stall.
    fn send(&self, job: Job) {
        if let Err(TrySendError::Full(job)) = self.jobs.try_send(job) {
            let start = Instant::now();
            let _ = self.jobs.send(job);
            let waited = start.elapsed().as_nanos() as u64;
            self.stalled_ns.fetch_add(waited, Ordering::Relaxed);
        }
    }

    /// Waits for room without counting it: nobody waits for the copier.
    fn send_from_background(&self, job: Job) {
        let _ = self.jobs.send(job);
    }
}

/// The pages of a checkpoint that have not been copied yet.
struct Capture {
    /// Nobody has begun to copy these.
    pending: FrameSet,
    /// The copier copies these.
    busy: FrameSet,
    /// Pages that have not been sent.
    unsent: AtomicU64,
    queue: Queue,
    copied_on_write: Arc<AtomicU64>,
}

impl Capture {
    fn new(frames: u64, queue: Queue, copied_on_write: Arc<AtomicU64>) -> Self {
        Self {
            pending: FrameSet::empty(frames),
            busy: FrameSet::empty(frames),
            unsent: AtomicU64::new(0),
            queue,
            copied_on_write,
        }
    }

    /// The copier's part: the page, unless the guest's thread has taken it.
    fn copy(&self, ram: &Ram, gfn: Gfn) -> Option<Box<PageBytes>> {
        // Busy first: a guest's thread that finds the page taken must find out by whom.
        self.busy.insert(gfn);
        let page = self.pending.remove(gfn).then(|| ram.boxed_page(gfn));
        self.busy.remove(gfn);
        page
    }

    fn sent(&self) {
        self.unsent.fetch_sub(1, Ordering::AcqRel);
    }
}

impl WriteObserver for Capture {
    fn before_first_write(&self, gfn: Gfn, before: Before<'_>) {
        if self.pending.remove(gfn) {
            self.copied_on_write.fetch_add(1, Ordering::Relaxed);
            self.queue.send(Job::Page(gfn, before.copy()));
            self.sent();
            return;
        }
        let mut looks = 0u32;
        while self.busy.contains(gfn) {
            looks += 1;
            match looks % 128 {
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// What the copier is to do for one checkpoint.
struct Order {
    frames: FrameBits,
    capture: Arc<Capture>,
    closed: Option<Box<Closed>>,
}

/// What went to the store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) pages: u64,
    pub(crate) copied_on_write: u64,
    pub(crate) log: SegmentSummary,
    pub(crate) stalled: Duration,
}

/// Takes checkpoints.
pub(crate) struct Checkpointer {
    ram: Arc<Ram>,
    queue: Queue,
    orders: Sender<Order>,
    done: Receiver<()>,
    copier: JoinHandle<()>,
    sink: JoinHandle<Result<SegmentSummary, StoreError>>,
    copied_on_write: Arc<AtomicU64>,
    pages: u64,
    /// Whether an order has not been reported done.
    busy: bool,
}

/// The sink has failed; [`Checkpointer::close`] says why.
pub(crate) struct SinkFailed;

impl Checkpointer {
    pub(crate) fn start(
        ram: Arc<Ram>,
        sink: Box<dyn CheckpointSink>,
        options: &Options,
    ) -> std::io::Result<Self> {
        let (jobs, from_queue) = sync_channel(options.queue_pages.max(1));
        let (orders, from_orders) = channel();
        let (to_done, done) = channel();
        let queue = Queue {
            jobs,
            stalled_ns: Arc::default(),
        };
        let copier = std::thread::Builder::new().name("copier".into()).spawn({
            let ram = ram.clone();
            move || {
                yield_to_guest();
                copy_all(&ram, &from_orders, &to_done);
            }
        })?;
        let sink = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || {
                yield_to_guest();
                feed(sink, &from_queue)
            })?;
        Ok(Self {
            ram,
            queue,
            orders,
            done,
            copier,
            sink,
            copied_on_write: Arc::default(),
            pages: 0,
            busy: false,
        })
    }

    /// Takes the checkpoint of RAM as it is now; `checkpoint.changed` is filled in on the way. The caller
    /// arms write tracking before the guest goes on.
    pub(crate) fn take(
        &mut self,
        checkpoint: Checkpoint,
        closed: Option<Closed>,
    ) -> Result<(), SinkFailed> {
        self.wait_for_copier()?;
        let capture = Arc::new(Capture::new(
            self.ram.frames(),
            self.queue.clone(),
            self.copied_on_write.clone(),
        ));
        let frames = self.ram.begin_epoch(Some(capture.clone()));
        let pages = frames.count();
        capture.pending.assign(&frames);
        capture.unsent.store(pages, Ordering::Release);
        self.pages += pages;
        self.queue
            .send(Job::Begin(Box::new(checkpoint), frames.clone()));
        let order = Order {
            frames,
            capture,
            closed: closed.map(Box::new),
        };
        self.busy = true;
        self.orders.send(order).map_err(|_| SinkFailed)?;
        if self.ram.holds_writes() {
            return Ok(());
        }
        // The vCPU would write pages before they are copied, so it stands still until they are.
        self.wait_for_copier()
    }

    /// A page that the log refers to.
    pub(crate) fn content(&self, id: ContentId, page: &PageBytes) {
        self.queue.send(Job::Content(id, Box::new(*page)));
    }

    /// Waits until all pages of the last checkpoint have been copied.
    fn wait_for_copier(&mut self) -> Result<(), SinkFailed> {
        if std::mem::take(&mut self.busy) {
            let start = Instant::now();
            self.done.recv().map_err(|_| SinkFailed)?;
            let waited = start.elapsed().as_nanos() as u64;
            self.queue.stalled_ns.fetch_add(waited, Ordering::Relaxed);
        }
        if self.sink.is_finished() {
            return Err(SinkFailed);
        }
        Ok(())
    }

    /// Waits until everything is stored.
    pub(crate) fn close(mut self) -> Result<Stored, StoreError> {
        // A failure is reported by the sink's thread below.
        let _ = self.wait_for_copier();
        self.ram.begin_epoch(None);
        let stalled_ns = self.queue.stalled_ns.load(Ordering::Relaxed);
        drop((self.queue, self.orders));
        self.copier.join().expect("the copier does not panic");
        let log = self.sink.join().expect("the store does not panic")?;
        Ok(Stored {
            pages: self.pages,
            copied_on_write: self.copied_on_write.load(Ordering::Relaxed),
            log,
            stalled: Duration::from_nanos(stalled_ns),
        })
    }
}

/// The copier's thread.
fn copy_all(ram: &Ram, orders: &Receiver<Order>, done: &Sender<()>) {
    for Order {
        frames,
        capture,
        closed,
    } in orders
    {
        for gfn in frames.iter() {
            if let Some(page) = capture.copy(ram, gfn) {
                capture.queue.send_from_background(Job::Page(gfn, page));
                capture.sent();
            }
        }
        // The guest's thread may have taken pages that it has not sent yet: the end comes after them.
        while capture.unsent.load(Ordering::Acquire) > 0 {
            std::thread::sleep(UNSENT);
        }
        ram.release(&frames);
        capture.queue.send_from_background(Job::Publish(closed));
        if done.send(()).is_err() {
            return;
        }
    }
}

/// The sink's thread. Dropping the queue's end on a failure makes all senders go on without it.
fn feed(
    mut sink: Box<dyn CheckpointSink>,
    jobs: &Receiver<Job>,
) -> Result<SegmentSummary, StoreError> {
    let mut total = SegmentSummary::default();
    for job in jobs {
        match job {
            Job::Begin(mut checkpoint, frames) => {
                checkpoint.changed = frames.iter().collect();
                sink.begin(&checkpoint)?;
            }
            Job::Page(gfn, page) => sink.page(gfn, &page)?,
            Job::Content(id, page) => sink.content(id.0, &page)?,
            Job::Publish(None) => sink.publish(None)?,
            Job::Publish(Some(closed)) => {
                let Closed { writer, end } = *closed;
                let (segment, summary) = writer.finish(&end)?;
                total.events += summary.events;
                total.raw_bytes += summary.raw_bytes;
                total.written_bytes += summary.written_bytes;
                sink.publish(Some(&segment))?;
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Length, Positions};
    use machine::clock::{HostClock, VirtualClock};
    use machine::state::CpuState;
    use machine::units::{GuestPhys, PAGE_BYTES, VirtualNanos};
    use std::sync::Mutex;

    const FRAMES: u64 = 300;

    /// Checks each checkpoint when it is complete: page *n* of checkpoint *k* holds what it held when
    /// the checkpoint was taken, and each page that changed comes once.
    #[derive(Default)]
    struct Checker {
        expected: Arc<Mutex<Vec<Vec<u64>>>>,
        open: Option<Checkpoint>,
        pages: Vec<(Gfn, u64)>,
    }

    impl CheckpointSink for Checker {
        fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
            assert!(self.pages.is_empty(), "a page came after its checkpoint");
            self.open = Some(checkpoint.clone());
            Ok(())
        }
        fn page(&mut self, gfn: Gfn, content: &PageBytes) -> Result<(), StoreError> {
            let words = content.chunks_exact(8);
            let mut words = words.map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            let first = words.next().unwrap();
            assert!(words.all(|word| word == first), "half old, half new");
            self.pages.push((gfn, first));
            Ok(())
        }
        fn content(&mut self, _: [u8; 32], _: &PageBytes) -> Result<(), StoreError> {
            Ok(())
        }
        fn publish(&mut self, _: Option<&[u8]>) -> Result<(), StoreError> {
            let checkpoint = self.open.take().expect("it was begun");
            let mut pages = std::mem::take(&mut self.pages);
            pages.sort_unstable();
            assert!(pages.iter().map(|(gfn, _)| *gfn).eq(checkpoint.changed));
            let expected = &self.expected.lock().unwrap()[checkpoint.number as usize];
            for (gfn, value) in pages {
                assert_eq!(value, expected[gfn.0 as usize], "frame {gfn}");
            }
            Ok(())
        }
    }

    fn checkpoint(number: u64) -> Checkpoint {
        Checkpoint {
            number,
            cpu: CpuState::default(),
            position: None,
            time: VirtualNanos(0),
            devices: Vec::new(),
            ram_bytes: FRAMES * PAGE_BYTES,
            changed: Vec::new(),
        }
    }

    #[test]
    fn a_guest_that_writes_at_once_does_not_change_what_is_stored() {
        let ram = Arc::new(Ram::new(FRAMES * PAGE_BYTES).unwrap());
        let checker = Checker::default();
        let expected = checker.expected.clone();
        let options = Options {
            recording: Default::default(),
            clock: VirtualClock::Host(HostClock::new()),
            positions: Positions::Count,
            interval: Length::Steps(1),
            stop_after: None,
            queue_pages: 4,
        };
        let mut checkpointer =
            Checkpointer::start(ram.clone(), Box::new(checker), &options).unwrap();
        let (mut values, mut random, mut next) = (vec![0; FRAMES as usize], 1_u64, 0);
        for number in 0..300 {
            expected.lock().unwrap().push(values.clone());
            assert!(checkpointer.take(checkpoint(number), None).is_ok());
            // From either end, so that the copier is met in the middle or run ahead of.
            for n in 0..FRAMES {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                if random >> 62 == 0 {
                    continue;
                }
                let frame = if number % 2 == 0 { n } else { FRAMES - 1 - n };
                next += 1;
                values[frame as usize] = next;
                let page: Vec<u8> = (0..512).flat_map(|_| u64::to_le_bytes(next)).collect();
                ram.write(GuestPhys(frame * PAGE_BYTES), &page).unwrap();
            }
        }
        let stored = checkpointer.close().unwrap();
        assert!(stored.copied_on_write > 0 && stored.copied_on_write < stored.pages);
    }
}
