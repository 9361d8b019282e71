//! Reading recordings: any page of any checkpoint, from any number of threads, without a lock and
//! without the catalogue.

mod space;

use std::collections::HashMap;
use std::sync::Arc;

pub use space::SpaceView;

use crate::cache::Cache;
use crate::error::{Error, FormatError};
use crate::id::{
    BlobId, CheckpointNo, Frame, Page, PageId, RecordingId, RecordingName, new_page, write_fill,
};
use crate::lock::{Lease, READING};
use crate::map::{Content, Layer};
use crate::recording::{self, BlobContent, BlobEntry, Extent, LogManifest, Manifest, Part};
use crate::repository::{RecordingInfo, RecordingState, Repository};
use crate::store::Store;

/// Memory for decoded manifests of one recording.
const MANIFEST_BYTES: usize = 256 << 20;

/// A recording open for reading. Cheap to clone.
#[derive(Clone)]
pub struct Recording {
    repository: Repository,
    info: Arc<RecordingInfo>,
    manifests: Arc<Cache<u32, Manifest>>,
    /// Keeps the series from garbage collection even if its name is removed meanwhile; `None`
    /// where no lease can be written (a read-only mount, a full disk).
    _lease: Arc<Option<Lease>>,
}

impl Recording {
    pub(crate) fn open(repository: Repository, name: &RecordingName) -> Result<Self, Error> {
        let start = repository.start(name)?;
        let backend = &repository.store.backend;
        let lease = Lease::take(
            backend,
            READING,
            &format!("reading {name}"),
            start.recording,
        );
        let info = Arc::new(repository.recording_info(name)?);
        let recording = Self {
            repository,
            info,
            manifests: Arc::new(Cache::new(MANIFEST_BYTES)),
            _lease: Arc::new(lease.ok()),
        };
        // Whoever removed the recording before it could see the lease has removed its name first.
        match recording.info.id == start.recording {
            true => Ok(recording),
            false => Err(recording.removed()),
        }
    }

    fn removed(&self) -> Error {
        Error::NoRecording {
            name: self.info.name.clone(),
        }
    }

    pub(crate) fn extent(&self) -> Result<Extent, Error> {
        Ok(Extent::of(&self.repository.parts(self.info.id)?))
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.repository.store
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
            return Err(self.removed());
        }
        Ok(info)
    }

    /// The checkpoints there are now, ascending.
    ///
    /// # Errors
    /// What the storage says.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointNo>, Error> {
        Ok(self.extent()?.checkpoints)
    }

    /// The log segments there are now, ascending. Segment k leads from checkpoint k to k + 1.
    ///
    /// # Errors
    /// What the storage says.
    pub fn logs(&self) -> Result<Vec<CheckpointNo>, Error> {
        Ok(self.extent()?.logs)
    }

    /// Opens a checkpoint. Reads its manifest and at most seven more per power of eight of its
    /// number; pages are read when they are asked for.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`], [`Error::Damaged`].
    pub fn checkpoint(&self, number: CheckpointNo) -> Result<Checkpoint, Error> {
        let mut extent = self.extent()?;
        loop {
            let error = match self.checkpoint_in(number, &extent) {
                Err(error @ Error::NoCheckpoint { .. }) => error,
                done => return done,
            };
            // A trim may have moved the base meanwhile.
            let now = self.extent()?;
            if now.base == extent.base {
                return Err(error);
            }
            extent = now;
        }
    }

    fn checkpoint_in(&self, number: CheckpointNo, extent: &Extent) -> Result<Checkpoint, Error> {
        if extent.checkpoints.binary_search(&number).is_err() {
            self.refresh()?;
            return Err(self.no_checkpoint(number));
        }
        let newest = self.manifest(number, extent)?;
        let mut layers: Vec<Chain> = Vec::new();
        for space in &newest.spaces {
            let (chain, complete) = self.chain(&newest, &space.name, extent);
            complete.map_err(|(_, error)| error)?;
            layers.push(chain);
        }
        let spaces = newest.spaces.iter().zip(layers);
        let store = self.store();
        let spaces = spaces
            .map(|(space, chain)| {
                SpaceView::new(Arc::clone(store), &space.name, space.frames, chain)
            })
            .collect();
        Ok(Checkpoint {
            recording: self.clone(),
            number,
            newest,
            spaces,
        })
    }

    /// Collects the layers of a space from the newest back to a complete map; if one cannot be
    /// read, says which, and gives those before it.
    pub(crate) fn chain(
        &self,
        newest: &Arc<Manifest>,
        space: &str,
        extent: &Extent,
    ) -> (Chain, Result<(), (CheckpointNo, Error)>) {
        let mut chain = Chain::new();
        let mut manifest = Arc::clone(newest);
        loop {
            let at = manifest.number;
            let span = manifest.space(space).map_or(0, |space| space.span);
            let step = layer_step(at, span, extent.base);
            chain.push((Arc::clone(&manifest), step > 1));
            if at <= extent.base {
                return (chain, Ok(()));
            }
            let next = CheckpointNo(at.0 - step);
            manifest = match self.manifest(next, extent) {
                Ok(manifest) => manifest,
                Err(error) => return (chain, Err((next, error))),
            };
        }
    }

    /// A series under maintenance, whatever state it is in.
    pub(crate) fn without_lease(
        repository: Repository,
        id: RecordingId,
        name: &RecordingName,
    ) -> Self {
        let info = RecordingInfo {
            name: name.clone(),
            id,
            created_unix_ns: 0,
            state: RecordingState::Dead,
            first: None,
            last: None,
            logs: 0,
            note: Vec::new(),
        };
        Self {
            repository,
            info: Arc::new(info),
            manifests: Arc::new(Cache::new(MANIFEST_BYTES)),
            _lease: Arc::new(None),
        }
    }

    /// Frames of a space that differ between a checkpoint and the one after it (or were written
    /// with equal content by a recorder that did not compare).
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if one of the two is not there.
    pub fn changed_frames(&self, space: &str, from: CheckpointNo) -> Result<Vec<Frame>, Error> {
        let extent = self.extent()?;
        for number in [from, from.next()] {
            if extent.checkpoints.binary_search(&number).is_err() {
                return Err(self.no_checkpoint(number));
            }
        }
        let manifest = self.manifest(from.next(), &extent)?;
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
        extent: &Extent,
    ) -> Result<Arc<Manifest>, Error> {
        // A trim may put a base where a manifest was cached: the two are different objects.
        let part = extent.part(number);
        let cached = number.0 << 1 | u32::from(matches!(part, Part::Base(_)));
        if let Some(manifest) = self.manifests.get(&cached) {
            return Ok(manifest);
        }
        let manifest = Arc::new(self.read_manifest(number, part)?);
        self.manifests
            .insert(cached, Arc::clone(&manifest), manifest.heap_bytes());
        Ok(manifest)
    }

    fn read_manifest(&self, number: CheckpointNo, part: Part) -> Result<Manifest, Error> {
        let store = self.store();
        let key = recording::key(self.info.id, part);
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
        if manifest.recording != self.info.id || manifest.number != number {
            return Err(damaged(FormatError::Malformed {
                what: "recording or number of a checkpoint",
                offset: 0,
            }));
        }
        Ok(manifest)
    }

    /// Reads log segment k.
    ///
    /// # Errors
    /// [`Error::NoLog`], [`Error::Damaged`].
    pub fn log(&self, number: CheckpointNo) -> Result<LogSegment, Error> {
        let store = self.store();
        let key = recording::key(self.info.id, Part::Log(number));
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
        if manifest.recording != self.info.id || manifest.number != number {
            return Err(damaged(FormatError::Malformed {
                what: "recording or number of a log segment",
                offset: 0,
            }));
        }
        let bytes = read_blob(store, &manifest.bytes)?;
        let pages = manifest.pages.iter().copied().collect();
        Ok(LogSegment {
            recording: self.clone(),
            number,
            bytes,
            pages,
        })
    }
}

/// Newest first: a manifest, and whether its merged layer is meant.
pub(crate) type Chain = Vec<(Arc<Manifest>, bool)>;

/// How many checkpoints back the next layer of a space is: the span of the merged layer where
/// that does not reach behind the base, else 1.
pub(crate) fn layer_step(at: CheckpointNo, span: u32, base: CheckpointNo) -> u32 {
    match span {
        s if s > 1 && at.0 >= base.0.saturating_add(s) => s,
        _ => 1,
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
    /// Keeps the lease.
    recording: Recording,
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
            self.recording.store(),
            blob.ok_or_else(|| not_here("blob", name))?,
        )
    }
}

/// A log segment: its bytes, and the pages that they refer to.
pub struct LogSegment {
    /// Keeps the lease.
    recording: Recording,
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
        read_content(self.recording.store(), *content, &mut page)?;
        Ok(page)
    }
}

/// Reads what a frame holds.
pub(crate) fn read_content(store: &Store, content: Content, page: &mut Page) -> Result<(), Error> {
    match content {
        Content::Fill(word) => write_fill(word, page),
        Content::Item(item) => store.page_into(item, page)?,
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
