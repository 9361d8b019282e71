//! Why operations on a repository fail.

use std::io;

use crate::id::{Address, CheckpointNo, RecordingName};

/// What is wrong with the bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The object is shorter than its format says.
    #[error("truncated: {needed} bytes needed at offset {offset}, {available} there")]
    Truncated {
        /// Where the read started.
        offset: usize,
        /// Bytes it needed.
        needed: usize,
        /// Bytes there were.
        available: usize,
    },
    /// The object is of another kind or no object of a repository.
    #[error("not a {expected}: magic is {actual:02x?}")]
    Magic {
        /// The kind of object that belongs there.
        expected: &'static str,
        /// The first bytes of the object.
        actual: [u8; 8],
    },
    /// A newer program wrote the object.
    #[error(
        "{kind} has format version {version}, this program reads up to {newest}: use a newer sbctl"
    )]
    Version {
        /// The kind of object.
        kind: &'static str,
        /// The version found.
        version: u32,
        /// The newest version this program reads.
        newest: u32,
    },
    /// The bytes are not those that were written.
    #[error("checksum does not match: the bytes are damaged")]
    Checksum,
    /// A field holds a value that it cannot have.
    #[error("malformed {what} at offset {offset}")]
    Malformed {
        /// The field.
        what: &'static str,
        /// Where it lies in the (decompressed) body.
        offset: usize,
    },
}

/// Why a storage backend failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct BackendError {
    /// What was tried.
    pub action: &'static str,
    /// The file, as the user would name it.
    pub path: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl BackendError {
    /// Whether the object is not there (as opposed to unreadable).
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// When it took the lock, in seconds since 1970.
    pub since_unix_s: u64,
    /// What it is doing.
    pub purpose: String,
    /// The file to remove by hand if that process is known to be gone.
    pub path: String,
}

/// Why an operation on a repository failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Storage failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// An object cannot be read.
    #[error("{path}: {source}")]
    Damaged {
        /// The object.
        path: String,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// There is no repository here.
    #[error("{path} is not a repository (create one with `sbctl init`)")]
    NoRepository {
        /// The place.
        path: String,
    },
    /// There is one already.
    #[error("{path} is a repository already")]
    RepositoryExists {
        /// The place.
        path: String,
    },
    /// Another process holds the lock.
    #[error(
        "{lock} lock held by process {} on {} since {} ({}); if that process is gone, remove {}",
        holder.pid, holder.host, holder.since_unix_s, holder.purpose, holder.path
    )]
    Locked {
        /// Which lock.
        lock: &'static str,
        /// Who holds it.
        holder: Holder,
    },
    /// A recording name has a character that it cannot have.
    #[error("{name:?} is no recording name: use 1 to 100 of A-Z a-z 0-9 . _ -")]
    BadName {
        /// The name.
        name: String,
    },
    /// No such recording, or it was removed meanwhile.
    #[error("no recording {name}")]
    NoRecording {
        /// The name asked for.
        name: RecordingName,
    },
    /// The name is taken.
    #[error("recording {name} exists already")]
    RecordingExists {
        /// The name.
        name: RecordingName,
    },
    /// The recording does not have that checkpoint.
    #[error("recording {name} has no checkpoint {number}")]
    NoCheckpoint {
        /// The recording.
        name: RecordingName,
        /// The checkpoint asked for.
        number: CheckpointNo,
    },
    /// The recording has no log segment of that number.
    #[error("recording {name} has no log segment {number}")]
    NoLog {
        /// The recording.
        name: RecordingName,
        /// The segment asked for.
        number: CheckpointNo,
    },
    /// The checkpoint has no such space, frame or blob.
    #[error("{what} is not in the checkpoint")]
    NotInCheckpoint {
        /// What was asked for.
        what: String,
    },
    /// No pack holds the item: its pack vanished, or its recording was removed and collected.
    #[error("no pack holds item {address} (pack lost, or its recording removed meanwhile)")]
    Missing {
        /// The item.
        address: Address,
    },
    /// Content does not have the identity it was stored under.
    #[error("{what}: content has identity {actual}, expected {expected}")]
    WrongContent {
        /// The item.
        what: String,
        /// The identity on record.
        expected: String,
        /// The identity of what came out.
        actual: String,
    },
    /// The writer stopped after an earlier failure and publishes nothing more.
    #[error("the writer stopped after an earlier failure: {reason}")]
    WriterStopped {
        /// The first failure.
        reason: String,
    },
    /// What the caller handed over contradicts the recording.
    #[error("{0}")]
    Refused(String),
    /// The caller asked to stop. What was published before stays.
    #[error("interrupted")]
    Interrupted,
    /// The catalogue database failed. It is derived data: `repair-index` recreates it.
    #[error("catalogue: {0} (recreate it with `sbctl repair-index`)")]
    Catalogue(String),
}

impl Error {
    /// Whether the error means damaged or lost data (as opposed to a failure to do something).
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::Missing { .. } | Self::WrongContent { .. }
        )
    }
}
