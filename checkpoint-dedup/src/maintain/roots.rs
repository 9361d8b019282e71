//! Which series count, and what they refer to.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::error::Error;
use crate::id::{RecordingId, RecordingName};
use crate::index::Item;
use crate::lock::{self, READING, WRITING};
use crate::map::{Content, Layer};
use crate::recording::{self, BlobContent, BlobEntry, Extent, LogManifest, Manifest, Part};
use crate::repository::Repository;

/// The series to keep.
#[derive(Default, Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) named: BTreeMap<RecordingId, RecordingName>,
    /// By a reader or writer, whether named or not.
    pub(super) leased: HashSet<RecordingId>,
}

impl Kept {
    pub(super) fn contains(&self, id: RecordingId) -> bool {
        self.named.contains_key(&id) || self.leased.contains(&id)
    }

    pub(super) fn ids(&self) -> BTreeSet<RecordingId> {
        let named = self.named.keys().copied();
        named.chain(self.leased.iter().copied()).collect()
    }
}

/// The objects of all series.
pub(super) type AllParts = BTreeMap<RecordingId, Vec<Part>>;

impl Repository {
    /// Lists all series. To be called before [`Repository::kept`].
    pub(super) fn all_parts(&self) -> Result<AllParts, Error> {
        let mut out = AllParts::new();
        for listed in self.store.backend.list(recording::SERIES)? {
            if let Some((id, part)) = recording::parse_key(&listed.key) {
                out.entry(id).or_default().push(part);
            }
        }
        Ok(out)
    }

    /// Series with a live lease.
    pub(super) fn leased(&self) -> Result<HashSet<RecordingId>, Error> {
        let backend = &*self.store.backend;
        let mut live = lock::live(backend, READING)?;
        live.extend(lock::live(backend, WRITING)?);
        Ok(live.iter().map(|lease| lease.series).collect())
    }

    /// Which series to keep. A writer takes its lease before it begins the series and gives it
    /// back after it has named it, so leases are listed before names; a reader takes its lease and
    /// then looks whether the name is still there, so they are listed after names as well.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a name cannot be read: then nothing may be removed.
    pub(super) fn kept(&self) -> Result<Kept, Error> {
        let mut kept = Kept {
            leased: self.leased()?,
            ..Kept::default()
        };
        for name in self.names()? {
            match self.start(&name) {
                Ok(start) => drop(kept.named.insert(start.recording, name)),
                Err(Error::NoRecording { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        kept.leased.extend(self.leased()?);
        Ok(kept)
    }

    /// Hands on every item that an object of a series refers to directly. `false` if the object
    /// was removed meanwhile.
    pub(super) fn references(
        &self,
        id: RecordingId,
        part: Part,
        each: &mut dyn FnMut(Item),
    ) -> Result<bool, Error> {
        let (store, key) = (&self.store, recording::key(id, part));
        let bytes = match store.backend.get_all(&key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let damaged = |source| Error::Damaged {
            path: store.backend.describe(&key),
            source,
        };
        match part {
            Part::Start | Part::End(_) => {}
            Part::Checkpoint(_) | Part::Base(_) => {
                let manifest = Manifest::decode(&bytes, &store.index).map_err(damaged)?;
                manifest_items(&manifest, each);
            }
            Part::Log(_) => {
                let log = LogManifest::decode(&bytes, &store.index).map_err(damaged)?;
                for (_, content) in &log.pages {
                    content_item(*content, each);
                }
                blob_items(&log.bytes, each);
            }
        }
        Ok(true)
    }
}

/// The objects of a series that count.
pub(super) fn current(parts: &[Part]) -> impl Iterator<Item = Part> + '_ {
    let extent = Extent::of(parts);
    parts
        .iter()
        .copied()
        .filter(move |&part| !extent.is_leftover(part))
}

fn manifest_items(manifest: &Manifest, each: &mut dyn FnMut(Item)) {
    for space in &manifest.spaces {
        layer_items(&space.own, each);
        layer_items(&space.merged, each);
    }
    manifest
        .blobs
        .iter()
        .for_each(|blob| blob_items(blob, each));
}

fn layer_items(layer: &Layer, each: &mut dyn FnMut(Item)) {
    for (_, content) in layer.iter() {
        content_item(content, each);
    }
}

fn content_item(content: Content, each: &mut dyn FnMut(Item)) {
    if let Content::Item(item) = content {
        each(item);
    }
}

pub(super) fn blob_items(blob: &BlobEntry, each: &mut dyn FnMut(Item)) {
    if let BlobContent::Chunks(items) = &blob.content {
        items.iter().for_each(|&item| each(item));
    }
}
