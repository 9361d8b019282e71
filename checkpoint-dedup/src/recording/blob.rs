//! A named blob in a manifest: short ones inline, long ones as chunks in packs.

use super::PackList;
use crate::error::FormatError;
use crate::id::BlobId;
use crate::index::Item;
use crate::wire::{Input, Output};

/// Where the bytes of a blob are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum BlobContent {
    Inline(Vec<u8>),
    Chunks(Vec<Item>),
}

/// A named blob.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BlobEntry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) id: BlobId,
    pub(crate) content: BlobContent,
}

impl BlobEntry {
    pub(crate) fn encode(&self, packs: &mut PackList, out: &mut Vec<u8>) {
        out.put_block(self.name.as_bytes());
        out.put_varint(self.bytes);
        out.extend_from_slice(self.id.as_bytes());
        match &self.content {
            BlobContent::Inline(bytes) => {
                out.push(0);
                out.put_block(bytes);
            }
            BlobContent::Chunks(items) => {
                out.push(1);
                out.put_varint(items.len() as u64);
                for item in items {
                    out.put_varint(u64::from(packs.slot(item.pack)));
                    out.put_varint(u64::from(item.ordinal));
                }
            }
        }
    }

    pub(crate) fn decode(input: &mut Input<'_>, packs: &[u32]) -> Result<Self, FormatError> {
        let name = input.text()?.to_owned();
        let bytes = input.varint()?;
        let id = BlobId::from_bytes(input.array()?);
        let content = match input.u8()? {
            0 => BlobContent::Inline(input.block()?.to_vec()),
            1 => {
                let count = input.count(2)?;
                let items = (0..count).map(|_| read_item(input, packs));
                BlobContent::Chunks(items.collect::<Result<_, _>>()?)
            }
            _ => return Err(input.malformed("blob kind")),
        };
        Ok(Self {
            name,
            bytes,
            id,
            content,
        })
    }
}

/// Reads an item as slot in the list of packs and ordinal.
pub(crate) fn read_item(input: &mut Input<'_>, packs: &[u32]) -> Result<Item, FormatError> {
    let slot = input.varint()?;
    let ordinal = input.varint32()?;
    let pack = usize::try_from(slot).ok().and_then(|slot| packs.get(slot));
    let &pack = pack.ok_or_else(|| input.malformed("pack"))?;
    Ok(Item { pack, ordinal })
}
