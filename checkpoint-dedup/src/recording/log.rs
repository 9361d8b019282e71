//! Log segments.
//!
//! ```text
//! 16 recording id, 4 number;  v packs, 16 each;  v raw length;  rest zstd:
//!  v pages: 32 page id, then 0 and the 8 bytes of a fill, or 1, v pack slot, v ordinal
//!  blob entry: the bytes of the segment
//! ```

use super::blob::read_item;
use super::{BlobEntry, PackList, read_packs};
use crate::codec::squeeze::{squeeze, unsqueeze};
use crate::envelope::{LOG, open, seal};
use crate::error::FormatError;
use crate::id::{CheckpointNo, PageId, RecordingId};
use crate::index::Index;
use crate::map::Content;
use crate::wire::{Input, Output};

const MAX_RAW: u64 = 1 << 30;

/// One log segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LogManifest {
    pub(crate) recording: RecordingId,
    pub(crate) number: CheckpointNo,
    pub(crate) pages: Vec<(PageId, Content)>,
    pub(crate) bytes: BlobEntry,
}

impl LogManifest {
    /// The object.
    pub(crate) fn encode(&self, index: &Index) -> Vec<u8> {
        let mut packs = PackList::default();
        let mut rest = Vec::new();
        rest.put_varint(self.pages.len() as u64);
        for (id, content) in &self.pages {
            rest.extend_from_slice(id.as_bytes());
            match content {
                Content::Fill(word) => {
                    rest.push(0);
                    rest.put_u64(*word);
                }
                Content::Item(item) => {
                    rest.push(1);
                    rest.put_varint(u64::from(packs.slot(item.pack)));
                    rest.put_varint(u64::from(item.ordinal));
                }
            }
        }
        self.bytes.encode(&mut packs, &mut rest);

        let mut body = Vec::new();
        body.extend_from_slice(self.recording.as_bytes());
        body.put_u32(self.number.0);
        packs.encode(index, &mut body);
        body.put_varint(rest.len() as u64);
        body.extend_from_slice(&squeeze(&rest, 3));
        seal(&LOG, &body)
    }

    /// Reads an object.
    pub(crate) fn decode(bytes: &[u8], index: &Index) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&LOG, bytes)?);
        let recording = RecordingId::from_bytes(input.array()?);
        let number = CheckpointNo(input.u32()?);
        let packs = read_packs(&mut input, index)?;
        let raw = input.varint()?;
        if raw > MAX_RAW {
            return Err(input.malformed("raw length"));
        }
        let rest = unsqueeze(input.take(input.remaining())?, raw as usize)?;
        let mut input = Input::new(&rest);
        let pages = (0..input.count(35)?)
            .map(|_| {
                Ok((
                    PageId::from_bytes(input.array()?),
                    read_content(&mut input, &packs)?,
                ))
            })
            .collect::<Result<_, _>>()?;
        let bytes = BlobEntry::decode(&mut input, &packs)?;
        input.finish()?;
        Ok(Self {
            recording,
            number,
            pages,
            bytes,
        })
    }
}

fn read_content(input: &mut Input<'_>, packs: &[u32]) -> Result<Content, FormatError> {
    match input.u8()? {
        0 => Ok(Content::Fill(input.u64()?)),
        1 => Ok(Content::Item(read_item(input, packs)?)),
        _ => Err(input.malformed("page kind")),
    }
}
