//! Building a pack in memory.

use std::collections::HashMap;

use super::directory::{Directory, GroupEntry, Run};
use crate::codec::group::{GroupKind, GroupName, encode_chunk};
use crate::id::{Address, ItemId, PackId};
use crate::lock::unique;

/// A pack being filled. Nothing of it exists outside memory before its bytes are published.
pub(crate) struct PackBuilder {
    pub(crate) id: PackId,
    file: Vec<u8>,
    directory: Directory,
    ids: Vec<ItemId>,
    others: HashMap<PackId, u32>,
    origins: HashMap<PackId, u32>,
}

/// A finished pack.
pub(crate) struct Built {
    pub(crate) id: PackId,
    pub(crate) file: Vec<u8>,
    pub(crate) directory: Directory,
    pub(crate) ids: Vec<ItemId>,
}

/// An item on its way into a pack.
#[derive(Clone, Copy)]
pub(crate) struct NewItem {
    pub(crate) id: ItemId,
    pub(crate) cost: u8,
    /// Its address if it has one already.
    pub(crate) moved_from: Option<Address>,
}

impl PackBuilder {
    pub(crate) fn new() -> Self {
        let id = PackId::from_bytes(unique());
        Self {
            id,
            file: super::header(id),
            directory: Directory::default(),
            ids: Vec::new(),
            others: HashMap::new(),
            origins: HashMap::new(),
        }
    }

    /// The name of the `ahead`-th group from now on.
    pub(crate) fn group_name(&self, ahead: usize) -> GroupName {
        GroupName {
            pack: self.id,
            number: (self.directory.groups.len() + ahead) as u32,
        }
    }

    /// Items so far.
    pub(crate) fn items(&self) -> u32 {
        self.ids.len() as u32
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> usize {
        self.file.len() + 12 * self.ids.len()
    }

    /// What a base in another pack is called in this one.
    pub(crate) fn other(&mut self, pack: PackId) -> u32 {
        number(&mut self.others, &mut self.directory.others, pack)
    }

    /// Appends a group that was encoded under the next name.
    pub(crate) fn push_group(&mut self, kind: GroupKind, stored: &[u8], items: &[NewItem]) {
        for item in items {
            let (origin, first) = match item.moved_from {
                None => (0, self.items()),
                Some(address) => (
                    number(&mut self.origins, &mut self.directory.origins, address.pack),
                    address.ordinal,
                ),
            };
            match self.directory.runs.last_mut() {
                Some(run) if run.origin == origin && run.first + run.count == first => {
                    run.count += 1;
                }
                _ => self.directory.runs.push(Run {
                    origin,
                    first,
                    count: 1,
                }),
            }
            self.directory.costs.push(item.cost);
            self.ids.push(item.id);
        }
        let bytes = stored.len() as u32;
        self.directory.groups.push(GroupEntry {
            kind,
            bytes,
            items: items.len() as u32,
        });
        self.file.extend_from_slice(stored);
    }

    /// Appends a chunk of a blob and returns its ordinal.
    pub(crate) fn push_chunk(&mut self, id: ItemId, bytes: &[u8], level: i32) -> u32 {
        let ordinal = self.items();
        let item = NewItem {
            id,
            cost: 1,
            moved_from: None,
        };
        let stored = encode_chunk(self.group_name(0), bytes, level);
        self.push_group(GroupKind::Chunk, &stored, &[item]);
        ordinal
    }

    /// Completes the file.
    pub(crate) fn finish(mut self) -> Built {
        let tail = self
            .directory
            .seal(self.id, &self.ids, self.file.len() as u64);
        self.file.extend_from_slice(&tail);
        Built {
            id: self.id,
            file: self.file,
            directory: self.directory,
            ids: self.ids,
        }
    }
}

fn number(map: &mut HashMap<PackId, u32>, list: &mut Vec<PackId>, pack: PackId) -> u32 {
    *map.entry(pack).or_insert_with(|| {
        list.push(pack);
        list.len() as u32
    })
}

#[cfg(test)]
mod tests {
    use super::super::directory::{TRAILER, Trailer};
    use super::*;

    #[test]
    fn a_pack_describes_itself() {
        let mut pack = PackBuilder::new();
        let id = ItemId::from_bytes([7; 8]);
        pack.push_chunk(id, b"hello", 3);
        let from = Address {
            pack: PackId::from_bytes([1; 16]),
            ordinal: 9,
        };
        let item = NewItem {
            id,
            cost: 2,
            moved_from: Some(from),
        };
        let stored = encode_chunk(pack.group_name(0), b"x", 3);
        pack.push_group(GroupKind::Chunk, &stored, &[item]);
        let built = pack.finish();
        let size = built.file.len();
        let tail = &built.file[size - TRAILER..];
        let trailer = Trailer::read(tail, built.id, size as u64).unwrap();
        assert!(Trailer::read(tail, from.pack, size as u64).is_err());
        for at in 0..TRAILER {
            let mut bad = tail.to_vec();
            bad[at] ^= 4;
            assert!(
                Trailer::read(&bad, built.id, size as u64).is_err(),
                "byte {at}"
            );
        }
        let (table, ids) = (trailer.table_offset as usize, trailer.ids_offset() as usize);
        assert_eq!(
            trailer.directory(&built.file[table..ids]).unwrap(),
            built.directory
        );
        assert_eq!(
            trailer.ids(&built.file[ids..size - TRAILER]).unwrap(),
            built.ids
        );
        assert_eq!(
            built.directory.runs[1],
            Run {
                origin: 1,
                first: 9,
                count: 1
            }
        );
    }
}
