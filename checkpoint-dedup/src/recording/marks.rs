//! The objects that open and close a recording.

use crate::envelope::{END, START, open, seal};
use crate::error::FormatError;
use crate::id::{CheckpointNo, RecordingId};
use crate::wire::{Input, Output};

/// `start`: 16 recording id, 8 created (ns since 1970), then the caller's note.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Start {
    pub(crate) recording: RecordingId,
    pub(crate) created_unix_ns: u64,
    pub(crate) note: Vec<u8>,
}

impl Start {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = self.recording.as_bytes().to_vec();
        body.put_u64(self.created_unix_ns);
        body.put_block(&self.note);
        seal(&START, &body)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&START, bytes)?);
        let recording = RecordingId::from_bytes(input.array()?);
        let created_unix_ns = input.u64()?;
        let note = input.block()?.to_vec();
        input.finish()?;
        Ok(Self {
            recording,
            created_unix_ns,
            note,
        })
    }
}

/// `end`: 16 recording id, 8 finished (ns since 1970), 4 number of the last checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct End {
    pub(crate) recording: RecordingId,
    pub(crate) finished_unix_ns: u64,
    pub(crate) last: CheckpointNo,
}

impl End {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = self.recording.as_bytes().to_vec();
        body.put_u64(self.finished_unix_ns);
        body.put_u32(self.last.0);
        seal(&END, &body)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&END, bytes)?);
        let end = Self {
            recording: RecordingId::from_bytes(input.array()?),
            finished_unix_ns: input.u64()?,
            last: CheckpointNo(input.u32()?),
        };
        input.finish()?;
        Ok(end)
    }
}
