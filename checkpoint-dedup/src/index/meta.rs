//! What is kept in memory of a pack.

use super::Item;
use crate::codec::group::GroupKind;
use crate::id::PackId;
use crate::pack::{Directory, PACK_HEADER};

/// Where a group lies in its pack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupSpan {
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    /// Number in the pack of its first item.
    pub(crate) first: u32,
}

/// Consecutive items of one origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldRun {
    /// Number of the pack they were first stored in.
    pub(crate) origin: u32,
    /// First ordinal there.
    pub(crate) first: u32,
    /// First number here.
    pub(crate) at: u32,
    pub(crate) count: u32,
}

/// Where an item lies in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) group: u32,
    /// Number of the item in its group.
    pub(crate) slot: u32,
    /// Number of the item in the pack.
    pub(crate) index: u32,
}

/// A pack in memory.
#[derive(Debug)]
pub(crate) struct PackMeta {
    pub(crate) id: PackId,
    pub(crate) number: u32,
    /// Numbers of the packs that bases lie in.
    pub(crate) others: Vec<u32>,
    pub(crate) groups: Vec<GroupSpan>,
    pub(crate) kinds_chunk: Vec<u32>,
    /// By origin and first ordinal.
    runs: Vec<HeldRun>,
    /// Numbers of `runs` by `at`.
    by_index: Vec<u32>,
    costs: Vec<u8>,
}

impl PackMeta {
    pub(crate) fn new(
        id: PackId,
        number: u32,
        others: Vec<u32>,
        origins: &[u32],
        directory: &Directory,
    ) -> Self {
        let mut groups = Vec::with_capacity(directory.groups.len());
        let mut kinds_chunk = Vec::new();
        let (mut offset, mut first) = (PACK_HEADER as u32, 0u32);
        for (index, group) in directory.groups.iter().enumerate() {
            groups.push(GroupSpan {
                offset,
                bytes: group.bytes,
                first,
            });
            if group.kind == GroupKind::Chunk {
                kinds_chunk.push(index as u32);
            }
            // A lying directory ends in a failed read or checksum, not in a panic.
            offset = offset.wrapping_add(group.bytes);
            first += group.items;
        }
        let mut at = 0;
        let mut runs = Vec::with_capacity(directory.runs.len());
        for run in &directory.runs {
            let origin = match run.origin {
                0 => number,
                n => origins[n as usize - 1],
            };
            runs.push(HeldRun {
                origin,
                first: run.first,
                at,
                count: run.count,
            });
            at += run.count;
        }
        runs.sort_unstable_by_key(|run| (run.origin, run.first));
        let mut by_index: Vec<u32> = (0..runs.len() as u32).collect();
        by_index.sort_unstable_by_key(|&run| runs[run as usize].at);
        Self {
            id,
            number,
            others,
            groups,
            kinds_chunk,
            runs,
            by_index,
            costs: directory.costs.clone(),
        }
    }

    /// Where an item lies, if it is here.
    pub(crate) fn place(&self, item: Item) -> Option<Place> {
        let after = self
            .runs
            .partition_point(|run| (run.origin, run.first) <= (item.pack, item.ordinal));
        let run = self.runs.get(after.checked_sub(1)?)?;
        let distance = item.ordinal.wrapping_sub(run.first);
        if run.origin != item.pack || distance >= run.count {
            return None;
        }
        Some(self.place_of(run.at + distance))
    }

    /// The place of the `index`-th item.
    pub(crate) fn place_of(&self, index: u32) -> Place {
        let group = self.groups.partition_point(|group| group.first <= index) - 1;
        Place {
            group: group as u32,
            slot: index - self.groups[group].first,
            index,
        }
    }

    /// The number of the first item after a group.
    pub(crate) fn group_end(&self, group: u32) -> u32 {
        let next = self.groups.get(group as usize + 1);
        next.map_or(self.items(), |next| next.first)
    }

    /// Whether it holds items that other packs held first.
    pub(crate) fn is_rewritten(&self) -> bool {
        self.runs.iter().any(|run| run.origin != self.number)
    }

    pub(crate) fn cost(&self, place: Place) -> u8 {
        self.costs[place.index as usize]
    }

    pub(crate) fn is_chunk(&self, group: u32) -> bool {
        self.kinds_chunk.binary_search(&group).is_ok()
    }

    /// Items held.
    pub(crate) fn items(&self) -> u32 {
        self.costs.len() as u32
    }

    /// The address of the `index`-th item.
    pub(crate) fn held(&self, index: u32) -> Option<Item> {
        let after = self
            .by_index
            .partition_point(|&run| self.runs[run as usize].at <= index);
        let run = &self.runs[self.by_index[after.checked_sub(1)?] as usize];
        (index - run.at < run.count).then(|| Item {
            pack: run.origin,
            ordinal: run.first + (index - run.at),
        })
    }

    /// The pack a base reference of one of its groups means.
    pub(crate) fn base_pack(&self, reference: u32) -> Option<u32> {
        match reference {
            0 => Some(self.number),
            n => self.others.get(n as usize - 1).copied(),
        }
    }
}
