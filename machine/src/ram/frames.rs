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
            assert!(taken.iter().eq([Gfn(frames - 1)]));
            assert_eq!(set.bits().count(), 0);
            set.assign(&taken);
            assert!(set.remove(Gfn(frames - 1)) && !set.remove(Gfn(frames - 1)));
        }
    }
}
