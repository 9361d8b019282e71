//! The table that finds duplicates: 8 bytes per slot, at most four fifths full.
//!
//! A slot holds 32 bits of an id and a 32-bit item number. A hit is only a candidate: the caller
//! compares the bytes, so neither a coincidence nor a crafted collision can merge two pages.

/// The `index`-th item that a pack holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub(crate) pack: u32,
    pub(crate) index: u32,
}

/// Marks a free slot.
const FREE: u32 = u32::MAX;

/// Candidates by fingerprint.
#[derive(Default)]
pub(crate) struct Fingerprints {
    slots: Vec<(u32, u32)>,
    used: usize,
    /// Item numbers count through the packs in order of arrival: (first number, pack).
    packs: Vec<(u32, u32)>,
    next: u32,
}

impl Fingerprints {
    /// Adds the items that a pack holds, in its order.
    pub(crate) fn add_pack(&mut self, pack: u32, fingerprints: &[u32]) {
        let first = self.next;
        // A repository of 2^32 items (16 TiB of unique pages) simply finds no more duplicates.
        let Some(next) = first.checked_add(fingerprints.len() as u32 + 1) else {
            return;
        };
        self.packs.push((first, pack));
        self.next = next;
        self.reserve(fingerprints.len());
        for (number, &fingerprint) in (first..).zip(fingerprints) {
            self.insert(fingerprint, number);
        }
    }

    fn reserve(&mut self, more: usize) {
        let needed = (self.used + more) * 5 / 4 + 1;
        if needed <= self.slots.len() {
            return;
        }
        let size = needed.max(self.slots.len() * 3 / 2).max(1024);
        let old = std::mem::replace(&mut self.slots, vec![(0, FREE); size]);
        self.used = 0;
        for (fingerprint, number) in old {
            if number != FREE {
                self.insert(fingerprint, number);
            }
        }
    }

    fn home(&self, fingerprint: u32) -> usize {
        let mixed = fingerprint.wrapping_mul(0x9e37_79b1);
        ((u64::from(mixed) * self.slots.len() as u64) >> 32) as usize
    }

    fn insert(&mut self, fingerprint: u32, number: u32) {
        let mut at = self.home(fingerprint);
        while self.slots[at].1 != FREE {
            at = (at + 1) % self.slots.len();
        }
        self.slots[at] = (fingerprint, number);
        self.used += 1;
    }

    /// Items that may have this fingerprint, at most eight.
    pub(crate) fn candidates(&self, fingerprint: u32) -> impl Iterator<Item = Held> + '_ {
        let start = if self.slots.is_empty() {
            0
        } else {
            self.home(fingerprint)
        };
        (0..self.slots.len())
            .map(move |i| self.slots[(start + i) % self.slots.len()])
            .take_while(|&(_, number)| number != FREE)
            .filter(move |&(f, _)| f == fingerprint)
            .take(8)
            .map(|(_, number)| self.item(number))
    }

    fn item(&self, number: u32) -> Held {
        let at = self.packs.partition_point(|&(first, _)| first <= number) - 1;
        let (first, pack) = self.packs[at];
        Held {
            pack,
            index: number - first,
        }
    }

    /// Memory in use.
    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        self.slots.len() * 8 + self.packs.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_found_again() {
        let mut table = Fingerprints::default();
        let of = |i: u32| i.wrapping_mul(0x85eb_ca6b) ^ (i >> 3);
        for pack in 0..50u32 {
            let prints: Vec<u32> = (0..pack * 7).map(|i| of(pack * 1000 + i)).collect();
            table.add_pack(pack, &prints);
        }
        for pack in 0..50u32 {
            for ordinal in 0..pack * 7 {
                let held = Held {
                    pack,
                    index: ordinal,
                };
                assert!(
                    table
                        .candidates(of(pack * 1000 + ordinal))
                        .any(|i| i == held)
                );
            }
        }
        assert!(table.heap_bytes() < 50 * 25 * 7 * 24);
        assert_eq!(Fingerprints::default().candidates(3).count(), 0);
    }
}
