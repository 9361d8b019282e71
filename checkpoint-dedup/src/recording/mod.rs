//! What a recording is made of: its start and end, checkpoint manifests, log segments.

mod blob;
mod extent;
mod log;
mod manifest;
mod marks;

pub(crate) use blob::{BlobContent, BlobEntry};
pub(crate) use extent::Extent;
pub(crate) use log::LogManifest;
pub(crate) use manifest::{MAX_FRAMES, Manifest, Space, level_span};
pub(crate) use marks::{End, Start};

use std::collections::HashMap;

use crate::error::FormatError;
use crate::id::{CheckpointNo, PackId, RecordingId, RecordingName};
use crate::index::Index;
use crate::wire::{Input, Output};

/// The objects of a series, which is what a recording is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(crate) enum Part {
    Start,
    /// Says that this checkpoint is the last; the lowest counts.
    End(CheckpointNo),
    Checkpoint(CheckpointNo),
    /// A complete manifest that stands in for those a trim removed; the highest counts.
    Base(CheckpointNo),
    Log(CheckpointNo),
}

/// Key prefix of the names of recordings.
pub(crate) const NAMES: &str = "recordings/";
/// Key prefix of the series.
pub(crate) const SERIES: &str = "series/";

/// Key of the object that gives a series its name: with it the recording comes and goes.
pub(crate) fn name_key(name: &RecordingName) -> String {
    format!("{NAMES}{name}")
}

/// The name that such a key gives.
pub(crate) fn parse_name_key(key: &str) -> Option<RecordingName> {
    RecordingName::new(key.strip_prefix(NAMES)?).ok()
}

/// Key prefix of a series.
pub(crate) fn prefix(id: RecordingId) -> String {
    format!("{SERIES}{id}/")
}

/// Key of an object of a series.
pub(crate) fn key(id: RecordingId, part: Part) -> String {
    let prefix = prefix(id);
    match part {
        Part::Start => format!("{prefix}start"),
        Part::End(number) => format!("{prefix}end-{:010}", number.0),
        Part::Checkpoint(number) => format!("{prefix}ckpt-{:010}", number.0),
        Part::Base(number) => format!("{prefix}base-{:010}", number.0),
        Part::Log(number) => format!("{prefix}log-{:010}", number.0),
    }
}

/// Series and part that a key names.
pub(crate) fn parse_key(text: &str) -> Option<(RecordingId, Part)> {
    let (id, file) = text.strip_prefix(SERIES)?.split_once('/')?;
    let id = RecordingId::parse(id)?;
    let number = |digits: &str| digits.parse().ok().map(CheckpointNo);
    let part = match file.split_once('-') {
        None if file == "start" => Part::Start,
        Some(("end", n)) => Part::End(number(n)?),
        Some(("ckpt", n)) => Part::Checkpoint(number(n)?),
        Some(("base", n)) => Part::Base(number(n)?),
        Some(("log", n)) => Part::Log(number(n)?),
        _ => return None,
    };
    (key(id, part) == text).then_some((id, part))
}

/// Packs that an object refers to, while it is encoded.
#[derive(Default)]
pub(crate) struct PackList {
    numbers: Vec<u32>,
    slots: HashMap<u32, u32>,
}

impl PackList {
    pub(crate) fn slot(&mut self, pack: u32) -> u32 {
        *self.slots.entry(pack).or_insert_with(|| {
            self.numbers.push(pack);
            self.numbers.len() as u32 - 1
        })
    }

    pub(crate) fn encode(&self, index: &Index, out: &mut Vec<u8>) {
        out.put_varint(self.numbers.len() as u64);
        for &number in &self.numbers {
            out.extend_from_slice(index.pack_id(number).as_bytes());
        }
    }
}

/// Reads a list of packs as their numbers in the index.
pub(crate) fn read_packs(input: &mut Input<'_>, index: &Index) -> Result<Vec<u32>, FormatError> {
    let count = input.count(16)?;
    (0..count)
        .map(|_| Ok(index.number(PackId::from_bytes(input.array()?))))
        .collect()
}
