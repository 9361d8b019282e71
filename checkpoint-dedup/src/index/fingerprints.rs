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
pub(crate) struct Fingerprints {
    /// Most slots. The packs that came first are forgotten beyond that.
    most: usize,
    slots: Vec<(u32, u32)>,
    used: usize,
    /// Item numbers count through the packs in order of arrival: (first number, pack).
    packs: Vec<(u32, u32)>,
    next: u32,
}

impl Fingerprints {
    /// A table of at most `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            most: (bytes / 8).max(1024),
            slots: Vec::new(),
            used: 0,
            packs: Vec::new(),
            next: 0,
        }
    }

    /// Adds the items that a pack holds, in its order.
    pub(crate) fn add_pack(&mut self, pack: u32, fingerprints: &[u32]) {
        let first = self.next;
        // A repository of 2^32 items (16 TiB of unique pages) simply finds no more duplicates.
        let Some(next) = first.checked_add(fingerprints.len() as u32 + 1) else {
            return;
        };
        let room = self.most * 4 / 5;
        if self.used + fingerprints.len() > room {
            // Half of the room, so that this is rare.
            self.forget_all_but((room / 2).saturating_sub(fingerprints.len()));
        }
        let fingerprints = &fingerprints[..fingerprints.len().min(room)];
        self.packs.push((first, pack));
        self.next = next;
        self.reserve(fingerprints.len());
        for (number, &fingerprint) in (first..).zip(fingerprints) {
            self.insert(fingerprint, number);
        }
    }

    /// Keeps about the last `count` items.
    fn forget_all_but(&mut self, count: usize) {
        let first = self.next.saturating_sub(count as u32);
        self.packs.retain(|&(of_pack, _)| of_pack >= first);
        let first = self.packs.first().map_or(self.next, |&(first, _)| first);
        let old = std::mem::take(&mut self.slots);
        self.used = 0;
        let kept = |slot: &&(u32, u32)| slot.1 != FREE && slot.1 >= first;
        self.reserve(old.iter().filter(kept).count());
        for &(fingerprint, number) in old.iter().filter(kept) {
            self.insert(fingerprint, number);
        }
    }

    fn reserve(&mut self, more: usize) {
        let needed = (self.used + more) * 5 / 4 + 1;
        if needed <= self.slots.len() {
            return;
        }
        let size = needed.max(self.slots.len() * 3 / 2).max(1024);
        let size = size.min(self.most.max(needed));
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
        let mut table = Fingerprints::new(1 << 30);
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
        assert_eq!(Fingerprints::new(0).candidates(3).count(), 0);
    }

    #[test]
    fn the_bound_holds_and_the_newest_packs_stay() {
        let mut table = Fingerprints::new(64 << 10);
        let of = |i: u32| i.wrapping_mul(0x85eb_ca6b);
        for pack in 0..400u32 {
            let prints: Vec<u32> = (0..100).map(|i| of(pack * 100 + i)).collect();
            table.add_pack(pack, &prints);
            assert!(table.heap_bytes() < 70 << 10, "{}", table.heap_bytes());
            let held = Held { pack, index: 99 };
            assert!(table.candidates(of(pack * 100 + 99)).any(|i| i == held));
        }
        assert_eq!(table.candidates(of(0)).count(), 0);
        table.add_pack(400, &vec![7; 100_000]);
        assert!(table.heap_bytes() < 70 << 10);
    }
}
