//! The ordered record of everything that crossed the edge of {vCPU, RAM} inward.
//!
//! One [`Segment`] holds the [`Event`]s of one interval, from checkpoint *k* (exclusive) to
//! checkpoint *k* + 1, and the [`End`] that says where that is. Reads carry no position: they are
//! consumed in order. Whatever happens to the guest without its asking carries an [`EventPosition`]
//! and a [`Check`].
//!
//! This crate does not know how either side executes. Reading order: [`event`], [`position`],
//! [`digest`], [`write`](mod@write), [`read`], [`desync`]. The format is in
//! `docs/format/replay-log.md`.

#![forbid(unsafe_code)]

mod codec;
pub mod desync;
pub mod digest;
pub mod event;
mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod position;
pub mod read;
#[cfg(test)]
mod tests;
pub mod write;

pub use desync::{Desync, Observation};
pub use event::{
    Async, Content, ContentId, Effect, End, EndReason, Event, Read, ReadSource, VcpuId,
};
pub use frame::{Header, PositionKind, RecordingId};
pub use position::{Check, EventPosition, Fingerprint, IoSteps, Landmark};
pub use read::{OpenError, Segment, Tail};
pub use write::{SegmentSummary, SegmentWriter, WriteError};
