//! From pages to items: fills, duplicates, deltas. Pages are taken in batches; within a batch all
//! pages are worked on in parallel and see the pages of earlier batches as possible bases.

use std::sync::Arc;

use rayon::prelude::*;

use super::encode::{Bases, Encoded, Task, encode};
use super::frames::FrameTable;
use super::packer::NewPage;
use super::pipeline::Pipeline;
use crate::codec::group::Record;
use crate::codec::sample::SampleIndex;
use crate::error::Error;
use crate::id::{ContentId, Frame, Page, PageId, fill_of};
use crate::index::{Item, fingerprint};
use crate::map::{Content, Layer};
use crate::pack::NewItem;

/// Pages of a batch.
const BATCH: usize = 256;
/// Pages that are dearer to decode are neither offered as bases to others nor kept as anchors.
const CHEAP: u8 = 4;

/// A page that is looked at, and what the first look found.
enum Seen {
    Unchanged,
    Known(Content),
    New(ContentId),
}

/// The pipeline as the source of bases.
struct View<'a>(&'a Pipeline);

impl Bases for View<'_> {
    fn cost(&self, item: Item) -> Result<u8, Error> {
        let packer = &self.0.packer;
        match packer.costs.get(item.ordinal as usize) {
            Some(&cost) if item.pack == packer.number => Ok(cost),
            _ => self.0.store.index.cost(item),
        }
    }

    fn page(&self, item: Item) -> Result<Arc<Page>, Error> {
        let packer = &self.0.packer;
        match packer.pages.get(&item.ordinal) {
            Some(page) if item.pack == packer.number => Ok(Arc::clone(page)),
            _ => self.0.store.page(item),
        }
    }

    fn similar(&self) -> &SampleIndex {
        &self.0.similar
    }
}

impl Pipeline {
    /// Stores the changed pages of space number `space` and returns the layer of what changed.
    pub(super) fn ingest(
        &mut self,
        space: usize,
        pages: &[(Frame, &Page)],
    ) -> Result<Layer, Error> {
        let mut layer = Layer::default();
        for batch in pages.chunks(BATCH) {
            let contents = self.batch(Some(space), batch)?;
            for (&(frame, _), content) in batch.iter().zip(contents) {
                if let Some(content) = content {
                    self.spaces[space].now.set(frame, content, self.next);
                    layer.push(frame, content);
                }
            }
        }
        Ok(layer)
    }

    /// Stores pages that belong to no frame.
    pub(super) fn ingest_loose(&mut self, pages: &[&Page]) -> Result<Vec<Content>, Error> {
        let mut out = Vec::new();
        for batch in pages.chunks(BATCH) {
            let batch: Vec<(Frame, &Page)> = batch.iter().map(|&page| (Frame(0), page)).collect();
            out.extend(self.batch(None, &batch)?.into_iter().flatten());
        }
        Ok(out)
    }

    /// One batch; `None` for a page equal to what its frame held.
    fn batch(
        &mut self,
        space: Option<usize>,
        batch: &[(Frame, &Page)],
    ) -> Result<Vec<Option<Content>>, Error> {
        if self.packer.is_full() {
            self.flush()?;
        }
        let this = &*self;
        let now = space.map(|space| &this.spaces[space].now);
        let seen: Vec<Seen> = batch
            .par_iter()
            .map(|&(frame, page)| this.look(now, frame, page))
            .collect::<Result<_, _>>()?;
        let encoded: Vec<Option<Encoded>> = batch
            .par_iter()
            .zip(&seen)
            .map(|(&(frame, page), seen)| match seen {
                Seen::New(_) => encode(&this.task(now, frame, page), &View(this)).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<_, _>>()?;
        self.done.pages += batch.len() as u64;
        let mut out = Vec::with_capacity(batch.len());
        for ((seen, encoded), &(frame, page)) in seen.into_iter().zip(encoded).zip(batch) {
            out.push(self.settle(seen, encoded, page, space.map(|space| (space, frame))));
        }
        self.packer.squeeze_groups();
        Ok(out)
    }

    fn look(&self, now: Option<&FrameTable>, frame: Frame, page: &Page) -> Result<Seen, Error> {
        let before = now.map(|now| now.get(frame));
        let known = match fill_of(page) {
            Some(word) => Ok(Content::Fill(word)),
            None => {
                let id = PageId::of(page).content();
                self.find(&id, page)?.ok_or(id)
            }
        };
        Ok(match known {
            Ok(content) if before == Some(content) => Seen::Unchanged,
            Ok(content) => Seen::Known(content),
            Err(id) => Seen::New(id),
        })
    }

    /// A stored page with this content. Candidates are compared byte by byte.
    fn find(&self, id: &ContentId, page: &Page) -> Result<Option<Content>, Error> {
        let packer = &self.packer;
        if let Some(&ordinal) = packer.by_id.get(id)
            && packer
                .pages
                .get(&ordinal)
                .is_some_and(|known| **known == *page)
        {
            return Ok(Some(Content::Item(Item {
                pack: packer.number,
                ordinal,
            })));
        }
        for held in self.fingerprints.candidates(fingerprint(&id.item())) {
            if self.condemned.contains(&held.pack) {
                continue;
            }
            let Some(item) = self.store.index.held(held.pack, held.index) else {
                continue;
            };
            let (meta, place) = self.store.index.locate(item)?;
            if meta.is_chunk(place.group) {
                continue;
            }
            match self.store.page(item) {
                Ok(known) if *known == *page => return Ok(Some(Content::Item(item))),
                Ok(_) => {}
                // A damaged page is no duplicate: the page is stored again, which repairs it.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn task<'a>(&self, now: Option<&FrameTable>, frame: Frame, page: &'a Page) -> Task<'a> {
        let before = now.and_then(|now| match now.get(frame) {
            Content::Item(item) => Some(item),
            Content::Fill(_) => None,
        });
        let anchor = now.and_then(|now| now.anchor(frame));
        Task {
            page,
            versions: [before, anchor],
            diligence: self.diligence,
            budget: self.budget,
        }
    }

    /// Takes a page's result over into the pack and the similarity index.
    fn settle(
        &mut self,
        seen: Seen,
        encoded: Option<Encoded>,
        page: &Page,
        at: Option<(usize, Frame)>,
    ) -> Option<Content> {
        let id = match seen {
            Seen::Unchanged => {
                self.done.unchanged += 1;
                return None;
            }
            Seen::Known(content) => {
                match content {
                    Content::Fill(_) => self.done.filled += 1,
                    Content::Item(_) => self.done.duplicates += 1,
                }
                return Some(content);
            }
            Seen::New(id) => id,
        };
        // Another page of the same batch may have brought the same content.
        if let Some(&ordinal) = self.packer.by_id.get(&id)
            && self
                .packer
                .pages
                .get(&ordinal)
                .is_some_and(|known| **known == *page)
        {
            self.done.duplicates += 1;
            return Some(Content::Item(Item {
                pack: self.packer.number,
                ordinal,
            }));
        }
        let encoded = encoded.expect("every new page was encoded");
        Some(Content::Item(self.store_new(id, encoded, page, at)))
    }

    fn store_new(
        &mut self,
        id: ContentId,
        encoded: Encoded,
        page: &Page,
        at: Option<(usize, Frame)>,
    ) -> Item {
        match encoded.bases.is_empty() {
            true => self.done.whole += 1,
            false => self.done.deltas += 1,
        }
        let bases = encoded
            .bases
            .iter()
            .map(|&item| self.packer.base_ref(&self.store, item));
        let record = Record {
            bases: bases.collect(),
            tokens: encoded.edit.tokens,
            literals: encoded.edit.literals,
        };
        let new = NewItem {
            id: id.item(),
            cost: encoded.cost,
            moved_from: None,
        };
        let ordinal = self.packer.push(NewPage {
            id,
            record,
            item: new,
            page: Arc::new(*page),
        });
        let item = Item {
            pack: self.packer.number,
            ordinal,
        };
        if encoded.cost <= CHEAP {
            self.similar.insert(item, encoded.cost, &encoded.samples);
        }
        if let Some((space, frame)) = at {
            self.keep_anchor(space, frame, encoded.cost);
        }
        item
    }

    /// Remembers the last cheap version of a frame whose newest is dear.
    fn keep_anchor(&mut self, space: usize, frame: Frame, cost: u8) {
        let now = &self.spaces[space].now;
        let anchor = match now.get(frame) {
            _ if cost <= CHEAP => None,
            Content::Item(before) => match View(self).cost(before) {
                Ok(before_cost) if before_cost <= CHEAP => Some(before),
                _ => now.anchor(frame),
            },
            Content::Fill(_) => None,
        };
        self.spaces[space].now.set_anchor(frame, anchor);
    }
}
