//! The steps of a repair.

use std::fmt;

use crate::id::{CheckpointNo, RecordingId, RecordingName};

/// A run of readable checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadableRun {
    /// The first.
    pub first: CheckpointNo,
    /// The last.
    pub last: CheckpointNo,
}

/// One step of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairAction {
    /// Write a new configuration.
    RestoreConfig,
    /// Delete an object that can be made anew or says nothing any more.
    Discard {
        /// The object.
        path: String,
        /// Its key.
        key: String,
    },
    /// Write the start of a recording anew from its other copy or, without one, with what is known.
    RestoreStart {
        /// The recording.
        name: RecordingName,
        /// Its series.
        series: RecordingId,
    },
    /// Remove a name whose series cannot be found.
    ForgetName {
        /// The name.
        name: RecordingName,
    },
    /// Write the end of a recording anew.
    RestoreEnd {
        /// The object.
        path: String,
        /// Its key.
        key: String,
    },
    /// Move what can be read out of a pack into a new one, and the file to `lost+found/`.
    RewritePack {
        /// The pack.
        path: String,
        /// Its key.
        key: String,
    },
    /// Cut a recording to a run of checkpoints, after copying the other runs.
    Cut {
        /// The recording.
        name: RecordingName,
        /// The longest readable run; `None`: nothing can be read, the recording goes.
        keep: Option<ReadableRun>,
        /// Other readable runs and the recordings they become.
        saved: Vec<(ReadableRun, RecordingName)>,
    },
}

impl fmt::Display for RepairAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RestoreConfig => write!(f, "write a new configuration"),
            Self::Discard { path, .. } => write!(f, "delete {path}"),
            Self::RestoreStart { name, series } => {
                write!(f, "restore the start of recording {name} (series {series})")
            }
            Self::ForgetName { name } => {
                write!(f, "remove the name {name}, whose series cannot be found")
            }
            Self::RestoreEnd { path, .. } => write!(f, "write {path} anew"),
            Self::RewritePack { path, .. } => {
                write!(f, "rewrite {path} with what can be read of it")
            }
            Self::Cut { name, keep, saved } => {
                for (run, copy) in saved {
                    let (first, last) = (run.first, run.last);
                    write!(f, "copy {name} checkpoints {first} to {last} to {copy}; ")?;
                }
                match keep {
                    Some(run) => {
                        write!(f, "cut {name} to checkpoints {} to {}", run.first, run.last)
                    }
                    None => write!(f, "remove {name}, of which nothing can be read"),
                }
            }
        }
    }
}
