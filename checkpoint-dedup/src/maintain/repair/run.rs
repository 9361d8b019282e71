//! Doing it.

use std::sync::Arc;

use super::super::check::{CheckOptions, CheckReport, DamageKind, check_unlocked};
use super::super::copy::copy_range;
use super::super::progress::Progress;
use super::super::remove::TrimRange;
use super::{ReadableRun, RepairAction, RepairPlan};
use crate::error::Error;
use crate::id::{PackId, RecordingId, RecordingName};
use crate::lock;
use crate::pack;
use crate::recording::{self, End, Part, Start};
use crate::repository::{self, CONFIG_KEY, OpenOptions, Repository};

/// How often packs are rewritten before what is still damaged is left alone: a pack may turn out
/// to need another one's lost pages.
const ROUNDS: usize = 4;

impl RepairPlan {
    /// The steps, as far as they can be known before packs are rewritten.
    pub fn actions(&self) -> &[RepairAction] {
        &self.actions
    }

    /// Runs the plan; gives what a check finds afterwards.
    ///
    /// # Errors
    /// What the storage says, [`Error::Interrupted`]. Each step is complete or has not happened,
    /// and a new plan takes up the rest.
    pub fn run(mut self, progress: &dyn Progress) -> Result<CheckReport, Error> {
        let actions = std::mem::take(&mut self.actions);
        for action in &actions {
            if progress.is_cancelled() {
                return Err(Error::Interrupted);
            }
            self.small(action)?;
        }
        let mut report = self.report.clone();
        for _ in 0..ROUNDS {
            let packs = self.damaged_packs(&report);
            if packs.is_empty() {
                break;
            }
            let mut repository = self.fresh()?;
            repository.rewrite_packs(&packs, progress)?;
            report = self.check(progress)?;
        }
        let repository = self.fresh()?;
        let cuts = repository.cuts(&report)?;
        if cuts.is_empty() {
            return self.check(progress);
        }
        // The copies need the writer's lock themselves.
        self.writer = None;
        for cut in &cuts {
            if let RepairAction::Cut { name, keep, saved } = cut {
                repository.cut(name, *keep, saved, progress)?;
            }
        }
        self.check(progress)
    }

    fn check(&self, progress: &dyn Progress) -> Result<CheckReport, Error> {
        let all = CheckOptions { read_data: true };
        check_unlocked(Arc::clone(&self.backend), all, progress)
    }

    fn fresh(&self) -> Result<Repository, Error> {
        let backend = Arc::clone(&self.backend);
        let repository = Repository::unchecked(backend, OpenOptions::default());
        repository.store.index.refresh()?;
        Ok(repository)
    }

    fn damaged_packs(&self, report: &CheckReport) -> Vec<PackId> {
        let damaged = report.damages.iter();
        let packs = damaged.filter(|damage| damage.kind == DamageKind::Pack);
        packs
            .filter_map(|damage| pack::parse_key(&damage.key))
            .filter(|id| self.backend.size(&pack::key(*id)).is_ok())
            .collect()
    }

    /// The steps that concern one small object.
    fn small(&self, action: &RepairAction) -> Result<(), Error> {
        let backend = &*self.backend;
        match action {
            RepairAction::RestoreConfig => {
                backend.delete(CONFIG_KEY)?;
                repository::put_config(backend)?;
            }
            RepairAction::Discard { key, .. } => backend.delete(key)?,
            RepairAction::RestoreStart { name, series } => self.restore_start(name, *series)?,
            RepairAction::ForgetName { name } => backend.delete(&recording::name_key(name))?,
            RepairAction::RestoreEnd { key, .. } => {
                if let Some((series, Part::End(last))) = recording::parse_key(key) {
                    let end = End {
                        recording: series,
                        written_unix_ns: lock::unix_ns(std::time::SystemTime::now()),
                        last,
                        complete: true,
                    };
                    backend.delete(key)?;
                    backend.put_if_absent(key, &end.encode())?;
                }
            }
            RepairAction::RewritePack { .. } | RepairAction::Cut { .. } => {}
        }
        Ok(())
    }

    fn restore_start(&self, name: &RecordingName, series: RecordingId) -> Result<(), Error> {
        let keys = [
            recording::name_key(name),
            recording::key(series, Part::Start),
        ];
        let read = |key: &String| {
            let bytes = self.backend.get_all(key).ok()?;
            Start::decode(&bytes)
                .ok()
                .filter(|start| start.recording == series && start.name == *name)
        };
        let start = keys.iter().find_map(read).unwrap_or_else(|| Start {
            recording: series,
            created_unix_ns: 0,
            name: name.clone(),
            note: Vec::new(),
        });
        for key in keys.iter().filter(|key| read(key).is_none()) {
            self.backend.delete(key)?;
            self.backend.put_if_absent(key, &start.encode())?;
        }
        Ok(())
    }
}

impl Repository {
    fn cut(
        &self,
        name: &RecordingName,
        keep: Option<ReadableRun>,
        saved: &[(ReadableRun, RecordingName)],
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        for (run, copy) in saved {
            copy_range(self, name, *run, self, copy, progress)?;
        }
        match keep {
            Some(run) => {
                let range = TrimRange {
                    from: Some(run.first),
                    to: Some(run.last),
                };
                self.trim_locked(name, range)
            }
            None => self.remove(name),
        }
    }
}
