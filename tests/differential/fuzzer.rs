//! Runs cases on two sides and collects what differs.

use super::case::Case;
use super::compare::{Difference, Finding, difference, is_comparable};
use super::generator::Generator;
use super::image::Images;
use super::layout::IMAGE_BYTES;
use super::minimise::minimise;
use super::native::NativeError;
use super::registers::End;
use super::side::{Side, as_final};
use super::text::describe;
use std::fmt::{self, Display};
use std::ops::Range;

/// Cases per batch: few enough that a batch stays in the second-level cache.
pub const BATCH: usize = 16;

/// How often a case that differs is tried again on the first side.
const REPETITIONS: usize = 3;

/// What the engine says of a mode that it does not run.
const COMPATIBILITY: &str = "compatibility";

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
    /// Cases that cannot be compared, since they came to an instruction outside the model by writing
    /// over their code, or to a REP that writes over itself.
    pub outside: u64,
    /// Cases that the engine refused because it does not do what they need (compatibility mode).
    pub refused: u64,
    /// Cases that differed, and that the first side ended otherwise when asked again: something of the
    /// host got between, such as an interrupt whose return takes the RPL of a null selector.
    pub unsteady: u64,
    /// All other cases that differed.
    pub differences: u64,
}

impl Tally {
    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.instructions += other.instructions;
        self.completed += other.completed;
        self.undecided += other.undecided;
        self.outside += other.outside;
        self.refused += other.refused;
        self.unsteady += other.unsteady;
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
            "{} sequences, {} instructions, {} ran to their end, {} undecided, {} outside the model, \
             {} refused, {} unsteady, {} differ",
            self.sequences,
            self.instructions,
            self.completed,
            self.undecided,
            self.outside,
            self.refused,
            self.unsteady,
            self.differences
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

    /// With sequences that another generator makes.
    pub fn with(self, generator: Generator) -> Self {
        Self { generator, ..self }
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
                    if self.leaves_model(case) {
                        tally.outside += 1;
                        continue;
                    }
                    if self.is_unsteady(index, case)? {
                        tally.unsteady += 1;
                        continue;
                    }
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

    /// Whether the first side ends a case of the batch, for which the two differed, otherwise than before.
    /// Takes the place of the batch's first case, which has been judged.
    fn is_unsteady(&mut self, index: usize, case: &Case) -> Result<bool, NativeError> {
        let before = self.expected.end(index).map(|(end, memory)| (end, *memory));
        for _ in 0..REPETITIONS {
            self.expected
                .begin(std::slice::from_ref(case), &self.images);
            self.expected.finish()?;
            let (Ok(now), Ok((end, memory))) = (self.expected.end(0), &before) else {
                return Ok(false);
            };
            let before = (*end, memory);
            if difference(as_final(&before), as_final(&now)).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a case cannot be compared because of what it executes.
    fn leaves_model(&mut self, case: &Case) -> bool {
        self.expected.leaves_model(case, &self.images)
            || self.actual.leaves_model(case, &self.images)
    }

    /// Runs one case and returns how the sides differ.
    ///
    /// # Errors
    /// [`NativeError`] when the host CPU cannot be used any more.
    pub fn check(&mut self, case: &Case) -> Result<Option<Difference>, NativeError> {
        self.execute(std::slice::from_ref(case))?;
        Ok(self.judge(0, case, &mut Tally::default()))
    }

    /// Runs cases and returns those that differ.
    ///
    /// # Errors
    /// [`NativeError`] when the host CPU cannot be used any more.
    pub fn check_all(&mut self, cases: &[Case]) -> Result<Vec<(Case, Difference)>, NativeError> {
        let mut found = Vec::new();
        for batch in cases.chunks(BATCH) {
            self.execute(batch)?;
            for (index, case) in batch.iter().enumerate() {
                let difference = self.judge(index, case, &mut Tally::default());
                found.extend(difference.map(|difference| (case.clone(), difference)));
            }
        }
        Ok(found)
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

    /// Runs one case and says in words how it ends on each side.
    ///
    /// # Errors
    /// [`NativeError`] when the host CPU cannot be used any more.
    pub fn show(&mut self, case: &Case) -> Result<String, NativeError> {
        self.execute(std::slice::from_ref(case))?;
        let mut before = Box::new([0; IMAGE_BYTES]);
        case.fill(&self.images, &mut before);
        let first = describe(case, &before, self.expected.end(0));
        let second = describe(case, &before, self.actual.end(0));
        let difference = self.judge(0, case, &mut Tally::default());
        let difference = difference.map_or("no difference".to_owned(), |d| d.to_string());
        Ok(format!("first:  {first}\nsecond: {second}\n{difference}\n"))
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
            (_, Err(limit)) if limit.contains(COMPATIBILITY) => {
                tally.refused += 1;
                return None;
            }
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

#[cfg(test)]
mod tests {
    use super::super::registers::{Outcome, Registers};
    use super::*;

    /// Ends each case with what RAX is next.
    struct Scripted {
        values: Vec<u64>,
        ends: Vec<Outcome>,
        memory: Box<[u8; IMAGE_BYTES]>,
    }

    impl Scripted {
        fn new(values: &[u64]) -> Self {
            Self {
                values: values.iter().rev().copied().collect(),
                ends: vec![],
                memory: Box::new([0; IMAGE_BYTES]),
            }
        }
    }

    impl Side for Scripted {
        fn begin(&mut self, cases: &[Case], _: &Images) {
            self.ends.clear();
            for _ in cases {
                let mut registers = Registers::default();
                registers.gpr[0] = self.values.pop().expect("a value for each case");
                let end = End::Exception {
                    vector: 3,
                    error: 0,
                    cr2: 0,
                };
                self.ends.push(Outcome { end, registers });
            }
        }

        fn finish(&mut self) -> Result<(), NativeError> {
            Ok(())
        }

        fn end(&self, index: usize) -> Result<(Outcome, &[u8; IMAGE_BYTES]), String> {
            Ok((self.ends[index], &self.memory))
        }
    }

    #[test]
    fn a_first_side_that_changes_its_mind_is_told_from_a_difference() {
        // Two cases; what the first side says when asked again comes behind them.
        for (again, unsteady) in [(&[9, 9, 9][..], 0), (&[9, 9, 1], 1), (&[1], 1)] {
            let expected = Scripted::new(&[&[1, 9], again].concat());
            let actual = Scripted::new(&[1, 1]);
            let mut fuzzer = Fuzzer::new(Images::default(), expected, actual);
            let (mut tally, mut findings) = (Tally::default(), 0);
            let run = fuzzer.run(0..2, &mut tally, |_| findings += 1);
            run.expect("nothing native");
            assert_eq!(
                (tally.unsteady, tally.sequences),
                (unsteady, 2),
                "{again:?}"
            );
            assert_eq!((tally.differences, findings), (1 - unsteady, 1 - unsteady));
        }
    }
}
