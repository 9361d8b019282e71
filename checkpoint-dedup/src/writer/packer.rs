//! From encoded pages to published packs.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use crate::codec::group::{BaseRef, GroupKind, Record, encode_pages};
use crate::error::Error;
use crate::id::{ContentId, Page};
use crate::index::segment::Covered;
use crate::index::{Item, fingerprint};
use crate::pack::{self, NewItem, PackBuilder};
use crate::store::Store;

/// Most raw bytes of the two streams of a group: what a reader of one page must decode.
pub(crate) const GROUP_RAW: usize = 8 << 10;
/// Most pages of a group.
pub(crate) const GROUP_ITEMS: usize = 64;
/// A pack is closed at this size.
pub(crate) const PACK_BYTES: usize = 48 << 20;
/// A pack is closed at this many items: their pages stay in memory until then.
const PACK_ITEMS: u32 = 32 << 10;

/// The pack being filled, and the groups on their way into it.
pub(super) struct Packer {
    builder: PackBuilder,
    /// Number in the index that the pack will have.
    pub(super) number: u32,
    level: i32,
    group: Vec<Record>,
    group_items: Vec<NewItem>,
    group_raw: usize,
    full: Vec<(Vec<Record>, Vec<NewItem>)>,
    pending: u32,
    /// Items of this pack by identity, and their pages.
    pub(super) by_id: HashMap<ContentId, u32>,
    pub(super) pages: HashMap<u32, Arc<Page>>,
    pub(super) costs: Vec<u8>,
}

/// An encoded page with its bases named as the pack names them.
pub(super) struct NewPage {
    pub(super) id: ContentId,
    pub(super) record: Record,
    pub(super) item: NewItem,
    pub(super) page: Arc<Page>,
}

impl Packer {
    pub(super) fn new(store: &Store, level: i32) -> Self {
        let builder = PackBuilder::new();
        Self {
            number: store.index.number(builder.id),
            builder,
            level,
            group: Vec::new(),
            group_items: Vec::new(),
            group_raw: 0,
            full: Vec::new(),
            pending: 0,
            by_id: HashMap::new(),
            pages: HashMap::new(),
            costs: Vec::new(),
        }
    }

    /// How this pack names a base.
    pub(super) fn base_ref(&mut self, store: &Store, item: Item) -> BaseRef {
        let pack = match item.pack {
            number if number == self.number => 0,
            number => self.builder.other(store.index.pack_id(number)),
        };
        BaseRef {
            pack,
            ordinal: item.ordinal,
        }
    }

    /// Adds a page and returns its ordinal.
    pub(super) fn push(&mut self, new: NewPage) -> u32 {
        let ordinal = self.builder.items() + self.pending;
        self.pending += 1;
        self.by_id.insert(new.id, ordinal);
        self.pages.insert(ordinal, new.page);
        self.costs.push(new.item.cost);
        let raw = new.record.raw_bytes();
        if self.group_raw + raw > GROUP_RAW && !self.group.is_empty() {
            self.close_group();
        }
        self.group_raw += raw;
        self.group.push(new.record);
        self.group_items.push(new.item);
        if self.group.len() == GROUP_ITEMS {
            self.close_group();
        }
        ordinal
    }

    fn close_group(&mut self) {
        self.group_raw = 0;
        if !self.group.is_empty() {
            let items = std::mem::take(&mut self.group_items);
            self.full.push((std::mem::take(&mut self.group), items));
        }
    }

    /// Compresses the groups that are complete.
    pub(super) fn squeeze_groups(&mut self) {
        let full = std::mem::take(&mut self.full);
        let (builder, level) = (&self.builder, self.level);
        let stored: Vec<Vec<u8>> = full
            .par_iter()
            .enumerate()
            .map(|(ahead, (records, _))| encode_pages(builder.group_name(ahead), records, level))
            .collect();
        for (stored, (_, items)) in stored.iter().zip(&full) {
            self.pending -= items.len() as u32;
            self.builder.push_group(GroupKind::Pages, stored, items);
        }
    }

    /// Adds a chunk of a blob and returns its ordinal.
    pub(super) fn push_chunk(&mut self, id: ContentId, bytes: &[u8]) -> u32 {
        self.close_group();
        self.squeeze_groups();
        self.costs.push(1);
        let ordinal = self.builder.push_chunk(id.item(), bytes, self.level);
        self.by_id.insert(id, ordinal);
        ordinal
    }

    /// Whether the pack should be published before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.builder.bytes() >= PACK_BYTES || self.costs.len() as u32 >= PACK_ITEMS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.costs.is_empty()
    }

    /// Publishes the pack. Returns its bytes and what an index segment says of it.
    pub(super) fn publish(mut self, store: &Store) -> Result<(u64, Covered), Error> {
        self.close_group();
        self.squeeze_groups();
        let built = self.builder.finish();
        let key = pack::key(built.id);
        if !store.backend.put_if_absent(&key, &built.file)? {
            let key = store.backend.describe(&key);
            return Err(Error::Refused(format!("{key} is there already")));
        }
        store.index.insert(built.id, &built.directory);
        for (ordinal, page) in self.pages {
            store.remember(
                Item {
                    pack: self.number,
                    ordinal,
                },
                page,
            );
        }
        let covered = Covered {
            pack: built.id,
            directory: built.directory,
            fingerprints: built.ids.iter().map(fingerprint).collect(),
        };
        Ok((built.file.len() as u64, covered))
    }
}
