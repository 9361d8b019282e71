//! The first difference between two replays of one interval.
//!
//! Both go through the interval side by side, in strides. Where they differ after a stride, both go
//! back to the last place where they were equal and take shorter strides, until one step makes the
//! difference. Replays by engines in different modes show the instruction that one of them gets wrong.

use super::choice::Choices;
use super::registers::differences;
use super::run::{Run, Stop};
use super::verify::first_bytes;
use super::{Divergence, Interval, Limits, Outcome, RegisterDifference, ReplayError, ReplayVcpu};
use machine::checkpoint::CheckpointSource;
use machine::ram::Ram;
use machine::units::{Gfn, PAGE_BYTES, Position, Steps};
use replay_log::{Desync, Event, Observation};
use std::collections::BTreeSet;

/// How many strides the interval has at first, and how many shorter ones replace one.
const STRIDES: u64 = 16;

/// One of the two replays: a vCPU that runs on RAM of the checkpoint at the start of the interval.
pub struct Side<'a, V> {
    /// The vCPU.
    pub vcpu: &'a mut V,
    /// Its RAM.
    pub ram: &'a Ram,
}

/// Where two replays differ first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstDifference {
    /// Both are in the same state here; the step from here on is not the same.
    pub agreed: Position,
    /// RIP there.
    pub rip: u64,
    /// Registers that differ after the step; `expected` is the first replay's.
    pub registers: Vec<RegisterDifference>,
    /// The first quadword of memory that differs after the step, first and second replay.
    pub memory: Option<(Observation, Observation)>,
    /// Where each replay left the recording, if it did so in this step.
    pub left: [Option<Box<Desync>>; 2],
    /// Index in the segment of the event that was next.
    pub next_event: usize,
    /// Events around it, with their indices.
    pub events: Vec<(usize, Event)>,
}

/// What a comparison of two replays came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They differ.
    Differ(Box<FirstDifference>),
    /// They do the same, right or wrong.
    Same {
        /// Steps compared.
        steps: Steps,
        /// What they both came to.
        outcome: Outcome,
    },
}

/// Finds the first difference between two replays of an interval. Positions should be exact: replay a
/// recording of landmarks first and use [`Interval::with_positions`]; from the first event on that still
/// has a landmark, nothing can be said.
///
/// # Errors
/// [`ReplayError`] of either.
pub fn bisect<A: ReplayVcpu, B: ReplayVcpu>(
    first: Side<'_, A>,
    second: Side<'_, B>,
    interval: &Interval,
    source: &dyn CheckpointSource,
    limits: &Limits,
) -> Result<Comparison, ReplayError> {
    let mut pair = Pair {
        first: Run::new(first.vcpu, first.ram, interval, source, limits)?,
        second: Run::new(second.vcpu, second.ram, interval, source, limits)?,
    };
    let start = interval.start_position();
    let last = pair.first.last_position();
    let mut stride = (last.steps.0.saturating_sub(start.steps.0) / STRIDES).max(1);
    let mut agreed = start.steps.0;
    loop {
        pair.mark()?;
        let goal = Position::at(agreed.saturating_add(stride));
        let reached = (pair.first.stride(goal)?, pair.second.stride(goal)?);
        match pair.compare(reached, agreed)? {
            Verdict::Equal => agreed = goal.steps.0,
            Verdict::Over(outcome) => {
                let end = pair.first.position()?;
                let steps = Steps(end.steps.0.saturating_sub(start.steps.0));
                return Ok(Comparison::Same { steps, outcome });
            }
            Verdict::Differ(found) if stride == 1 => return pair.describe(*found),
            Verdict::Differ(_) => {
                pair.back()?;
                stride = (stride / STRIDES).max(1);
            }
        }
    }
}

/// What a stride came to.
enum Reached {
    Goal,
    End,
    Left(Divergence),
}

enum Verdict {
    Equal,
    Over(Outcome),
    Differ(Box<FirstDifference>),
}

struct Pair<'a, A, B> {
    first: Run<'a, A>,
    second: Run<'a, B>,
}

impl<A: ReplayVcpu, B: ReplayVcpu> Pair<'_, A, B> {
    fn mark(&mut self) -> Result<(), ReplayError> {
        self.first.mark()?;
        self.second.mark()
    }

    fn back(&mut self) -> Result<(), ReplayError> {
        self.first.back()?;
        self.second.back()
    }

    fn compare(
        &mut self,
        reached: (Reached, Reached),
        agreed: u64,
    ) -> Result<Verdict, ReplayError> {
        let left = match reached {
            (Reached::Left(one), Reached::Left(two)) if one == two => {
                return Ok(Verdict::Over(Outcome::Diverged(one)));
            }
            (Reached::Left(one), Reached::Left(two)) => [Some(one.first), Some(two.first)],
            (Reached::Left(one), _) => [Some(one.first), None],
            (_, Reached::Left(two)) => [None, Some(two.first)],
            (first, second) => {
                let (registers, memory) = self.differences()?;
                let same = registers.is_empty() && memory.is_none();
                return match (first, second) {
                    (Reached::End, Reached::End) if same => self.first.verdict().map(Verdict::Over),
                    (Reached::Goal, Reached::Goal) if same => Ok(Verdict::Equal),
                    _ => Ok(differ(agreed, [None, None], registers, memory)),
                };
            }
        };
        Ok(differ(agreed, left, Vec::new(), None))
    }

    fn differences(&mut self) -> Result<Differences, ReplayError> {
        let registers = differences(&self.first.vcpu.save()?, &self.second.vcpu.save()?);
        let written = |ram: &Ram| ram.dirty_frames();
        let frames: BTreeSet<Gfn> = written(self.first.ram)
            .into_iter()
            .chain(written(self.second.ram))
            .collect();
        let (mut one, mut two) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
        for gfn in frames {
            self.first.ram.read(gfn.base(), &mut one)?;
            self.second.ram.read(gfn.base(), &mut two)?;
            if one != two {
                return Ok((registers, Some(first_bytes(gfn, &one, &two))));
            }
        }
        Ok((registers, None))
    }

    /// Says where both were when they still agreed.
    fn describe(&mut self, mut found: FirstDifference) -> Result<Comparison, ReplayError> {
        self.back()?;
        found.rip = self.first.vcpu.rip()?;
        found.agreed = self.first.position()?;
        let next = self.first.cursor.next;
        found.next_event = next;
        found.events = Desync::context(&self.first.interval.segment.events, next);
        Ok(Comparison::Differ(Box::new(found)))
    }
}

type Differences = (Vec<RegisterDifference>, Option<(Observation, Observation)>);

fn differ(
    agreed: u64,
    left: [Option<Box<Desync>>; 2],
    registers: Vec<RegisterDifference>,
    memory: Option<(Observation, Observation)>,
) -> Verdict {
    Verdict::Differ(Box::new(FirstDifference {
        agreed: Position::at(agreed),
        rip: 0,
        registers,
        memory,
        left,
        next_event: 0,
        events: Vec::new(),
    }))
}

impl<V: ReplayVcpu> Run<'_, V> {
    fn stride(&mut self, goal: Position) -> Result<Reached, ReplayError> {
        match self.run_until(goal) {
            Ok(false) => Ok(Reached::Goal),
            Ok(true) => Ok(Reached::End),
            Err(Stop::Diverged(divergence)) => Ok(Reached::Left(divergence)),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    /// Keeps the state here, and no other.
    fn mark(&mut self) -> Result<(), ReplayError> {
        let state = (self.vcpu.save()?, self.position()?, self.cursor);
        self.choices = Choices::default();
        self.choices.push(self.ram, self.vcpu, state, u64::MAX);
        Ok(())
    }

    /// Goes back to the state kept last.
    fn back(&mut self) -> Result<(), ReplayError> {
        let choice = self.choices.pop(self.ram, self.vcpu)?;
        let choice = choice.expect("a mark was made before each stride");
        self.restore(&choice)?;
        Ok(())
    }

    fn verdict(&mut self) -> Result<Outcome, ReplayError> {
        match self.check_end() {
            Ok(()) => Ok(Outcome::Verified),
            Err(Stop::Diverged(divergence)) => Ok(Outcome::Diverged(divergence)),
            Err(Stop::Error(error)) => Err(error),
        }
    }
}
