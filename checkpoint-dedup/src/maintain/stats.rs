//! How much is stored, and how.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::items::ItemSet;
use super::progress::{Progress, report};
use super::roots::current;
use crate::catalogue::{self, Catalogue, Shelf};
use crate::codec::group::Group;
use crate::error::{Error, FormatError};
use crate::id::{PAGE_BYTES, PackId, RecordingId, RecordingName};
use crate::index::{Item, PackMeta};
use crate::recording::{self, Extent, LogManifest, Manifest, Part};
use crate::repository::Repository;
use crate::wire::{Input, Output};

/// Items stored in one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MethodStats {
    /// Items.
    pub items: u64,
    /// Their bytes.
    pub raw_bytes: u64,
    /// What they take, without directories. Items that share a group share its bytes by their
    /// lengths before zstd.
    pub stored_bytes: u64,
}

impl MethodStats {
    fn add(&mut self, other: &Self) {
        self.items += other.items;
        self.raw_bytes += other.raw_bytes;
        self.stored_bytes += other.stored_bytes;
    }
}

/// One recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordingStats {
    /// Its name.
    pub name: RecordingName,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Log segments.
    pub logs: u64,
    /// What all checkpoints and log segments would take one by one.
    pub logical_bytes: u64,
    /// What all different pages and chunks would take.
    pub unique_bytes: u64,
    /// What those take, whoever else refers to them; a share of its group for each.
    pub stored_bytes: u64,
    /// Manifests and log objects.
    pub manifest_bytes: u64,
}

/// A repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// The recordings, by name.
    pub recordings: Vec<RecordingStats>,
    /// Packs.
    pub packs: u64,
    /// Bytes of pack files.
    pub pack_bytes: u64,
    /// Bytes of these that are directories.
    pub directory_bytes: u64,
    /// Bytes of manifests and log objects.
    pub manifest_bytes: u64,
    /// Bytes of index segments.
    pub index_bytes: u64,
    /// Pages stored whole.
    pub whole: MethodStats,
    /// Pages stored as edits of others.
    pub deltas: MethodStats,
    /// Chunks of blobs.
    pub chunks: MethodStats,
}

/// What the catalogue keeps of a pack.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct PackFacts {
    groups_bytes: u64,
    methods: [MethodStats; 3],
}

impl PackFacts {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_varint(self.groups_bytes);
        for method in &self.methods {
            out.put_varint(method.items);
            out.put_varint(method.raw_bytes);
            out.put_varint(method.stored_bytes);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(bytes);
        let mut out = Self {
            groups_bytes: input.varint()?,
            ..Self::default()
        };
        for method in &mut out.methods {
            method.items = input.varint()?;
            method.raw_bytes = input.varint()?;
            method.stored_bytes = input.varint()?;
        }
        input.finish()?;
        Ok(out)
    }
}

/// What the catalogue keeps of a recording that will not grow: valid for this extent and these
/// packs.
struct RecordingFacts {
    valid_for: [u8; 32],
    numbers: [u64; 6],
}

impl RecordingFacts {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.valid_for.to_vec();
        self.numbers.iter().for_each(|&n| out.put_varint(n));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(bytes);
        let mut out = Self {
            valid_for: input.array()?,
            numbers: [0; 6],
        };
        for number in &mut out.numbers {
            *number = input.varint()?;
        }
        input.finish()?;
        Ok(out)
    }
}

impl Repository {
    /// Gathers statistics, of all recordings or of one. What takes long is kept in the catalogue.
    ///
    /// # Errors
    /// [`Error::NoRecording`], damage, [`Error::Interrupted`].
    pub fn stats(
        &self,
        only: Option<&RecordingName>,
        progress: &dyn Progress,
    ) -> Result<Stats, Error> {
        let catalogue = catalogue::of(self.store.backend.directory());
        self.stats_with(only, &*catalogue, progress)
    }

    pub(super) fn stats_with(
        &self,
        only: Option<&RecordingName>,
        catalogue: &dyn Catalogue,
        progress: &dyn Progress,
    ) -> Result<Stats, Error> {
        let names = match only {
            Some(name) => vec![self.start(name).map(|_| name.clone())?],
            None => self.names()?,
        };
        let sizes = self.load_packs()?;
        let mut out = self.pack_stats(&sizes, catalogue, progress)?;
        let mut hasher = blake3::Hasher::new();
        for id in sizes.keys() {
            hasher.update(id.as_bytes());
        }
        let packs = *hasher.finalize().as_bytes();
        for (at, name) in names.iter().enumerate() {
            report(progress, "reading manifests", at, names.len())?;
            match self.recording_stats(name, packs, catalogue) {
                Ok(stats) => out.recordings.push(stats),
                Err(Error::NoRecording { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let listed = |prefix| self.store.backend.list(prefix);
        let total = |objects: Vec<crate::backend::Listed>| objects.iter().map(|o| o.bytes).sum();
        out.index_bytes = total(listed("index/")?);
        out.manifest_bytes = total(listed(recording::SERIES)?);
        // Only a help for the next time.
        let _ = catalogue.flush();
        Ok(out)
    }

    fn pack_stats(
        &self,
        sizes: &BTreeMap<PackId, u64>,
        catalogue: &dyn Catalogue,
        progress: &dyn Progress,
    ) -> Result<Stats, Error> {
        let mut out = Stats::default();
        let metas = self.store.index.present();
        let metas = metas.iter().filter(|meta| sizes.contains_key(&meta.id));
        for (at, meta) in metas.enumerate() {
            report(progress, "reading packs", at, sizes.len())?;
            let key = meta.id.as_bytes();
            let known = catalogue.get(Shelf::Packs, key);
            let facts = match known.and_then(|bytes| PackFacts::decode(&bytes).ok()) {
                Some(facts) => facts,
                None => {
                    let facts = match self.pack_facts(meta) {
                        Err(Error::Backend(e)) if e.is_not_found() => continue,
                        gathered => gathered?,
                    };
                    let _ = catalogue.put(Shelf::Packs, key, &facts.encode());
                    facts
                }
            };
            out.packs += 1;
            out.pack_bytes += sizes[&meta.id];
            out.directory_bytes += sizes[&meta.id].saturating_sub(facts.groups_bytes);
            out.whole.add(&facts.methods[0]);
            out.deltas.add(&facts.methods[1]);
            out.chunks.add(&facts.methods[2]);
        }
        let there = |key: &[u8]| {
            let id = key.try_into().map(PackId::from_bytes);
            id.is_ok_and(|id| sizes.contains_key(&id))
        };
        let _ = catalogue.retain(Shelf::Packs, &there);
        Ok(out)
    }

    fn pack_facts(&self, meta: &Arc<PackMeta>) -> Result<PackFacts, Error> {
        let mut out = PackFacts::default();
        for number in 0..meta.groups.len() as u32 {
            let group = self.store.read_group(meta, number)?;
            let stored = u64::from(meta.groups[number as usize].bytes);
            out.groups_bytes += stored;
            if let Some(chunk) = group.chunk() {
                out.methods[2].add(&MethodStats {
                    items: 1,
                    raw_bytes: chunk.len() as u64,
                    stored_bytes: stored,
                });
                continue;
            }
            let lengths: Vec<u64> = (0..group.items()).map(|s| length(&group, s)).collect();
            let all: u64 = lengths.iter().sum::<u64>().max(1);
            for (slot, length) in lengths.iter().enumerate() {
                let method = usize::from(!group.bases(slot).is_empty());
                out.methods[method].add(&MethodStats {
                    items: 1,
                    raw_bytes: PAGE_BYTES as u64,
                    stored_bytes: stored * length / all,
                });
            }
        }
        Ok(out)
    }

    fn recording_stats(
        &self,
        name: &RecordingName,
        packs: [u8; 32],
        catalogue: &dyn Catalogue,
    ) -> Result<RecordingStats, Error> {
        let id = self.start(name)?.recording;
        let parts = self.parts(id)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&packs);
        for part in current(&parts) {
            hasher.update(recording::key(id, part).as_bytes());
        }
        let valid_for = *hasher.finalize().as_bytes();
        let known = catalogue.get(Shelf::Recordings, id.as_bytes());
        let known = known.and_then(|bytes| RecordingFacts::decode(&bytes).ok());
        let facts = match known.filter(|facts| facts.valid_for == valid_for) {
            Some(facts) => facts,
            None => {
                let numbers = self.count_series(id, &parts)?;
                let facts = RecordingFacts { valid_for, numbers };
                let _ = catalogue.put(Shelf::Recordings, id.as_bytes(), &facts.encode());
                facts
            }
        };
        let [
            checkpoints,
            logs,
            logical_bytes,
            unique_bytes,
            stored_bytes,
            manifest_bytes,
        ] = facts.numbers;
        Ok(RecordingStats {
            name: name.clone(),
            checkpoints,
            logs,
            logical_bytes,
            unique_bytes,
            stored_bytes,
            manifest_bytes,
        })
    }

    fn count_series(&self, id: RecordingId, parts: &[Part]) -> Result<[u64; 6], Error> {
        let extent = Extent::of(parts);
        let (mut logical, mut manifests) = (0, 0);
        let mut items = ItemSet::default();
        let backend = &*self.store.backend;
        for part in current(parts) {
            let key = recording::key(id, part);
            manifests += backend.size(&key)?;
            self.references(id, part, &mut |item| {
                items.insert(item);
            })?;
            let damaged = |source| Error::Damaged {
                path: backend.describe(&key),
                source,
            };
            match part {
                Part::Log(_) => {
                    let bytes = backend.get_all(&key)?;
                    let log = LogManifest::decode(&bytes, &self.store.index).map_err(damaged)?;
                    logical += log.bytes.bytes + (log.pages.len() * PAGE_BYTES) as u64;
                }
                // Where a base stands in for it, the checkpoint counts once.
                Part::Checkpoint(number) if number > extent.base || extent.base.0 == 0 => {
                    logical += self.logical_bytes(&key)?;
                }
                Part::Base(_) => logical += self.logical_bytes(&key)?,
                _ => {}
            }
        }
        let (mut unique, mut stored) = (0, 0);
        for item in items.iter() {
            let (bytes, share) = self.size_of(item)?;
            unique += bytes;
            stored += share;
        }
        let counts = [extent.checkpoints.len() as u64, extent.logs.len() as u64];
        Ok([counts[0], counts[1], logical, unique, stored, manifests])
    }

    fn logical_bytes(&self, key: &str) -> Result<u64, Error> {
        let bytes = self.store.backend.get_all(key)?;
        let manifest = Manifest::decode(&bytes, &self.store.index);
        let manifest = manifest.map_err(|source| Error::Damaged {
            path: self.store.backend.describe(key),
            source,
        })?;
        let spaces = manifest.spaces.iter();
        let spaces: u64 = spaces
            .map(|s| u64::from(s.frames) * PAGE_BYTES as u64)
            .sum();
        Ok(spaces + manifest.blobs.iter().map(|blob| blob.bytes).sum::<u64>())
    }

    /// Bytes of an item, and its share of its group.
    fn size_of(&self, item: Item) -> Result<(u64, u64), Error> {
        let (meta, place) = self.store.index.locate(item)?;
        let stored = u64::from(meta.groups[place.group as usize].bytes);
        if meta.is_chunk(place.group) {
            return Ok((self.store.chunk(item)?.len() as u64, stored));
        }
        let first = meta.groups[place.group as usize].first;
        let items = u64::from(meta.group_end(place.group) - first).max(1);
        Ok((PAGE_BYTES as u64, stored / items))
    }
}

fn length(group: &Group, slot: usize) -> u64 {
    let (tokens, literals) = group.edit(slot).unwrap_or_default();
    (tokens.len() + literals.len() + 4 * group.bases(slot).len() + 4) as u64
}
