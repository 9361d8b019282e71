//! What a collection would do: which packs go, and which items move.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::super::items::ItemSet;
use super::super::mark::Live;
use super::super::progress::{Progress, report};
use super::{GcOptions, GcPlan, Use};
use crate::error::Error;
use crate::id::{PackId, RecordingId};
use crate::index::{Item, PackMeta};
use crate::lock::{self, Lock};
use crate::recording;
use crate::repository::Repository;
use crate::store::{CacheLimits, Store};

/// Packs below this size are put together.
const SMALL_BYTES: u64 = 1 << 20;
/// ... if there are this many.
const MANY_SMALL: usize = 64;

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
            } else if options.recompress
                || pack.dead_bytes * 3 > pack.file_bytes
                || (many && small(&pack))
            {
                moving.push(pack);
            } else {
                staying.push(pack);
            }
        }
        self.move_what_would_break(&mut moving, &dead, staying, &mut live, progress)?;
        let (keep, gone) = what_moves(&moving, &dead, &live, options.recompress);
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
    pub(in super::super) fn load_packs(&self) -> Result<BTreeMap<PackId, u64>, Error> {
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
/// nothing refers to directly, and that nothing which stays in its place was encoded against (none
/// if `all` move).
fn what_moves(moving: &[Use], dead: &[Use], live: &Live, all: bool) -> (ItemSet, ItemSet) {
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
            // Recompression would rather have the choice of more bases.
            if !all && only_base && dependents.is_some_and(|packs| packs.is_subset(&leaving)) {
                gone.insert(item);
            } else {
                keep.insert(item);
            }
        }
    }
    (keep, gone)
}
