//! The directory at the end of a pack.
//!
//! ```text
//! table (zstd)   others, origins, groups, runs, costs
//! ids            8 bytes per item
//! trailer        8 offset of the table, 4 table bytes raw, 4 stored, 4 items, 4 zero, 16 pack id,
//!                16 check of the table, 16 check of the ids, 16 check of the trailer so far,
//!                4 version, 8 magic
//! ```

use crate::codec::MAX_COST;
use crate::codec::group::GroupKind;
use crate::codec::squeeze::{squeeze, unsqueeze};
use crate::envelope::PACK;
use crate::error::FormatError;
use crate::id::{ItemId, PackId, prefix};
use crate::wire::{Input, Output};

/// Bytes of the trailer.
pub(crate) const TRAILER: usize = 100;

/// Bytes of the trailer that its own check covers.
const CHECKED: usize = 72;

/// Bytes that a pack keeps of the identity of an item.
pub(crate) const ID_BYTES: usize = 8;

/// Most bytes of a raw table: 40 bytes for each of 16 M items.
const MAX_TABLE: u32 = 640 << 20;

/// One group of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupEntry {
    pub(crate) kind: GroupKind,
    pub(crate) bytes: u32,
    pub(crate) items: u32,
}

/// Consecutive items whose addresses are consecutive: `origin` 0 is the pack itself, n the n-th of
/// the directory's origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) origin: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// What a pack says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    /// Packs that bases are in; [`crate::codec::group::BaseRef::pack`] n is the n-th from 1.
    pub(crate) others: Vec<PackId>,
    /// Packs that items were first stored in, if this pack is a rewritten one.
    pub(crate) origins: Vec<PackId>,
    pub(crate) groups: Vec<GroupEntry>,
    pub(crate) runs: Vec<Run>,
    /// Decode cost of each item.
    pub(crate) costs: Vec<u8>,
}

/// The fixed end of a pack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trailer {
    pub(crate) table_offset: u64,
    pub(crate) table_raw: u32,
    pub(crate) table_stored: u32,
    pub(crate) items: u32,
    table_check: [u8; 16],
    ids_check: [u8; 16],
}

impl Trailer {
    /// Reads the last [`TRAILER`] bytes of pack `id` of `size` bytes. Magic and version, which
    /// stand last, are judged first.
    pub(crate) fn read(bytes: &[u8], id: PackId, size: u64) -> Result<Self, FormatError> {
        let mut input = Input::new(bytes);
        let fields = input.take(CHECKED)?;
        let own_check: [u8; 16] = input.array()?;
        let version = input.u32()?;
        let actual = input.array()?;
        if actual != PACK.magic {
            return Err(FormatError::Magic {
                expected: PACK.name,
                actual,
            });
        }
        if version != PACK.version {
            return Err(FormatError::Version {
                kind: PACK.name,
                version,
                newest: PACK.version,
            });
        }
        if check(fields) != own_check {
            return Err(FormatError::Checksum);
        }
        let mut input = Input::new(fields);
        let mut trailer = Self {
            table_offset: input.u64()?,
            table_raw: input.u32()?,
            table_stored: input.u32()?,
            items: input.u32()?,
            table_check: [0; 16],
            ids_check: [0; 16],
        };
        let zero = input.u32()?;
        if zero != 0 || input.array()? != *id.as_bytes() {
            return Err(input.malformed("pack id"));
        }
        trailer.table_check = input.array()?;
        trailer.ids_check = input.array()?;
        let end = trailer
            .table_offset
            .checked_add(u64::from(trailer.table_stored))
            .and_then(|end| end.checked_add(trailer.ids_bytes()))
            .and_then(|end| end.checked_add(TRAILER as u64));
        if end != Some(size) || trailer.table_raw > MAX_TABLE || size > u64::from(u32::MAX) {
            return Err(input.malformed("pack trailer"));
        }
        Ok(trailer)
    }

    /// Offset of the ids.
    pub(crate) fn ids_offset(&self) -> u64 {
        self.table_offset + u64::from(self.table_stored)
    }

    /// Bytes of the ids.
    pub(crate) fn ids_bytes(&self) -> u64 {
        ID_BYTES as u64 * u64::from(self.items)
    }

    /// Checks and decodes the table.
    pub(crate) fn directory(&self, stored: &[u8]) -> Result<Directory, FormatError> {
        if check(stored) != self.table_check {
            return Err(FormatError::Checksum);
        }
        let raw = unsqueeze(stored, self.table_raw as usize)?;
        Directory::decode(&raw, self.items as usize)
    }

    /// Checks and decodes the ids.
    pub(crate) fn ids(&self, bytes: &[u8]) -> Result<Vec<ItemId>, FormatError> {
        if check(bytes) != self.ids_check || bytes.len() as u64 != self.ids_bytes() {
            return Err(FormatError::Checksum);
        }
        let mut input = Input::new(bytes);
        (0..self.items)
            .map(|_| input.array().map(ItemId::from_bytes))
            .collect()
    }
}

impl Directory {
    /// Everything after the last group: table, ids, trailer.
    pub(crate) fn seal(&self, pack: PackId, ids: &[ItemId], table_offset: u64) -> Vec<u8> {
        let raw = self.encode();
        let table = squeeze(&raw, 3);
        let ids: Vec<u8> = ids.iter().flat_map(ItemId::as_bytes).copied().collect();
        let mut out = table.clone();
        out.extend_from_slice(&ids);
        let trailer = out.len();
        out.put_u64(table_offset);
        out.put_u32(raw.len() as u32);
        out.put_u32(table.len() as u32);
        out.put_u32(self.costs.len() as u32);
        out.put_u32(0);
        out.extend_from_slice(pack.as_bytes());
        out.extend_from_slice(&check(&table));
        out.extend_from_slice(&check(&ids));
        let own_check = check(&out[trailer..]);
        out.extend_from_slice(&own_check);
        out.put_u32(PACK.version);
        out.extend_from_slice(&PACK.magic);
        out
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for packs in [&self.others, &self.origins] {
            out.put_varint(packs.len() as u64);
            packs
                .iter()
                .for_each(|id| out.extend_from_slice(id.as_bytes()));
        }
        out.put_varint(self.groups.len() as u64);
        for group in &self.groups {
            out.push(group.kind as u8);
            out.put_varint(u64::from(group.bytes));
            out.put_varint(u64::from(group.items));
        }
        out.put_varint(self.runs.len() as u64);
        for run in &self.runs {
            out.put_varint(u64::from(run.origin));
            out.put_varint(u64::from(run.first));
            out.put_varint(u64::from(run.count));
        }
        out.extend_from_slice(&self.costs);
        out
    }

    pub(crate) fn decode(raw: &[u8], items: usize) -> Result<Self, FormatError> {
        let mut input = Input::new(raw);
        let (others, origins) = (read_packs(&mut input)?, read_packs(&mut input)?);
        let (mut groups, mut runs) = (Vec::new(), Vec::new());
        let (mut in_groups, mut in_runs) = (0u64, 0u64);
        for _ in 0..input.count(3)? {
            let kind = match input.u8()? {
                0 => GroupKind::Pages,
                1 => GroupKind::Chunk,
                _ => return Err(input.malformed("group kind")),
            };
            groups.push(GroupEntry {
                kind,
                bytes: input.varint32()?,
                items: input.varint32()?,
            });
            in_groups += u64::from(groups[groups.len() - 1].items);
        }
        for _ in 0..input.count(3)? {
            let (origin, first, count) = (input.varint32()?, input.varint32()?, input.varint32()?);
            if origin as usize > origins.len() || first.checked_add(count).is_none() {
                return Err(input.malformed("run"));
            }
            runs.push(Run {
                origin,
                first,
                count,
            });
            in_runs += u64::from(count);
        }
        let costs = input.take(items)?.to_vec();
        if in_groups != items as u64 || in_runs != items as u64 {
            return Err(input.malformed("item count"));
        }
        if costs.iter().any(|&cost| cost == 0 || cost > MAX_COST) {
            return Err(input.malformed("decode cost"));
        }
        input.finish()?;
        Ok(Self {
            others,
            origins,
            groups,
            runs,
            costs,
        })
    }
}

fn read_packs(input: &mut Input<'_>) -> Result<Vec<PackId>, FormatError> {
    let count = input.count(16)?;
    (0..count)
        .map(|_| input.array().map(PackId::from_bytes))
        .collect()
}

fn check(bytes: &[u8]) -> [u8; 16] {
    prefix(blake3::hash(bytes).as_bytes())
}
