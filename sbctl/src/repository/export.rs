//! `sbctl export NAME K FILE`: the memory of one checkpoint as a file.

use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::quantity::Bytes;
use crate::recording::RAM_SPACE;
use anyhow::{Context, Result};
use checkpoint_dedup::{CheckpointNo, Error, PAGE_BYTES, RecordingName, SpaceView};
use clap::Args;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// Options of `sbctl export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    /// The checkpoint
    #[arg(value_name = "K")]
    checkpoint: u32,
    /// The file, which must not exist; zero pages become holes
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Serialize)]
struct Exported {
    recording: String,
    checkpoint: u32,
    file: PathBuf,
    bytes: u64,
}

/// Exports a checkpoint.
pub(crate) fn run(arguments: ExportArguments, environment: &Environment) -> Result<Exit> {
    let recording = environment.open()?.recording(&arguments.name)?;
    let checkpoint = recording.checkpoint(CheckpointNo(arguments.checkpoint))?;
    let space = checkpoint.space(RAM_SPACE)?;
    let path = &arguments.file;
    let name = || format!("cannot write {}", path.display());
    // Guest memory may hold secrets.
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let file = options.open(path).with_context(name)?;
    let bytes = u64::from(space.frames()) * PAGE_BYTES as u64;
    if let Err(error) = write(space, &file, bytes, environment) {
        // A part of a dump is no dump.
        let _ = std::fs::remove_file(path);
        return Err(error).with_context(name);
    }
    let text = format!(
        "{} of checkpoint {} of {} in {}",
        Bytes(bytes),
        arguments.checkpoint,
        arguments.name,
        path.display()
    );
    let exported = Exported {
        recording: arguments.name.to_string(),
        checkpoint: arguments.checkpoint,
        file: arguments.file,
        bytes,
    };
    environment.finish(&exported, text)?;
    Ok(Exit::Done)
}

fn write(space: &SpaceView, file: &File, bytes: u64, environment: &Environment) -> Result<()> {
    file.set_len(bytes)?;
    let mut page = [0; PAGE_BYTES];
    for frame in space.nonzero_frames() {
        if environment.interrupt.requested() {
            return Err(Error::Interrupted.into());
        }
        space.read(frame, &mut page)?;
        file.write_all_at(&page, u64::from(frame.0) * PAGE_BYTES as u64)?;
    }
    Ok(file.sync_all()?)
}
