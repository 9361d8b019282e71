//! Finding damage: every object there is, what refers to what is not there, and whose checkpoints
//! suffer.

mod packs;
mod report;
mod series;

use std::sync::Arc;

pub use report::{Affected, CheckReport, Damage, DamageKind};

use super::progress::{Progress, report};
use crate::backend::Backend;
use crate::condemned;
use crate::envelope::{CONFIG, open};
use crate::error::{Error, FormatError};
use crate::index::segment;
use crate::lock::{self, Lock, LockInfo, Patience};
use crate::pack;
use crate::recording;
use crate::repository::{CONFIG_KEY, OpenOptions, Repository};
use packs::Packs;

/// How to check.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Read all data and recompute every hash, too. Without it a damaged page is not noticed.
    pub read_data: bool,
}

/// Checks the repository in a place, which need not be in a state that [`Repository::open`]
/// accepts.
///
/// # Errors
/// [`Error::NoRepository`] if nothing of a repository is there, [`Error::Locked`] during other
/// maintenance, [`Error::Interrupted`], or storage that fails for every object.
pub fn check(
    backend: Arc<dyn Backend>,
    options: CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport, Error> {
    let _lock = quiet(&backend, "checking")?;
    check_unlocked(backend, options, progress)
}

/// The maintenance lock, so that nothing is removed meanwhile; `None` where locks cannot be
/// written or read.
fn quiet(backend: &Arc<dyn Backend>, purpose: &str) -> Result<Option<Lock>, Error> {
    match lock::exclusive(backend, lock::MAINTENANCE, purpose, Patience::BRIEF) {
        Ok(lock) => Ok(Some(lock)),
        Err(Error::Backend(_) | Error::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn check_unlocked(
    backend: Arc<dyn Backend>,
    options: CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport, Error> {
    let repository = Repository::unchecked(backend, OpenOptions::default());
    let mut out = CheckReport::default();
    let listed = repository.store.backend.list("")?;
    let known = listed.iter().any(|o| is_known(&o.key));
    if !known {
        return Err(Error::NoRepository {
            path: repository.store.backend.describe(""),
        });
    }
    out.objects = listed.len() as u64;
    out.bytes = listed.iter().map(|object| object.bytes).sum();
    repository.check_config(&mut out)?;
    for (at, object) in listed.iter().enumerate() {
        report(progress, "checking small objects", at, listed.len())?;
        repository.check_small(&object.key, &mut out)?;
    }
    let mut packs = Packs::default();
    packs.check(&repository, options.read_data, progress, &mut out)?;
    repository.check_series(&packs, options.read_data, progress, &mut out)?;
    out.forget_harmless(&packs.bereft);
    Ok(out)
}

fn is_known(key: &str) -> bool {
    key == CONFIG_KEY
        || pack::parse_key(key).is_some()
        || recording::parse_key(key).is_some()
        || recording::parse_name_key(key).is_some()
        || [
            "index/",
            "lost+found/",
            "locks/",
            "condemned/",
            "tmp/",
            "catalogue/",
        ]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

impl Repository {
    /// Checks the repository: [`check`] without opening it again.
    ///
    /// # Errors
    /// As [`check`].
    pub fn check(
        &self,
        options: CheckOptions,
        progress: &dyn Progress,
    ) -> Result<CheckReport, Error> {
        check(Arc::clone(&self.store.backend), options, progress)
    }

    fn check_config(&self, out: &mut CheckReport) -> Result<(), Error> {
        let backend = &*self.store.backend;
        let path = backend.describe(CONFIG_KEY);
        let bytes = match backend.get_all(CONFIG_KEY) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => {
                out.add(DamageKind::Config, CONFIG_KEY, path, "is missing");
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        match open(&CONFIG, &bytes) {
            Ok(_) => Ok(()),
            Err(FormatError::Version { .. }) => crate::repository::check_config(backend),
            Err(error) => {
                out.add(DamageKind::Config, CONFIG_KEY, path, error);
                Ok(())
            }
        }
    }

    /// Locks, lists of condemned packs, index segments; objects of no known kind.
    fn check_small(&self, key: &str, out: &mut CheckReport) -> Result<(), Error> {
        let backend = &*self.store.backend;
        let path = backend.describe(key);
        if !is_known(key) {
            out.add(DamageKind::Unknown, key, path, "is no part of a repository");
            return Ok(());
        }
        let derived = [lock::PREFIX, condemned::PREFIX, "index/"];
        let Some(prefix) = derived.into_iter().find(|prefix| key.starts_with(prefix)) else {
            return Ok(());
        };
        let bytes = match backend.get_all(key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => {
                out.add(DamageKind::Unreadable, key, path, e);
                return Ok(());
            }
        };
        let result = match prefix {
            lock::PREFIX => LockInfo::decode(key, &bytes).map(drop),
            condemned::PREFIX => condemned::Condemned::decode(&bytes).map(drop),
            _ => return self.check_segment(key, path, &bytes, out),
        };
        if let Err(error) = result {
            let kind = match prefix {
                lock::PREFIX => DamageKind::Lock,
                _ => DamageKind::Derived,
            };
            out.add(kind, key, path, error);
        }
        Ok(())
    }

    /// An index segment must say what the packs say.
    fn check_segment(
        &self,
        key: &str,
        path: String,
        bytes: &[u8],
        out: &mut CheckReport,
    ) -> Result<(), Error> {
        let covered = match segment::decode(bytes) {
            Ok(covered) => covered,
            Err(error) => {
                out.add(DamageKind::Derived, key, path, error);
                return Ok(());
            }
        };
        for pack in covered {
            let there = self.store.index.read_directory(pack.pack);
            if there.is_ok_and(|(directory, _)| directory != pack.directory) {
                let what = format!("says otherwise than pack {}", pack.pack);
                out.add(DamageKind::Derived, key, path, what);
                break;
            }
        }
        Ok(())
    }
}
