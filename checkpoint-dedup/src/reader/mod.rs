//! Reading recordings: any page of any checkpoint, from any number of threads, without a lock and
//! without the catalogue.

mod space;

use std::collections::HashMap;
use std::sync::Arc;

pub use space::SpaceView;

use crate::cache::Cache;
use crate::error::{Error, FormatError};
use crate::id::{BlobId, CheckpointNo, Frame, Page, PageId, RecordingName, new_page, write_fill};
use crate::map::{Content, Layer};
use crate::recording::{self, BlobContent, BlobEntry, LogManifest, Manifest, Part};
use crate::repository::{RecordingInfo, Repository};
use crate::store::Store;

/// Memory for decoded manifests of one recording.
const MANIFEST_BYTES: usize = 256 << 20;

/// A recording open for reading. Cheap to clone.
#[derive(Clone)]
pub struct Recording {
    repository: Repository,
    info: Arc<RecordingInfo>,
    manifests: Arc<Cache<u32, Manifest>>,
}

impl Recording {
    pub(crate) fn open(repository: Repository, name: &RecordingName) -> Result<Self, Error> {
        let info = Arc::new(repository.recording_info(name)?);
        Ok(Self {
            repository,
            info,
            manifests: Arc::new(Cache::new(MANIFEST_BYTES)),
        })
    }

    /// What was known of the recording when it was opened.
    pub fn info(&self) -> &RecordingInfo {
        &self.info
    }

    /// What is known of the recording now: a running one grows.
    ///
    /// # Errors
    /// [`Error::NoRecording`] if it was removed.
    pub fn refresh(&self) -> Result<RecordingInfo, Error> {
        let info = self.repository.recording_info(&self.info.name)?;
        if info.id != self.info.id {
            return Err(Error::NoRecording {
                name: self.info.name.clone(),
            });
        }
        Ok(info)
    }

    /// The checkpoints there are now, ascending.
    ///
    /// # Errors
    /// What the storage says.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointNo>, Error> {
        let parts = self.repository.parts(&self.info.name)?;
        let base = self.base_of(&parts);
        let mut numbers: Vec<CheckpointNo> = parts
            .iter()
            .filter_map(|part| match part {
                Part::Checkpoint(number) if *number >= base => Some(*number),
                _ => None,
            })
            .collect();
        numbers.sort();
        Ok(numbers)
    }

    /// The log segments there are now, ascending. Segment k leads from checkpoint k to k + 1.
    ///
    /// # Errors
    /// What the storage says.
    pub fn logs(&self) -> Result<Vec<CheckpointNo>, Error> {
        let parts = self.repository.parts(&self.info.name)?;
        let base = self.base_of(&parts);
        let mut numbers: Vec<CheckpointNo> = parts
            .iter()
            .filter_map(|part| match part {
                Part::Log(number) if *number >= base => Some(*number),
                _ => None,
            })
            .collect();
        numbers.sort();
        Ok(numbers)
    }

    /// The checkpoint whose map is complete in itself: 0, or where the last trim cut.
    fn base_of(&self, parts: &[Part]) -> CheckpointNo {
        let bases = parts.iter().filter_map(|part| match part {
            Part::Base(number) => Some(*number),
            _ => None,
        });
        bases.max().unwrap_or(CheckpointNo(0))
    }

    /// Opens a checkpoint. Reads its manifest and at most seven more per power of eight of its
    /// number; pages are read when they are asked for.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`], [`Error::Damaged`].
    pub fn checkpoint(&self, number: CheckpointNo) -> Result<Checkpoint, Error> {
        let parts = self.repository.parts(&self.info.name)?;
        let base = self.base_of(&parts);
        if number < base {
            return Err(self.no_checkpoint(number));
        }
        let newest = self.manifest(number, base)?;
        let mut layers: Vec<Vec<(Arc<Manifest>, bool)>> = vec![Vec::new(); newest.spaces.len()];
        for (space, chain) in newest.spaces.iter().zip(&mut layers) {
            self.walk(&newest, &space.name, base, chain)?;
        }
        let spaces = newest
            .spaces
            .iter()
            .zip(layers)
            .map(|(space, chain)| {
                SpaceView::new(
                    Arc::clone(&self.repository.store),
                    &space.name,
                    space.frames,
                    chain,
                )
            })
            .collect();
        Ok(Checkpoint {
            repository: self.repository.clone(),
            number,
            newest,
            spaces,
        })
    }

    /// Collects the layers of a space from the newest back to a complete map.
    fn walk(
        &self,
        newest: &Arc<Manifest>,
        space: &str,
        base: CheckpointNo,
        chain: &mut Vec<(Arc<Manifest>, bool)>,
    ) -> Result<(), Error> {
        let mut manifest = Arc::clone(newest);
        loop {
            let at = manifest.number;
            let span = manifest.space(space).map_or(0, |space| space.span);
            let merged = span > 0 && at.0 >= base.0.saturating_add(span);
            chain.push((Arc::clone(&manifest), merged));
            if at <= base {
                return Ok(());
            }
            let step = if merged { span } else { 1 };
            manifest = self.manifest(CheckpointNo(at.0 - step), base)?;
        }
    }

    /// Frames of a space that differ between a checkpoint and the one after it (or were written
    /// with equal content by a recorder that did not compare).
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if the checkpoint after it is not there.
    pub fn changed_frames(&self, space: &str, from: CheckpointNo) -> Result<Vec<Frame>, Error> {
        let parts = self.repository.parts(&self.info.name)?;
        let base = self.base_of(&parts);
        if from < base {
            return Err(self.no_checkpoint(from));
        }
        let manifest = self.manifest(from.next(), base)?;
        let space = manifest
            .space(space)
            .ok_or_else(|| not_here("page space", space))?;
        Ok(space.own.frames().collect())
    }

    fn no_checkpoint(&self, number: CheckpointNo) -> Error {
        Error::NoCheckpoint {
            name: self.info.name.clone(),
            number,
        }
    }

    pub(crate) fn manifest(
        &self,
        number: CheckpointNo,
        base: CheckpointNo,
    ) -> Result<Arc<Manifest>, Error> {
        // A trim may put a base where a manifest was cached: the two are different objects.
        let is_base = number == base && number.0 > 0;
        let cached = number.0 << 1 | u32::from(is_base);
        if let Some(manifest) = self.manifests.get(&cached) {
            return Ok(manifest);
        }
        let part = if is_base {
            Part::Base(number)
        } else {
            Part::Checkpoint(number)
        };
        let manifest = Arc::new(self.read_manifest(number, part)?);
        self.manifests
            .insert(cached, Arc::clone(&manifest), manifest.heap_bytes());
        Ok(manifest)
    }

    fn read_manifest(&self, number: CheckpointNo, part: Part) -> Result<Manifest, Error> {
        let store = &self.repository.store;
        let key = recording::key(&self.info.name, part);
        let bytes = match store.backend.get_all(&key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => {
                // Tells a removed recording from a checkpoint that never was.
                self.refresh()?;
                return Err(self.no_checkpoint(number));
            }
            Err(e) => return Err(e.into()),
        };
        let damaged = |source| Error::Damaged {
            path: store.backend.describe(&key),
            source,
        };
        let manifest = Manifest::decode(&bytes, &store.index).map_err(damaged)?;
        if manifest.recording != self.info.id {
            return Err(Error::NoRecording {
                name: self.info.name.clone(),
            });
        }
        if manifest.number != number {
            return Err(damaged(FormatError::Malformed {
                what: "checkpoint number",
                offset: 16,
            }));
        }
        Ok(manifest)
    }

    /// Reads log segment k.
    ///
    /// # Errors
    /// [`Error::NoLog`], [`Error::Damaged`].
    pub fn log(&self, number: CheckpointNo) -> Result<LogSegment, Error> {
        let store = &self.repository.store;
        let key = recording::key(&self.info.name, Part::Log(number));
        let bytes = match store.backend.get_all(&key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => {
                self.refresh()?;
                return Err(Error::NoLog {
                    name: self.info.name.clone(),
                    number,
                });
            }
            Err(e) => return Err(e.into()),
        };
        let damaged = |source| Error::Damaged {
            path: store.backend.describe(&key),
            source,
        };
        let manifest = LogManifest::decode(&bytes, &store.index).map_err(damaged)?;
        if manifest.recording != self.info.id {
            return Err(Error::NoRecording {
                name: self.info.name.clone(),
            });
        }
        let bytes = read_blob(store, &manifest.bytes)?;
        let pages = manifest.pages.iter().copied().collect();
        Ok(LogSegment {
            repository: self.repository.clone(),
            number,
            bytes,
            pages,
        })
    }
}

pub(crate) fn not_here(kind: &str, name: &str) -> Error {
    Error::NotInCheckpoint {
        what: format!("{kind} {name:?}"),
    }
}

/// One checkpoint. Any thread may read any page.
#[derive(Clone)]
pub struct Checkpoint {
    repository: Repository,
    number: CheckpointNo,
    newest: Arc<Manifest>,
    spaces: Vec<SpaceView>,
}

impl Checkpoint {
    /// Its number.
    pub fn number(&self) -> CheckpointNo {
        self.number
    }

    /// When it was published, in nanoseconds since 1970.
    pub fn created_unix_ns(&self) -> u64 {
        self.newest.created_unix_ns
    }

    /// Its page spaces.
    pub fn spaces(&self) -> &[SpaceView] {
        &self.spaces
    }

    /// A page space by name.
    ///
    /// # Errors
    /// [`Error::NotInCheckpoint`].
    pub fn space(&self, name: &str) -> Result<&SpaceView, Error> {
        let space = self.spaces.iter().find(|space| space.name() == name);
        space.ok_or_else(|| not_here("page space", name))
    }

    /// Names and lengths in bytes of its blobs.
    pub fn blobs(&self) -> impl Iterator<Item = (&str, u64)> {
        self.newest
            .blobs
            .iter()
            .map(|blob| (blob.name.as_str(), blob.bytes))
    }

    /// A blob by name.
    ///
    /// # Errors
    /// [`Error::NotInCheckpoint`], [`Error::Damaged`], [`Error::WrongContent`].
    pub fn blob(&self, name: &str) -> Result<Vec<u8>, Error> {
        let blob = self.newest.blobs.iter().find(|blob| blob.name == name);
        read_blob(
            &self.repository.store,
            blob.ok_or_else(|| not_here("blob", name))?,
        )
    }
}

/// A log segment: its bytes, and the pages that they refer to.
pub struct LogSegment {
    repository: Repository,
    number: CheckpointNo,
    bytes: Vec<u8>,
    pages: HashMap<PageId, Content>,
}

impl LogSegment {
    /// Its number: it leads from checkpoint k to k + 1.
    pub fn number(&self) -> CheckpointNo {
        self.number
    }

    /// The bytes that were published.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The pages that were published with it.
    pub fn pages(&self) -> impl Iterator<Item = PageId> + '_ {
        self.pages.keys().copied()
    }

    /// The content of one of these pages.
    ///
    /// # Errors
    /// [`Error::NotInCheckpoint`] if the page was not published with this segment.
    pub fn page(&self, id: PageId) -> Result<Box<Page>, Error> {
        let content = self
            .pages
            .get(&id)
            .ok_or_else(|| not_here("page", &id.to_string()))?;
        let mut page = new_page();
        read_content(&self.repository.store, *content, &mut page)?;
        Ok(page)
    }
}

/// Reads what a frame holds.
pub(crate) fn read_content(store: &Store, content: Content, page: &mut Page) -> Result<(), Error> {
    match content {
        Content::Fill(word) => write_fill(word, page),
        Content::Item(item) => page.copy_from_slice(&*store.page(item)?),
    }
    Ok(())
}

/// Reads and verifies a blob.
pub(crate) fn read_blob(store: &Store, blob: &BlobEntry) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    match &blob.content {
        BlobContent::Inline(inline) => bytes.extend_from_slice(inline),
        BlobContent::Chunks(items) => {
            for &item in items {
                bytes.extend_from_slice(&store.chunk(item)?);
            }
        }
    }
    let actual = BlobId::of(&bytes);
    if actual != blob.id || bytes.len() as u64 != blob.bytes {
        return Err(Error::WrongContent {
            what: format!("blob {:?}", blob.name),
            expected: blob.id.to_string(),
            actual: actual.to_string(),
        });
    }
    Ok(bytes)
}

/// The layer of a manifest that a chain entry means.
pub(crate) fn layer_of<'a>(entry: &'a (Arc<Manifest>, bool), space: &str) -> Option<&'a Layer> {
    let found = entry.0.space(space)?;
    Some(if entry.1 { &found.merged } else { &found.own })
}
