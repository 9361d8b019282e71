//! Checking packs, and which items cannot be read.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::super::items::ItemSet;
use super::super::progress::{Progress, report};
use super::report::{CheckReport, DamageKind};
use crate::codec::group::Group;
use crate::error::{Error, FormatError};
use crate::id::{ContentId, ItemId, PackId, PageId};
use crate::index::{Item, PackMeta};
use crate::pack::{self, PACK_HEADER};
use crate::repository::Repository;

/// What is known of the packs.
#[derive(Default, Clone)]
pub(super) struct Packs {
    /// Items that a pack should hold and that cannot be read from it: number of the damage.
    pub(super) lost: HashMap<Item, usize>,
    /// What has been reported of items that no pack holds, by pack.
    pub(super) vanished: HashMap<u32, usize>,
    /// Items that were looked for and are there.
    pub(super) there: ItemSet,
    /// Damages that are none unless a checkpoint suffers: garbage that lost its bases, which a
    /// collection that is cut short leaves behind.
    pub(super) bereft: Vec<usize>,
}

/// What is wrong inside a pack.
struct Finding {
    what: String,
    /// The pack is whole, and what is missing is a base in another.
    only_base: bool,
}

impl Finding {
    fn damage(what: String) -> Self {
        let only_base = false;
        Self { what, only_base }
    }

    fn of_item(error: &Error) -> Self {
        Self {
            what: error.to_string(),
            only_base: matches!(error, Error::Missing { .. }),
        }
    }

    /// The one to report: the first, but damage of the pack before the loss of a base.
    fn or(first: Option<Self>, second: Option<Self>) -> Option<Self> {
        match (first, second) {
            (Some(first), Some(second)) if first.only_base && !second.only_base => Some(second),
            (first, second) => first.or(second),
        }
    }
}

type Findings = (Option<Finding>, Vec<Item>, u64);

impl Packs {
    pub(super) fn check(
        &mut self,
        repository: &Repository,
        read_data: bool,
        progress: &dyn Progress,
        out: &mut CheckReport,
    ) -> Result<(), Error> {
        let store = &repository.store;
        let packs = store.index.list()?;
        out.packs = packs.len() as u64;
        store.index.refresh()?;
        for (at, (id, _)) in packs.iter().enumerate() {
            report(progress, "checking packs", at, packs.len())?;
            let shell = check_shell(repository, *id);
            let (inside, lost, read) = match (read_data, known(repository, *id)) {
                (true, Some(meta)) => check_inside(repository, &meta, progress)?,
                // With neither its own directory nor an index segment, nothing of it is found.
                _ => (None, Vec::new(), 0),
            };
            out.items_read += read;
            if let Some(finding) = shell.err().map(Finding::damage).or(inside) {
                let key = pack::key(*id);
                let path = store.backend.describe(&key);
                let number = out.add(DamageKind::Pack, &key, path, finding.what);
                if finding.only_base {
                    self.bereft.push(number);
                }
                self.lost
                    .extend(lost.into_iter().map(|item| (item, number)));
                self.vanished.insert(store.index.number(*id), number);
            }
        }
        // An item that another pack holds as well is not lost.
        if !self.lost.is_empty() {
            let lost = std::mem::take(&mut self.lost);
            let unreadable = |item: &Item| is_lost(repository, *item);
            self.lost = lost
                .into_iter()
                .filter(|(item, _)| unreadable(item))
                .collect();
        }
        Ok(())
    }
}

/// Whether an item cannot be read, wherever it is.
fn is_lost(repository: &Repository, item: Item) -> bool {
    let Ok((meta, place)) = repository.store.index.locate(item) else {
        return true;
    };
    match meta.is_chunk(place.group) {
        true => repository.store.chunk(item).is_err(),
        false => repository.store.page(item).is_err(),
    }
}

fn known(repository: &Repository, id: PackId) -> Option<Arc<PackMeta>> {
    let index = &repository.store.index;
    index.meta(index.number(id))
}

/// Header, trailer, table and ids of a pack.
fn check_shell(repository: &Repository, id: PackId) -> Result<(), String> {
    let store = &repository.store;
    let text = |error: Error| match error {
        Error::Damaged { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    let (_, trailer) = store.index.read_directory(id).map_err(text)?;
    store.index.read_ids(id, &trailer).map_err(text)?;
    let head = store.backend.get(&pack::key(id), 0, PACK_HEADER);
    match head {
        Ok(head) if head == pack::header(id) => Ok(()),
        Ok(_) => Err("the header is damaged".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads everything in a pack. The first finding, the items that cannot be read, and how many were
/// read.
fn check_inside(
    repository: &Repository,
    meta: &Arc<PackMeta>,
    progress: &dyn Progress,
) -> Result<Findings, Error> {
    let index = &repository.store.index;
    let ids = index
        .read_directory(meta.id)
        .and_then(|(_, trailer)| index.read_ids(meta.id, &trailer))
        .ok();
    let groups = meta.groups.len();
    let found: Vec<(Option<Finding>, Vec<Item>)> = (0..groups as u32)
        .into_par_iter()
        .map(|number| {
            report(progress, "reading packs", number as usize, groups)?;
            Ok(check_group(repository, meta, number, ids.as_deref()))
        })
        .collect::<Result<_, Error>>()?;
    let mut first = None;
    let mut lost = Vec::new();
    for (finding, items) in found {
        first = Finding::or(first, finding);
        lost.extend(items);
    }
    Ok((first, lost, u64::from(meta.items())))
}

fn check_group(
    repository: &Repository,
    meta: &Arc<PackMeta>,
    number: u32,
    ids: Option<&[ItemId]>,
) -> (Option<Finding>, Vec<Item>) {
    let range = meta.groups[number as usize].first..meta.group_end(number);
    let group = match repository.store.read_group(meta, number) {
        Ok(group) => group,
        Err(error) => {
            let what = match error {
                Error::Damaged { source, .. } => format!("group {number}: {source}"),
                other => other.to_string(),
            };
            let items = range.filter_map(|i| meta.held(i)).collect();
            return (Some(Finding::damage(what)), items);
        }
    };
    let (mut first, mut lost) = (None, Vec::new());
    for index in range {
        let Some(item) = meta.held(index) else {
            continue;
        };
        let expected = ids.and_then(|ids| ids.get(index as usize));
        if let Err(error) = check_item(repository, meta, &group, index, expected) {
            first = Finding::or(first, Some(Finding::of_item(&error)));
            lost.push(item);
        }
    }
    (first, lost)
}

/// Decodes an item out of this pack, and recomputes its identity and the bound of its cost.
fn check_item(
    repository: &Repository,
    meta: &Arc<PackMeta>,
    group: &Group,
    index: u32,
    expected: Option<&ItemId>,
) -> Result<(), Error> {
    let store = &repository.store;
    let place = meta.place_of(index);
    let actual = match group.chunk() {
        Some(bytes) => ContentId::of_chunk(bytes).item(),
        None => {
            let mut cost = 1u32;
            for base in store.base_items(meta, group, place)? {
                cost += u32::from(store.index.cost(base)?);
            }
            if cost > u32::from(meta.cost(place)) {
                let what = "decode cost";
                return Err(store.damaged(meta, FormatError::Malformed { what, offset: 0 }));
            }
            let page = store.page_in(meta, group, place)?;
            PageId::of(&page).content().item()
        }
    };
    match expected {
        Some(expected) if *expected != actual => Err(Error::WrongContent {
            what: format!("item {index}"),
            expected: expected.to_string(),
            actual: actual.to_string(),
        }),
        _ => Ok(()),
    }
}
