//! `sbctl copy SRC DST`: copies recordings between repositories.

use super::watch::Watch;
use crate::environment::{Environment, recording_name};
use crate::exit::{Exit, Usage};
use crate::quantity::{Bytes, Grouped};
use anyhow::{Context, Result};
use checkpoint_dedup::{Error, RecordingName, Repository};
use clap::Args;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Options of `sbctl copy`.
#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    /// The repository to copy from
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The repository to copy to, made if it is not there
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// The recordings [default: all that DST does not have]
    #[arg(value_name = "NAME", value_parser = recording_name)]
    names: Vec<RecordingName>,
    /// The name of the copy, if it is one recording
    #[arg(long = "as", value_name = "NAME", value_parser = recording_name)]
    as_name: Option<RecordingName>,
    /// Only say what would be copied
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Copied {
    recordings: Vec<Row>,
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    copy: String,
    checkpoints: u64,
    logs: u64,
    new_pages: u64,
    written_bytes: u64,
}

/// Copies recordings.
pub(crate) fn run(arguments: CopyArguments, environment: &Environment) -> Result<Exit> {
    let source = Repository::open(&arguments.source)?;
    let target = match Repository::open(&arguments.target) {
        Err(Error::NoRepository { .. }) if arguments.dry_run => None,
        Err(Error::NoRepository { .. }) => Some(Repository::create(&arguments.target)?),
        opened => Some(opened?),
    };
    let names = match arguments.names.is_empty() {
        false => arguments.names,
        true => missing(&source, target.as_ref())?,
    };
    if arguments.as_name.is_some() && names.len() != 1 {
        return Err(Usage("--as names the copy of one recording".to_owned()).into());
    }
    let mut copied = Copied {
        recordings: Vec::new(),
        dry_run: arguments.dry_run,
    };
    let watch = Watch::new(&environment.interrupt);
    for name in names {
        let copy = arguments.as_name.as_ref().unwrap_or(&name);
        let info = source.recording_info(&name)?;
        let report = match &target {
            Some(target) if !arguments.dry_run => source
                .copy_to(&name, target, copy, &watch)
                .with_context(|| format!("recording {name}"))?,
            _ => Default::default(),
        };
        let checkpoints = info.first.zip(info.last).map_or(0, |(a, b)| b.0 - a.0 + 1);
        copied.recordings.push(Row {
            name: name.to_string(),
            copy: copy.to_string(),
            checkpoints: checkpoints.into(),
            logs: info.logs.into(),
            new_pages: report.new_pages,
            written_bytes: report.written_bytes,
        });
    }
    drop(watch);
    environment.finish(&copied, &copied)?;
    Ok(Exit::Done)
}

/// The recordings that the target does not have.
fn missing(source: &Repository, target: Option<&Repository>) -> Result<Vec<RecordingName>> {
    let mut names: Vec<RecordingName> = source.recordings()?.into_iter().map(|r| r.name).collect();
    if let Some(target) = target {
        let there = target.recordings()?;
        names.retain(|name| there.iter().all(|info| info.name != *name));
    }
    Ok(names)
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.recordings {
            if self.dry_run {
                writeln!(f, "would copy {} as {}", row.name, row.copy)?;
                continue;
            }
            writeln!(
                f,
                "copied {} as {}: {} checkpoints, {} log segments, {} new pages, {} written",
                row.name,
                row.copy,
                row.checkpoints,
                row.logs,
                Grouped(row.new_pages),
                Bytes(row.written_bytes)
            )?;
        }
        match self.recordings.is_empty() {
            true => writeln!(f, "nothing to copy"),
            false => Ok(()),
        }
    }
}
