//! Checkpoints, blobs and log segments: everything they refer to is published before they are.

use std::time::SystemTime;

use super::draft::{Draft, DraftSpace, LogDraft};
use super::pipeline::{Pipeline, SpaceState};
use crate::codec::group::MAX_RAW;
use crate::error::Error;
use crate::id::{BlobId, CheckpointNo, ContentId, PAGE_BYTES, Page};
use crate::index::{Item, fingerprint};
use crate::lock;
use crate::map::Layer;
use crate::recording::{
    self, BlobContent, BlobEntry, LogManifest, Manifest, Part, Space, level_span,
};

/// Blobs up to this size stand in the manifest.
const INLINE: usize = 16 << 10;
/// Sizes of chunks: least, usual, most.
const CHUNK: (usize, usize, usize) = (16 << 10, 64 << 10, 256 << 10);
const _: () = assert!(CHUNK.2 <= MAX_RAW);

impl Pipeline {
    /// Stores changed pages of the next checkpoint.
    pub(super) fn pages(&mut self, changed: &[DraftSpace]) -> Result<(), Error> {
        self.early.resize_with(changed.len(), Layer::default);
        for (space, changed) in changed.iter().enumerate() {
            let layer = self.ingest(space, &changed.sorted())?;
            let early = &mut self.early[space];
            *early = match early.is_empty() {
                true => layer,
                false => early.merge(&layer),
            };
        }
        Ok(())
    }

    pub(super) fn checkpoint(&mut self, number: CheckpointNo, draft: &Draft) -> Result<(), Error> {
        self.pages(&draft.changed)?;
        let layers = std::mem::take(&mut self.early);
        let mut blobs = Vec::new();
        for (name, bytes) in &draft.blobs {
            blobs.push(self.blob(name, bytes)?);
        }
        self.flush()?;
        let spaces = self.spaces.iter().zip(layers);
        let manifest = Manifest {
            recording: self.recording,
            number,
            created_unix_ns: lock::unix_ns(SystemTime::now()),
            parent: self.parent,
            spaces: spaces
                .map(|(space, own)| layered(space, number, own))
                .collect(),
            blobs,
        };
        let object = manifest.encode(&self.store.index);
        self.publish(Part::Checkpoint(number), &object)?;
        self.parent = *blake3::hash(&object).as_bytes();
        self.last = Some(number);
        self.next = number.next();
        Ok(())
    }

    pub(super) fn log(&mut self, number: CheckpointNo, log: &LogDraft) -> Result<(), Error> {
        let (pages, _) = log.data.as_chunks::<PAGE_BYTES>();
        let pages: Vec<&Page> = pages.iter().collect();
        let contents = self.ingest_loose(&pages)?;
        let bytes = self.blob("log", &log.bytes)?;
        self.flush()?;
        let manifest = LogManifest {
            recording: self.recording,
            number,
            pages: log.ids.iter().copied().zip(contents).collect(),
            bytes,
        };
        let object = manifest.encode(&self.store.index);
        self.publish(Part::Log(number), &object)
    }

    fn publish(&mut self, part: Part, object: &[u8]) -> Result<(), Error> {
        let key = recording::key(self.recording, part);
        self.done.manifest_bytes += object.len() as u64;
        if !self.store.backend.put_if_absent(&key, object)? {
            return Err(Error::Refused(format!(
                "{} is there already",
                self.store.backend.describe(&key)
            )));
        }
        Ok(())
    }

    /// Stores a blob: whole if short, else cut by content.
    fn blob(&mut self, name: &str, bytes: &[u8]) -> Result<BlobEntry, Error> {
        let content = if bytes.len() <= INLINE {
            BlobContent::Inline(bytes.to_vec())
        } else {
            let mut items = Vec::new();
            for chunk in fastcdc::v2020::FastCDC::new(bytes, CHUNK.0, CHUNK.1, CHUNK.2) {
                items.push(self.chunk(&bytes[chunk.offset..chunk.offset + chunk.length])?);
            }
            BlobContent::Chunks(items)
        };
        let id = BlobId::of(bytes);
        Ok(BlobEntry {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            id,
            content,
        })
    }

    fn chunk(&mut self, bytes: &[u8]) -> Result<Item, Error> {
        let id = ContentId::of_chunk(bytes);
        if let Some(&ordinal) = self.packer.by_id.get(&id) {
            return Ok(Item {
                pack: self.packer.number,
                ordinal,
            });
        }
        for held in self.fingerprints.candidates(fingerprint(&id.item())) {
            if self.condemned.contains(&held.pack) {
                continue;
            }
            let Some(item) = self.store.index.held(held.pack, held.index) else {
                continue;
            };
            let (meta, place) = self.store.index.locate(item)?;
            if !meta.is_chunk(place.group) {
                continue;
            }
            match self.store.chunk(item) {
                Ok(known) if known == bytes => return Ok(item),
                Ok(_) => {}
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        if self.packer.is_full() {
            self.flush()?;
        }
        Ok(Item {
            pack: self.packer.number,
            ordinal: self.packer.push_chunk(id, bytes),
        })
    }
}

/// The space as the manifest shows it, with the merged layer that this number calls for.
fn layered(space: &SpaceState, number: CheckpointNo, own: Layer) -> Space {
    let span = level_span(number);
    let merged = match span {
        0 => Layer::default(),
        _ => space.now.since(CheckpointNo(number.0 - span)),
    };
    Space {
        name: space.name.clone(),
        frames: space.frames,
        own,
        span,
        merged,
    }
}
