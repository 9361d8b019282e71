//! What a recording is made of: its start and end, checkpoint manifests, log segments.

mod blob;
mod log;
mod manifest;
mod marks;

pub(crate) use blob::{BlobContent, BlobEntry};
pub(crate) use log::LogManifest;
pub(crate) use manifest::{Manifest, Space, level_span};
pub(crate) use marks::{End, Start};

use std::collections::HashMap;

use crate::error::FormatError;
use crate::id::{CheckpointNo, PackId, RecordingName};
use crate::index::Index;
use crate::wire::{Input, Output};

/// The objects of a recording.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(crate) enum Part {
    Start,
    End,
    Checkpoint(CheckpointNo),
    /// A complete manifest that stands in for those a trim removed.
    Base(CheckpointNo),
    Log(CheckpointNo),
}

/// Key prefix of a recording.
pub(crate) fn prefix(name: &RecordingName) -> String {
    format!("recordings/{name}/")
}

/// Key of an object of a recording.
pub(crate) fn key(name: &RecordingName, part: Part) -> String {
    let prefix = prefix(name);
    match part {
        Part::Start => format!("{prefix}start"),
        Part::End => format!("{prefix}end"),
        Part::Checkpoint(number) => format!("{prefix}ckpt-{:08}", number.0),
        Part::Base(number) => format!("{prefix}base-{:08}", number.0),
        Part::Log(number) => format!("{prefix}log-{:08}", number.0),
    }
}

/// Recording and part that a key names.
pub(crate) fn parse_key(key: &str) -> Option<(RecordingName, Part)> {
    let (name, file) = key.strip_prefix("recordings/")?.split_once('/')?;
    let number = |text: &str| text.parse().ok().map(CheckpointNo);
    let part = match file {
        "start" => Part::Start,
        "end" => Part::End,
        _ => match file.split_once('-')? {
            ("ckpt", n) => Part::Checkpoint(number(n)?),
            ("base", n) => Part::Base(number(n)?),
            ("log", n) => Part::Log(number(n)?),
            _ => return None,
        },
    };
    Some((RecordingName::new(name).ok()?, part))
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
