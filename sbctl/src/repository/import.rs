//! `sbctl import NAME FILE...`: memory dumps as a recording's checkpoints.

use super::watch::Watch;
use crate::environment::{Environment, recording_name};
use crate::exit::{Exit, Usage};
use crate::quantity::{Bytes, Grouped};
use crate::recording::RAM_SPACE;
use anyhow::{Context, Result, bail};
use checkpoint_dedup::{
    Error, Frame, Haste, PAGE_BYTES, Page, Progress, Published, RecordingName, SpaceNo, Writer,
    WriterOptions,
};
use clap::Args;
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Options of `sbctl import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The recording to make
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    /// Raw memory dumps of equal size, in order (as QEMU's `pmemsave` writes them)
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only look at the files
    #[arg(long)]
    dry_run: bool,
}

/// What `import` says of itself in the recording's note.
#[derive(Debug, Serialize)]
struct Note<'a> {
    imported_from: &'a [PathBuf],
}

#[derive(Debug, Serialize)]
struct Imported {
    recording: String,
    checkpoints: usize,
    memory_bytes: u64,
    changed_pages: u64,
    new_pages: u64,
    written_bytes: u64,
    dry_run: bool,
}

/// Bytes compared at a time.
const PART: usize = 4 << 20;

/// Imports dumps.
pub(crate) fn run(arguments: ImportArguments, environment: &Environment) -> Result<Exit> {
    let files = open(&arguments.files)?;
    let bytes = files[0].metadata()?.len();
    let mut imported = Imported {
        recording: arguments.name.to_string(),
        checkpoints: files.len(),
        memory_bytes: bytes,
        changed_pages: 0,
        new_pages: 0,
        written_bytes: 0,
        dry_run: arguments.dry_run,
    };
    if !arguments.dry_run {
        let repository = environment.open_or_create()?;
        let note = Note {
            imported_from: &arguments.files,
        };
        let options = WriterOptions {
            spaces: vec![(RAM_SPACE.to_owned(), (bytes / PAGE_BYTES as u64) as u32)],
            note: serde_json::to_vec(&note)?,
            haste: Haste::Thorough,
            ..WriterOptions::default()
        };
        let mut writer = repository.write(&arguments.name, options)?;
        let watch = Watch::new(&environment.interrupt);
        let done = import(&mut writer, &files, &watch);
        let done =
            done.and_then(|published| writer.finish().map(|()| published).map_err(Into::into));
        drop(watch);
        match done {
            Ok(published) => imported.add(&published),
            Err(error) => {
                // A part of the dumps is no recording.
                repository.remove(&arguments.name)?;
                return Err(error);
            }
        }
    }
    environment.finish(&imported, &imported)?;
    Ok(Exit::Done)
}

/// Opens the files, which must be of one size.
fn open(paths: &[PathBuf]) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut size = None;
    for path in paths {
        let name = || path.display().to_string();
        let file = File::open(path).with_context(name)?;
        let bytes = file.metadata().with_context(name)?.len();
        if bytes == 0 || bytes % PAGE_BYTES as u64 != 0 || bytes / PAGE_BYTES as u64 >= 1 << 32 {
            let text = format!("{} has {bytes} bytes, which is no memory", name());
            return Err(Usage(text).into());
        }
        if *size.get_or_insert(bytes) != bytes {
            let text = format!("{} has {bytes} bytes, the first file has others", name());
            return Err(Usage(text).into());
        }
        files.push(file);
    }
    Ok(files)
}

fn import(writer: &mut Writer, files: &[File], progress: &dyn Progress) -> Result<Vec<Published>> {
    let mut out = Vec::new();
    let mut before = None;
    for (number, file) in files.iter().enumerate() {
        progress.step("importing dumps", number as u64, files.len() as u64);
        let mut draft = writer.draft();
        let bytes = file.metadata()?.len();
        let mut at = 0;
        while at < bytes {
            if progress.is_cancelled() {
                return Err(Error::Interrupted.into());
            }
            let length = PART.min((bytes - at) as usize);
            let now = read(file, at, length)?;
            let old = match before {
                Some(before) => read(before, at, length)?,
                None => vec![0; length],
            };
            let (now, _) = now.as_chunks::<PAGE_BYTES>();
            let (old, _) = old.as_chunks::<PAGE_BYTES>();
            let first = (at / PAGE_BYTES as u64) as u32;
            for (frame, (now, old)) in (first..).map(Frame).zip(now.iter().zip(old)) {
                let now: &Page = now;
                if now != old {
                    draft.put_page(SpaceNo(0), frame, now)?;
                }
            }
            if draft.pages() * PAGE_BYTES >= 8 * PART {
                writer.hand_over(&mut draft)?;
            }
            at += length as u64;
        }
        out.push(writer.publish(draft)?.wait()?);
        before = Some(file);
    }
    Ok(out)
}

fn read(file: &File, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    if let Err(error) = file.read_exact_at(&mut bytes, at) {
        bail!("cannot read a dump at {at}: {error}");
    }
    Ok(bytes)
}

impl Imported {
    fn add(&mut self, published: &[Published]) {
        for done in published {
            self.changed_pages += done.pages;
            self.new_pages += done.deltas + done.whole;
            self.written_bytes += done.pack_bytes + done.manifest_bytes;
        }
    }
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = Bytes(self.memory_bytes);
        if self.dry_run {
            return writeln!(
                f,
                "would import {} checkpoints of {memory} as {}",
                self.checkpoints, self.recording
            );
        }
        writeln!(
            f,
            "imported {} checkpoints of {memory} as {}: {} changed pages, {} new, {} written",
            self.checkpoints,
            self.recording,
            Grouped(self.changed_pages),
            Grouped(self.new_pages),
            Bytes(self.written_bytes)
        )
    }
}
