//! Moving live items into new packs. An item keeps its address and never gets dearer to decode;
//! what was encoded against something that goes is encoded anew.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::items::ItemSet;
use super::progress::Progress;
use super::recompress::{Recompressor, THOROUGH_LEVEL, Wanted};
use crate::codec::group::{BaseRef, Group, GroupKind, Record, encode_chunk, encode_pages};
use crate::codec::sample::SampleIndex;
use crate::error::Error;
use crate::id::{ItemId, PackId, Page};
use crate::index::segment::{self, Covered};
use crate::index::{Item, PackMeta, fingerprint};
use crate::pack::{self, NewItem, PackBuilder};
use crate::store::Store;
use crate::writer::encode::{Bases, encode_against};
use crate::writer::packer::{GROUP_ITEMS, GROUP_RAW, PACK_BYTES};

/// Level of zstd; maintenance has time.
const LEVEL: i32 = 6;
/// Pages that all threads look for encodings of at once, before their successors may build on them.
const RECOMPRESSED_TOGETHER: usize = 512;
/// Groups that all threads compress at once.
const SQUEEZED_TOGETHER: usize = 64;

/// Moves items. What was moved is visible after [`Mover::finish`] only.
pub(super) struct Mover<'a> {
    store: &'a Store,
    level: i32,
    recompressor: Option<Recompressor<'a>>,
    builder: PackBuilder,
    records: Vec<Record>,
    items: Vec<NewItem>,
    raw: usize,
    /// Groups on their way into the pack.
    full: Vec<(Vec<Record>, Vec<NewItem>)>,
    /// Pages of the pack at hand that recompression has not looked at yet.
    waiting: Vec<(Wanted, NewItem)>,
    /// For bases that go: an item that was encoded against them and holds much of them.
    heirs: HashMap<Item, Item>,
    covered: Vec<Covered>,
    /// New packs.
    pub(super) written: Vec<PackId>,
    /// Bytes of new packs.
    pub(super) written_bytes: u64,
    /// Items encoded anew.
    pub(super) rebased: u64,
}

/// The store as the source of bases.
struct View<'a>(&'a Store);

impl Bases for View<'_> {
    fn cost(&self, item: Item) -> Result<u8, Error> {
        self.0.index.cost(item)
    }

    fn page(&self, item: Item) -> Result<Arc<Page>, Error> {
        self.0.page(item)
    }

    fn similar(&self) -> &SampleIndex {
        unreachable!("maintenance names its bases")
    }
}

impl<'a> Mover<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self {
            store,
            level: LEVEL,
            recompressor: None,
            builder: PackBuilder::new(),
            records: Vec::new(),
            items: Vec::new(),
            raw: 0,
            full: Vec::new(),
            waiting: Vec::new(),
            heirs: HashMap::new(),
            covered: Vec::new(),
            written: Vec::new(),
            written_bytes: 0,
            rebased: 0,
        }
    }

    /// A mover that encodes pages anew where that makes them smaller.
    pub(super) fn recompressing(store: &'a Store, pages: usize) -> Self {
        Self {
            level: THOROUGH_LEVEL,
            recompressor: Some(Recompressor::new(store, pages)),
            ..Self::new(store)
        }
    }

    /// Pages for which recompression found a smaller encoding.
    pub(super) fn recompressed(&self) -> u64 {
        self.recompressor.as_ref().map_or(0, |r| r.improved)
    }

    /// Moves the items of a pack that are in `keep`; bases in `gone` are not used any more.
    pub(super) fn pack(
        &mut self,
        meta: &Arc<PackMeta>,
        ids: &[ItemId],
        keep: &ItemSet,
        gone: &ItemSet,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        for number in 0..meta.groups.len() as u32 {
            if progress.is_cancelled() {
                return Err(Error::Interrupted);
            }
            let first = meta.groups[number as usize].first;
            let wanted: Vec<(u32, Item)> = (first..meta.group_end(number))
                .filter_map(|index| Some((index, meta.held(index)?)))
                .filter(|(_, item)| keep.contains(*item))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let group = self.store.group(meta, number)?;
            let new = |index: u32, item: Item| NewItem {
                id: ids[index as usize],
                cost: meta.cost(meta.place_of(index)),
                moved_from: Some(self.store.index.address(item)),
            };
            let wanted: Vec<(u32, Item, NewItem)> = wanted
                .into_iter()
                .map(|(index, item)| (index, item, new(index, item)))
                .collect();
            if self.recompressor.is_some() && group.chunk().is_none() {
                self.wait(meta, &group, &wanted)?;
                continue;
            }
            self.recompress()?;
            for (index, item, new) in wanted {
                match group.chunk() {
                    Some(bytes) => self.chunk(new, bytes)?,
                    None => self.page(meta, &group, index, item, new, gone)?,
                }
            }
        }
        self.recompress()
    }

    /// Takes pages of a group for recompression.
    fn wait(
        &mut self,
        meta: &Arc<PackMeta>,
        group: &Group,
        wanted: &[(u32, Item, NewItem)],
    ) -> Result<(), Error> {
        for &(index, item, new) in wanted {
            let place = meta.place_of(index);
            let (tokens, literals) = group.edit(place.slot as usize).unwrap_or_default();
            let page = Wanted {
                item,
                cost: new.cost,
                bases: self.store.base_items(meta, group, place)?,
                tokens: tokens.to_vec(),
                literals: literals.to_vec(),
            };
            self.waiting.push((page, new));
        }
        match self.waiting.len() >= RECOMPRESSED_TOGETHER {
            true => self.recompress(),
            false => Ok(()),
        }
    }

    /// Moves the pages that wait, each in the smaller of its old encoding and one that is looked for.
    fn recompress(&mut self) -> Result<(), Error> {
        let Some(recompressor) = &mut self.recompressor else {
            return Ok(());
        };
        let (pages, new): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().unzip();
        for (page, new) in recompressor.smaller(pages)?.into_iter().zip(new) {
            self.record(&page.bases, page.tokens, page.literals, new)?;
        }
        Ok(())
    }

    /// Adds a chunk of a blob under an address it has already.
    pub(super) fn chunk(&mut self, new: NewItem, bytes: &[u8]) -> Result<(), Error> {
        self.close_group();
        self.squeeze_groups();
        let stored = encode_chunk(self.builder.group_name(0), bytes, self.level);
        self.builder.push_group(GroupKind::Chunk, &stored, &[new]);
        self.close_pack_if_full()
    }

    fn page(
        &mut self,
        meta: &Arc<PackMeta>,
        group: &Group,
        index: u32,
        item: Item,
        new: NewItem,
        gone: &ItemSet,
    ) -> Result<(), Error> {
        let place = meta.place_of(index);
        let bases = self.store.base_items(meta, group, place)?;
        if bases.iter().any(|base| gone.contains(*base)) {
            let page = self.store.page(item)?;
            return self.rebase(item, &page, &bases, new, gone);
        }
        let (tokens, literals) = group.edit(place.slot as usize).unwrap_or_default();
        self.record(&bases, tokens.to_vec(), literals.to_vec(), new)
    }

    /// Encodes a page against what stays of its bases, or against what was encoded against them.
    fn rebase(
        &mut self,
        item: Item,
        page: &Page,
        bases: &[Item],
        new: NewItem,
        gone: &ItemSet,
    ) -> Result<(), Error> {
        let mut left = new.cost - 1;
        let mut chosen = Vec::new();
        for &base in bases {
            let base = match gone.contains(base) {
                true => self.heirs.get(&base).copied(),
                false => Some(base),
            };
            let Some(base) = base else { continue };
            let cost = self.store.index.cost(base)?;
            if cost <= left && !chosen.contains(&base) {
                left -= cost;
                chosen.push(base);
            }
        }
        let encoded = encode_against(page, &chosen, &View(self.store))?;
        self.rebased += 1;
        for &base in bases.iter().filter(|base| gone.contains(**base)) {
            let dear = |heir: &Item| self.store.index.cost(*heir).unwrap_or(u8::MAX);
            let better = self
                .heirs
                .get(&base)
                .is_none_or(|heir| dear(heir) > new.cost);
            if better {
                self.heirs.insert(base, item);
            }
        }
        self.record(
            &encoded.bases,
            encoded.edit.tokens,
            encoded.edit.literals,
            new,
        )
    }

    /// Adds a page whole under an address it has already.
    pub(super) fn whole_page(&mut self, page: &Page, new: NewItem) -> Result<(), Error> {
        let encoded = encode_against(page, &[], &View(self.store))?;
        self.record(&[], encoded.edit.tokens, encoded.edit.literals, new)
    }

    fn record(
        &mut self,
        bases: &[Item],
        tokens: Vec<u8>,
        literals: Vec<u8>,
        new: NewItem,
    ) -> Result<(), Error> {
        let bases = bases.iter().map(|base| BaseRef {
            pack: self.builder.other(self.store.index.pack_id(base.pack)),
            ordinal: base.ordinal,
        });
        let record = Record {
            bases: bases.collect(),
            tokens,
            literals,
        };
        if self.raw + record.raw_bytes() > GROUP_RAW || self.records.len() == GROUP_ITEMS {
            self.close_group();
        }
        self.raw += record.raw_bytes();
        self.records.push(record);
        self.items.push(new);
        self.close_pack_if_full()
    }

    fn close_group(&mut self) {
        self.raw = 0;
        if !self.records.is_empty() {
            let (records, items) = (
                std::mem::take(&mut self.records),
                std::mem::take(&mut self.items),
            );
            self.full.push((records, items));
        }
        if self.full.len() >= SQUEEZED_TOGETHER {
            self.squeeze_groups();
        }
    }

    /// Compresses the groups that are complete.
    fn squeeze_groups(&mut self) {
        let full = std::mem::take(&mut self.full);
        let (builder, level) = (&self.builder, self.level);
        let stored: Vec<Vec<u8>> = full
            .par_iter()
            .enumerate()
            .map(|(ahead, (records, _))| encode_pages(builder.group_name(ahead), records, level))
            .collect();
        for (stored, (_, items)) in stored.iter().zip(&full) {
            self.builder.push_group(GroupKind::Pages, stored, items);
        }
    }

    fn close_pack_if_full(&mut self) -> Result<(), Error> {
        match self.builder.bytes() >= PACK_BYTES {
            true => self.close_pack(),
            false => Ok(()),
        }
    }

    fn close_pack(&mut self) -> Result<(), Error> {
        self.close_group();
        self.squeeze_groups();
        if self.builder.items() == 0 {
            return Ok(());
        }
        let built = std::mem::replace(&mut self.builder, PackBuilder::new()).finish();
        self.written_bytes += built.file.len() as u64;
        self.store
            .backend
            .put_if_absent(&pack::key(built.id), &built.file)?;
        self.store.index.insert(built.id, &built.directory);
        self.written.push(built.id);
        self.covered.push(Covered {
            pack: built.id,
            directory: built.directory,
            fingerprints: built.ids.iter().map(fingerprint).collect(),
        });
        Ok(())
    }

    /// Publishes what is left, and an index segment of the new packs.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        self.close_pack()?;
        if !self.covered.is_empty() {
            segment::publish(&*self.store.backend, &self.covered)?;
            self.covered.clear();
        }
        Ok(())
    }
}
