//! Through these traits checkpoints and logs leave a recorder and reach a simulator. Whoever stores
//! them knows neither; [`memory::MemoryStore`] is the store that keeps everything in memory.
//!
//! Checkpoint 0 is the state before the first instruction. Interval *k* leads from checkpoint *k* to
//! checkpoint *k* + 1, and its log segment is published together with the latter, so a recording of
//! *n* intervals has *n* + 1 checkpoints and the last interval has its closing checkpoint too.

pub mod memory;

use crate::ram::{PageBytes, PageSource};
use crate::state::CpuState;
use crate::units::{Gfn, Position, VirtualNanos};
use std::sync::Arc;

/// What a store or a source of checkpoints says when it fails.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// The saved state of one device or group of devices, opaque to stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceBlob {
    /// Names the device within the machine.
    pub name: String,
    /// Its saved state; says its own version.
    pub bytes: Vec<u8>,
}

/// A checkpoint without the content of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number, from 0.
    pub number: u64,
    /// The vCPU.
    pub cpu: CpuState,
    /// The exact position, where the recording counts.
    pub position: Option<Position>,
    /// Virtual time.
    pub time: VirtualNanos,
    /// Devices. A simulator does not need them; resuming a recording would.
    pub devices: Vec<DeviceBlob>,
    /// Size of RAM in bytes.
    pub ram_bytes: u64,
    /// The frames that may differ from the previous checkpoint (for checkpoint 0: from zero), in
    /// order.
    pub changed: Vec<Gfn>,
}

/// Takes a recording, in this order: `begin(0)`, its pages, `publish`, `begin(1)` and so on. All
/// calls come from one thread that is not the guest's. After an error nothing more is called.
pub trait CheckpointSink: Send {
    /// Starts a checkpoint.
    ///
    /// # Errors
    /// Any; it ends the recording.
    fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError>;

    /// One page of the checkpoint begun last. Each of [`Checkpoint::changed`] comes once, in any
    /// order.
    ///
    /// # Errors
    /// Any; it ends the recording.
    fn page(&mut self, gfn: Gfn, content: &PageBytes) -> Result<(), StoreError>;

    /// A page that the log refers to by `id`, the BLAKE3 hash of its bytes. Comes at any time before
    /// the segment that needs it is published, possibly more than once.
    ///
    /// # Errors
    /// Any; it ends the recording.
    fn content(&mut self, id: [u8; 32], content: &PageBytes) -> Result<(), StoreError>;

    /// The checkpoint begun last is complete: makes it visible together with the log segment of the
    /// interval that ends with it (none for checkpoint 0).
    ///
    /// # Errors
    /// Any; it ends the recording.
    fn publish(&mut self, segment: Option<&[u8]>) -> Result<(), StoreError>;
}

/// Gives a recording, or what has been published of it.
pub trait CheckpointSource: Send + Sync {
    /// How many checkpoints there are; one more than there are intervals.
    ///
    /// # Errors
    /// Any; the caller gives up.
    fn checkpoints(&self) -> Result<u64, StoreError>;

    /// A checkpoint by number.
    ///
    /// # Errors
    /// Any; the interval ends with it.
    fn checkpoint(&self, number: u64) -> Result<Arc<Checkpoint>, StoreError>;

    /// Fills `page` with the content of a frame at a checkpoint.
    ///
    /// # Errors
    /// Any; the interval ends with it.
    fn page(&self, number: u64, gfn: Gfn, page: &mut PageBytes) -> Result<(), StoreError>;

    /// Fills `page` with the content that a log refers to by `id`.
    ///
    /// # Errors
    /// Any; the interval ends with it.
    fn content(&self, id: &[u8; 32], page: &mut PageBytes) -> Result<(), StoreError>;

    /// The log segment of an interval, as it was published.
    ///
    /// # Errors
    /// Any; the interval ends with it.
    fn segment(&self, interval: u64) -> Result<Vec<u8>, StoreError>;
}

/// The pages of one checkpoint, to build lazily loaded RAM on.
pub struct CheckpointPages {
    source: Arc<dyn CheckpointSource>,
    number: u64,
}

impl CheckpointPages {
    /// The pages of checkpoint `number`.
    pub fn new(source: Arc<dyn CheckpointSource>, number: u64) -> Self {
        Self { source, number }
    }
}

impl PageSource for CheckpointPages {
    fn load(&self, gfn: Gfn, page: &mut PageBytes) -> Result<(), StoreError> {
        self.source.page(self.number, gfn, page)
    }
}
