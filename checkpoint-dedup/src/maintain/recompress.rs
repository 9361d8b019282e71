//! Looking for smaller encodings of pages that move, with more time than a recorder has.
//!
//! A page keeps its recorded cost, and its new bases cost less than that together by their recorded
//! costs, so along every base, old or new, the cost falls: there are no cycles, no read gets dearer
//! than it was allowed to be, and old and new encodings may be mixed in any way while some packs
//! are moved and others are not.

use std::sync::Arc;

use rayon::prelude::*;

use crate::codec::sample::{Sample, SampleIndex, samples};
use crate::error::Error;
use crate::id::Page;
use crate::index::Item;
use crate::store::Store;
use crate::writer::encode::{Bases, encode_again};

/// Level of zstd.
pub(super) const THOROUGH_LEVEL: i32 = 19;
/// Most memory for the index of similar pages,
const SIMILARITY_BYTES: usize = 256 << 20;
/// and how much of it a page takes.
const PAGE_SAMPLES_BYTES: usize = 2 << 10;

/// A page as it is encoded now.
pub(super) struct Wanted {
    pub(super) item: Item,
    /// What it costs to decode by its pack, and may cost.
    pub(super) cost: u8,
    pub(super) bases: Vec<Item>,
    pub(super) tokens: Vec<u8>,
    pub(super) literals: Vec<u8>,
}

/// Knows the pages that have moved so far.
pub(super) struct Recompressor<'a> {
    store: &'a Store,
    similar: SampleIndex,
    /// Pages that became smaller.
    pub(super) improved: u64,
}

impl Bases for Recompressor<'_> {
    fn cost(&self, item: Item) -> Result<u8, Error> {
        self.store.index.cost(item)
    }

    fn page(&self, item: Item) -> Result<Arc<Page>, Error> {
        self.store.page(item)
    }

    fn similar(&self) -> &SampleIndex {
        &self.similar
    }
}

impl<'a> Recompressor<'a> {
    /// For about that many pages.
    pub(super) fn new(store: &'a Store, pages: usize) -> Self {
        let bytes = pages.saturating_mul(PAGE_SAMPLES_BYTES);
        Self {
            store,
            similar: SampleIndex::new(bytes.min(SIMILARITY_BYTES)),
            improved: 0,
        }
    }

    /// Every page in the smaller of its two encodings.
    pub(super) fn smaller(&mut self, mut pages: Vec<Wanted>) -> Result<Vec<Wanted>, Error> {
        let this = &*self;
        let found: Vec<(bool, Vec<Sample>)> = pages
            .par_iter_mut()
            .map(|wanted| this.one(wanted))
            .collect::<Result<_, _>>()?;
        for (wanted, (improved, samples)) in pages.iter().zip(found) {
            self.improved += u64::from(improved);
            self.similar.insert(wanted.item, wanted.cost, &samples);
        }
        Ok(pages)
    }

    /// Whether a smaller encoding was found, and the page's samples.
    fn one(&self, wanted: &mut Wanted) -> Result<(bool, Vec<Sample>), Error> {
        let page = self.store.page(wanted.item)?;
        let mut own = Vec::new();
        samples(&page, &mut own);
        if wanted.cost == 1 {
            return Ok((false, own));
        }
        let (bases, cost) = (&wanted.bases, wanted.cost);
        let again = encode_again(&page, bases, cost, &own, self)?;
        let size = |tokens: &[u8], literals: &[u8]| literals.len() / 2 + tokens.len() * 3 / 4;
        let old = size(&wanted.tokens, &wanted.literals);
        let improved = again.cost <= wanted.cost && again.edit.estimate() < old;
        if improved {
            wanted.bases = again.bases;
            wanted.tokens = again.edit.tokens;
            wanted.literals = again.edit.literals;
        }
        Ok((improved, own))
    }
}
