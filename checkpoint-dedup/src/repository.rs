//! Opening and creating repositories, and what recordings they hold.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::backend::{Backend, Local};
use crate::envelope::{self, CONFIG};
use crate::error::{Error, FormatError};
use crate::id::{CheckpointNo, RecordingId, RecordingName};
use crate::lock;
use crate::reader::Recording;
use crate::recording::{self, End, Extent, Part, Start};
use crate::store::{CacheLimits, Store};
use crate::wire::{Input, Output};
use crate::writer::{Writer, WriterOptions};

/// Key of the configuration: its presence makes a directory a repository.
pub(crate) const CONFIG_KEY: &str = "config";

/// How to open a repository.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// Bounds of the caches that all readers of this handle share.
    pub caches: CacheLimits,
}

/// Whether a recording is still being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordingState {
    /// Its writer said that it is complete.
    Finished,
    /// Its writer is alive.
    Running,
    /// Its writer is gone without saying so. What it published is intact.
    Dead,
}

impl RecordingState {
    /// The state in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Running => "running",
            Self::Dead => "dead",
        }
    }
}

/// What is known of a recording without reading its checkpoints.
#[derive(Debug, Clone)]
pub struct RecordingInfo {
    /// Its name.
    pub name: RecordingName,
    /// Tells it from an earlier recording of the same name.
    pub id: RecordingId,
    /// When it was begun, in nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// Whether it is complete.
    pub state: RecordingState,
    /// First checkpoint there (not 0 after a trim), if there is any.
    pub first: Option<CheckpointNo>,
    /// Last checkpoint there.
    pub last: Option<CheckpointNo>,
    /// Log segments there.
    pub logs: u32,
    /// What the caller noted when it began the recording.
    pub note: Vec<u8>,
}

/// An open repository. Cheap to clone; safe to use from many threads.
#[derive(Clone)]
pub struct Repository {
    pub(crate) store: Arc<Store>,
}

impl Repository {
    /// Creates a repository in a directory, which may exist if it is not a repository.
    ///
    /// # Errors
    /// [`Error::RepositoryExists`], or what the file system says.
    pub fn create(directory: impl AsRef<Path>) -> Result<Self, Error> {
        Self::create_on(
            Arc::new(Local::new(directory.as_ref())),
            OpenOptions::default(),
        )
    }

    /// Opens the repository in a directory.
    ///
    /// # Errors
    /// [`Error::NoRepository`] if there is none, [`Error::Damaged`] if a newer program wrote it.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_on(
            Arc::new(Local::new(directory.as_ref())),
            OpenOptions::default(),
        )
    }

    /// Creates a repository in any storage.
    ///
    /// # Errors
    /// As [`Repository::create`].
    pub fn create_on(backend: Arc<dyn Backend>, options: OpenOptions) -> Result<Self, Error> {
        if !put_config(&*backend)? {
            return Err(Error::RepositoryExists {
                path: backend.describe(""),
            });
        }
        Self::open_on(backend, options)
    }

    /// Opens a repository in any storage.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn open_on(backend: Arc<dyn Backend>, options: OpenOptions) -> Result<Self, Error> {
        check_config(&*backend)?;
        Ok(Self::unchecked(backend, options))
    }

    /// A handle on whatever is there.
    pub(crate) fn unchecked(backend: Arc<dyn Backend>, options: OpenOptions) -> Self {
        let store = Arc::new(Store::new(backend, options.caches));
        Self { store }
    }

    /// The recordings, by name. One whose start is unreadable is left out; `check` reports it.
    ///
    /// # Errors
    /// What the storage says.
    pub fn recordings(&self) -> Result<Vec<RecordingInfo>, Error> {
        let mut out = Vec::new();
        for name in self.names()? {
            match self.recording_info(&name) {
                Ok(info) => out.push(info),
                Err(Error::NoRecording { .. }) => {}
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }

    /// The names that are taken.
    pub(crate) fn names(&self) -> Result<Vec<RecordingName>, Error> {
        let listed = self.store.backend.list(recording::NAMES)?;
        let mut names: Vec<RecordingName> = listed
            .iter()
            .filter_map(|object| recording::parse_name_key(&object.key))
            .collect();
        names.sort();
        Ok(names)
    }

    /// What is known of one recording.
    ///
    /// # Errors
    /// [`Error::NoRecording`].
    pub fn recording_info(&self, name: &RecordingName) -> Result<RecordingInfo, Error> {
        let start = self.start(name)?;
        let extent = Extent::of(&self.parts(start.recording)?);
        let state = self.state(name, start.recording, &extent)?;
        Ok(RecordingInfo {
            name: name.clone(),
            id: start.recording,
            created_unix_ns: start.created_unix_ns,
            state,
            first: extent.checkpoints.first().copied(),
            last: extent.checkpoints.last().copied(),
            logs: extent.logs.len() as u32,
            note: start.note,
        })
    }

    /// The objects of a series.
    pub(crate) fn parts(&self, id: RecordingId) -> Result<Vec<Part>, Error> {
        let listed = self.store.backend.list(&recording::prefix(id))?;
        Ok(listed
            .iter()
            .filter_map(|o| Some(recording::parse_key(&o.key)?.1))
            .collect())
    }

    /// The start of a recording.
    pub(crate) fn start(&self, name: &RecordingName) -> Result<Start, Error> {
        let key = recording::name_key(name);
        let bytes = match self.store.backend.get_all(&key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => {
                return Err(Error::NoRecording { name: name.clone() });
            }
            Err(e) => return Err(e.into()),
        };
        Start::decode(&bytes).map_err(|source| Error::Damaged {
            path: self.store.backend.describe(&key),
            source,
        })
    }

    fn state(
        &self,
        name: &RecordingName,
        id: RecordingId,
        extent: &Extent,
    ) -> Result<RecordingState, Error> {
        if let Some(last) = extent.end {
            let key = recording::key(id, Part::End(last));
            let bytes = self.store.backend.get_all(&key)?;
            return match End::decode(&bytes) {
                Ok(end) if end.complete => Ok(RecordingState::Finished),
                Err(source @ FormatError::Version { .. }) => Err(Error::Damaged {
                    path: self.store.backend.describe(&key),
                    source,
                }),
                // Where it ends is in the key; that it is damaged is for `check` to say.
                Ok(_) | Err(_) => Ok(RecordingState::Dead),
            };
        }
        Ok(match self.is_being_written(name)? {
            true => RecordingState::Running,
            false => RecordingState::Dead,
        })
    }

    /// Whether the writer of a recording is alive.
    pub(crate) fn is_being_written(&self, name: &RecordingName) -> Result<bool, Error> {
        let purpose = writing_purpose(name);
        let live = lock::live(&*self.store.backend, lock::WRITER)?;
        Ok(live.iter().any(|lock| lock.purpose == purpose))
    }

    /// Opens a recording for reading.
    ///
    /// # Errors
    /// [`Error::NoRecording`].
    pub fn recording(&self, name: &RecordingName) -> Result<Recording, Error> {
        Recording::open(self.clone(), name)
    }

    /// Begins a recording. There is one writer at a time.
    ///
    /// # Errors
    /// [`Error::Locked`] with who writes, [`Error::RecordingExists`].
    pub fn write(&self, name: &RecordingName, options: WriterOptions) -> Result<Writer, Error> {
        Writer::begin(self.clone(), name, options)
    }
}

/// What the writer's lock says while it writes a recording.
pub(crate) fn writing_purpose(name: &RecordingName) -> String {
    format!("writing {name}")
}

/// Puts a configuration; whether there was none.
pub(crate) fn put_config(backend: &dyn Backend) -> Result<bool, Error> {
    let mut body = lock::unique().to_vec();
    body.put_u64(lock::unix_ns(SystemTime::now()));
    Ok(backend.put_if_absent(CONFIG_KEY, &envelope::seal(&CONFIG, &body))?)
}

pub(crate) fn check_config(backend: &dyn Backend) -> Result<(), Error> {
    let bytes = match backend.get_all(CONFIG_KEY) {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => {
            return Err(Error::NoRepository {
                path: backend.describe(""),
            });
        }
        Err(e) => return Err(e.into()),
    };
    let damaged = |source| Error::Damaged {
        path: backend.describe(CONFIG_KEY),
        source,
    };
    let body = envelope::open(&CONFIG, &bytes).map_err(damaged)?;
    let mut input = Input::new(body);
    let _id: [u8; 16] = input.array().map_err(damaged)?;
    let _created = input.u64().map_err(damaged)?;
    input.finish().map_err(damaged)
}
