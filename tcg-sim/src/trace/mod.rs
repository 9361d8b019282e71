//! Stored memory traces: every access of a run, with where it was made and which memory it met.
//!
//! The engine hands out [`Chunk`]s to a [`MemorySink`]; [`TraceWriter`] is the one that stores them.
//! [`TraceReader`] gives the chunks of a file back, and [`Chunk::items`] what is in them: whoever
//! reads a trace sees [`Item`]s and never the encoding, which `docs/format/memory-trace.md` defines.
//! Each chunk stands alone, so a trace can be read from any chunk on, in parallel, and traces of
//! intervals are joined by copying chunks.

mod block;
mod chunk;
mod file;
mod items;
mod wire;

pub(crate) use block::{TracedAccess, TracedBlock, TracedInsn};
pub use chunk::{Chunk, Damaged};
pub(crate) use chunk::{ChunkBuilder, Given, Run, RunOperand};
pub use file::{TraceError, TraceFile, TraceInfo, TraceReader, TraceWriter};
pub use items::{Access, Branched, Delivered, Item, Items};

use std::io;

/// Takes the chunks of a trace in order.
pub trait MemorySink: Send {
    /// The next chunk.
    ///
    /// # Errors
    /// Any; the run ends with it.
    fn chunk(&mut self, chunk: &Chunk) -> io::Result<()>;

    /// All chunks but the first `chunks` are void: the run goes back to there.
    ///
    /// # Errors
    /// Any; the run ends with it.
    fn keep(&mut self, chunks: u64) -> io::Result<()>;

    /// The trace is complete.
    ///
    /// # Errors
    /// Any.
    fn finish(&mut self) -> io::Result<()>;
}

/// Drops all chunks: what a trace costs, and whether it changes anything.
impl MemorySink for () {
    fn chunk(&mut self, _chunk: &Chunk) -> io::Result<()> {
        Ok(())
    }

    fn keep(&mut self, _chunks: u64) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps chunks in memory.
impl MemorySink for std::sync::Arc<std::sync::Mutex<Vec<Chunk>>> {
    fn chunk(&mut self, chunk: &Chunk) -> io::Result<()> {
        self.lock()
            .expect("no panic under the lock")
            .push(chunk.clone());
        Ok(())
    }

    fn keep(&mut self, chunks: u64) -> io::Result<()> {
        let mut all = self.lock().expect("no panic under the lock");
        all.truncate(chunks as usize);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
