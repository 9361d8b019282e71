//! The objects that open and close a recording.

use crate::envelope::{END, START, open, seal};
use crate::error::FormatError;
use crate::id::{CheckpointNo, RecordingId, RecordingName};
use crate::wire::{Input, Output};

/// Start of a recording: 16 recording id, 8 created (ns since 1970), v name, v note of the caller.
/// It stands twice, under the name and in the series, so that either is found from the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Start {
    pub(crate) recording: RecordingId,
    pub(crate) created_unix_ns: u64,
    pub(crate) name: RecordingName,
    pub(crate) note: Vec<u8>,
}

impl Start {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = self.recording.as_bytes().to_vec();
        body.put_u64(self.created_unix_ns);
        body.put_block(self.name.as_str().as_bytes());
        body.put_block(&self.note);
        seal(&START, &body)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&START, bytes)?);
        let recording = RecordingId::from_bytes(input.array()?);
        let created_unix_ns = input.u64()?;
        let name = RecordingName::new(input.text()?).map_err(|_| input.malformed("name"))?;
        let note = input.block()?.to_vec();
        input.finish()?;
        Ok(Self {
            recording,
            created_unix_ns,
            name,
            note,
        })
    }
}

/// End of a recording: 16 recording id, 8 written (ns since 1970), 4 number of the last
/// checkpoint, 1 whether the recording is complete up to there (0: cut there by a trim after its
/// writer had died).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct End {
    pub(crate) recording: RecordingId,
    pub(crate) written_unix_ns: u64,
    pub(crate) last: CheckpointNo,
    pub(crate) complete: bool,
}

impl End {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = self.recording.as_bytes().to_vec();
        body.put_u64(self.written_unix_ns);
        body.put_u32(self.last.0);
        body.push(u8::from(self.complete));
        seal(&END, &body)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&END, bytes)?);
        let end = Self {
            recording: RecordingId::from_bytes(input.array()?),
            written_unix_ns: input.u64()?,
            last: CheckpointNo(input.u32()?),
            complete: match input.u8()? {
                0 => false,
                1 => true,
                _ => return Err(input.malformed("completeness")),
            },
        };
        input.finish()?;
        Ok(end)
    }
}
