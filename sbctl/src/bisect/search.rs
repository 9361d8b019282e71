//! Narrowing down to one instruction.

use super::Kicker;
use super::code::Instruction;
use super::probe::{Watched, is_end};
use crate::simulate::{Jobs, Mode, Register};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use machine::checkpoint::CheckpointSource;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{Gfn, PAGE_BYTES, Position};
use machine::vcpu::{Vcpu, VcpuError};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use tcg_sim::Engine;
use tcg_sim::replay::{Interval, ReplayError, register_differences, replay};

/// Points that one pass looks at.
const POINTS: u64 = 32;

/// What every search needs.
pub(super) struct Searcher<'a> {
    pub(super) jobs: &'a Jobs,
    pub(super) interval: &'a Interval,
    pub(super) recorded: &'a Arc<dyn CheckpointSource>,
    pub(super) kick: &'a Kicker,
    pub(super) progress: &'a ProgressBar,
}

/// A complete state: registers, and a hash of each page that was written since the start.
struct State {
    cpu: CpuState,
    pages: BTreeMap<Gfn, blake3::Hash>,
}

/// Where the two modes of the engine differ first.
#[derive(Debug, Serialize)]
pub(super) struct ModesDiffer {
    /// The last state that was equal stood at this instruction.
    instruction: Instruction,
    /// `expected` is what blocks of one instruction give, `actual` what normal blocks give.
    registers: Vec<Register>,
    /// Addresses of pages that differ, in hexadecimal.
    pages: Vec<String>,
    /// One of the two modes did not get as far, and this is what it said.
    ended: Option<String>,
}

/// What a pass saw at each point, and why it ended early if it did.
pub(super) struct Pass<T> {
    pub(super) seen: Vec<Option<T>>,
    ended: Option<String>,
}

/// `POINTS` points or fewer in `low + 1 ..= high`, the last of them `high`.
pub(super) fn points(low: u64, high: u64) -> Vec<u64> {
    let span = high - low;
    let count = span.min(POINTS);
    (1..=count)
        .map(|index| low + (u128::from(span) * u128::from(index) / u128::from(count)) as u64)
        .collect()
}

impl Searcher<'_> {
    /// Replays in a mode and looks at each point (instructions since the start, ascending).
    pub(super) fn pass<T>(
        &self,
        mode: Mode,
        points: &[u64],
        look: impl Fn(&mut Engine, &Ram) -> Result<T, VcpuError>,
    ) -> Result<Pass<T>> {
        let (engine, ram) = self.jobs.engine(self.interval, self.recorded, mode)?;
        (self.kick)(engine.kick_handle());
        let start = self.interval.start_position();
        // The start itself may lie inside a REP instruction; every other boundary does not.
        let stops = points.iter().map(|&steps| match steps {
            0 => start,
            steps => Position::at(start.steps.0 + steps),
        });
        let mut seen: Vec<Option<T>> = points.iter().map(|_| None).collect();
        let see = |index: usize, engine: &mut Engine| {
            seen[index] = Some(look(engine, &ram)?);
            Ok(())
        };
        let mut watched = Watched::new(engine, stops.collect(), see);
        let limits = self.jobs.limits(self.interval);
        let recorded = &**self.recorded;
        let replayed = replay(&mut watched, &ram, self.interval, recorded, &limits);
        let ended = match replayed {
            Ok(report) => {
                watched.look_at_end()?;
                match report.outcome {
                    tcg_sim::replay::Outcome::Verified => None,
                    tcg_sim::replay::Outcome::Diverged(found) => Some(found.first.to_string()),
                }
            }
            Err(ReplayError::Vcpu(error)) if is_end(&error) => None,
            Err(ReplayError::Cancelled) => return Err(ReplayError::Cancelled.into()),
            Err(error) => Some(error.to_string()),
        };
        drop(watched);
        Ok(Pass { seen, ended })
    }

    /// The first instruction after which the two modes differ, of the first `steps` of the interval.
    pub(super) fn modes(&self, steps: u64) -> Result<Option<ModesDiffer>> {
        let (mut low, mut high) = (0, steps);
        let mut found = false;
        while high > low + u64::from(found) {
            let points = points(low, high);
            let one = self.pass(Mode::OneInstruction, &points, state)?;
            let blocks = self.pass(Mode::Blocks, &points, state)?;
            let pairs = one.seen.iter().zip(&blocks.seen);
            let mut first = None;
            for (index, pair) in pairs.enumerate() {
                if !self.equal(pair)? {
                    first = Some(index);
                    break;
                }
            }
            let Some(index) = first else {
                if found {
                    bail!("a difference was there and is gone: the engine is not deterministic");
                }
                return Ok(None);
            };
            found = true;
            high = points[index];
            low = index.checked_sub(1).map_or(low, |before| points[before]);
            let message = format!("the modes differ first after {low} to {high} instructions");
            self.progress.set_message(message);
        }
        match found {
            true => Ok(Some(self.describe_modes(low, high)?)),
            false => Ok(None),
        }
    }

    fn equal(&self, pair: (&Option<State>, &Option<State>)) -> Result<bool> {
        match pair {
            (Some(one), Some(other)) => {
                Ok(one.cpu == other.cpu && self.pages_that_differ(one, other)?.is_empty())
            }
            (one, other) => Ok(one.is_none() == other.is_none()),
        }
    }

    fn pages_that_differ(&self, one: &State, other: &State) -> Result<Vec<Gfn>> {
        let all: BTreeSet<Gfn> = one
            .pages
            .keys()
            .chain(other.pages.keys())
            .copied()
            .collect();
        let mut differ = Vec::new();
        for gfn in all {
            if self.hash(one, gfn)? != self.hash(other, gfn)? {
                differ.push(gfn);
            }
        }
        Ok(differ)
    }

    /// A page that was not written is as it was at the start.
    fn hash(&self, state: &State, gfn: Gfn) -> Result<blake3::Hash> {
        if let Some(hash) = state.pages.get(&gfn) {
            return Ok(*hash);
        }
        let mut page = [0; PAGE_BYTES as usize];
        let read = self.recorded.page(self.interval.number, gfn, &mut page);
        read.map_err(ReplayError::Source)?;
        Ok(blake3::hash(&page))
    }

    fn describe_modes(&self, low: u64, high: u64) -> Result<ModesDiffer> {
        let instruction = self.instruction(low)?;
        let one = self.pass(Mode::OneInstruction, &[high], state)?;
        let blocks = self.pass(Mode::Blocks, &[high], state)?;
        let ended = one.ended.or(blocks.ended);
        let (registers, pages) = match (&one.seen[0], &blocks.seen[0]) {
            (Some(one), Some(blocks)) => {
                let pages = self.pages_that_differ(one, blocks)?;
                (register_differences(&one.cpu, &blocks.cpu), pages)
            }
            _ => (Vec::new(), Vec::new()),
        };
        Ok(ModesDiffer {
            instruction,
            registers: registers.iter().map(Register::from).collect(),
            pages: pages.iter().map(|gfn| gfn.base().to_string()).collect(),
            ended,
        })
    }

    /// The instruction that runs after `steps` instructions of the interval.
    pub(super) fn instruction(&self, steps: u64) -> Result<Instruction> {
        let look =
            |engine: &mut Engine, ram: &Ram| Ok(Instruction::at(&engine.save()?, ram, steps));
        let mut pass = self.pass(Mode::Blocks, &[steps], look)?;
        let seen = pass.seen.pop().flatten();
        seen.with_context(|| format!("the replay does not get to instruction {steps}"))
    }
}

fn state(engine: &mut Engine, ram: &Ram) -> Result<State, VcpuError> {
    let frames = ram.dirty_frames();
    Ok(State {
        cpu: engine.save()?,
        pages: frames
            .into_iter()
            .map(|gfn| (gfn, blake3::hash(&ram.page(gfn))))
            .collect(),
    })
}

impl fmt::Display for ModesDiffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the two modes of the engine differ first at")?;
        writeln!(f, "  {}", self.instruction)?;
        for register in &self.registers {
            writeln!(
                f,
                "  {:<14} {} in blocks of one instruction, {} in normal blocks",
                register.name, register.expected, register.actual
            )?;
        }
        if !self.pages.is_empty() {
            writeln!(f, "  pages that differ: {}", self.pages.join(", "))?;
        }
        if let Some(ended) = &self.ended {
            writeln!(f, "  one of them ended: {ended}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_end_at_the_end_and_narrow_down_to_one() {
        assert_eq!(points(5, 6), [6]);
        assert_eq!(points(0, 3), [1, 2, 3]);
        let many = points(100, 1_000_000_100);
        assert_eq!(
            (many.len() as u64, many.last()),
            (POINTS, Some(&1_000_000_100))
        );
        assert!(many.is_sorted_by(|a, b| a < b) && many[0] > 100);
        assert!(points(7, 7).is_empty());
    }
}
