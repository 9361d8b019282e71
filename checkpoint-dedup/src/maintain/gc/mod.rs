//! Garbage collection: plan, then run.
//!
//! A run (1) moves what is live out of packs that are mostly garbage, (2) publishes a list of the
//! packs that are to go, (3) waits until every live writer has said that it refers to nothing in
//! them any more, (4) marks everything once more, now that nothing new can refer to them, and
//! spares a pack that something was found to need, (5) deletes the others. A crash anywhere leaves
//! packs that are there twice or a list that the next run takes up.

mod plan;
mod run;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::items::ItemSet;
use super::roots::AllParts;
use crate::error::Holder;
use crate::id::{PackId, RecordingId};
use crate::index::PackMeta;
use crate::lock::{Lock, Patience};
use crate::repository::Repository;

/// How to collect garbage.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// How long to wait for other maintenance to end.
    pub patience: Patience,
    /// How long to wait for live writers to let go of what is to be deleted. What they do not let
    /// go of is deleted by a later run.
    pub writers: Duration,
    /// Move everything that is live, and look harder for a small encoding of it than there was
    /// time for when it was recorded.
    pub recompress: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            patience: Patience::BRIEF,
            writers: Duration::from_secs(30),
            recompress: false,
        }
    }
}

/// What a pack holds.
#[derive(Debug, Clone)]
struct Use {
    meta: Arc<PackMeta>,
    file_bytes: u64,
    live_items: u64,
    /// Stored bytes of groups, by the share of their items that is dead.
    dead_bytes: u64,
}

/// What a run of garbage collection is going to do. Holds the maintenance lock.
pub struct GcPlan {
    repository: Repository,
    options: GcOptions,
    _lock: Lock,
    /// Series that nothing names.
    series: Vec<RecordingId>,
    series_bytes: u64,
    /// Packs without live items.
    dead: Vec<Use>,
    /// Packs whose live items move.
    moving: Vec<Use>,
    /// Live items to move.
    keep: ItemSet,
    /// Bases that go although live items were encoded against them.
    gone: ItemSet,
    pack_bytes: u64,
    /// The packs that the plan is about, and those that its run has made.
    packs: HashSet<PackId>,
    parts: AllParts,
}

/// What a run of garbage collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Bytes of deleted objects.
    pub freed_bytes: u64,
    /// Bytes of new packs.
    pub written_bytes: u64,
    /// Packs deleted.
    pub deleted_packs: u64,
    /// Pages that were encoded anew because a base went.
    pub rebased_pages: u64,
    /// Pages for which recompression found a smaller encoding.
    pub recompressed_pages: u64,
    /// Bytes that a later run deletes, because a writer has not let go of them.
    pub pending_bytes: u64,
    /// These writers.
    pub waiting_for: Vec<Holder>,
}

impl GcPlan {
    /// Recordings (removed, or never begun) whose objects are removed.
    pub fn removed_series(&self) -> usize {
        self.series.len()
    }

    /// Packs that hold nothing live.
    pub fn dead_packs(&self) -> usize {
        self.dead.len()
    }

    /// Packs whose live content moves into new packs.
    pub fn rewritten_packs(&self) -> usize {
        self.moving.len()
    }

    /// Bytes of all packs now.
    pub fn pack_bytes(&self) -> u64 {
        self.pack_bytes
    }

    /// Whether everything live is encoded anew, which frees more than can be said before.
    pub fn recompresses(&self) -> bool {
        self.options.recompress
    }

    /// Bytes that the run is going to free, roughly: what is moved may compress otherwise.
    pub fn expected_bytes(&self) -> u64 {
        let dead: u64 = self.dead.iter().map(|pack| pack.file_bytes).sum();
        let moving: u64 = self.moving.iter().map(|pack| pack.dead_bytes).sum();
        self.series_bytes + dead + moving
    }
}
