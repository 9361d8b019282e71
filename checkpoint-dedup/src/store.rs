//! Reading items: find the group, check it, decode it, apply edits. Shared by readers, the writer
//! and maintenance.

use std::sync::Arc;

use crate::backend::Backend;
use crate::cache::Cache;
use crate::codec::MAX_COST;
use crate::codec::edit;
use crate::codec::group::Group;
use crate::error::{Error, FormatError};
use crate::id::{PAGE_BYTES, Page};
use crate::index::{Index, Item, PackMeta, Place};
use crate::pack;

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
        self.page_at_depth(item, 0)
    }

    /// Keeps a page that the caller knows in the cache.
    pub(crate) fn remember(&self, item: Item, page: Arc<Page>) {
        self.pages.insert(item, page, PAGE_BYTES + 64);
    }

    fn page_at_depth(&self, item: Item, depth: u8) -> Result<Arc<Page>, Error> {
        if let Some(page) = self.pages.get(&item) {
            return Ok(page);
        }
        let (meta, place, group) = self.group_of(item)?;
        // A cycle of bases, which only a forged pack can hold, ends here.
        if depth >= MAX_COST {
            return Err(self.damaged(
                &meta,
                FormatError::Malformed {
                    what: "base depth",
                    offset: 0,
                },
            ));
        }
        let bases = self.base_items(&meta, &group, place)?;
        let bases = bases
            .into_iter()
            .map(|base| self.page_at_depth(base, depth + 1))
            .collect::<Result<Vec<_>, _>>()?;
        let page =
            Arc::new(decode_page(&group, place, &bases).map_err(|e| self.damaged(&meta, e))?);
        self.remember(item, Arc::clone(&page));
        Ok(page)
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
    /// once more.
    pub(crate) fn group_of(&self, item: Item) -> Result<(Arc<PackMeta>, Place, Arc<Group>), Error> {
        for last_try in [false, true] {
            let (meta, place) = self.index.locate(item)?;
            match self.group(&meta, place.group) {
                Ok(group) => return Ok((meta, place, group)),
                Err(Error::Backend(e)) if e.is_not_found() && !last_try => {
                    self.index.forget(meta.number);
                }
                Err(Error::Backend(e)) if e.is_not_found() => break,
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
        let group = Group::decode(&bytes).map_err(|e| self.damaged(meta, e))?;
        let next = meta
            .groups
            .get(number as usize + 1)
            .map_or(meta.items(), |g| g.first);
        if group.items() as u32 != next - span.first {
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

    fn damaged(&self, meta: &PackMeta, source: FormatError) -> Error {
        Error::Damaged {
            path: self.backend.describe(&pack::key(meta.id)),
            source,
        }
    }
}

fn decode_page(group: &Group, place: Place, bases: &[Arc<Page>]) -> Result<Page, FormatError> {
    let (tokens, literals) = group
        .edit(place.slot as usize)
        .ok_or(FormatError::Malformed {
            what: "page slot",
            offset: 0,
        })?;
    let bases: Vec<&Page> = bases.iter().map(|page| &**page).collect();
    let mut page = [0; PAGE_BYTES];
    edit::apply(tokens, literals, &bases, &mut page)?;
    Ok(page)
}
