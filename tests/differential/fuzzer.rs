//! Runs cases on two sides and collects what differs.

use super::case::Case;
use super::compare::{Difference, Finding, difference, is_comparable};
use super::generator::Generator;
use super::image::Images;
use super::minimise::minimise;
use super::native::NativeError;
use super::registers::End;
use super::side::{Side, as_final};
use std::fmt::{self, Display};
use std::ops::Range;

/// Cases per batch: few enough that a batch stays in the second-level cache.
pub const BATCH: usize = 16;

/// What a run has seen.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases executed.
    pub sequences: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Cases by the vector that ended them on the first side.
    pub vectors: std::collections::BTreeMap<u8, u64>,
    /// Cases that ended after their last instruction.
    pub completed: u64,
    /// Cases that made a system call or did not end, and so could not be compared.
    pub undecided: u64,
    /// Cases that differed.
    pub differences: u64,
}

impl Tally {
    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.instructions += other.instructions;
        self.completed += other.completed;
        self.undecided += other.undecided;
        self.differences += other.differences;
        for (&vector, count) in &other.vectors {
            *self.vectors.entry(vector).or_default() += count;
        }
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} sequences, {} instructions, {} ran to their end, {} undecided, {} differ",
            self.sequences, self.instructions, self.completed, self.undecided, self.differences
        )?;
        write!(f, "ended by vector:")?;
        for (vector, count) in &self.vectors {
            write!(f, " {vector}: {count}")?;
        }
        Ok(())
    }
}

/// Two sides and what feeds them.
pub struct Fuzzer<A, B> {
    images: Images,
    generator: Generator,
    expected: A,
    actual: B,
}

impl<A: Side, B: Side> Fuzzer<A, B> {
    /// A fuzzer that takes the first side's results for the truth.
    pub fn new(images: Images, expected: A, actual: B) -> Self {
        Self {
            images,
            generator: Generator::default(),
            expected,
            actual,
        }
    }

    /// Runs the cases of a range of seeds, adds to the tally, and hands over each difference as found.
    ///
    /// # Errors
    /// [`NativeError`] when the host CPU cannot be used any more.
    pub fn run(
        &mut self,
        seeds: Range<u64>,
        tally: &mut Tally,
        mut found: impl FnMut(Finding),
    ) -> Result<(), NativeError> {
        let mut next = seeds.start;
        while next < seeds.end {
            let batch: Vec<u64> = (next..seeds.end).take(BATCH).collect();
            next += batch.len() as u64;
            let cases: Vec<Case> = batch.iter().map(|&s| self.generator.case(s)).collect();
            self.execute(&cases)?;
            for (index, case) in cases.iter().enumerate() {
                if let Some(difference) = self.judge(index, case, tally) {
                    tally.differences += 1;
                    found(Finding {
                        seed: batch[index],
                        case: case.clone(),
                        difference,
                    });
                }
            }
        }
        Ok(())
    }

    /// Runs one case and returns how the sides differ.
    ///
    /// # Errors
    /// [`NativeError`] when the host CPU cannot be used any more.
    pub fn check(&mut self, case: &Case) -> Result<Option<Difference>, NativeError> {
        self.execute(std::slice::from_ref(case))?;
        Ok(self.judge(0, case, &mut Tally::default()))
    }

    /// Makes a case that differs as small as it gets while it still differs in the same item.
    ///
    /// # Errors
    /// [`NativeError`] when the host CPU cannot be used any more.
    pub fn minimise(&mut self, finding: &Finding) -> Result<Finding, NativeError> {
        let kind = finding.difference.kind().to_owned();
        let mut last = finding.difference.clone();
        let mut failure = None;
        let case = minimise(&finding.case, |case| match self.check(case) {
            Ok(Some(difference)) if difference.kind() == kind => {
                last = difference;
                true
            }
            Ok(_) => false,
            Err(error) => {
                failure = Some(error);
                false
            }
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(Finding {
                seed: finding.seed,
                case,
                difference: last,
            }),
        }
    }

    fn execute(&mut self, cases: &[Case]) -> Result<(), NativeError> {
        self.expected.begin(cases, &self.images);
        self.actual.begin(cases, &self.images);
        self.expected.finish()?;
        self.actual.finish()
    }

    fn judge(&self, index: usize, case: &Case, tally: &mut Tally) -> Option<Difference> {
        tally.sequences += 1;
        tally.instructions += case.instructions.len() as u64;
        let ends = (self.expected.end(index), self.actual.end(index));
        let (expected, actual) = match ends {
            (Ok(expected), Ok(actual)) => (expected, actual),
            (expected, actual) => {
                return Some(Difference {
                    item: "failure".to_owned(),
                    expected: expected.err().unwrap_or_default(),
                    actual: actual.err().unwrap_or_default(),
                });
            }
        };
        let (a, b) = (expected.0.end, actual.0.end);
        let endless = a == End::Endless || b == End::Endless;
        if endless || (!is_comparable(a) && !is_comparable(b)) {
            tally.undecided += 1;
            return None;
        }
        if let End::Exception { vector, .. } = a {
            *tally.vectors.entry(vector).or_default() += 1;
            let completed = vector == 3 && expected.0.registers.rip == case.code_end() + 1;
            tally.completed += u64::from(completed);
        }
        difference(as_final(&expected), as_final(&actual))
    }
}
