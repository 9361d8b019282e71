//! `sbctl stats [N]`: how much is stored, and how.

use super::watch::Watch;
use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::quantity::{Bytes, Grouped};
use anyhow::Result;
use checkpoint_dedup::{MethodStats, RecordingName, RecordingStats, Stats};
use clap::Args;
use serde::Serialize;
use std::fmt;

/// Options of `sbctl stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArguments {
    /// Only this recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: Option<RecordingName>,
}

#[derive(Debug, Serialize)]
struct Shown {
    recordings: Vec<Row>,
    packs: u64,
    pack_bytes: u64,
    directory_bytes: u64,
    manifest_bytes: u64,
    index_bytes: u64,
    whole_pages: Method,
    delta_pages: Method,
    chunks: Method,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    checkpoints: u64,
    logs: u64,
    logical_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    manifest_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Method {
    items: u64,
    raw_bytes: u64,
    stored_bytes: u64,
}

impl From<&RecordingStats> for Row {
    fn from(stats: &RecordingStats) -> Self {
        Self {
            name: stats.name.to_string(),
            checkpoints: stats.checkpoints,
            logs: stats.logs,
            logical_bytes: stats.logical_bytes,
            unique_bytes: stats.unique_bytes,
            stored_bytes: stats.stored_bytes,
            manifest_bytes: stats.manifest_bytes,
        }
    }
}

impl From<MethodStats> for Method {
    fn from(stats: MethodStats) -> Self {
        Self {
            items: stats.items,
            raw_bytes: stats.raw_bytes,
            stored_bytes: stats.stored_bytes,
        }
    }
}

impl From<&Stats> for Shown {
    fn from(stats: &Stats) -> Self {
        Self {
            recordings: stats.recordings.iter().map(Row::from).collect(),
            packs: stats.packs,
            pack_bytes: stats.pack_bytes,
            directory_bytes: stats.directory_bytes,
            manifest_bytes: stats.manifest_bytes,
            index_bytes: stats.index_bytes,
            whole_pages: stats.whole.into(),
            delta_pages: stats.deltas.into(),
            chunks: stats.chunks.into(),
        }
    }
}

/// Shows statistics.
pub(crate) fn run(arguments: StatsArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let watch = Watch::new(&environment.interrupt);
    let stats = repository.stats(arguments.name.as_ref(), &watch)?;
    drop(watch);
    let shown = Shown::from(&stats);
    environment.finish(&shown, &shown)?;
    Ok(Exit::Done)
}

/// How many times smaller.
fn ratio(from: u64, to: u64) -> String {
    match to {
        0 => "-".to_owned(),
        _ => format!("{:.1}", from as f64 / to as f64),
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>11} {:>12} {:>12} {:>12} {:>7}",
            "recording", "checkpoints", "logical", "unique", "stored", "ratio"
        )?;
        for row in &self.recordings {
            writeln!(
                f,
                "{:<24} {:>11} {:>12} {:>12} {:>12} {:>7}",
                row.name,
                row.checkpoints,
                Bytes(row.logical_bytes).to_string(),
                Bytes(row.unique_bytes).to_string(),
                Bytes(row.stored_bytes + row.manifest_bytes).to_string(),
                ratio(row.logical_bytes, row.stored_bytes + row.manifest_bytes),
            )?;
        }
        writeln!(
            f,
            "\n{:<24} {:>14} {:>12} {:>12} {:>7}",
            "stored as", "items", "unique", "stored", "ratio"
        )?;
        for (name, method) in [
            ("whole pages", &self.whole_pages),
            ("edits of pages", &self.delta_pages),
            ("chunks of blobs", &self.chunks),
        ] {
            writeln!(
                f,
                "{name:<24} {:>14} {:>12} {:>12} {:>7}",
                Grouped(method.items).to_string(),
                Bytes(method.raw_bytes).to_string(),
                Bytes(method.stored_bytes).to_string(),
                ratio(method.raw_bytes, method.stored_bytes),
            )?;
        }
        writeln!(
            f,
            "\n{} packs with {} (directories {}), manifests {}, index {}",
            self.packs,
            Bytes(self.pack_bytes),
            Bytes(self.directory_bytes),
            Bytes(self.manifest_bytes),
            Bytes(self.index_bytes)
        )
    }
}
