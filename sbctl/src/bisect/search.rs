//! Narrowing down to one instruction.

use super::Kicker;
use super::code::Instruction;
use super::probe::{Watched, is_end};
use crate::simulate::{Jobs, LoggedEvent, Mode, Register};
use anyhow::{Context, Result};
use machine::checkpoint::CheckpointSource;
use machine::ram::Ram;
use machine::units::Position;
use machine::vcpu::{Kick, Vcpu, VcpuError};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use tcg_sim::Engine;
use tcg_sim::replay::{Comparison, FirstDifference, Interval, ReplayError, Side, bisect, replay};

/// Points that one pass looks at.
const POINTS: u64 = 32;

/// What every search needs.
pub(super) struct Searcher<'a> {
    pub(super) jobs: &'a Jobs,
    pub(super) interval: &'a Interval,
    pub(super) recorded: &'a Arc<dyn CheckpointSource>,
    pub(super) kick: &'a Kicker,
}

/// Where the two modes of the engine differ first.
#[derive(Debug, Serialize)]
pub(super) struct ModesDiffer {
    /// The last state that was equal stood at this instruction.
    instruction: Instruction,
    /// `expected` is what blocks of one instruction give, `actual` what normal blocks give.
    registers: Vec<Register>,
    /// The first quadword that differs, in the same order.
    memory: Option<[String; 2]>,
    /// Where a mode left the recording in this step, in the same order.
    left: [Option<String>; 2],
    /// Events around it.
    events: Vec<LoggedEvent>,
}

/// Kicks the engines of both modes.
struct Both([Arc<dyn Kick>; 2]);

impl Kick for Both {
    fn kick(&self) {
        self.0.iter().for_each(|engine| engine.kick());
    }
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
    ) -> Result<Vec<Option<T>>> {
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
        match replayed {
            Ok(_) => watched.look_at_end()?,
            Err(ReplayError::Vcpu(error)) if is_end(&error) => {}
            Err(error) => return Err(error.into()),
        }
        drop(watched);
        Ok(seen)
    }

    /// Where the two modes differ first, if they do.
    pub(super) fn modes(&self) -> Result<Option<ModesDiffer>> {
        let engine = |mode| self.jobs.engine(self.interval, self.recorded, mode);
        let (mut one, one_ram) = engine(Mode::OneInstruction)?;
        let (mut blocks, blocks_ram) = engine(Mode::Blocks)?;
        (self.kick)(Arc::new(Both([one.kick_handle(), blocks.kick_handle()])));
        let limits = self.jobs.limits(self.interval);
        let compared = bisect(
            Side {
                vcpu: &mut one,
                ram: &one_ram,
            },
            Side {
                vcpu: &mut blocks,
                ram: &blocks_ram,
            },
            self.interval,
            &**self.recorded,
            &limits,
        )?;
        match compared {
            Comparison::Same { .. } => Ok(None),
            Comparison::Differ(found) => self.describe(*found).map(Some),
        }
    }

    fn describe(&self, found: FirstDifference) -> Result<ModesDiffer> {
        let start = self.interval.start_position().steps.0;
        let FirstDifference {
            agreed,
            rip: _,
            registers,
            memory,
            left,
            next_event: _,
            events,
        } = found;
        Ok(ModesDiffer {
            instruction: self.instruction(agreed.steps.0.saturating_sub(start))?,
            registers: registers.iter().map(Register::from).collect(),
            memory: memory.map(|(one, blocks)| [one.to_string(), blocks.to_string()]),
            left: left.map(|desync| desync.map(|desync| desync.to_string())),
            events: events.iter().map(LoggedEvent::from).collect(),
        })
    }

    /// The instruction that runs after `steps` instructions of the interval.
    pub(super) fn instruction(&self, steps: u64) -> Result<Instruction> {
        let look =
            |engine: &mut Engine, ram: &Ram| Ok(Instruction::at(&engine.save()?, ram, steps));
        let mut seen = self.pass(Mode::Blocks, &[steps], look)?;
        let seen = seen.pop().flatten();
        seen.with_context(|| format!("the replay does not get to instruction {steps}"))
    }
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
        if let Some([one, blocks]) = &self.memory {
            writeln!(
                f,
                "  memory: {one} in blocks of one instruction, {blocks} in normal blocks"
            )?;
        }
        for (mode, left) in ["blocks of one instruction", "normal blocks"]
            .iter()
            .zip(&self.left)
        {
            if let Some(left) = left {
                writeln!(f, "  in {mode}: {left}")?;
            }
        }
        for LoggedEvent { index, event } in &self.events {
            writeln!(f, "  event {index}: {event}")?;
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
