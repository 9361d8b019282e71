//! Moving what can be read out of damaged packs.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::items::ItemSet;
use super::super::mover::Mover;
use super::super::progress::{Progress, Silent, report};
use crate::error::Error;
use crate::id::{ContentId, ItemId, PackId, PageId};
use crate::index::{Item, PackMeta};
use crate::pack::{self, NewItem};
use crate::repository::Repository;

impl Repository {
    /// Moves what can be read out of damaged packs, and the files out of the way.
    pub(super) fn rewrite_packs(
        &mut self,
        packs: &[PackId],
        progress: &dyn Progress,
    ) -> Result<(), Error> {
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
        for (done, meta) in known.iter().enumerate() {
            report(progress, "rewriting packs", done, known.len())?;
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
        mover.pack(meta, &found, &keep, &ItemSet::default(), &Silent)
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
}
