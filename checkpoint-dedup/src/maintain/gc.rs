//! Garbage collection: plan, then run.
//!
//! A run (1) moves what is live out of packs that are mostly garbage, (2) publishes a list of the
//! packs that are to go, (3) waits until every live writer has said that it refers to nothing in
//! them any more, (4) marks everything once more, now that nothing new can refer to them, and
//! spares a pack that something was found to need, (5) deletes the others. A crash anywhere leaves
//! packs that are there twice or a list that the next run takes up.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::items::ItemSet;
use super::mark::Live;
use super::mover::Mover;
use super::progress::{Progress, report};
use super::roots::{AllParts, current};
use crate::condemned::{self, Condemned, CondemnedId};
use crate::error::{Error, Holder};
use crate::id::{PackId, RecordingId};
use crate::index::{Item, PackMeta, segment};
use crate::lock::{self, Lock, Patience, WRITING};
use crate::pack;
use crate::recording;
use crate::repository::Repository;
use crate::store::{CacheLimits, Store};

/// Packs below this size are put together.
const SMALL_BYTES: u64 = 1 << 20;
/// ... if there are this many.
const MANY_SMALL: usize = 64;
/// Index segments that are put together.
const MANY_SEGMENTS: usize = 8;

/// How to collect garbage.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// How long to wait for other maintenance to end.
    pub patience: Patience,
    /// How long to wait for live writers to let go of what is to be deleted. What they do not let
    /// go of is deleted by a later run.
    pub writers: Duration,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            patience: Patience::BRIEF,
            writers: Duration::from_secs(30),
        }
    }
}

/// What a pack holds.
#[derive(Debug, Clone)]
struct Use {
    meta: Arc<PackMeta>,
    file_bytes: u64,
    live_items: u64,
    /// Stored bytes of groups, by the share of their items that is dead.
    dead_bytes: u64,
}

/// What a run of garbage collection is going to do. Holds the maintenance lock.
pub struct GcPlan {
    repository: Repository,
    options: GcOptions,
    _lock: Lock,
    /// Series that nothing names.
    series: Vec<RecordingId>,
    series_bytes: u64,
    /// Packs without live items.
    dead: Vec<Use>,
    /// Packs whose live items move.
    moving: Vec<Use>,
    /// Live items to move.
    keep: ItemSet,
    /// Bases that go although live items were encoded against them.
    gone: ItemSet,
    pack_bytes: u64,
    /// The packs that the plan is about, and those that its run has made.
    packs: HashSet<PackId>,
    parts: AllParts,
}

/// What a run of garbage collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Bytes of deleted objects.
    pub freed_bytes: u64,
    /// Bytes of new packs.
    pub written_bytes: u64,
    /// Packs deleted.
    pub deleted_packs: u64,
    /// Pages that were encoded anew because a base went.
    pub rebased_pages: u64,
    /// Bytes that a later run deletes, because a writer has not let go of them.
    pub pending_bytes: u64,
    /// These writers.
    pub waiting_for: Vec<Holder>,
}

impl GcPlan {
    /// Recordings (removed, or never begun) whose objects are removed.
    pub fn removed_series(&self) -> usize {
        self.series.len()
    }

    /// Packs that hold nothing live.
    pub fn dead_packs(&self) -> usize {
        self.dead.len()
    }

    /// Packs whose live content moves into new packs.
    pub fn rewritten_packs(&self) -> usize {
        self.moving.len()
    }

    /// Bytes of all packs now.
    pub fn pack_bytes(&self) -> u64 {
        self.pack_bytes
    }

    /// Bytes that the run is going to free, roughly: what is moved may compress otherwise.
    pub fn expected_bytes(&self) -> u64 {
        let dead: u64 = self.dead.iter().map(|pack| pack.file_bytes).sum();
        let moving: u64 = self.moving.iter().map(|pack| pack.dead_bytes).sum();
        self.series_bytes + dead + moving
    }
}

impl Repository {
    /// Looks at everything and says what garbage collection would do. Other maintenance has to
    /// wait while the plan lives; readers and writers need not.
    ///
    /// # Errors
    /// [`Error::Locked`] during other maintenance; [`Error::Damaged`] or [`Error::Missing`] if
    /// something cannot be read, because then nothing may be deleted: repair first.
    pub fn gc(&self, options: GcOptions, progress: &dyn Progress) -> Result<GcPlan, Error> {
        let backend = &self.store.backend;
        let lock = lock::exclusive(
            backend,
            lock::MAINTENANCE,
            "collecting garbage",
            options.patience,
        )?;
        // A store of its own: what it knows of packs is what is there now.
        let repository = Repository {
            store: Arc::new(Store::new(Arc::clone(backend), CacheLimits::default())),
        };
        repository.plan_gc(lock, options, progress)
    }

    fn plan_gc(
        self,
        lock: Lock,
        options: GcOptions,
        progress: &dyn Progress,
    ) -> Result<GcPlan, Error> {
        let sizes = self.load_packs()?;
        let metas = self.store.index.present();
        let parts = self.all_parts()?;
        let kept = self.kept()?;
        let mut live = self.mark(&metas, &parts, &kept, progress)?;
        let (uses, mut held) = survey(&metas, &sizes, &live);
        // What a writer has published since the packs were listed lies in packs of its own.
        while let Some(item) = live.all.first_not_in(&held) {
            self.store.index.locate(item)?;
            held.insert(item);
        }
        let (mut dead, mut moving, mut staying) = (Vec::new(), Vec::new(), Vec::new());
        let small = |u: &Use| u.file_bytes < SMALL_BYTES;
        let many = uses.iter().filter(|u| u.live_items > 0 && small(u)).count() >= MANY_SMALL;
        for pack in uses {
            if pack.live_items == 0 {
                dead.push(pack);
            } else if pack.dead_bytes * 3 > pack.file_bytes || (many && small(&pack)) {
                moving.push(pack);
            } else {
                staying.push(pack);
            }
        }
        self.move_what_would_break(&mut moving, &dead, staying, &mut live, progress)?;
        let (keep, gone) = what_moves(&moving, &dead, &live);
        let series = parts.keys().copied().filter(|&id| !kept.contains(id));
        let series: Vec<RecordingId> = series.collect();
        let mut series_bytes = 0;
        for id in &series {
            let listed = self.store.backend.list(&recording::prefix(*id))?;
            series_bytes += listed.iter().map(|object| object.bytes).sum::<u64>();
        }
        Ok(GcPlan {
            options,
            _lock: lock,
            series,
            series_bytes,
            dead,
            moving,
            keep,
            gone,
            pack_bytes: sizes.values().sum(),
            packs: sizes.into_keys().collect(),
            parts,
            repository: self,
        })
    }

    /// Garbage in a pack that stays may need a base that goes. It could be found as a duplicate
    /// and referred to again, so everything in a pack can always be decoded: such packs move too.
    fn move_what_would_break(
        &self,
        moving: &mut Vec<Use>,
        dead: &[Use],
        mut staying: Vec<Use>,
        live: &mut Live,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let mut needs: Vec<(u32, Item)> = Vec::new();
        for (at, pack) in staying.iter().enumerate() {
            report(progress, "following bases", at, staying.len())?;
            if pack.dead_bytes > 0 {
                let is_dead = |item: Item| !live.all.contains(item);
                self.bases_in_pack(&pack.meta, &is_dead, &mut |base| {
                    needs.push((pack.meta.number, base));
                })?;
            }
        }
        needs.retain(|(_, base)| !live.direct.contains(*base));
        needs.sort_unstable();
        needs.dedup();
        loop {
            let leaving: HashSet<u32> = moving.iter().chain(dead).map(|p| p.meta.number).collect();
            let goes = |base: Item| {
                let mut homes = self.store.index.homes(base).into_iter();
                !live.all.contains(base) && homes.all(|home| leaving.contains(&home))
            };
            let broken: HashSet<u32> = needs
                .iter()
                .filter(|(pack, base)| !leaving.contains(pack) && goes(*base))
                .map(|(pack, _)| *pack)
                .collect();
            if broken.is_empty() {
                break;
            }
            let (more, rest) = staying
                .into_iter()
                .partition(|pack| broken.contains(&pack.meta.number));
            staying = rest;
            moving.extend::<Vec<Use>>(more);
        }
        for (pack, base) in needs {
            live.dependents.entry(base).or_default().insert(pack);
        }
        Ok(())
    }

    /// Loads all packs there are; their sizes. A pack that cannot be read is an error.
    pub(super) fn load_packs(&self) -> Result<BTreeMap<PackId, u64>, Error> {
        let index = &self.store.index;
        let sizes: BTreeMap<PackId, u64> = index.list()?.into_iter().collect();
        index.refresh()?;
        let known: HashSet<PackId> = index.present().iter().map(|meta| meta.id).collect();
        for &id in sizes.keys().filter(|id| !known.contains(id)) {
            index.load(id)?;
        }
        Ok(sizes)
    }
}

/// Counts what each pack holds. An item that is in several packs counts in one of them, rewritten
/// packs first, so that the older copies go. Also gives all live items that packs hold.
fn survey(
    metas: &[Arc<PackMeta>],
    sizes: &BTreeMap<PackId, u64>,
    live: &Live,
) -> (Vec<Use>, ItemSet) {
    let mut metas: Vec<&Arc<PackMeta>> =
        metas.iter().filter(|m| sizes.contains_key(&m.id)).collect();
    metas.sort_by_key(|meta| (!meta.is_rewritten(), meta.id));
    let mut counted = ItemSet::default();
    let mut out = Vec::new();
    for meta in metas {
        let mut this = Use {
            meta: Arc::clone(meta),
            file_bytes: sizes[&meta.id],
            live_items: 0,
            dead_bytes: 0,
        };
        for number in 0..meta.groups.len() as u32 {
            let span = meta.groups[number as usize];
            let end = meta.group_end(number);
            let held = (span.first..end).filter_map(|index| meta.held(index));
            let alive = held
                .filter(|&item| live.all.contains(item) && counted.insert(item))
                .count() as u64;
            let items = u64::from(end - span.first).max(1);
            this.live_items += alive;
            this.dead_bytes += u64::from(span.bytes) * (items - alive.min(items)) / items;
        }
        out.push(this);
    }
    (out, counted)
}

/// The items to move, and the bases that go although something to be moved needs them: those that
/// nothing refers to directly, and that nothing which stays in its place was encoded against.
fn what_moves(moving: &[Use], dead: &[Use], live: &Live) -> (ItemSet, ItemSet) {
    let leaving: HashSet<u32> = moving
        .iter()
        .chain(dead)
        .map(|pack| pack.meta.number)
        .collect();
    let (mut keep, mut gone) = (ItemSet::default(), ItemSet::default());
    for pack in moving {
        let meta = &pack.meta;
        for item in (0..meta.items()).filter_map(|index| meta.held(index)) {
            if !live.all.contains(item) {
                continue;
            }
            let only_base = !live.direct.contains(item);
            let dependents = live.dependents.get(&item);
            if only_base && dependents.is_some_and(|packs| packs.is_subset(&leaving)) {
                gone.insert(item);
            } else {
                keep.insert(item);
            }
        }
    }
    (keep, gone)
}

impl GcPlan {
    /// Does what the plan says.
    ///
    /// # Errors
    /// What the storage says, [`Error::Interrupted`]. Nothing live is lost then, and the next run
    /// takes up what this one left.
    pub fn run(mut self, progress: &dyn Progress) -> Result<GcReport, Error> {
        let mut out = GcReport::default();
        self.move_items(progress, &mut out)?;
        let lists = self.condemn()?;
        let waiting = self.wait_for_writers(&lists, progress)?;
        let honoured: Vec<&Condemned> = lists
            .iter()
            .filter(|list| {
                !waiting
                    .iter()
                    .any(|lease| !lease.honours.contains(&list.id))
            })
            .collect();
        if !honoured.is_empty() {
            self.delete_packs(&honoured, progress, &mut out)?;
        }
        let going: HashSet<PackId> = honoured
            .iter()
            .flat_map(|l| l.packs.iter().copied())
            .collect();
        let left = self.planned().filter(|pack| !going.contains(&pack.meta.id));
        out.pending_bytes = left.map(|pack| pack.file_bytes).sum();
        let backend = &*self.repository.store.backend;
        out.waiting_for = waiting.iter().map(|lease| lease.holder(backend)).collect();
        self.remove_series(&mut out)?;
        self.merge_segments()?;
        out.freed_bytes += backend.sweep()?;
        Ok(out)
    }

    fn move_items(&mut self, progress: &dyn Progress, out: &mut GcReport) -> Result<(), Error> {
        let store = &self.repository.store;
        let mut mover = Mover::new(store);
        let mut moved = ItemSet::default();
        for (at, pack) in self.moving.iter().enumerate() {
            report(progress, "moving pages", at, self.moving.len())?;
            let (_, trailer) = store.index.read_directory(pack.meta.id)?;
            let ids = store.index.read_ids(pack.meta.id, &trailer)?;
            // Each item once, even if several of these packs hold it.
            let mut keep = ItemSet::default();
            let held = (0..pack.meta.items()).filter_map(|index| pack.meta.held(index));
            for item in held.filter(|&item| self.keep.contains(item)) {
                if moved.insert(item) {
                    keep.insert(item);
                }
            }
            mover.pack(&pack.meta, &ids, &keep, &self.gone)?;
        }
        mover.finish()?;
        self.packs.extend(&mover.written);
        out.written_bytes = mover.written_bytes;
        out.rebased_pages = mover.rebased;
        Ok(())
    }

    /// Publishes the list of packs to go. Returns it and those that earlier runs left.
    fn condemn(&self) -> Result<Vec<Condemned>, Error> {
        let backend = &*self.repository.store.backend;
        let (mut lists, unreadable) = condemned::list(backend)?;
        for key in unreadable {
            backend.delete(&key)?;
        }
        let known: HashSet<PackId> = lists.iter().flat_map(|l| l.packs.iter().copied()).collect();
        let packs = self
            .dead
            .iter()
            .chain(&self.moving)
            .map(|pack| pack.meta.id);
        let new: Vec<PackId> = packs.filter(|id| !known.contains(id)).collect();
        if !new.is_empty() {
            let list = Condemned::new(new);
            list.publish(backend)?;
            lists.push(list);
        }
        Ok(lists)
    }

    /// Waits until the writers honour the lists. Returns those that do not.
    fn wait_for_writers(
        &self,
        lists: &[Condemned],
        progress: &dyn Progress,
    ) -> Result<Vec<lock::LockInfo>, Error> {
        let ids: Vec<CondemnedId> = lists.iter().map(|list| list.id).collect();
        let deadline = Instant::now() + self.options.writers;
        loop {
            let mut waiting = lock::live(&*self.repository.store.backend, WRITING)?;
            waiting.retain(|lease| !ids.iter().all(|id| lease.honours.contains(id)));
            if waiting.is_empty() || Instant::now() >= deadline {
                return Ok(waiting);
            }
            report(progress, "waiting for writers", 0, waiting.len())?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The packs of `going` that something needs, by a look at what is there now.
    fn spared(
        &self,
        going: &HashSet<PackId>,
        progress: &dyn Progress,
    ) -> Result<HashSet<PackId>, Error> {
        let repository = &self.repository;
        let index = &repository.store.index;
        let mine = &self.packs;
        let now = index.list()?;
        let parts = repository.all_parts()?;
        if now.iter().all(|(id, _)| mine.contains(id)) && parts == self.parts {
            // Nothing has changed since the plan was made, other than what this run moved.
            let planned: HashSet<PackId> = self.planned().map(|pack| pack.meta.id).collect();
            return Ok(going.difference(&planned).copied().collect());
        }
        repository.load_packs()?;
        let kept = repository.kept()?;
        let metas = index.present();
        let live = repository.mark(&metas, &parts, &kept, progress)?;
        let (leaving, rest): (Vec<_>, Vec<_>) = metas
            .iter()
            .cloned()
            .partition(|meta| going.contains(&meta.id));
        // Whatever stays must stay readable, garbage included.
        let mut elsewhere = ItemSet::default();
        rest.iter().for_each(|meta| hold(meta, &mut elsewhere));
        let mut needed = live.all;
        let mut suspects = HashSet::new();
        for meta in &leaving {
            let held = (0..meta.items()).filter_map(|index| meta.held(index));
            suspects.extend(held.filter(|&i| !elsewhere.contains(i)).map(|i| i.pack));
        }
        let fresh = elsewhere.clone();
        repository.follow_bases(
            &metas,
            &suspects,
            fresh,
            &mut needed,
            progress,
            &mut |_, _| {},
        )?;
        let mut spared = HashSet::new();
        for meta in leaving {
            let mut held = (0..meta.items()).filter_map(|index| meta.held(index));
            if held.any(|item| needed.contains(item) && !elsewhere.contains(item)) {
                spared.insert(meta.id);
                hold(&meta, &mut elsewhere);
            }
        }
        Ok(spared)
    }

    /// The packs that are to go.
    fn planned(&self) -> impl Iterator<Item = &Use> {
        self.dead.iter().chain(&self.moving)
    }

    fn delete_packs(
        &self,
        lists: &[&Condemned],
        progress: &dyn Progress,
        out: &mut GcReport,
    ) -> Result<(), Error> {
        let store = &self.repository.store;
        let going: HashSet<PackId> = lists.iter().flat_map(|l| l.packs.iter().copied()).collect();
        let spared = self.spared(&going, progress)?;
        let doomed: Vec<PackId> = going
            .iter()
            .copied()
            .filter(|id| !spared.contains(id))
            .collect();
        for (at, id) in doomed.iter().enumerate() {
            report(progress, "deleting packs", at, doomed.len())?;
            let key = pack::key(*id);
            let bytes = match store.backend.size(&key) {
                Ok(bytes) => bytes,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e.into()),
            };
            store.backend.delete(&key)?;
            store.index.forget(store.index.number(*id));
            out.freed_bytes += bytes;
            out.deleted_packs += 1;
        }
        for list in lists {
            store.backend.delete(&list.key())?;
        }
        Ok(())
    }

    fn remove_series(&self, out: &mut GcReport) -> Result<(), Error> {
        let backend = &*self.repository.store.backend;
        let parts = self.repository.all_parts()?;
        let kept = self.repository.kept()?;
        for (id, parts) in &parts {
            let keep: Vec<_> = match kept.contains(*id) {
                true => current(parts).collect(),
                false => Vec::new(),
            };
            for part in parts.iter().filter(|part| !keep.contains(part)) {
                let key = recording::key(*id, *part);
                out.freed_bytes += backend.size(&key).unwrap_or(0);
                backend.delete(&key)?;
            }
        }
        Ok(())
    }

    /// Puts index segments together when they are many.
    fn merge_segments(&self) -> Result<(), Error> {
        let backend = &*self.repository.store.backend;
        let old = backend.list("index/")?;
        if old.len() < MANY_SEGMENTS {
            return Ok(());
        }
        let there: HashSet<PackId> = self
            .repository
            .store
            .index
            .list()?
            .into_iter()
            .map(|p| p.0)
            .collect();
        let mut covered = segment::read_all(backend)?;
        let mut seen = HashSet::new();
        covered.retain(|pack| there.contains(&pack.pack) && seen.insert(pack.pack));
        let new = segment::publish(backend, &covered)?;
        for listed in old.iter().filter(|listed| listed.key != new) {
            backend.delete(&listed.key)?;
        }
        Ok(())
    }
}

fn hold(meta: &PackMeta, items: &mut ItemSet) {
    for item in (0..meta.items()).filter_map(|index| meta.held(index)) {
        items.insert(item);
    }
}
