//! Removing recordings, and cutting them at either end.

use std::time::SystemTime;

use super::roots::current;
use crate::error::Error;
use crate::id::{CheckpointNo, RecordingName};
use crate::lock::{self, Patience};
use crate::map::Layer;
use crate::recording::{self, End, Extent, Manifest, Part, Space};
use crate::repository::{RecordingState, Repository};

/// The checkpoints that a trim keeps, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimRange {
    /// The first one kept; `None` for all from the start.
    pub from: Option<CheckpointNo>,
    /// The last one kept; `None` for all up to the end.
    pub to: Option<CheckpointNo>,
}

impl Repository {
    /// Removes a recording. Its space comes back with the next garbage collection; readers that
    /// have it open go on.
    ///
    /// # Errors
    /// [`Error::NoRecording`]; [`Error::Refused`] while it is being written.
    pub fn remove(&self, name: &RecordingName) -> Result<(), Error> {
        let start = self.start(name)?;
        if self.is_being_written(name)? {
            return Err(Error::Refused(format!("recording {name} is being written")));
        }
        let backend = &self.store.backend;
        // The removal is this one deletion.
        backend.delete_durably(&recording::name_key(name))?;
        if !self.leased()?.contains(&start.recording) {
            for part in self.parts(start.recording)? {
                backend.delete(&recording::key(start.recording, part))?;
            }
        }
        Ok(())
    }

    /// The recordings that a retention of the newest `keep` would remove, oldest first. Those that
    /// are being written are always kept.
    ///
    /// # Errors
    /// What the storage says.
    pub fn prunable(&self, keep: usize) -> Result<Vec<RecordingName>, Error> {
        let mut all = self.recordings()?;
        all.sort_by_key(|info| (info.created_unix_ns, info.name.clone()));
        all.truncate(all.len().saturating_sub(keep));
        let done = all
            .into_iter()
            .filter(|info| info.state != RecordingState::Running);
        Ok(done.map(|info| info.name).collect())
    }

    /// Cuts a recording to a range of its checkpoints. Each end is cut by putting one object, so a
    /// crash leaves that end as it was or cut; what is cut off is removed afterwards.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if an end of the range is not there; [`Error::Refused`] while the
    /// recording is being written; [`Error::Locked`] during other maintenance.
    pub fn trim(&self, name: &RecordingName, range: TrimRange) -> Result<(), Error> {
        let backend = &self.store.backend;
        let purpose = format!("trimming {name}");
        let _lock = lock::exclusive(backend, lock::MAINTENANCE, &purpose, Patience::BRIEF)?;
        self.trim_locked(name, range)
    }

    pub(super) fn trim_locked(&self, name: &RecordingName, range: TrimRange) -> Result<(), Error> {
        let backend = &self.store.backend;
        let info = self.recording_info(name)?;
        if info.state == RecordingState::Running {
            return Err(Error::Refused(format!("recording {name} is being written")));
        }
        let extent = Extent::of(&self.parts(info.id)?);
        let missing = |number| Error::NoCheckpoint {
            name: name.clone(),
            number,
        };
        let (Some(&first), Some(&last)) = (extent.checkpoints.first(), extent.checkpoints.last())
        else {
            return Err(missing(CheckpointNo(0)));
        };
        let (from, to) = (range.from.unwrap_or(first), range.to.unwrap_or(last));
        for end in [from, to] {
            if extent.checkpoints.binary_search(&end).is_err() {
                return Err(missing(end));
            }
        }
        if from > to {
            return Err(Error::Refused(format!(
                "{from} to {to} holds no checkpoint"
            )));
        }
        if to < last {
            let end = End {
                recording: info.id,
                written_unix_ns: lock::unix_ns(SystemTime::now()),
                last: to,
                complete: info.state == RecordingState::Finished,
            };
            backend.put_if_absent(&recording::key(info.id, Part::End(to)), &end.encode())?;
        }
        if from > first {
            let base = self
                .complete_manifest(name, from)?
                .encode(&self.store.index);
            backend.put_if_absent(&recording::key(info.id, Part::Base(from)), &base)?;
        }
        self.remove_leftovers(info.id)
    }

    /// Removes what trims cut off.
    pub(super) fn remove_leftovers(&self, id: crate::id::RecordingId) -> Result<(), Error> {
        let parts = self.parts(id)?;
        let keep: Vec<Part> = current(&parts).collect();
        for part in parts.into_iter().filter(|part| !keep.contains(part)) {
            self.store.backend.delete(&recording::key(id, part))?;
        }
        Ok(())
    }

    /// A checkpoint's manifest with a map that is complete in itself.
    fn complete_manifest(
        &self,
        name: &RecordingName,
        number: CheckpointNo,
    ) -> Result<Manifest, Error> {
        let recording = self.recording(name)?;
        let checkpoint = recording.checkpoint(number)?;
        let manifest = recording.manifest(number, &recording.extent()?)?;
        let spaces = checkpoint.spaces().iter().map(|space| Space {
            name: space.name().to_owned(),
            frames: space.frames(),
            own: space.full_map(),
            span: 0,
            merged: Layer::default(),
        });
        Ok(Manifest {
            spaces: spaces.collect(),
            ..(*manifest).clone()
        })
    }
}
