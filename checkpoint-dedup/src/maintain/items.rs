//! Sets of items: a bit per item, by pack.

use std::collections::HashMap;

use crate::index::Item;

/// A set of items.
#[derive(Default, Clone)]
pub(crate) struct ItemSet {
    packs: HashMap<u32, Vec<u64>>,
}

impl ItemSet {
    /// Adds an item; whether it was new.
    pub(crate) fn insert(&mut self, item: Item) -> bool {
        let bits = self.packs.entry(item.pack).or_default();
        let (word, bit) = (item.ordinal as usize / 64, 1 << (item.ordinal % 64));
        if word >= bits.len() {
            bits.resize(word + 1, 0);
        }
        let new = bits[word] & bit == 0;
        bits[word] |= bit;
        new
    }

    pub(crate) fn contains(&self, item: Item) -> bool {
        let word = self
            .packs
            .get(&item.pack)
            .and_then(|bits| bits.get(item.ordinal as usize / 64));
        word.is_some_and(|word| word >> (item.ordinal % 64) & 1 == 1)
    }

    /// An item that the other set lacks.
    pub(crate) fn first_not_in(&self, other: &Self) -> Option<Item> {
        self.packs.iter().find_map(|(&pack, bits)| {
            let others = other.packs.get(&pack).map_or(&[][..], Vec::as_slice);
            bits.iter().enumerate().find_map(|(at, word)| {
                let lacking = word & !others.get(at).copied().unwrap_or(0);
                (lacking != 0).then(|| Item {
                    pack,
                    ordinal: at as u32 * 64 + lacking.trailing_zeros(),
                })
            })
        })
    }

    /// All items, pack by pack.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Item> + '_ {
        self.packs.iter().flat_map(|(&pack, bits)| {
            (0..bits.len() as u32 * 64)
                .filter(|&at| bits[at as usize / 64] >> (at % 64) & 1 == 1)
                .map(move |ordinal| Item { pack, ordinal })
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_kept_once() {
        let mut set = ItemSet::default();
        let item = |pack, ordinal| Item { pack, ordinal };
        assert!(set.is_empty());
        for (pack, ordinal) in [(1, 0), (1, 64), (3, 63), (1, 64)] {
            set.insert(item(pack, ordinal));
        }
        assert!(!set.insert(item(1, 0)));
        let mut other = set.clone();
        assert_eq!(set.first_not_in(&other), None);
        other.insert(item(5, 200));
        assert_eq!(other.first_not_in(&set), Some(item(5, 200)));
        assert!(
            set.contains(item(3, 63)) && !set.contains(item(3, 62)) && !set.contains(item(2, 0))
        );
    }
}
