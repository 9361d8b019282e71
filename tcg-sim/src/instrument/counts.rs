//! The `count` instrument's result.

use super::Direction;
use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign};

/// Accesses to memory of one origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accesses {
    /// Accesses that read.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Accesses that write.
    pub writes: u64,
    /// Bytes that they write.
    pub written_bytes: u64,
}

impl Accesses {
    /// Adds `count` accesses of `bytes` bytes each.
    pub fn note(&mut self, direction: Direction, bytes: u64, count: u64) {
        if direction.reads() {
            self.reads += count;
            self.read_bytes += bytes * count;
        }
        if direction.writes() {
            self.writes += count;
            self.written_bytes += bytes * count;
        }
    }
}

impl AddAssign for Accesses {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.read_bytes += other.read_bytes;
        self.writes += other.writes;
        self.written_bytes += other.written_bytes;
    }
}

/// What the guest did. Each field is exact and adds up over the pieces of a run;
/// `docs/instruments.md` says what counts as what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Retired instructions by the privilege level that they began at.
    pub instructions: [u64; 4],
    /// Retired instructions that transfer control, or may.
    pub branches: u64,
    /// Those that did.
    pub branches_taken: u64,
    /// Accesses of operands and of the stack.
    pub data: Accesses,
    /// Accesses of the processor itself to descriptor tables and task state.
    pub system: Accesses,
    /// Exceptions delivered, debug traps included.
    pub exceptions: u64,
    /// External interrupts delivered.
    pub interrupts: u64,
    /// Iterations of REP string instructions.
    pub rep_iterations: u64,
}

impl Counts {
    /// Retired instructions at all privilege levels.
    pub fn all_instructions(&self) -> u64 {
        self.instructions.iter().sum()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += more;
        }
        self.branches += other.branches;
        self.branches_taken += other.branches_taken;
        self.data += other.data;
        self.system += other.system;
        self.exceptions += other.exceptions;
        self.interrupts += other.interrupts;
        self.rep_iterations += other.rep_iterations;
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}
