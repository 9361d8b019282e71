//! Reading items: find the group, check it, decode it, apply edits. Shared by readers, the writer
//! and maintenance.

use std::sync::Arc;

use crate::backend::Backend;
use crate::cache::Cache;
use crate::codec::edit;
use crate::codec::group::{Group, GroupName};
use crate::error::{Error, FormatError};
use crate::id::{PAGE_BYTES, Page};
use crate::index::{Index, Item, PackMeta, Place};
use crate::pack;

/// How often a reader looks for an item that garbage collection keeps moving away.
const MOVES: usize = 8;

/// Most page decodes that one page is worth whatever a file says. The format allows
/// [`crate::codec::MAX_COST`]; while garbage collection moves bases, a reader may for a moment mix
/// old and new encodings of them.
const MAX_DECODES: u32 = 64;

/// Bounds of the caches, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    /// Decoded groups.
    pub group_bytes: usize,
    /// Decoded pages.
    pub page_bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            group_bytes: 64 << 20,
            page_bytes: 64 << 20,
        }
    }
}

/// Decodes items.
pub(crate) struct Store {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) index: Index,
    groups: Cache<(u32, u32), Group>,
    pages: Cache<Item, Page>,
}

impl Store {
    pub(crate) fn new(backend: Arc<dyn Backend>, limits: CacheLimits) -> Self {
        Self {
            index: Index::new(Arc::clone(&backend)),
            backend,
            groups: Cache::new(limits.group_bytes),
            pages: Cache::new(limits.page_bytes),
        }
    }

    /// Decodes a page.
    pub(crate) fn page(&self, item: Item) -> Result<Arc<Page>, Error> {
        self.page_within(item, &mut { MAX_DECODES })
    }

    /// Decodes a page to where it is wanted. Only its bases are kept in the cache: what was read
    /// once is less often read again than what others are coded against.
    pub(crate) fn page_into(&self, item: Item, page: &mut Page) -> Result<(), Error> {
        if let Some(known) = self.pages.get(&item) {
            page.copy_from_slice(&*known);
            return Ok(());
        }
        let (meta, place, group) = self.group_of(item)?;
        self.decode(&meta, &group, place, &mut { MAX_DECODES }, page)
    }

    /// [`Store::page_into`] for many; fastest if they ascend.
    pub(crate) fn pages_into(&self, wanted: &mut [(Item, &mut Page)]) -> Result<(), Error> {
        let mut last: Option<(u32, u32, Arc<Group>)> = None;
        for (item, page) in wanted {
            let (mut meta, mut place) = self.index.locate(*item)?;
            let group = match &last {
                Some((pack, group, known)) if (*pack, *group) == (meta.number, place.group) => {
                    Arc::clone(known)
                }
                _ => {
                    let group;
                    (meta, place, group) = self.group_of(*item)?;
                    last = Some((meta.number, place.group, Arc::clone(&group)));
                    group
                }
            };
            self.decode(&meta, &group, place, &mut { MAX_DECODES }, page)?;
        }
        Ok(())
    }

    /// Keeps a page that the caller knows in the cache.
    pub(crate) fn remember(&self, item: Item, page: Arc<Page>) {
        self.pages.insert(item, page, PAGE_BYTES + 64);
    }

    /// Decodes a page with at most `left` decodes, its own included.
    fn page_within(&self, item: Item, left: &mut u32) -> Result<Arc<Page>, Error> {
        if let Some(page) = self.pages.get(&item) {
            return Ok(page);
        }
        let (meta, place, group) = self.group_of(item)?;
        let mut page = Arc::new([0; PAGE_BYTES]);
        let fresh = Arc::get_mut(&mut page).expect("nobody else has it yet");
        self.decode(&meta, &group, place, left, fresh)?;
        self.remember(item, Arc::clone(&page));
        Ok(page)
    }

    /// Decodes the page that a place in a pack holds, whether or not readers would look there.
    pub(crate) fn page_in(
        &self,
        meta: &PackMeta,
        group: &Group,
        place: Place,
    ) -> Result<Page, Error> {
        let mut page = [0; PAGE_BYTES];
        self.decode(meta, group, place, &mut { MAX_DECODES }, &mut page)?;
        Ok(page)
    }

    fn decode(
        &self,
        meta: &PackMeta,
        group: &Group,
        place: Place,
        left: &mut u32,
        page: &mut Page,
    ) -> Result<(), Error> {
        // A cycle of bases, which only a forged pack can hold, ends here.
        *left = left.checked_sub(1).ok_or_else(|| {
            self.damaged(
                meta,
                FormatError::Malformed {
                    what: "decode cost",
                    offset: 0,
                },
            )
        })?;
        let bases = self.base_items(meta, group, place)?;
        let bases = bases
            .into_iter()
            .map(|base| self.page_within(base, left))
            .collect::<Result<Vec<_>, _>>()?;
        decode_page(group, place, &bases, page).map_err(|e| self.damaged(meta, e))
    }

    /// The items a page was encoded against.
    pub(crate) fn base_items(
        &self,
        meta: &PackMeta,
        group: &Group,
        place: Place,
    ) -> Result<Vec<Item>, Error> {
        group
            .bases(place.slot as usize)
            .iter()
            .map(|base| {
                let pack = meta.base_pack(base.pack).ok_or_else(|| {
                    self.damaged(
                        meta,
                        FormatError::Malformed {
                            what: "base pack",
                            offset: 0,
                        },
                    )
                })?;
                Ok(Item {
                    pack,
                    ordinal: base.ordinal,
                })
            })
            .collect()
    }

    /// The group an item is in. A pack that garbage collection removed meanwhile is looked for
    /// in its new place, which may be gone again.
    pub(crate) fn group_of(&self, item: Item) -> Result<(Arc<PackMeta>, Place, Arc<Group>), Error> {
        for _ in 0..MOVES {
            let (meta, place) = self.index.locate(item)?;
            match self.group(&meta, place.group) {
                Ok(group) => return Ok((meta, place, group)),
                Err(Error::Backend(e)) if e.is_not_found() => self.index.forget(meta.number),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Missing {
            address: self.index.address(item),
        })
    }

    /// Reads and decodes a group.
    pub(crate) fn group(&self, meta: &PackMeta, number: u32) -> Result<Arc<Group>, Error> {
        let key = (meta.number, number);
        if let Some(group) = self.groups.get(&key) {
            return Ok(group);
        }
        let group = Arc::new(self.read_group(meta, number)?);
        self.groups
            .insert(key, Arc::clone(&group), group.heap_bytes());
        Ok(group)
    }

    /// Reads a group past the cache.
    pub(crate) fn read_group(&self, meta: &PackMeta, number: u32) -> Result<Group, Error> {
        let span = meta.groups[number as usize];
        let key = pack::key(meta.id);
        let bytes = self
            .backend
            .get(&key, u64::from(span.offset), span.bytes as usize)?;
        let name = GroupName {
            pack: meta.id,
            number,
        };
        let group = Group::decode(name, &bytes).map_err(|e| self.damaged(meta, e))?;
        if group.items() as u32 != meta.group_end(number) - span.first {
            return Err(self.damaged(
                meta,
                FormatError::Malformed {
                    what: "group items",
                    offset: 0,
                },
            ));
        }
        Ok(group)
    }

    /// The bytes of a chunk of a blob.
    pub(crate) fn chunk(&self, item: Item) -> Result<Vec<u8>, Error> {
        let (meta, _, group) = self.group_of(item)?;
        let chunk = group.chunk().map(<[u8]>::to_vec);
        chunk.ok_or_else(|| {
            self.damaged(
                &meta,
                FormatError::Malformed {
                    what: "chunk",
                    offset: 0,
                },
            )
        })
    }

    pub(crate) fn damaged(&self, meta: &PackMeta, source: FormatError) -> Error {
        Error::Damaged {
            path: self.backend.describe(&pack::key(meta.id)),
            source,
        }
    }
}

fn decode_page(
    group: &Group,
    place: Place,
    bases: &[Arc<Page>],
    page: &mut Page,
) -> Result<(), FormatError> {
    let (tokens, literals) = group
        .edit(place.slot as usize)
        .ok_or(FormatError::Malformed {
            what: "page slot",
            offset: 0,
        })?;
    let bases: Vec<&Page> = bases.iter().map(|page| &**page).collect();
    edit::apply(tokens, literals, &bases, page)
}
