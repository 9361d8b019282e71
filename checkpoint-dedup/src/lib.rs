#![forbid(unsafe_code)]
//! A store for long series of machine checkpoints: content-addressed pages, edits against earlier
//! pages, crash-safe publishing, any page of any checkpoint readable on its own.
//!
//! The crate knows nothing of virtual machines. It holds *page spaces* (arrays of 4 KiB frames,
//! such as RAM or a disk), opaque named blobs, and opaque log segments that may refer to pages.
//!
//! In reading order: [`Repository`] opens a place; [`Repository::write`] begins a recording and
//! gives the one [`Writer`], which publishes [`Draft`]s and [`LogDraft`]s in the background;
//! [`Repository::recording`] gives a [`Recording`], whose [`Checkpoint`]s hold [`SpaceView`]s.
//! Readers take no lock and any number of threads may share one.
//!
//! ```
//! use checkpoint_dedup::*;
//!
//! # fn main() -> Result<(), Error> {
//! # let directory = tempfile::tempdir().unwrap();
//! # let directory = directory.path().join("repository");
//! let repository = Repository::create(&directory)?;
//! let name = RecordingName::new("boot")?;
//!
//! // A recording of one space of 16 frames; frames that are never put are zero.
//! let options = WriterOptions { spaces: vec![("ram".into(), 16)], ..WriterOptions::default() };
//! let mut writer = repository.write(&name, options)?;
//! let mut draft = writer.draft();
//! draft.put_page(SpaceNo(0), Frame(3), &[7; PAGE_BYTES])?;
//! draft.put_blob("cpu", b"registers".to_vec());
//! writer.publish(draft)?.wait()?; // checkpoint 0, durable from here on
//!
//! let mut log = LogDraft::default();
//! let id = log.put_page(&[9; PAGE_BYTES]); // a page that a device wrote
//! log.set_bytes(id.as_bytes().to_vec()); // the log itself names it
//! writer.publish_log(CheckpointNo(0), log)?; // in the background
//!
//! let mut draft = writer.draft();
//! draft.put_page(SpaceNo(0), Frame(5), &[9; PAGE_BYTES])?;
//! draft.put_blob("cpu", b"more registers".to_vec());
//! writer.publish(draft)?; // checkpoint 1: what changed since checkpoint 0
//! writer.finish()?;
//!
//! let recording = repository.recording(&name)?;
//! assert_eq!(recording.changed_frames("ram", CheckpointNo(0))?, [Frame(5)]);
//! let checkpoint = recording.checkpoint(CheckpointNo(1))?;
//! let mut page = [0; PAGE_BYTES];
//! checkpoint.space("ram")?.read(Frame(3), &mut page)?;
//! assert_eq!(page, [7; PAGE_BYTES]);
//! assert_eq!(checkpoint.blob("cpu")?, b"more registers");
//! assert_eq!(*recording.log(CheckpointNo(0))?.page(id)?, [9; PAGE_BYTES]);
//! # Ok(())
//! # }
//! ```
//!
//! Architecture invariants: packs are the only truth, every index and the catalogue are derived;
//! a published object never changes; what an object refers to was durable before the object was;
//! decoding a page costs at most 64 page decodes whatever a file says.

mod backend;
mod cache;
mod catalogue;
mod codec;
mod condemned;
mod envelope;
mod error;
mod id;
mod index;
#[doc(hidden)]
pub mod internals;
mod lock;
mod maintain;
mod map;
mod pack;
mod reader;
mod recording;
mod repository;
mod store;
mod wire;
mod writer;

pub use backend::{Backend, FileSystem, Listed, Local, RealFiles};
pub use error::{BackendError, Error, FormatError, Holder};
pub use id::{
    Address, BlobId, CheckpointNo, Frame, ItemId, PAGE_BYTES, PackId, Page, PageId, PageRef,
    RecordingId, RecordingName,
};
pub use lock::Patience;
pub use maintain::{
    Affected, CheckOptions, CheckReport, CopyReport, Damage, DamageKind, GcOptions, GcPlan,
    GcReport, MethodStats, Progress, ReadableRun, RebuildReport, RecordingStats, RepairAction,
    RepairPlan, Silent, Stats, TrimRange, check, plan_repair,
};
pub use reader::{Checkpoint, LogSegment, Recording, SpaceView};
pub use repository::{OpenOptions, RecordingInfo, RecordingState, Repository};
pub use store::CacheLimits;
pub use writer::{Draft, Haste, LogDraft, Published, SpaceNo, Ticket, Writer, WriterOptions};
