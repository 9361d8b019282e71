//! Telling a user how far a long operation is, and being told to stop.

use crate::error::Error;

/// Watches a long operation.
pub trait Progress: Sync {
    /// `done` of `total` units of a stage are done.
    fn step(&self, stage: &'static str, done: u64, total: u64) {
        let _ = (stage, done, total);
    }

    /// Whether the operation should stop where it may.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Reports a step; an error if the operation should stop.
pub(super) fn report(
    progress: &dyn Progress,
    stage: &'static str,
    done: usize,
    total: usize,
) -> Result<(), Error> {
    progress.step(stage, done as u64, total as u64);
    match progress.is_cancelled() {
        true => Err(Error::Interrupted),
        false => Ok(()),
    }
}
