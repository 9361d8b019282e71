//! What is live: what kept series refer to, and the bases of that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::items::ItemSet;
use super::progress::{Progress, report};
use super::roots::{AllParts, Kept, current};
use crate::error::Error;
use crate::index::{Item, PackMeta};
use crate::recording::Part;
use crate::repository::Repository;

/// The live items.
#[derive(Default)]
pub(super) struct Live {
    /// Referred to by manifests and log segments.
    pub(super) direct: ItemSet,
    /// These, and everything that decoding them needs.
    pub(super) all: ItemSet,
    /// For items that are live only as bases: the packs that hold what was encoded against them.
    pub(super) dependents: HashMap<Item, HashSet<u32>>,
}

impl Repository {
    /// Marks what the kept series need. `packs` are all packs there are, listed before the series.
    pub(super) fn mark(
        &self,
        packs: &[Arc<PackMeta>],
        all: &AllParts,
        kept: &Kept,
        progress: &dyn Progress,
    ) -> Result<Live, Error> {
        let mut live = Live::default();
        let ids = kept.ids();
        for (at, id) in ids.iter().enumerate() {
            report(progress, "reading manifests", at, ids.len())?;
            let mut parts = all.get(id).cloned().unwrap_or_default();
            // A trim meanwhile replaces manifests by a base: look again until nothing vanished.
            while !self.mark_series(*id, &parts, &mut live.direct, progress)? {
                parts = self.parts(*id)?;
            }
        }
        live.all = live.direct.clone();
        self.mark_bases(packs, &mut live, progress)?;
        Ok(live)
    }

    fn mark_series(
        &self,
        id: crate::id::RecordingId,
        parts: &[Part],
        direct: &mut ItemSet,
        progress: &dyn Progress,
    ) -> Result<bool, Error> {
        for part in current(parts) {
            if progress.is_cancelled() {
                return Err(Error::Interrupted);
            }
            let there = self.references(id, part, &mut |item| {
                direct.insert(item);
            })?;
            if !there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks bases.
    fn mark_bases(
        &self,
        packs: &[Arc<PackMeta>],
        live: &mut Live,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let direct = &live.direct;
        let mut suspects = HashSet::new();
        for meta in packs {
            let held = (0..meta.items()).filter_map(|index| meta.held(index));
            suspects.extend(held.filter(|&i| !direct.contains(i)).map(|i| i.pack));
        }
        let dependents = &mut live.dependents;
        let fresh = live.direct.clone();
        self.follow_bases(
            packs,
            &suspects,
            fresh,
            &mut live.all,
            progress,
            &mut |pack, base| {
                if !live.direct.contains(base) {
                    dependents.entry(base).or_default().insert(pack);
                }
            },
        )
    }

    /// Adds to `all` the bases of `fresh`, their bases and so on; `each` sees every pack with a
    /// base that something in it needs. Only what was first stored in a suspect pack is of
    /// interest, so only packs that name one are read.
    pub(super) fn follow_bases(
        &self,
        packs: &[Arc<PackMeta>],
        suspects: &HashSet<u32>,
        mut fresh: ItemSet,
        all: &mut ItemSet,
        progress: &dyn Progress,
        each: &mut dyn FnMut(u32, Item),
    ) -> Result<(), Error> {
        let names_one = |meta: &&Arc<PackMeta>| {
            let mut named = std::iter::once(&meta.number).chain(&meta.others);
            named.any(|pack| suspects.contains(pack))
        };
        let readers: Vec<&Arc<PackMeta>> = packs.iter().filter(names_one).collect();
        while !fresh.is_empty() {
            let mut next = ItemSet::default();
            for (at, meta) in readers.iter().enumerate() {
                report(progress, "following bases", at, readers.len())?;
                self.bases_in_pack(meta, &|item| fresh.contains(item), &mut |base| {
                    each(meta.number, base);
                    if all.insert(base) {
                        next.insert(base);
                    }
                })?;
            }
            fresh = next;
        }
        Ok(())
    }

    /// Hands on the bases of the wanted items of a pack.
    pub(super) fn bases_in_pack(
        &self,
        meta: &Arc<PackMeta>,
        wanted: &dyn Fn(Item) -> bool,
        each: &mut dyn FnMut(Item),
    ) -> Result<(), Error> {
        for number in 0..meta.groups.len() as u32 {
            if meta.is_chunk(number) {
                continue;
            }
            let range = meta.groups[number as usize].first..meta.group_end(number);
            let wanted: Vec<u32> = range
                .filter(|&index| meta.cost(meta.place_of(index)) > 1)
                .filter(|&index| meta.held(index).is_some_and(wanted))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let group = match self.store.group(meta, number) {
                Ok(group) => group,
                // Another run deleted it; what is live has another place.
                Err(Error::Backend(e)) if e.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
            };
            for index in wanted {
                let bases = self.store.base_items(meta, &group, meta.place_of(index))?;
                bases.into_iter().for_each(&mut *each);
            }
        }
        Ok(())
    }
}
