//! Random numbers with a seed, as the recorded guests draw them.

use crate::differential::rng;

/// The generator of the fuzzer, with its own way to bound a number: seeds name known guests.
pub struct Rng(rng::Rng);

impl Rng {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(rng::Rng::new(seed))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }
}
