//! From damage to steps.

use std::collections::{BTreeMap, HashSet};

use super::super::check::{CheckReport, DamageKind};
use super::{ReadableRun, RepairAction};
use crate::error::Error;
use crate::id::RecordingName;
use crate::recording::{self, Extent, Part, Start};
use crate::repository::Repository;

impl Repository {
    pub(super) fn repair_actions(&self, report: &CheckReport) -> Result<Vec<RepairAction>, Error> {
        let mut out = Vec::new();
        for damage in &report.damages {
            let (path, key) = (damage.path.clone(), damage.key.clone());
            match damage.kind {
                DamageKind::Config => out.push(RepairAction::RestoreConfig),
                DamageKind::Derived | DamageKind::Lock => {
                    out.push(RepairAction::Discard { path, key });
                }
                DamageKind::Start => out.push(self.start_action(&damage.key)?),
                DamageKind::Series if damage.affected.is_empty() => {
                    match recording::parse_key(&damage.key) {
                        Some((_, Part::End(_))) => {
                            out.push(RepairAction::RestoreEnd { path, key });
                        }
                        _ => out.push(RepairAction::Discard { path, key }),
                    }
                }
                DamageKind::Pack if self.store.backend.size(&damage.key).is_ok() => {
                    out.push(RepairAction::RewritePack { path, key });
                }
                _ => {}
            }
        }
        out.extend(self.cuts(report)?);
        Ok(out)
    }

    fn start_action(&self, key: &str) -> Result<RepairAction, Error> {
        if let Some((series, _)) = recording::parse_key(key) {
            for name in self.names()? {
                if self
                    .start(&name)
                    .is_ok_and(|start| start.recording == series)
                {
                    return Ok(RepairAction::RestoreStart { name, series });
                }
            }
        }
        let name = recording::parse_name_key(key);
        let name = name.ok_or_else(|| Error::Refused(format!("{key} names no recording")))?;
        for series in self.all_parts()?.into_keys() {
            let bytes = self
                .store
                .backend
                .get_all(&recording::key(series, Part::Start));
            let start = bytes.ok().and_then(|bytes| Start::decode(&bytes).ok());
            if start.is_some_and(|start| start.name == name) {
                return Ok(RepairAction::RestoreStart { name, series });
            }
        }
        Ok(RepairAction::ForgetName { name })
    }

    /// What to do with the recordings that suffer.
    pub(super) fn cuts(&self, report: &CheckReport) -> Result<Vec<RepairAction>, Error> {
        let mut suffering: BTreeMap<&RecordingName, (HashSet<u32>, HashSet<u32>)> = BTreeMap::new();
        for affected in report.damages.iter().flat_map(|damage| &damage.affected) {
            let (checkpoints, logs) = suffering.entry(&affected.recording).or_default();
            let set = if affected.logs { logs } else { checkpoints };
            set.extend(affected.first.0..=affected.last.0);
        }
        let mut out = Vec::new();
        let taken = self.names()?;
        for (name, (checkpoints, logs)) in suffering {
            let Ok(start) = self.start(name) else {
                continue;
            };
            let extent = Extent::of(&self.parts(start.recording)?);
            let mut runs = readable_runs(&extent, &checkpoints, &logs);
            runs.sort_by_key(|run| std::cmp::Reverse(run.last.0 - run.first.0));
            let mut runs = runs.into_iter();
            let keep = runs.next();
            let mut saved = Vec::new();
            for run in runs {
                let free = (1..)
                    .map(|n| RecordingName::new(&format!("{name}.part{n}")))
                    .find(|name| match name {
                        Ok(name) => {
                            !taken.contains(name) && saved.iter().all(|(_, other)| other != name)
                        }
                        Err(_) => true,
                    });
                saved.push((run, free.expect("the numbers never end")?));
            }
            out.push(RepairAction::Cut {
                name: name.clone(),
                keep,
                saved,
            });
        }
        Ok(out)
    }
}

/// Consecutive readable checkpoints with readable log segments between them.
fn readable_runs(
    extent: &Extent,
    checkpoints: &HashSet<u32>,
    logs: &HashSet<u32>,
) -> Vec<ReadableRun> {
    let mut runs: Vec<ReadableRun> = Vec::new();
    for &number in &extent.checkpoints {
        if checkpoints.contains(&number.0) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.last.next() == number && !logs.contains(&run.last.0) => {
                run.last = number;
            }
            _ => runs.push(ReadableRun {
                first: number,
                last: number,
            }),
        }
    }
    runs
}
