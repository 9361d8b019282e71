//! Finding pages that share fragments: hashes of 32-byte windows, sampled by value, so that a
//! fragment is sampled alike wherever it lies.

use super::matcher::Anchor;
use crate::id::{PAGE_BYTES, Page};
use crate::index::Item;

/// One window in 2^SAMPLE_BITS is sampled.
const SAMPLE_BITS: u32 = 5;
/// Bytes of a window: those that the rolling hash depends on.
pub(crate) const WINDOW: usize = 32;
/// Parts of a page that are hashed side by side.
const LANES: usize = 4;
const LANE: usize = PAGE_BYTES / LANES;
/// Pages that [`select`] compares with each other.
const MOST_HOLDERS: usize = 48;
/// Samples that [`select`] looks for.
const MOST_WANTED: usize = 192;
/// The less, the more [`select`] prefers cheap pages.
const COST_WEIGHT: u32 = 12;
/// Entries a bucket of the table holds: one cache line.
const WAYS: usize = 4;

/// A sampled window: hash, and the offset of its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) hash: u32,
    pub(crate) end: u16,
}

/// Random numbers for the rolling hash, from a fixed seed.
static GEAR: [u32; 256] = gear();

const fn gear() -> [u32; 256] {
    let mut table = [0; 256];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut i = 0;
    while i < 256 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        table[i] = (state >> 32) as u32;
        i += 1;
    }
    table
}

/// The samples of a page. Windows of one repeated byte are passed over: they match everywhere.
pub(crate) fn samples(page: &Page, out: &mut Vec<Sample>) {
    out.clear();
    let mut found = [[0u16; LANE]; LANES];
    let mut counts = [0usize; LANES];
    let mut hashes = [0u32; LANES];
    for (lane, hash) in hashes.iter_mut().enumerate().skip(1) {
        for &byte in &page[lane * LANE - WINDOW..lane * LANE] {
            *hash = roll(*hash, byte);
        }
    }
    // Each step of a rolling hash waits for the one before, so several run side by side.
    for step in 0..LANE {
        for lane in 0..LANES {
            let hash = roll(hashes[lane], page[lane * LANE + step]);
            hashes[lane] = hash;
            found[lane][counts[lane]] = step as u16;
            counts[lane] += usize::from(hash >> (32 - SAMPLE_BITS) == 0);
        }
    }
    for lane in 0..LANES {
        for &step in &found[lane][..counts[lane]] {
            let end = lane * LANE + usize::from(step);
            if end < WINDOW - 1 {
                continue;
            }
            let window = &page[end + 1 - WINDOW..=end];
            if !is_flat(&window[WINDOW / 2..]) {
                let hash = window.iter().fold(0, |hash, &byte| roll(hash, byte));
                out.push(Sample {
                    hash,
                    end: end as u16,
                });
            }
        }
    }
}

#[inline]
fn roll(hash: u32, byte: u8) -> u32 {
    (hash << 1).wrapping_add(GEAR[usize::from(byte)])
}

fn is_flat(window: &[u8]) -> bool {
    window[1..] == window[..window.len() - 1]
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    item: Item,
    end: u16,
    cost: u8,
}

const EMPTY: Entry = Entry {
    hash: 0,
    item: Item {
        pack: u32::MAX,
        ordinal: u32::MAX,
    },
    end: 0,
    cost: 0,
};

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Bucket([Entry; WAYS]);

/// The sampled windows of recent pages; bounded, the oldest entry of a bucket goes first.
pub(crate) struct SampleIndex {
    buckets: Vec<Bucket>,
}

impl SampleIndex {
    /// A table of at most `bytes` (rounded down to a power of two of buckets).
    pub(crate) fn new(bytes: usize) -> Self {
        let buckets = (bytes / size_of::<Bucket>()).max(1);
        Self {
            buckets: vec![Bucket([EMPTY; WAYS]); 1 << buckets.ilog2()],
        }
    }

    fn bucket(&self, hash: u32) -> usize {
        hash.wrapping_mul(0x9e37_79b1) as usize & (self.buckets.len() - 1)
    }

    /// Adds the samples of a page that takes `cost` to decode.
    pub(crate) fn insert(&mut self, item: Item, cost: u8, samples: &[Sample]) {
        for sample in samples {
            let at = self.bucket(sample.hash);
            let bucket = &mut self.buckets[at].0;
            if bucket[0].hash == sample.hash && bucket[0].item == item {
                continue;
            }
            bucket.copy_within(..WAYS - 1, 1);
            bucket[0] = Entry {
                hash: sample.hash,
                item,
                end: sample.end,
                cost,
            };
        }
    }

    /// Forgets pages.
    pub(crate) fn forget(&mut self, gone: impl Fn(Item) -> bool) {
        for entry in self.buckets.iter_mut().flat_map(|bucket| &mut bucket.0) {
            if gone(entry.item) {
                *entry = EMPTY;
            }
        }
    }

    /// Pages that hold the window, latest first.
    fn holders(&self, hash: u32) -> impl Iterator<Item = &Entry> + '_ {
        let bucket = &self.buckets[self.bucket(hash)];
        let matching = move |e: &&Entry| e.hash == hash && e.item != EMPTY.item;
        bucket.0.iter().filter(matching)
    }
}

/// Pages found by what they share with a page, and where.
#[derive(Default)]
pub(crate) struct Similar {
    pub(crate) items: Vec<Item>,
    /// By position; bases count through `items`.
    pub(crate) anchors: Vec<Anchor>,
}

/// A page that holds some of the wanted samples.
struct Holder {
    item: Item,
    cost: u8,
    /// Which of the wanted.
    covers: [u64; MOST_WANTED / 64],
}

impl Holder {
    fn count(&self) -> u32 {
        self.covers.iter().map(|word| word.count_ones()).sum()
    }

    fn worth(&self) -> u32 {
        self.count() * 64 / (COST_WEIGHT + u32::from(self.cost))
    }
}

/// Up to `most` pages that together hold most of the wanted samples, and cost no more than is
/// `left`: again and again the page that holds most of those not covered yet for its cost.
pub(crate) fn select(
    index: &SampleIndex,
    wanted: &[Sample],
    most: usize,
    allowed: impl Fn(Item) -> bool,
    mut left: u8,
) -> Similar {
    if left == 0 {
        return Similar::default();
    }
    let wanted = &wanted[..wanted.len().min(MOST_WANTED)];
    let mut holders: Vec<Holder> = Vec::with_capacity(MOST_HOLDERS);
    // Holder, sample, end of the window in the holder.
    let mut hits: Vec<(u8, u8, u16)> = Vec::with_capacity(2 * wanted.len());
    let mut last = 0;
    for (number, sample) in wanted.iter().enumerate() {
        for entry in index.holders(sample.hash) {
            if holders.get(last).is_none_or(|h| h.item != entry.item) {
                let known = holders.iter().position(|h| h.item == entry.item);
                last = known.unwrap_or(holders.len());
            }
            if last == holders.len() {
                if last == MOST_HOLDERS || entry.cost > left || !allowed(entry.item) {
                    continue;
                }
                holders.push(Holder {
                    item: entry.item,
                    cost: entry.cost,
                    covers: [0; _],
                });
            }
            holders[last].covers[number / 64] |= 1 << (number % 64);
            hits.push((last as u8, number as u8, entry.end));
        }
    }
    let mut chosen = Vec::new();
    while chosen.len() < most {
        let affordable = (0..holders.len()).filter(|&i| holders[i].cost <= left);
        let Some(best) = affordable.max_by_key(|&i| holders[i].worth()) else {
            break;
        };
        if holders[best].count() == 0 {
            break;
        }
        left -= holders[best].cost;
        chosen.push(best);
        let covered = holders[best].covers;
        for holder in &mut holders {
            let words = holder.covers.iter_mut().zip(covered);
            words.for_each(|(word, gone)| *word &= !gone);
        }
    }
    let anchors = hits.iter().filter_map(|&(holder, number, end)| {
        let base = chosen.iter().position(|&c| c == usize::from(holder))?;
        Some(Anchor {
            end: wanted[usize::from(number)].end,
            base: base as u8,
            base_end: end,
        })
    });
    Similar {
        anchors: anchors.collect(),
        items: chosen.iter().map(|&c| holders[c].item).collect(),
    }
}

/// Where the wanted windows lie in an old version of the page.
pub(crate) fn moved(wanted: &[Sample], old: &[Sample]) -> Vec<Anchor> {
    const SLOTS: usize = 512;
    let mut slots = [0u8; SLOTS];
    let old = &old[..old.len().min(255)];
    for (number, sample) in (1..).zip(old) {
        slots[sample.hash as usize % SLOTS] = number;
    }
    let anchors = wanted.iter().filter_map(|sample| {
        let number = slots[sample.hash as usize % SLOTS].checked_sub(1)?;
        let found = old[usize::from(number)];
        (found.hash == sample.hash).then_some(Anchor {
            end: sample.end,
            base: 0,
            base_end: found.end,
        })
    });
    anchors.collect()
}

/// Only the samples of which the second half of the window lies in one literal run.
pub(crate) fn in_runs(samples: &[Sample], runs: &[(u16, u16)]) -> Vec<Sample> {
    let mut runs = runs.iter().peekable();
    let inside = |sample: &&Sample| {
        while runs
            .next_if(|(start, count)| start + count <= sample.end)
            .is_some()
        {}
        let run = runs.peek();
        run.is_some_and(|(start, _)| start + WINDOW as u16 / 2 <= sample.end + 1)
    };
    samples.iter().filter(inside).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PageId;

    #[test]
    fn a_moved_fragment_leads_to_its_page() {
        let mut source = [0; PAGE_BYTES];
        blake3::Hasher::new()
            .update(b"source")
            .finalize_xof()
            .fill(&mut source);
        let mut page = [0; PAGE_BYTES];
        page[101..1101].copy_from_slice(&source[2000..3000]);
        assert_ne!(PageId::of(&page), PageId::of(&source));
        let (mut of_source, mut of_page) = (Vec::new(), Vec::new());
        samples(&source, &mut of_source);
        samples(&page, &mut of_page);
        let mut index = SampleIndex::new(1 << 16);
        let item = Item {
            pack: 1,
            ordinal: 2,
        };
        index.insert(item, 2, &of_source);
        let found = select(&index, &of_page, 3, |_| true, 2);
        assert_eq!(found.items, [item]);
        assert!(found.anchors.len() > 10);
        for anchor in moved(&of_page, &of_source).iter().chain(&found.anchors) {
            assert_eq!(anchor.base_end - anchor.end, 2000 - 101);
        }
        assert_eq!(select(&index, &of_page, 3, |_| true, 1).items, []);
        assert_eq!(select(&index, &of_page, 3, |_| false, 2).items, []);
    }
}
