//! Repairing: a plan out of what a check found, then running it.
//!
//! What is derived goes. Damaged packs are rewritten with what can be read (and with what other
//! packs turn out to hold, too); the damaged file moves to `lost+found/`. A recording with
//! checkpoints that cannot be read is cut to its longest readable run; other readable runs are
//! copied to recordings of their own first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::check::{CheckOptions, CheckReport, DamageKind, check_unlocked};
use super::copy::copy_range;
use super::items::ItemSet;
use super::mover::Mover;
use super::progress::Progress;
use super::remove::TrimRange;
use crate::backend::Backend;
use crate::error::Error;
use crate::id::{CheckpointNo, ContentId, ItemId, PackId, PageId, RecordingId, RecordingName};
use crate::index::{Item, PackMeta};
use crate::lock::{self, Lock, Patience};
use crate::pack::{self, NewItem};
use crate::recording::{self, End, Extent, Part, Start};
use crate::repository::{self, CONFIG_KEY, OpenOptions, Repository};

/// How often packs are rewritten before what is still damaged is left alone: a pack may turn out
/// to need another one's lost pages.
const ROUNDS: usize = 4;

/// A run of readable checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadableRun {
    /// The first.
    pub first: CheckpointNo,
    /// The last.
    pub last: CheckpointNo,
}

/// One step of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairAction {
    /// Write a new configuration.
    RestoreConfig,
    /// Delete an object that can be made anew or says nothing any more.
    Discard {
        /// The object.
        path: String,
        /// Its key.
        key: String,
    },
    /// Write the start of a recording anew from its other copy or, without one, with what is known.
    RestoreStart {
        /// The recording.
        name: RecordingName,
        /// Its series.
        series: RecordingId,
    },
    /// Remove a name whose series cannot be found.
    ForgetName {
        /// The name.
        name: RecordingName,
    },
    /// Write the end of a recording anew.
    RestoreEnd {
        /// The object.
        path: String,
        /// Its key.
        key: String,
    },
    /// Move what can be read out of a pack into a new one, and the file to `lost+found/`.
    RewritePack {
        /// The pack.
        path: String,
        /// Its key.
        key: String,
    },
    /// Cut a recording to a run of checkpoints, after copying the other runs.
    Cut {
        /// The recording.
        name: RecordingName,
        /// The longest readable run; `None`: nothing can be read, the recording goes.
        keep: Option<ReadableRun>,
        /// Other readable runs and the recordings they become.
        saved: Vec<(ReadableRun, RecordingName)>,
    },
}

impl fmt::Display for RepairAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RestoreConfig => write!(f, "write a new configuration"),
            Self::Discard { path, .. } => write!(f, "delete {path}"),
            Self::RestoreStart { name, series } => {
                write!(f, "restore the start of recording {name} (series {series})")
            }
            Self::ForgetName { name } => {
                write!(f, "remove the name {name}, whose series cannot be found")
            }
            Self::RestoreEnd { path, .. } => write!(f, "write {path} anew"),
            Self::RewritePack { path, .. } => {
                write!(f, "rewrite {path} with what can be read of it")
            }
            Self::Cut { name, keep, saved } => {
                for (run, copy) in saved {
                    let (first, last) = (run.first, run.last);
                    write!(f, "copy {name} checkpoints {first} to {last} to {copy}; ")?;
                }
                match keep {
                    Some(run) => {
                        write!(f, "cut {name} to checkpoints {} to {}", run.first, run.last)
                    }
                    None => write!(f, "remove {name}, of which nothing can be read"),
                }
            }
        }
    }
}

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

impl Repository {
    fn repair_actions(&self, report: &CheckReport) -> Result<Vec<RepairAction>, Error> {
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
    fn cuts(&self, report: &CheckReport) -> Result<Vec<RepairAction>, Error> {
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
    /// Moves what can be read out of damaged packs, and the files out of the way.
    fn rewrite_packs(&mut self, packs: &[PackId], progress: &dyn Progress) -> Result<(), Error> {
        let index = &self.store.index;
        let known: Vec<Arc<PackMeta>> = packs
            .iter()
            .filter_map(|&id| index.meta(index.number(id)))
            .collect();
        let mut elsewhere: HashMap<ItemId, Vec<Item>> = HashMap::new();
        for meta in index.present() {
            if let Ok(ids) = self.ids(&meta) {
                for (at, id) in (0..).zip(ids) {
                    elsewhere.entry(id).or_default().extend(meta.held(at));
                }
            }
        }
        let mut mover = Mover::new(&self.store);
        for meta in &known {
            super::progress::report(progress, "rewriting packs", 0, known.len())?;
            self.salvage(meta, &elsewhere, &mut mover)?;
        }
        mover.finish()?;
        for &id in packs {
            let key = pack::key(id);
            let backend = &self.store.backend;
            let bytes = backend.get_all(&key)?;
            backend.put_if_absent(&format!("lost+found/{id}"), &bytes)?;
            backend.delete(&key)?;
        }
        Ok(())
    }

    fn ids(&self, meta: &PackMeta) -> Result<Vec<ItemId>, Error> {
        let (_, trailer) = self.store.index.read_directory(meta.id)?;
        self.store.index.read_ids(meta.id, &trailer)
    }

    /// Adds the items of a pack that can be read to the mover.
    fn salvage(
        &self,
        meta: &Arc<PackMeta>,
        elsewhere: &HashMap<ItemId, Vec<Item>>,
        mover: &mut Mover<'_>,
    ) -> Result<(), Error> {
        let ids = self.ids(meta).ok();
        let mut keep = ItemSet::default();
        let mut found = vec![ItemId::from_bytes([0; 8]); meta.items() as usize];
        for number in 0..meta.groups.len() as u32 {
            let group = self.store.read_group(meta, number).ok();
            for index in meta.groups[number as usize].first..meta.group_end(number) {
                let Some(item) = meta.held(index) else {
                    continue;
                };
                let place = meta.place_of(index);
                let content = group.as_ref().and_then(|group| match group.chunk() {
                    Some(bytes) => Some(ContentId::of_chunk(bytes)),
                    None => {
                        let page = self.store.page_in(meta, group, place).ok()?;
                        Some(PageId::of(&page).content())
                    }
                });
                let recorded = ids.as_ref().map(|ids| ids[index as usize]);
                match (content, recorded) {
                    (Some(content), None) => {
                        found[index as usize] = content.item();
                        keep.insert(item);
                    }
                    (Some(content), Some(id)) if content.item() == id => {
                        found[index as usize] = id;
                        keep.insert(item);
                    }
                    (_, Some(id)) => {
                        let new = NewItem {
                            id,
                            cost: meta.cost(place),
                            moved_from: Some(self.store.index.address(item)),
                        };
                        let twins = elsewhere.get(&id).map_or(&[][..], Vec::as_slice);
                        self.twin(item, twins, meta.is_chunk(number), new, mover)?;
                    }
                    (None, None) => {}
                }
            }
        }
        mover.pack(meta, &found, &keep, &ItemSet::default())
    }

    /// Stores under a lost item's address what another item with its identity holds.
    fn twin(
        &self,
        lost: Item,
        twins: &[Item],
        is_chunk: bool,
        new: NewItem,
        mover: &mut Mover<'_>,
    ) -> Result<(), Error> {
        for &twin in twins.iter().filter(|&&twin| twin != lost) {
            if is_chunk {
                if let Ok(bytes) = self.store.chunk(twin)
                    && ContentId::of_chunk(&bytes).item() == new.id
                {
                    return mover.chunk(new, &bytes);
                }
            } else if let Ok(page) = self.store.page(twin)
                && PageId::of(&page).content().item() == new.id
            {
                return mover.whole_page(&page, new);
            }
        }
        Ok(())
    }

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
