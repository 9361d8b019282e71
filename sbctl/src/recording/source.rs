//! A recording in the repository, as a simulator reads it.

use super::host::HostMatch;
use super::moment::Moment;
use super::note::Note;
use super::{CPU_BLOB, DEVICE_BLOB, MOMENT_BLOB, RAM_SPACE};
use anyhow::{Context, Result, bail};
use checkpoint_dedup::{
    CheckpointNo, Frame, LogSegment, PageId, Recording, RecordingInfo, RecordingName, Repository,
};
use machine::checkpoint::{Checkpoint, CheckpointSource, DeviceBlob, StoreError};
use machine::ram::PageBytes;
use machine::saved::Blob;
use machine::saved::cpu::SavedCpu;
use machine::state::CpuState;
use machine::units::{Gfn, Position};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// A recording that is open for reading. Cheap to clone; any thread may read.
#[derive(Clone)]
pub(crate) struct Source {
    recording: Recording,
    pub(crate) note: Arc<Note>,
}

/// The intervals of a recording that are complete: start, log and end are there. A trimmed recording
/// does not start with 0.
pub(crate) type Intervals = Range<u64>;

impl Source {
    /// Opens a recording.
    pub(crate) fn open(repository: &Repository, name: &RecordingName) -> Result<Self> {
        let recording = repository.recording(name)?;
        let note =
            Note::decode(&recording.info().note).with_context(|| format!("recording {name}"))?;
        Ok(Self {
            recording,
            note: Arc::new(note),
        })
    }

    /// How the processor that recorded compares with this host's.
    pub(crate) fn host(&self) -> HostMatch {
        HostMatch::of(self.note.host.as_ref())
    }

    /// What was known when it was opened.
    pub(crate) fn info(&self) -> &RecordingInfo {
        self.recording.info()
    }

    /// The recording's identity in hexadecimal.
    pub(crate) fn id_text(&self) -> String {
        self.info().id.to_string()
    }

    /// The intervals that are complete now.
    pub(crate) fn intervals(&self) -> Result<Intervals> {
        let checkpoints: BTreeSet<CheckpointNo> =
            self.recording.checkpoints()?.into_iter().collect();
        let logs: BTreeSet<CheckpointNo> = self.recording.logs()?.into_iter().collect();
        let Some(first) = checkpoints.first().copied() else {
            return Ok(0..0);
        };
        let mut end = first;
        while logs.contains(&end) && checkpoints.contains(&end.next()) {
            end = end.next();
        }
        Ok(u64::from(first.0)..u64::from(end.0))
    }

    /// Opens one checkpoint of the store.
    pub(crate) fn stored(&self, number: u64) -> Result<checkpoint_dedup::Checkpoint> {
        Ok(self.recording.checkpoint(number_of(number)?)?)
    }

    /// Everything about a checkpoint but its pages. `changed` is left empty.
    pub(crate) fn checkpoint(&self, number: u64) -> Result<Checkpoint> {
        decode(&self.stored(number)?)
    }

    /// The frames that may differ between checkpoint `from` and the next.
    pub(crate) fn changed(&self, from: u64) -> Result<Vec<Gfn>> {
        let frames = self.recording.changed_frames(RAM_SPACE, number_of(from)?)?;
        Ok(frames
            .into_iter()
            .map(|frame| Gfn(frame.0.into()))
            .collect())
    }

    /// The log segment of an interval.
    pub(crate) fn segment(&self, interval: u64) -> Result<LogSegment> {
        Ok(self.recording.log(number_of(interval)?)?)
    }

    /// The exact position of a checkpoint, where the recording counts.
    pub(crate) fn position(&self, number: u64) -> Result<Option<Position>> {
        Ok(moment(&self.stored(number)?)?.position)
    }

    /// What is known now.
    pub(crate) fn refresh(&self) -> Result<RecordingInfo> {
        Ok(self.recording.refresh()?)
    }

    /// Opens one interval.
    pub(crate) fn interval(&self, number: u64) -> Result<RecordedInterval> {
        let (start, end) = (self.stored(number)?, self.stored(number + 1)?);
        let mut end_state = decode(&end)?;
        end_state.changed = self.changed(number)?;
        Ok(RecordedInterval {
            number,
            states: [Arc::new(decode(&start)?), Arc::new(end_state)],
            stored: [start, end],
            log: self.segment(number)?,
        })
    }
}

fn number_of(number: u64) -> Result<CheckpointNo> {
    let number = u32::try_from(number).context("there are no checkpoints with such numbers")?;
    Ok(CheckpointNo(number))
}

fn moment(stored: &checkpoint_dedup::Checkpoint) -> Result<Moment> {
    let moment = Moment::decode(&stored.blob(MOMENT_BLOB)?);
    moment.with_context(|| format!("checkpoint {}", stored.number()))
}

fn decode(stored: &checkpoint_dedup::Checkpoint) -> Result<Checkpoint> {
    let number = u64::from(stored.number().0);
    let moment = moment(stored)?;
    let cpu = SavedCpu::from_blob(&stored.blob(CPU_BLOB)?)
        .with_context(|| format!("the CPU state of checkpoint {number}"))?;
    let frames = stored.space(RAM_SPACE)?.frames();
    if moment.ram_bytes != u64::from(frames) * 4096 {
        bail!(
            "checkpoint {number} has {frames} frames, but says {} bytes",
            moment.ram_bytes
        );
    }
    let devices = stored
        .blobs()
        .filter_map(|(name, _)| name.strip_prefix(DEVICE_BLOB));
    let devices = devices.map(|name| {
        Ok(DeviceBlob {
            name: name.to_owned(),
            bytes: stored.blob(&format!("{DEVICE_BLOB}{name}"))?,
        })
    });
    Ok(Checkpoint {
        number,
        cpu: CpuState::restore(&cpu)
            .with_context(|| format!("the CPU state of checkpoint {number}"))?,
        position: moment.position,
        time: moment.time,
        devices: devices.collect::<Result<_>>()?,
        ram_bytes: moment.ram_bytes,
        changed: Vec::new(),
    })
}

/// One interval: its two checkpoints and its log, and nothing else of the recording.
pub(crate) struct RecordedInterval {
    number: u64,
    states: [Arc<Checkpoint>; 2],
    stored: [checkpoint_dedup::Checkpoint; 2],
    log: LogSegment,
}

impl RecordedInterval {
    /// Which of the two checkpoints this is.
    fn side(&self, number: u64) -> Result<usize, StoreError> {
        match number.checked_sub(self.number) {
            Some(side @ 0..=1) => Ok(side as usize),
            _ => Err(format!(
                "checkpoint {number} does not belong to interval {}",
                self.number
            )
            .into()),
        }
    }
}

impl CheckpointSource for RecordedInterval {
    fn checkpoints(&self) -> Result<u64, StoreError> {
        Ok(self.number + 2)
    }

    fn checkpoint(&self, number: u64) -> Result<Arc<Checkpoint>, StoreError> {
        Ok(Arc::clone(&self.states[self.side(number)?]))
    }

    fn page(&self, number: u64, gfn: Gfn, page: &mut PageBytes) -> Result<(), StoreError> {
        let space = self.stored[self.side(number)?].space(RAM_SPACE)?;
        let frame = u32::try_from(gfn.0)?;
        Ok(space.read(Frame(frame), page)?)
    }

    fn content(&self, id: &[u8; 32], page: &mut PageBytes) -> Result<(), StoreError> {
        *page = *self.log.page(PageId::from_bytes(*id))?;
        Ok(())
    }

    fn segment(&self, interval: u64) -> Result<Vec<u8>, StoreError> {
        match interval == self.number {
            true => Ok(self.log.bytes().to_vec()),
            false => Err(format!("interval {interval} is not interval {}", self.number).into()),
        }
    }
}
