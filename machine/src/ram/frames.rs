//! Sets of frames, one bit each.

use crate::units::Gfn;
use std::sync::atomic::{AtomicU64, Ordering};

/// A set of frames that does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameBits(Vec<u64>);

impl FrameBits {
    /// The frames in order.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.0.iter().enumerate().flat_map(|(index, word)| {
            let mut bits = *word;
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| u64::from(bits.trailing_zeros()))?;
                bits &= bits - 1;
                Some(Gfn(index as u64 * 64 + bit))
            })
        })
    }

    /// The first frame behind `gfn`, or else the first of all.
    pub fn after(&self, gfn: Gfn) -> Option<Gfn> {
        let start = (gfn.0 / 64) as usize;
        let above = u64::MAX.checked_shl(gfn.0 as u32 % 64 + 1).unwrap_or(0);
        let words = self.0.len();
        let mut masked = (0..=words).map(|n| {
            let index = (start + n) % words.max(1);
            let mask = if n == 0 { above } else { u64::MAX };
            (index, self.0.get(index).copied().unwrap_or(0) & mask)
        });
        let (index, word) = masked.find(|(_, word)| *word != 0)?;
        Some(Gfn(index as u64 * 64 + u64::from(word.trailing_zeros())))
    }

    /// Whether a frame is in the set.
    pub fn contains(&self, gfn: Gfn) -> bool {
        let word = self.0.get((gfn.0 / 64) as usize).copied().unwrap_or(0);
        word >> (gfn.0 % 64) & 1 != 0
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// A set of frames that several threads may change.
#[derive(Debug)]
pub struct FrameSet(Vec<AtomicU64>);

impl FrameSet {
    /// No frames, out of `frames`.
    pub fn empty(frames: u64) -> Self {
        Self(
            (0..frames.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    /// All of `frames` frames.
    pub fn full(frames: u64) -> Self {
        let word = |index: u64| match frames - index * 64 {
            64.. => u64::MAX,
            rest => (1 << rest) - 1,
        };
        Self(
            (0..frames.div_ceil(64))
                .map(|index| AtomicU64::new(word(index)))
                .collect(),
        )
    }

    fn word(&self, gfn: Gfn) -> (&AtomicU64, u64) {
        (&self.0[(gfn.0 / 64) as usize], 1 << (gfn.0 % 64))
    }

    /// Whether a frame is in the set.
    pub fn contains(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.word(gfn);
        word.load(Ordering::Acquire) & bit != 0
    }

    /// Returns whether the frame was not in the set before.
    pub fn insert(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.word(gfn);
        word.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Returns whether the frame was in the set before: of several threads that remove it, one is
    /// told so.
    pub fn remove(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.word(gfn);
        word.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Makes it the set of these frames. Not for sets that others change meanwhile.
    pub fn assign(&self, frames: &FrameBits) {
        for (word, bits) in self.0.iter().zip(&frames.0) {
            word.store(*bits, Ordering::Release);
        }
    }

    /// Empties the set and returns what was in it.
    pub fn take(&self) -> FrameBits {
        let taken = self
            .0
            .iter()
            .map(|word| match word.load(Ordering::Relaxed) {
                0 => 0,
                _ => word.swap(0, Ordering::AcqRel),
            });
        FrameBits(taken.collect())
    }

    /// The set as it is.
    pub fn bits(&self) -> FrameBits {
        let words = self.0.iter().map(|word| word.load(Ordering::Acquire));
        FrameBits(words.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_keep_their_members_in_order() {
        for frames in [1, 63, 64, 65, 200] {
            let full = FrameSet::full(frames);
            assert!(full.bits().iter().map(|gfn| gfn.0).eq(0..frames));
            assert_eq!(full.bits().count(), frames);
            let set = FrameSet::empty(frames);
            assert!(set.insert(Gfn(frames - 1)) && !set.insert(Gfn(frames - 1)));
            assert!(set.contains(Gfn(frames - 1)));
            let taken = set.take();
            for before in [0, frames / 2, frames - 1, frames + 63] {
                assert_eq!(taken.after(Gfn(before)), Some(Gfn(frames - 1)));
            }
            let next = full.bits().after(Gfn(frames / 2));
            assert_eq!(next, Some(Gfn((frames / 2 + 1) % frames)));
            assert!(taken.iter().eq([Gfn(frames - 1)]));
            assert_eq!(set.bits().count(), 0);
            assert_eq!(set.bits().after(Gfn(0)), None);
            set.assign(&taken);
            assert!(set.remove(Gfn(frames - 1)) && !set.remove(Gfn(frames - 1)));
        }
    }
}
