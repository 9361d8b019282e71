//! Finding pages that share fragments: hashes of 32-byte windows, sampled by value, so that a
//! fragment is sampled alike wherever it lies.

use crate::id::{PAGE_BYTES, Page};
use crate::index::Item;

/// One window in 2^SAMPLE_BITS is sampled.
const SAMPLE_BITS: u32 = 5;
/// Pages that [`select`] compares with each other.
const MOST_HOLDERS: usize = 64;
/// The less, the more [`select`] prefers cheap pages.
const COST_WEIGHT: u32 = 12;
/// Entries a bucket of the table holds.
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
    let mut hash = 0u32;
    for (at, &byte) in page.iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(byte)]);
        if hash >> (32 - SAMPLE_BITS) == 0 && at >= 31 && !is_flat(&page[at - 15..=at]) {
            out.push(Sample {
                hash,
                end: at as u16,
            });
        }
    }
}

fn is_flat(window: &[u8]) -> bool {
    window[1..] == window[..window.len() - 1]
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    item: Item,
}

const EMPTY: Entry = Entry {
    hash: 0,
    item: Item {
        pack: u32::MAX,
        ordinal: u32::MAX,
    },
};

/// The sampled windows of recent pages; bounded, the oldest entry of a bucket goes first.
pub(crate) struct SampleIndex {
    buckets: Vec<[Entry; WAYS]>,
}

impl SampleIndex {
    /// A table of at most `bytes` (rounded down to a power of two of buckets).
    pub(crate) fn new(bytes: usize) -> Self {
        let buckets = (bytes / size_of::<[Entry; WAYS]>()).max(1);
        Self {
            buckets: vec![[EMPTY; WAYS]; 1 << buckets.ilog2()],
        }
    }

    fn bucket(&self, hash: u32) -> usize {
        hash.wrapping_mul(0x9e37_79b1) as usize & (self.buckets.len() - 1)
    }

    /// Adds a page's samples.
    pub(crate) fn insert(&mut self, item: Item, samples: &[Sample]) {
        for sample in samples {
            let at = self.bucket(sample.hash);
            let bucket = &mut self.buckets[at];
            if bucket[0].hash == sample.hash && bucket[0].item == item {
                continue;
            }
            bucket.copy_within(..WAYS - 1, 1);
            bucket[0] = Entry {
                hash: sample.hash,
                item,
            };
        }
    }

    /// Forgets pages.
    pub(crate) fn forget(&mut self, gone: impl Fn(Item) -> bool) {
        for entry in self.buckets.iter_mut().flatten() {
            if gone(entry.item) {
                *entry = EMPTY;
            }
        }
    }

    /// Pages that hold the window, latest first.
    pub(crate) fn holders(&self, hash: u32) -> impl Iterator<Item = Item> + '_ {
        let bucket = &self.buckets[self.bucket(hash)];
        bucket
            .iter()
            .filter(move |e| e.hash == hash && e.item != EMPTY.item)
            .map(|e| e.item)
    }
}

/// Up to `most` pages that together hold most of the wanted samples, and cost no more than is
/// `left`: again and again the page that holds most of those not covered yet for its cost. `cost`
/// says what a page costs, or that it is not to be taken.
pub(crate) fn select(
    index: &SampleIndex,
    wanted: &[Sample],
    most: usize,
    mut cost: impl FnMut(Item) -> Option<u8>,
    left: &mut u8,
) -> Vec<Item> {
    let wanted = &wanted[..wanted.len().min(256)];
    let mut holders: Vec<(Item, u8, [u64; 4])> = Vec::new();
    for (number, sample) in wanted.iter().enumerate() {
        for item in index.holders(sample.hash) {
            let mask = 1u64 << (number % 64);
            let at = holders
                .iter()
                .position(|(held, ..)| *held == item)
                .unwrap_or(holders.len());
            if at == holders.len() {
                if at == MOST_HOLDERS {
                    continue;
                }
                holders.push((item, cost(item).unwrap_or(u8::MAX), [0; 4]));
            }
            holders[at].2[number / 64] |= mask;
        }
    }
    let mut chosen = Vec::new();
    while chosen.len() < most {
        holders.retain(|(_, cost, _)| *cost <= *left);
        let count = |covers: &[u64; 4]| covers.iter().map(|word| word.count_ones()).sum::<u32>();
        let worth = |(_, cost, covers): &(Item, u8, [u64; 4])| {
            count(covers) * 64 / (COST_WEIGHT + u32::from(*cost))
        };
        let Some(best) = (0..holders.len()).max_by_key(|&i| worth(&holders[i])) else {
            break;
        };
        let (item, cost, covered) = holders.swap_remove(best);
        if count(&covered) == 0 {
            break;
        }
        *left -= cost;
        chosen.push(item);
        for (_, _, covers) in &mut holders {
            covers
                .iter_mut()
                .zip(covered)
                .for_each(|(word, gone)| *word &= !gone);
        }
    }
    chosen
}

/// Only the samples whose windows lie in literal runs.
pub(crate) fn in_runs(samples: &[Sample], runs: &[(u16, u16)]) -> Vec<Sample> {
    let mut bits = [0u64; PAGE_BYTES / 64];
    for &(start, count) in runs {
        for at in start..start + count {
            bits[usize::from(at) / 64] |= 1 << (at % 64);
        }
    }
    let set = |at: usize| bits[at / 64] >> (at % 64) & 1 == 1;
    samples
        .iter()
        .copied()
        .filter(|s| set(usize::from(s.end)) && set(usize::from(s.end) - 15))
        .collect()
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
        index.insert(item, &of_source);
        assert_eq!(select(&index, &of_page, 3, |_| Some(1), &mut 1), [item]);
        assert_eq!(select(&index, &of_page, 3, |_| Some(2), &mut 1), []);
    }
}
