//! Checking recordings.

use std::collections::{BTreeMap, BTreeSet};

use super::super::progress::{Progress, report};
use super::packs::Packs;
use super::report::{CheckReport, DamageKind, add_to_ranges};
use crate::error::Error;
use crate::id::{CheckpointNo, Frame, PageId, RecordingId, RecordingName};
use crate::index::Item;
use crate::map::Content;
use crate::reader::{Recording, layer_of, read_blob, read_content};
use crate::recording::{self, BlobContent, BlobEntry, Extent, LogManifest, Manifest, Part, Start};
use crate::repository::Repository;

/// What the objects of one recording show.
#[derive(Default)]
struct Findings {
    /// Frames that hold something lost in some checkpoint.
    frames: BTreeSet<(String, Frame)>,
    /// Manifests that cannot be read.
    manifests: BTreeMap<CheckpointNo, usize>,
    /// Checkpoints with a blob that cannot be read.
    blobs: BTreeMap<CheckpointNo, BTreeSet<usize>>,
}

impl Repository {
    pub(super) fn check_series(
        &self,
        packs: &Packs,
        read_data: bool,
        progress: &dyn Progress,
        out: &mut CheckReport,
    ) -> Result<(), Error> {
        let mut packs = packs.clone();
        let named = self.check_names(out)?;
        for (at, (id, name)) in named.iter().enumerate() {
            report(progress, "checking recordings", at, named.len())?;
            self.check_recording(*id, name, read_data, &mut packs, progress, out)?;
        }
        Ok(())
    }

    /// Names and starts. A name that cannot be read is found through the copy in its series.
    fn check_names(
        &self,
        out: &mut CheckReport,
    ) -> Result<BTreeMap<RecordingId, RecordingName>, Error> {
        let backend = &*self.store.backend;
        let mut by_series: BTreeMap<RecordingId, Result<Start, String>> = BTreeMap::new();
        for (id, parts) in self.all_parts()? {
            if parts.contains(&Part::Start) {
                let bytes = backend.get_all(&recording::key(id, Part::Start));
                let start = bytes.map_err(|e| e.to_string());
                let start = start.and_then(|b| Start::decode(&b).map_err(|e| e.to_string()));
                by_series.insert(id, start);
            }
        }
        let mut named = BTreeMap::new();
        for name in self.names()? {
            let key = recording::name_key(&name);
            let path = backend.describe(&key);
            match self.start(&name) {
                Ok(start) => drop(named.insert(start.recording, name)),
                Err(Error::NoRecording { .. }) => {}
                Err(error) => {
                    let what = match &error {
                        Error::Damaged { source, .. } => source.to_string(),
                        other => other.to_string(),
                    };
                    out.add(DamageKind::Start, &key, path, what);
                    let copy = by_series
                        .iter()
                        .find(|(_, start)| start.as_ref().is_ok_and(|start| start.name == name));
                    named.extend(copy.map(|(id, _)| (*id, name)));
                }
            }
        }
        for (id, name) in &named {
            let key = recording::key(*id, Part::Start);
            let what = match by_series.get(id) {
                Some(Ok(start)) if start.name == *name => continue,
                Some(Ok(start)) => format!("is of recording {}", start.name),
                Some(Err(error)) => error.clone(),
                None => "is missing".to_owned(),
            };
            out.add(DamageKind::Start, &key, backend.describe(&key), what);
        }
        Ok(named)
    }

    fn check_recording(
        &self,
        id: RecordingId,
        name: &RecordingName,
        read_data: bool,
        packs: &mut Packs,
        progress: &dyn Progress,
        out: &mut CheckReport,
    ) -> Result<(), Error> {
        let extent = Extent::of(&self.parts(id)?);
        let mut findings = Findings::default();
        self.check_gaps(id, &extent, &mut findings, out);
        let mut parent: Option<(CheckpointNo, [u8; 32])> = None;
        for &number in &extent.checkpoints {
            report(progress, "checking checkpoints", 0, 0)?;
            out.checkpoints += 1;
            let key = recording::key(id, extent.part(number));
            match self.read_manifest(id, number, &key) {
                Ok(None) => {}
                Ok(Some((manifest, hash))) => {
                    let follows = |(before, _): &(CheckpointNo, _)| before.next() == number;
                    let expected = parent.filter(follows).map(|(_, hash)| hash);
                    if expected.is_some_and(|hash| hash != manifest.parent) {
                        let path = self.store.backend.describe(&key);
                        let what = "does not follow the checkpoint before it";
                        let damage = out.add(DamageKind::Series, &key, path, what);
                        findings.manifests.insert(number, damage);
                    }
                    // A base is another object than the manifest that the next one names.
                    parent = match extent.part(number) {
                        Part::Checkpoint(_) => Some((number, hash)),
                        _ => None,
                    };
                    self.find_lost(&manifest, read_data, packs, &mut findings, out);
                }
                Err(what) => {
                    let path = self.store.backend.describe(&key);
                    let damage = out.add(DamageKind::Series, &key, path, what);
                    findings.manifests.insert(number, damage);
                }
            }
        }
        self.check_hidden(id, &extent, out);
        for &number in &extent.logs {
            self.check_log(id, name, number, read_data, packs, out);
        }
        self.name_affected(id, name, &extent, &findings, packs, out);
        Ok(())
    }

    /// Objects that are there beside those that are read: ends, and the manifest behind a base.
    fn check_hidden(&self, id: RecordingId, extent: &Extent, out: &mut CheckReport) {
        let backend = &*self.store.backend;
        if let Some(end) = extent.end {
            let key = recording::key(id, Part::End(end));
            let bytes = backend.get_all(&key).map_err(|e| e.to_string());
            let end = bytes.and_then(|b| recording::End::decode(&b).map_err(|e| e.to_string()));
            if let Err(what) = end {
                out.add(DamageKind::Series, &key, backend.describe(&key), what);
            }
        }
        if extent.base.0 > 0 {
            let key = recording::key(id, Part::Checkpoint(extent.base));
            if let Err(what) = self.read_manifest(id, extent.base, &key) {
                out.add(DamageKind::Series, &key, backend.describe(&key), what);
            }
        }
    }

    /// A recording has no gaps.
    fn check_gaps(
        &self,
        id: RecordingId,
        extent: &Extent,
        findings: &mut Findings,
        out: &mut CheckReport,
    ) {
        let last = extent.end.or(extent.checkpoints.last().copied());
        let Some(last) = last else { return };
        for number in (extent.base.0..=last.0).map(CheckpointNo) {
            if extent.checkpoints.binary_search(&number).is_err() {
                let key = recording::key(id, Part::Checkpoint(number));
                let path = self.store.backend.describe(&key);
                let damage = out.add(DamageKind::Series, &key, path, "is missing");
                findings.manifests.insert(number, damage);
            }
        }
    }

    /// A manifest with the hash of its object; `None` if it was removed meanwhile.
    fn read_manifest(
        &self,
        id: RecordingId,
        number: CheckpointNo,
        key: &str,
    ) -> Result<Option<(Manifest, [u8; 32])>, String> {
        let bytes = match self.store.backend.get_all(key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let manifest = Manifest::decode(&bytes, &self.store.index).map_err(|e| e.to_string())?;
        if manifest.recording != id || manifest.number != number {
            return Err("is another checkpoint".to_owned());
        }
        Ok(Some((manifest, *blake3::hash(&bytes).as_bytes())))
    }

    /// Notes what a manifest refers to that cannot be read.
    fn find_lost(
        &self,
        manifest: &Manifest,
        read_data: bool,
        packs: &mut Packs,
        findings: &mut Findings,
        out: &mut CheckReport,
    ) {
        for space in &manifest.spaces {
            for (frame, content) in space.own.iter().chain(space.merged.iter()) {
                if let Content::Item(item) = content
                    && self.lost(item, packs, out).is_some()
                {
                    findings.frames.insert((space.name.clone(), frame));
                }
            }
        }
        for blob in &manifest.blobs {
            if let Some(damage) = self.lost_blob(blob, read_data, packs, out) {
                let blobs = &mut findings.blobs;
                blobs.entry(manifest.number).or_default().insert(damage);
            }
        }
    }

    fn lost_blob(
        &self,
        blob: &BlobEntry,
        read_data: bool,
        packs: &mut Packs,
        out: &mut CheckReport,
    ) -> Option<usize> {
        let BlobContent::Chunks(items) = &blob.content else {
            return None;
        };
        let lost: Vec<usize> = items
            .iter()
            .filter_map(|&item| self.lost(item, packs, out))
            .collect();
        if let Some(&damage) = lost.first() {
            return Some(damage);
        }
        let error = match read_data {
            true => read_blob(&self.store, blob).err()?,
            false => return None,
        };
        let key = items
            .first()
            .map(|item| self.store.index.pack_id(item.pack));
        let key = key.map(crate::pack::key).unwrap_or_default();
        let path = self.store.backend.describe(&key);
        Some(out.add(DamageKind::Pack, &key, path, error))
    }

    /// The damage because of which an item cannot be read.
    fn lost(&self, item: Item, packs: &mut Packs, out: &mut CheckReport) -> Option<usize> {
        if let Some(&damage) = packs.lost.get(&item) {
            return Some(damage);
        }
        if packs.there.contains(item) {
            return None;
        }
        let Err(error) = self.store.index.locate(item) else {
            packs.there.insert(item);
            return None;
        };
        let damage = *packs.vanished.entry(item.pack).or_insert_with(|| {
            let key = crate::pack::key(self.store.index.pack_id(item.pack));
            let path = self.store.backend.describe(&key);
            let what = match error {
                Error::Missing { .. } => "is missing, or lacks what is referred to".to_owned(),
                other => other.to_string(),
            };
            out.add(DamageKind::Pack, &key, path, what)
        });
        packs.lost.insert(item, damage);
        Some(damage)
    }

    fn check_log(
        &self,
        id: RecordingId,
        name: &RecordingName,
        number: CheckpointNo,
        read_data: bool,
        packs: &mut Packs,
        out: &mut CheckReport,
    ) {
        let backend = &*self.store.backend;
        let key = recording::key(id, Part::Log(number));
        let bytes = match backend.get_all(&key) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.is_not_found() => return,
            Err(e) => Err(e.to_string()),
        };
        let log = bytes
            .and_then(|b| LogManifest::decode(&b, &self.store.index).map_err(|e| e.to_string()));
        let log = log.and_then(|log| match log.recording == id && log.number == number {
            true => Ok(log),
            false => Err("is another log segment".to_owned()),
        });
        let damage = match log {
            Err(what) => Some(out.add(DamageKind::Series, &key, backend.describe(&key), what)),
            Ok(log) => self.lost_in_log(&log, read_data, packs, out),
        };
        if let Some(damage) = damage {
            add_to_ranges(&mut out.damages[damage].affected, name, number, true);
        }
    }

    fn lost_in_log(
        &self,
        log: &LogManifest,
        read_data: bool,
        packs: &mut Packs,
        out: &mut CheckReport,
    ) -> Option<usize> {
        if let Some(damage) = self.lost_blob(&log.bytes, read_data, packs, out) {
            return Some(damage);
        }
        for (id, content) in &log.pages {
            let Content::Item(item) = content else {
                continue;
            };
            if let Some(damage) = self.lost(*item, packs, out) {
                return Some(damage);
            }
            if read_data {
                let mut page = crate::id::new_page();
                let read = read_content(&self.store, *content, &mut page);
                if read.is_err() || PageId::of(&page) != *id {
                    let key = crate::pack::key(self.store.index.pack_id(item.pack));
                    let path = self.store.backend.describe(&key);
                    let what = format!("page {id} is not what the log refers to");
                    return Some(out.add(DamageKind::Pack, &key, path, what));
                }
            }
        }
        None
    }

    /// Says which checkpoints suffer from what was found.
    fn name_affected(
        &self,
        id: RecordingId,
        name: &RecordingName,
        extent: &Extent,
        findings: &Findings,
        packs: &Packs,
        out: &mut CheckReport,
    ) {
        if findings.frames.is_empty() && findings.manifests.is_empty() && findings.blobs.is_empty()
        {
            return;
        }
        let recording = Recording::without_lease(self.clone(), id, name);
        let last = extent.checkpoints.last().max(extent.end.as_ref());
        let Some(last) = last else { return };
        for number in (extent.base.0..=last.0).map(CheckpointNo) {
            let mut damages: BTreeSet<usize> = BTreeSet::new();
            damages.extend(findings.manifests.get(&number));
            damages.extend(findings.blobs.get(&number).into_iter().flatten());
            affecting(&recording, number, extent, findings, packs, &mut damages);
            for damage in damages {
                add_to_ranges(&mut out.damages[damage].affected, name, number, false);
            }
        }
    }
}

/// The damages that a reader of a checkpoint meets.
fn affecting(
    recording: &Recording,
    number: CheckpointNo,
    extent: &Extent,
    findings: &Findings,
    packs: &Packs,
    damages: &mut BTreeSet<usize>,
) {
    let Ok(newest) = recording.manifest(number, extent) else {
        return;
    };
    for space in &newest.spaces {
        let (chain, broken) = recording.chain(&newest, &space.name, extent);
        if let Err((at, _)) = broken {
            damages.extend(findings.manifests.get(&at));
        }
        let frames = findings.frames.iter().filter(|(of, _)| *of == space.name);
        for (_, frame) in frames {
            let found = chain
                .iter()
                .filter_map(|entry| layer_of(entry, &space.name))
                .find_map(|layer| layer.get(*frame));
            if let Some(Content::Item(item)) = found {
                damages.extend(packs.lost.get(&item));
            }
        }
    }
}
