//! Making derived data anew out of the packs.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::progress::{Progress, report};
use crate::catalogue::SledCatalogue;
use crate::error::{BackendError, Error};
use crate::id::PackId;
use crate::index::fingerprint;
use crate::index::segment::{self, Covered};
use crate::lock::{self, Patience};
use crate::repository::Repository;

/// Packs that one index segment covers.
const PACKS: usize = 1024;

/// What a rebuild did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Packs read.
    pub packs: u64,
    /// What could not be read; `check` says more.
    pub unreadable: Vec<String>,
    /// Items in them.
    pub items: u64,
    /// Bytes of the packs' directories.
    pub directory_bytes: u64,
    /// How long the index took.
    pub took: Duration,
    /// How long the catalogue took, for which all of the packs is read.
    pub catalogue_took: Duration,
}

impl Repository {
    /// Replaces the index by one made of what the packs say of themselves.
    ///
    /// # Errors
    /// [`Error::Locked`] during other maintenance, [`Error::Interrupted`], or what the storage
    /// says.
    pub fn rebuild_index(&self, progress: &dyn Progress) -> Result<RebuildReport, Error> {
        let backend = &self.store.backend;
        let purpose = "rebuilding the index";
        let _lock = lock::exclusive(backend, lock::MAINTENANCE, purpose, Patience::BRIEF)?;
        let start = Instant::now();
        let old = backend.list("index/")?;
        let packs = self.store.index.list()?;
        let mut out = RebuildReport::default();
        let mut new = Vec::new();
        for (at, part) in packs.chunks(PACKS).enumerate() {
            report(progress, "reading packs", at * PACKS, packs.len())?;
            let read: Vec<_> = part
                .par_iter()
                .map(|&(id, size)| (id, size, self.cover(id)))
                .collect();
            let mut covered = Vec::new();
            for (id, size, result) in read {
                match result {
                    Ok((pack, offset)) => {
                        out.packs += 1;
                        out.items += pack.fingerprints.len() as u64;
                        out.directory_bytes += size - offset;
                        covered.push(pack);
                    }
                    Err(Error::Backend(e)) if e.is_not_found() => {}
                    Err(error) if error.is_damage() => {
                        out.unreadable.push(backend.describe(&crate::pack::key(id)));
                    }
                    Err(error) => return Err(error),
                }
            }
            if !covered.is_empty() {
                new.push(segment::publish(&**backend, &covered)?);
            }
        }
        for listed in old.iter().filter(|listed| !new.contains(&listed.key)) {
            backend.delete(&listed.key)?;
        }
        out.took = start.elapsed();
        if out.unreadable.is_empty() {
            let start = Instant::now();
            match self.rebuild_catalogue(progress) {
                Err(error @ Error::Interrupted) => return Err(error),
                Err(error) => out.unreadable.push(error.to_string()),
                Ok(()) => {}
            }
            out.catalogue_took = start.elapsed();
        }
        Ok(out)
    }

    /// Throws the catalogue away and gathers everything in it again.
    fn rebuild_catalogue(&self, progress: &dyn Progress) -> Result<(), Error> {
        let Some(directory) = self.store.backend.directory() else {
            return Ok(());
        };
        let path = directory.join("catalogue");
        let removed = match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        removed.map_err(|source| BackendError {
            action: "remove",
            path: path.display().to_string(),
            source,
        })?;
        let catalogue = SledCatalogue::open(directory)?;
        self.stats_with(None, &catalogue, progress).map(drop)
    }

    fn cover(&self, id: PackId) -> Result<(Covered, u64), Error> {
        let (directory, trailer) = self.store.index.read_directory(id)?;
        let ids = self.store.index.read_ids(id, &trailer)?;
        let covered = Covered {
            pack: id,
            directory,
            fingerprints: ids.iter().map(fingerprint).collect(),
        };
        Ok((covered, trailer.table_offset))
    }
}
