//! `sbctl rm`, `prune` and `trim`: what takes recordings or parts of them away.

use crate::environment::{Environment, recording_name};
use crate::exit::{Exit, Usage};
use anyhow::Result;
use checkpoint_dedup::{CheckpointNo, RecordingName, TrimRange};
use clap::Args;
use serde::Serialize;
use std::fmt;

/// Options of `sbctl rm`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    /// The recordings
    #[arg(value_name = "NAME", required = true, value_parser = recording_name)]
    names: Vec<RecordingName>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Options of `sbctl prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArguments {
    /// How many recordings to keep, the newest
    #[arg(long, value_name = "N")]
    keep_last: usize,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Options of `sbctl trim`.
#[derive(Debug, Args)]
pub(crate) struct TrimArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    /// The first checkpoint to keep
    #[arg(long, value_name = "A")]
    from: Option<u32>,
    /// The last checkpoint to keep
    #[arg(long, value_name = "B")]
    to: Option<u32>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: Vec<String>,
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Trimmed {
    recording: String,
    first_checkpoint: u32,
    last_checkpoint: u32,
    removed_checkpoints: u32,
    dry_run: bool,
}

/// Removes recordings.
pub(crate) fn rm(arguments: RemoveArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    // All must be there before the first one goes.
    for name in &arguments.names {
        repository.recording_info(name)?;
    }
    remove(arguments.names, arguments.dry_run, environment)
}

/// Removes all but the newest recordings.
pub(crate) fn prune(arguments: PruneArguments, environment: &Environment) -> Result<Exit> {
    let names = environment.open()?.prunable(arguments.keep_last)?;
    remove(names, arguments.dry_run, environment)
}

fn remove(names: Vec<RecordingName>, dry_run: bool, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let mut removed = Removed {
        removed: Vec::new(),
        dry_run,
    };
    let mut exit = Exit::Done;
    for name in names {
        if environment.interrupt.requested() {
            exit = Exit::Interrupted;
            break;
        }
        if !dry_run {
            repository.remove(&name)?;
        }
        removed.removed.push(name.to_string());
    }
    environment.finish(&removed, &removed)?;
    Ok(exit)
}

/// Cuts a recording at either end.
pub(crate) fn trim(arguments: TrimArguments, environment: &Environment) -> Result<Exit> {
    if arguments.from.is_none() && arguments.to.is_none() {
        return Err(Usage("say where to cut: --from A, --to B or both".to_owned()).into());
    }
    let repository = environment.open()?;
    let before = repository.recording_info(&arguments.name)?;
    let missing = |number| checkpoint_dedup::Error::NoCheckpoint {
        name: arguments.name.clone(),
        number,
    };
    let (Some(first), Some(last)) = (before.first, before.last) else {
        return Err(missing(CheckpointNo(0)).into());
    };
    let from = arguments.from.map_or(first, CheckpointNo);
    let to = arguments.to.map_or(last, CheckpointNo);
    if let Some(bad) = [from, to].into_iter().find(|n| *n < first || *n > last) {
        return Err(missing(bad).into());
    }
    if from > to {
        return Err(Usage(format!("{from} to {to} holds no checkpoint")).into());
    }
    if !arguments.dry_run {
        let range = TrimRange {
            from: Some(from),
            to: Some(to),
        };
        repository.trim(&arguments.name, range)?;
    }
    let trimmed = Trimmed {
        recording: arguments.name.to_string(),
        first_checkpoint: from.0,
        last_checkpoint: to.0,
        removed_checkpoints: (from.0 - first.0) + (last.0 - to.0),
        dry_run: arguments.dry_run,
    };
    environment.finish(&trimmed, &trimmed)?;
    Ok(Exit::Done)
}

const HINT: &str = "`sbctl gc` frees the space";

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.dry_run {
            "would remove"
        } else {
            "removed"
        };
        for name in &self.removed {
            writeln!(f, "{verb} {name}")?;
        }
        match (self.removed.is_empty(), self.dry_run) {
            (true, _) => writeln!(f, "nothing to remove"),
            (false, true) => Ok(()),
            (false, false) => writeln!(f, "{HINT}"),
        }
    }
}

impl fmt::Display for Trimmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.dry_run { "would keep" } else { "kept" };
        writeln!(
            f,
            "{verb} checkpoints {} to {} of {}, {} go",
            self.first_checkpoint, self.last_checkpoint, self.recording, self.removed_checkpoints
        )?;
        match self.dry_run {
            true => Ok(()),
            false => writeln!(f, "{HINT}"),
        }
    }
}
