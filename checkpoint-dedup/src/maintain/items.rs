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
        assert!(
            set.contains(item(3, 63)) && !set.contains(item(3, 62)) && !set.contains(item(2, 0))
        );
    }
}
