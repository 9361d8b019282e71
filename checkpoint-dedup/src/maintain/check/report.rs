//! What a check found.

use std::fmt;

use crate::id::{CheckpointNo, RecordingName};

/// What is damaged, and so what can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DamageKind {
    /// The configuration.
    Config,
    /// The object that names a recording, or its copy in the series.
    Start,
    /// A checkpoint manifest, a base, an end, or a log segment.
    Series,
    /// A pack, or something that no pack holds although it is referred to.
    Pack,
    /// Derived data: index segments and lists of condemned packs.
    Derived,
    /// A lock.
    Lock,
    /// A file that is no part of a repository.
    Unknown,
    /// A file that the system does not let us read.
    Unreadable,
}

impl DamageKind {
    /// The kind in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Start => "start",
            Self::Series => "series",
            Self::Pack => "pack",
            Self::Derived => "derived",
            Self::Lock => "lock",
            Self::Unknown => "unknown",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Consecutive checkpoints (or log segments) of a recording that cannot be read in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// The recording.
    pub recording: RecordingName,
    /// The first.
    pub first: CheckpointNo,
    /// The last.
    pub last: CheckpointNo,
    /// Whether these are log segments.
    pub logs: bool,
}

impl fmt::Display for Affected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.logs { "log" } else { "checkpoint" };
        write!(f, "{} {kind} {}", self.recording, self.first)?;
        match self.first == self.last {
            true => Ok(()),
            false => write!(f, " to {}", self.last),
        }
    }
}

/// One damaged object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What kind of object it is.
    pub kind: DamageKind,
    /// Its key in the repository.
    pub key: String,
    /// The object, as the user would name it.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
    /// What cannot be read because of it.
    pub affected: Vec<Affected>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The damage.
    pub damages: Vec<Damage>,
    /// Objects there are.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs there are.
    pub packs: u64,
    /// Pages and chunks that were read and hashed.
    pub items_read: u64,
    /// Checkpoints there are.
    pub checkpoints: u64,
}

impl CheckReport {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.damages.is_empty()
    }

    /// Drops those of the numbered damages from which no checkpoint suffers.
    pub(super) fn forget_harmless(&mut self, numbers: &[usize]) {
        let mut number = 0;
        self.damages.retain(|damage| {
            let harmless = damage.affected.is_empty() && numbers.contains(&number);
            number += 1;
            !harmless
        });
    }

    pub(super) fn add(
        &mut self,
        kind: DamageKind,
        key: &str,
        path: String,
        what: impl fmt::Display,
    ) -> usize {
        self.damages.push(Damage {
            kind,
            key: key.to_owned(),
            path,
            what: what.to_string(),
            affected: Vec::new(),
        });
        self.damages.len() - 1
    }
}

/// Adds a number to a list of ranges in ascending order.
pub(super) fn add_to_ranges(
    ranges: &mut Vec<Affected>,
    recording: &RecordingName,
    number: CheckpointNo,
    logs: bool,
) {
    match ranges.last_mut() {
        Some(last)
            if last.recording == *recording
                && last.logs == logs
                && (last.last == number || last.last.next() == number) =>
        {
            last.last = number;
        }
        _ => ranges.push(Affected {
            recording: recording.clone(),
            first: number,
            last: number,
            logs,
        }),
    }
}
