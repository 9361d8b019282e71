//! The catalogue: facts about packs and recordings that take long to gather. All of it is derived:
//! it may be deleted at any time, and nothing but maintenance ever opens it, because sled locks
//! out every second process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::envelope::{FACTS, open, seal};
use crate::error::Error;

/// What facts are about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shelf {
    Packs,
    Recordings,
}

impl Shelf {
    fn name(self) -> &'static str {
        match self {
            Self::Packs => "packs",
            Self::Recordings => "recordings",
        }
    }
}

/// A place for facts. What comes out went in, or nothing does.
pub(crate) trait Catalogue {
    fn get(&self, shelf: Shelf, key: &[u8]) -> Option<Vec<u8>>;
    fn put(&self, shelf: Shelf, key: &[u8], facts: &[u8]) -> Result<(), Error>;
    /// Forgets everything on a shelf whose key is not to be kept.
    fn retain(&self, shelf: Shelf, keep: &dyn Fn(&[u8]) -> bool) -> Result<(), Error>;
    fn flush(&self) -> Result<(), Error>;
}

/// A catalogue in sled.
pub(crate) struct SledCatalogue(sled::Db);

/// Memory for sled's cache.
const CACHE_BYTES: u64 = 8 << 20;

impl SledCatalogue {
    /// Opens the catalogue of a repository. It may be in use by another process, or broken.
    pub(crate) fn open(repository: &Path) -> Result<Self, Error> {
        let config = sled::Config::new()
            .path(repository.join("catalogue"))
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace);
        guarded(|| config.open().map(Self).map_err(failed))
    }

    fn tree(&self, shelf: Shelf) -> Result<sled::Tree, Error> {
        self.0.open_tree(shelf.name()).map_err(failed)
    }
}

/// Sled is known to panic on damaged files, when they are opened and later.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let panicked = |_| Err(Error::Catalogue("sled panicked on its files".to_owned()));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

fn failed(error: sled::Error) -> Error {
    Error::Catalogue(error.to_string())
}

impl Catalogue for SledCatalogue {
    fn get(&self, shelf: Shelf, key: &[u8]) -> Option<Vec<u8>> {
        let get = || self.tree(shelf)?.get(key).map_err(failed);
        let sealed = guarded(get).ok()??;
        open(&FACTS, &sealed).ok().map(<[u8]>::to_vec)
    }

    fn put(&self, shelf: Shelf, key: &[u8], facts: &[u8]) -> Result<(), Error> {
        guarded(|| {
            let inserted = self.tree(shelf)?.insert(key, seal(&FACTS, facts));
            inserted.map(drop).map_err(failed)
        })
    }

    fn retain(&self, shelf: Shelf, keep: &dyn Fn(&[u8]) -> bool) -> Result<(), Error> {
        guarded(|| {
            let tree = self.tree(shelf)?;
            for key in tree.iter().keys() {
                let key = key.map_err(failed)?;
                if !keep(&key) {
                    tree.remove(key).map_err(failed)?;
                }
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), Error> {
        guarded(|| self.0.flush().map(drop).map_err(failed))
    }
}

/// Remembers nothing: for places that are no directory, and where sled does not open.
pub(crate) struct NoCatalogue;

impl Catalogue for NoCatalogue {
    fn get(&self, _: Shelf, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn put(&self, _: Shelf, _: &[u8], _: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn retain(&self, _: Shelf, _: &dyn Fn(&[u8]) -> bool) -> Result<(), Error> {
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The catalogue of a repository, or none.
pub(crate) fn of(directory: Option<&Path>) -> Box<dyn Catalogue> {
    match directory.map(SledCatalogue::open) {
        Some(Ok(sled)) => Box::new(sled),
        _ => Box::new(NoCatalogue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_in_comes_out_and_damage_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let sled = SledCatalogue::open(directory.path()).unwrap();
        // A second one is locked out, as a second process would be.
        assert!(SledCatalogue::open(directory.path()).is_err());
        sled.put(Shelf::Packs, b"a", b"facts").unwrap();
        sled.put(Shelf::Recordings, b"a", b"others").unwrap();
        assert_eq!(sled.get(Shelf::Packs, b"a").unwrap(), b"facts");
        sled.retain(Shelf::Packs, &|key| key != b"a").unwrap();
        assert_eq!(sled.get(Shelf::Packs, b"a"), None);
        assert_eq!(sled.get(Shelf::Recordings, b"a").unwrap(), b"others");
        let tree = sled.tree(Shelf::Packs).unwrap();
        tree.insert(b"bad", &b"no envelope"[..]).unwrap();
        assert_eq!(sled.get(Shelf::Packs, b"bad"), None);
    }
}
