//! How recordings of guests lie in a repository (`docs/format/recording.md`): the adapters between
//! the recorder's and the simulator's checkpoints and the store.

mod host;
mod moment;
mod note;
mod sink;
mod source;

pub(crate) use host::{HostArguments, HostMatch, HostRecord};
pub(crate) use moment::MomentError;
pub(crate) use note::{Accelerator, IntervalLength, Note, PositionsKind};
pub(crate) use sink::{StoreSink, Stored};
pub(crate) use source::Source;

/// The page space that holds guest RAM.
pub(crate) const RAM_SPACE: &str = "ram";
/// Blob: the vCPU.
const CPU_BLOB: &str = "cpu";
/// Blob: where in the recording the checkpoint is.
const MOMENT_BLOB: &str = "moment";
/// Prefix of the names of device blobs.
const DEVICE_BLOB: &str = "device/";
