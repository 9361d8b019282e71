//! Which pack holds which item. In memory: 12 bytes per group, 20 per run and 1 per item of the
//! packs that were needed so far. Derived from the directories of the packs.

mod fingerprints;
mod meta;
pub(crate) mod segment;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

pub(crate) use fingerprints::Fingerprints;
pub(crate) use meta::{PackMeta, Place};

use crate::backend::Backend;
use crate::error::{Error, FormatError};
use crate::id::{Address, ItemId, PackId};
use crate::pack::{self, Directory, TRAILER, Trailer};

/// An item in memory: number of its pack in the [`Index`], and its ordinal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Item {
    pub(crate) pack: u32,
    pub(crate) ordinal: u32,
}

/// The packs that are known, by number.
#[derive(Default)]
struct Known {
    ids: Vec<PackId>,
    numbers: HashMap<PackId, u32>,
    metas: Vec<Option<Arc<PackMeta>>>,
    /// Packs that hold items first stored in this one.
    homes: HashMap<u32, Vec<u32>>,
}

/// Finds items; shared by all threads.
pub(crate) struct Index {
    backend: Arc<dyn Backend>,
    known: RwLock<Known>,
}

impl Known {
    fn number(&mut self, id: PackId) -> u32 {
        if let Some(&number) = self.numbers.get(&id) {
            return number;
        }
        let number = self.ids.len() as u32;
        self.ids.push(id);
        self.metas.push(None);
        self.numbers.insert(id, number);
        number
    }

    fn insert(&mut self, id: PackId, directory: &Directory) -> u32 {
        let number = self.number(id);
        let others = directory.others.iter().map(|&id| self.number(id)).collect();
        let origins: Vec<u32> = directory
            .origins
            .iter()
            .map(|&id| self.number(id))
            .collect();
        for &origin in &origins {
            let homes = self.homes.entry(origin).or_default();
            if !homes.contains(&number) {
                homes.push(number);
            }
        }
        let meta = PackMeta::new(id, number, others, &origins, directory);
        self.metas[number as usize] = Some(Arc::new(meta));
        number
    }
}

impl Index {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            known: RwLock::new(Known::default()),
        }
    }

    fn read<T>(&self, f: impl FnOnce(&Known) -> T) -> T {
        f(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Known) -> T) -> T {
        f(&mut self.known.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number that stands for a pack in this process.
    pub(crate) fn number(&self, id: PackId) -> u32 {
        if let Some(number) = self.read(|known| known.numbers.get(&id).copied()) {
            return number;
        }
        self.write(|known| known.number(id))
    }

    pub(crate) fn pack_id(&self, number: u32) -> PackId {
        self.read(|known| known.ids[number as usize])
    }

    pub(crate) fn address(&self, item: Item) -> Address {
        Address {
            pack: self.pack_id(item.pack),
            ordinal: item.ordinal,
        }
    }

    /// Takes note of a pack that was just published.
    pub(crate) fn insert(&self, id: PackId, directory: &Directory) -> u32 {
        self.write(|known| known.insert(id, directory))
    }

    /// Forgets a pack whose file turned out to be gone.
    pub(crate) fn forget(&self, number: u32) {
        self.write(|known| {
            known.metas[number as usize] = None;
            known
                .homes
                .values_mut()
                .for_each(|homes| homes.retain(|&home| home != number));
        });
    }

    /// What is known of a pack, if it is known to exist.
    pub(crate) fn meta(&self, number: u32) -> Option<Arc<PackMeta>> {
        self.read(|known| known.metas.get(number as usize)?.clone())
    }

    /// Packs known to exist, with their numbers.
    pub(crate) fn present(&self) -> Vec<Arc<PackMeta>> {
        self.read(|known| known.metas.iter().flatten().cloned().collect())
    }

    /// Where an item lies. Looks at the item's own pack first, so that most readers never load
    /// more than the directories they need; a moved item costs one look at everything.
    pub(crate) fn locate(&self, item: Item) -> Result<(Arc<PackMeta>, Place), Error> {
        if let Some(found) = self.known_place(item) {
            return Ok(found);
        }
        let own = self.load(self.pack_id(item.pack));
        if let Some(found) = self.known_place(item) {
            return Ok(found);
        }
        // It moved, or its pack is damaged and an index segment may still know what is in it.
        self.refresh()?;
        if let Some(found) = self.known_place(item) {
            return Ok(found);
        }
        match own {
            Err(Error::Backend(e)) if !e.is_not_found() => Err(e.into()),
            Err(error) if error.is_damage() => Err(error),
            _ => Err(Error::Missing {
                address: self.address(item),
            }),
        }
    }

    fn known_place(&self, item: Item) -> Option<(Arc<PackMeta>, Place)> {
        self.read(|known| {
            let moved = known.homes.get(&item.pack).map_or(&[][..], Vec::as_slice);
            std::iter::once(&item.pack)
                .chain(moved)
                .find_map(|&number| {
                    let meta = known.metas[number as usize].as_ref()?;
                    Some((Arc::clone(meta), meta.place(item)?))
                })
        })
    }

    /// The packs that hold an item, as far as known.
    pub(crate) fn homes(&self, item: Item) -> Vec<u32> {
        self.read(|known| {
            let moved = known.homes.get(&item.pack).map_or(&[][..], Vec::as_slice);
            std::iter::once(&item.pack)
                .chain(moved)
                .filter(|&&number| {
                    let meta = known.metas[number as usize].as_ref();
                    meta.is_some_and(|meta| meta.place(item).is_some())
                })
                .copied()
                .collect()
        })
    }

    /// The address of the `index`-th item that a pack holds.
    pub(crate) fn held(&self, pack: u32, index: u32) -> Option<Item> {
        self.read(|known| known.metas.get(pack as usize)?.as_ref()?.held(index))
    }

    /// Decode cost of an item.
    pub(crate) fn cost(&self, item: Item) -> Result<u8, Error> {
        let (meta, place) = self.locate(item)?;
        Ok(meta.cost(place))
    }

    /// Reads the directory of a pack.
    pub(crate) fn load(&self, id: PackId) -> Result<u32, Error> {
        let (directory, _) = self.read_directory(id)?;
        Ok(self.insert(id, &directory))
    }

    /// Reads and checks trailer and table of a pack.
    pub(crate) fn read_directory(&self, id: PackId) -> Result<(Directory, Trailer), Error> {
        let key = pack::key(id);
        let size = self.backend.size(&key)?;
        let tail = self
            .backend
            .get(&key, size.saturating_sub(TRAILER as u64), TRAILER)?;
        let damaged = |source| Error::Damaged {
            path: self.backend.describe(&key),
            source,
        };
        let trailer = Trailer::read(&tail, id, size).map_err(damaged)?;
        let stored = trailer.table_stored as usize;
        let table = self.backend.get(&key, trailer.table_offset, stored)?;
        let directory = trailer.directory(&table).map_err(damaged)?;
        Ok((directory, trailer))
    }

    /// Reads and checks the ids of a pack.
    pub(crate) fn read_ids(&self, id: PackId, trailer: &Trailer) -> Result<Vec<ItemId>, Error> {
        let key = pack::key(id);
        let bytes = self
            .backend
            .get(&key, trailer.ids_offset(), trailer.ids_bytes() as usize)?;
        let damaged = |source: FormatError| {
            let path = self.backend.describe(&key);
            Error::Damaged { path, source }
        };
        trailer.ids(&bytes).map_err(damaged)
    }

    /// All pack files there are, with their sizes.
    pub(crate) fn list(&self) -> Result<Vec<(PackId, u64)>, Error> {
        let listed = self.backend.list("packs/")?;
        Ok(listed
            .iter()
            .filter_map(|o| Some((pack::parse_key(&o.key)?, o.bytes)))
            .collect())
    }

    /// Loads the directories of all packs, out of index segments where they cover a pack.
    /// A damaged pack is left out here; reading one of its items and `check` report it.
    pub(crate) fn refresh(&self) -> Result<(), Error> {
        self.refresh_with(&mut |_, _| {})
    }

    /// [`Index::refresh`], handing on the fingerprints of the items of every pack.
    pub(crate) fn refresh_with(&self, each: &mut dyn FnMut(u32, Vec<u32>)) -> Result<(), Error> {
        let mut missing: HashSet<PackId> = self.list()?.into_iter().map(|(id, _)| id).collect();
        let gone: Vec<u32> = self
            .present()
            .iter()
            .filter(|m| !missing.contains(&m.id))
            .map(|m| m.number)
            .collect();
        gone.into_iter().for_each(|number| self.forget(number));
        for covered in segment::read_all(&*self.backend)? {
            if missing.remove(&covered.pack) {
                let number = self.insert(covered.pack, &covered.directory);
                each(number, covered.fingerprints);
            }
        }
        for id in missing {
            match self.load_with_ids(id) {
                Ok((number, fingerprints)) => each(number, fingerprints),
                Err(Error::Backend(e)) if e.is_not_found() => {}
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn load_with_ids(&self, id: PackId) -> Result<(u32, Vec<u32>), Error> {
        let (directory, trailer) = self.read_directory(id)?;
        let ids = self.read_ids(id, &trailer)?;
        Ok((
            self.insert(id, &directory),
            ids.iter().map(fingerprint).collect(),
        ))
    }
}

/// What the in-memory table and the index segments keep of an id.
pub(crate) fn fingerprint(id: &ItemId) -> u32 {
    let [a, b, c, d, ..] = *id.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}
