//! Repairing: a plan out of what a check found, then running it.
//!
//! What is derived goes. Damaged packs are rewritten with what can be read (and with what other
//! packs turn out to hold, too); the damaged file moves to `lost+found/`. A recording with
//! checkpoints that cannot be read is cut to its longest readable run; other readable runs are
//! copied to recordings of their own first.

mod action;
mod plan;
mod run;
mod salvage;

use std::sync::Arc;

pub use action::{ReadableRun, RepairAction};

use super::check::{CheckOptions, CheckReport, check_unlocked};
use super::progress::Progress;
use crate::backend::Backend;
use crate::error::Error;
use crate::lock::{self, Lock, Patience};
use crate::repository::{OpenOptions, Repository};

/// What a repair is going to do. Holds the locks of writer and maintenance.
pub struct RepairPlan {
    backend: Arc<dyn Backend>,
    actions: Vec<RepairAction>,
    /// The damage, as checked under the locks.
    pub report: CheckReport,
    writer: Option<Lock>,
    _maintenance: Lock,
}

/// Checks everything and plans the repair of what is damaged. Nobody may write meanwhile.
///
/// # Errors
/// As [`super::check::check`], and [`Error::Locked`] while a recording is being written.
pub fn plan_repair(
    backend: Arc<dyn Backend>,
    progress: &dyn Progress,
) -> Result<RepairPlan, Error> {
    discard_unreadable_locks(&*backend)?;
    let purpose = "repairing";
    let maintenance = lock::exclusive(&backend, lock::MAINTENANCE, purpose, Patience::BRIEF)?;
    let writer = lock::exclusive(&backend, lock::WRITER, purpose, Patience::BRIEF)?;
    let report = check_unlocked(
        Arc::clone(&backend),
        CheckOptions { read_data: true },
        progress,
    )?;
    let repository = Repository::unchecked(Arc::clone(&backend), OpenOptions::default());
    let actions = repository.repair_actions(&report)?;
    Ok(RepairPlan {
        backend,
        actions,
        report,
        writer: Some(writer),
        _maintenance: maintenance,
    })
}

/// An unreadable lock counts as held; a repair is asked for by somebody who knows better.
fn discard_unreadable_locks(backend: &dyn Backend) -> Result<(), Error> {
    for listed in backend.list(lock::PREFIX)? {
        let bytes = match backend.get_all(&listed.key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        if lock::LockInfo::decode(&listed.key, &bytes).is_err() {
            backend.delete(&listed.key)?;
        }
    }
    Ok(())
}
