//! Doing it: move, condemn, wait, mark again, delete.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::super::items::ItemSet;
use super::super::mover::Mover;
use super::super::progress::{Progress, report};
use super::super::roots::current;
use super::{GcPlan, GcReport, Use};
use crate::condemned::{self, Condemned, CondemnedId};
use crate::error::Error;
use crate::id::PackId;
use crate::index::{PackMeta, segment};
use crate::lock::{self, WRITING};
use crate::pack;
use crate::recording;

/// Index segments that are put together.
const MANY_SEGMENTS: usize = 8;

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
        let mut mover = match self.options.recompress {
            true => {
                let pages: u64 = self.moving.iter().map(|pack| pack.live_items).sum();
                Mover::recompressing(store, pages as usize)
            }
            false => Mover::new(store),
        };
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
            mover.pack(&pack.meta, &ids, &keep, &self.gone, progress)?;
        }
        mover.finish()?;
        self.packs.extend(&mover.written);
        out.written_bytes = mover.written_bytes;
        out.rebased_pages = mover.rebased;
        out.recompressed_pages = mover.recompressed();
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
