//! Checkpoint manifests.
//!
//! ```text
//! 16 recording id, 4 number, 8 created (ns since 1970), 32 BLAKE3 of the parent's object
//!  v packs, 16 each;  v raw length;  rest zstd:
//!  v spaces: name, frames, own layer, span, merged layer (if span > 0);  v blobs
//! ```
//!
//! The own layer holds the frames changed since the parent. Checkpoint n (a multiple of 8 and not
//! 0) also holds a merged layer: the frames changed in the last 8, 64, 512... checkpoints, for the
//! largest such power that divides n. So the frames of checkpoint n are found in at most seven
//! layers per power, and all layers together hold each change a few times at the most.

use super::{BlobEntry, PackList, read_packs};
use crate::codec::squeeze::{squeeze, unsqueeze};
use crate::envelope::{CHECKPOINT, open, seal};
use crate::error::FormatError;
use crate::id::{CheckpointNo, RecordingId};
use crate::index::Index;
use crate::map::Layer;
use crate::wire::{Input, Output};

/// Checkpoints between merged layers.
pub(crate) const RADIX: u32 = 8;

/// Most frames of a space: 1 TiB.
pub(crate) const MAX_FRAMES: u32 = 1 << 28;

/// Most raw bytes of a manifest: a fully scattered map of 1 TiB.
const MAX_RAW: u64 = 4 << 30;

/// How many checkpoints the merged layer of this one covers; 0 if it has none.
pub(crate) fn level_span(number: CheckpointNo) -> u32 {
    let mut span = 0;
    let mut power = RADIX;
    while number.0 > 0 && number.0.is_multiple_of(power) {
        span = power;
        match power.checked_mul(RADIX) {
            Some(next) => power = next,
            None => break,
        }
    }
    span
}

/// One page space in a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Space {
    pub(crate) name: String,
    /// Frames in the space; those no layer names are zero.
    pub(crate) frames: u32,
    pub(crate) own: Layer,
    /// Checkpoints that `merged` covers; 0 for none.
    pub(crate) span: u32,
    pub(crate) merged: Layer,
}

/// One checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manifest {
    pub(crate) recording: RecordingId,
    pub(crate) number: CheckpointNo,
    pub(crate) created_unix_ns: u64,
    pub(crate) parent: [u8; 32],
    pub(crate) spaces: Vec<Space>,
    pub(crate) blobs: Vec<BlobEntry>,
}

impl Manifest {
    /// The object.
    pub(crate) fn encode(&self, index: &Index) -> Vec<u8> {
        let mut packs = PackList::default();
        let mut rest = Vec::new();
        rest.put_varint(self.spaces.len() as u64);
        for space in &self.spaces {
            rest.put_block(space.name.as_bytes());
            rest.put_varint(u64::from(space.frames));
            space.own.encode(&mut |pack| packs.slot(pack), &mut rest);
            rest.put_varint(u64::from(space.span));
            if space.span > 0 {
                space.merged.encode(&mut |pack| packs.slot(pack), &mut rest);
            }
        }
        rest.put_varint(self.blobs.len() as u64);
        self.blobs
            .iter()
            .for_each(|blob| blob.encode(&mut packs, &mut rest));

        let mut body = Vec::new();
        body.extend_from_slice(self.recording.as_bytes());
        body.put_u32(self.number.0);
        body.put_u64(self.created_unix_ns);
        body.extend_from_slice(&self.parent);
        packs.encode(index, &mut body);
        body.put_varint(rest.len() as u64);
        body.extend_from_slice(&squeeze(&rest, 3));
        seal(&CHECKPOINT, &body)
    }

    /// Reads an object.
    pub(crate) fn decode(bytes: &[u8], index: &Index) -> Result<Self, FormatError> {
        Self::decode_within(bytes, index, MAX_FRAMES)
    }

    /// Reads an object; an error if a space has more frames than `most`.
    pub(crate) fn decode_within(
        bytes: &[u8],
        index: &Index,
        most: u32,
    ) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&CHECKPOINT, bytes)?);
        let recording = RecordingId::from_bytes(input.array()?);
        let number = CheckpointNo(input.u32()?);
        let created_unix_ns = input.u64()?;
        let parent = input.array()?;
        let packs = read_packs(&mut input, index)?;
        let raw = input.varint()?;
        if raw > MAX_RAW {
            return Err(input.malformed("raw length"));
        }
        let stored = input.take(input.remaining())?;
        let rest = unsqueeze(stored, raw as usize)?;
        let mut input = Input::new(&rest);
        let spaces = (0..input.count(4)?)
            .map(|_| read_space(&mut input, &packs, most))
            .collect::<Result<_, _>>()?;
        let blobs = (0..input.count(34)?)
            .map(|_| BlobEntry::decode(&mut input, &packs))
            .collect::<Result<_, _>>()?;
        input.finish()?;
        Ok(Self {
            recording,
            number,
            created_unix_ns,
            parent,
            spaces,
            blobs,
        })
    }

    /// A page space by name.
    pub(crate) fn space(&self, name: &str) -> Option<&Space> {
        self.spaces.iter().find(|space| space.name == name)
    }

    /// Memory the manifest takes.
    pub(crate) fn heap_bytes(&self) -> usize {
        let layers = self
            .spaces
            .iter()
            .map(|s| s.own.heap_bytes() + s.merged.heap_bytes());
        layers.sum::<usize>() + 200 * (1 + self.spaces.len() + self.blobs.len())
    }
}

fn read_space(input: &mut Input<'_>, packs: &[u32], most: u32) -> Result<Space, FormatError> {
    let name = input.text()?.to_owned();
    let frames = input.varint32()?;
    if frames > most {
        return Err(input.malformed("number of frames"));
    }
    let own = Layer::decode(input, packs, frames)?;
    let span = input.varint32()?;
    let merged = if span > 0 {
        Layer::decode(input, packs, frames)?
    } else {
        Layer::default()
    };
    Ok(Space {
        name,
        frames,
        own,
        span,
        merged,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_the_largest_power_that_divides() {
        for (number, span) in [
            (0, 0),
            (1, 0),
            (8, 8),
            (12, 0),
            (64, 64),
            (72, 8),
            (4096, 4096),
        ] {
            assert_eq!(level_span(CheckpointNo(number)), span, "{number}");
        }
    }
}
