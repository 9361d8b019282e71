//! The memory trace of an interval on its way into a file.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tcg_sim::trace::{Chunk, MemorySink, TraceWriter};

/// The memory trace of an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceResult {
    /// In the folder of the results. Traces of several intervals may be read one behind the other.
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) accesses: u64,
}

/// A trace that is being written beside its place.
pub(super) struct TraceInProgress {
    beside: PathBuf,
    place: PathBuf,
    accesses: Arc<AtomicU64>,
}

/// Counts accesses while chunks go by.
struct Sink {
    writer: TraceWriter<File>,
    /// Of each chunk.
    accesses: Vec<u64>,
    total: Arc<AtomicU64>,
}

impl TraceInProgress {
    /// Starts the trace of an interval that will be at `place`.
    pub(super) fn create(place: PathBuf, interval: u64) -> Result<(Self, Box<dyn MemorySink>)> {
        let beside = place.with_extension(format!("trace-new-{}", std::process::id()));
        let total: Arc<AtomicU64> = Arc::default();
        let writer = File::create(&beside).and_then(|file| TraceWriter::new(file, interval));
        let sink = Sink {
            writer: writer.with_context(|| format!("cannot write {}", beside.display()))?,
            accesses: Vec::new(),
            total: Arc::clone(&total),
        };
        let this = Self {
            beside,
            place,
            accesses: total,
        };
        Ok((this, Box::new(sink)))
    }

    /// The trace is complete: puts it in its place.
    pub(super) fn finish(self) -> Result<TraceResult> {
        let put = || -> io::Result<u64> {
            let bytes = std::fs::metadata(&self.beside)?.len();
            std::fs::rename(&self.beside, &self.place)?;
            Ok(bytes)
        };
        let bytes = put().with_context(|| format!("cannot write {}", self.place.display()))?;
        Ok(TraceResult {
            file: file_name(&self.place),
            bytes,
            accesses: self.accesses.load(Ordering::Acquire),
        })
    }
}

impl Drop for TraceInProgress {
    fn drop(&mut self) {
        // After `finish` there is nothing there.
        let _ = std::fs::remove_file(&self.beside);
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Sink {
    fn note(&self) {
        self.total
            .store(self.accesses.iter().sum(), Ordering::Release);
    }
}

impl MemorySink for Sink {
    fn chunk(&mut self, chunk: &Chunk) -> io::Result<()> {
        self.writer.chunk(chunk)?;
        self.accesses.push(chunk.accesses());
        Ok(())
    }

    fn keep(&mut self, chunks: u64) -> io::Result<()> {
        self.writer.keep(chunks)?;
        self.accesses.truncate(chunks as usize);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.note();
        self.writer.finish()
    }
}
