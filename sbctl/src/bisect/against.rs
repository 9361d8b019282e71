//! What the recording says about where an interval goes another way.

use super::code::Instruction;
use super::search::{Searcher, points};
use crate::simulate::Mode;
use anyhow::Result;
use machine::ram::Ram;
use machine::units::{Gfn, GuestPhys, PAGE_BYTES};
use machine::vcpu::VcpuError;
use replay_log::Event;
use serde::Serialize;
use std::fmt;
use tcg_sim::Engine;
use tcg_sim::replay::{Divergence, ReplayError, Report};

/// Pages whose last writer is looked for.
const MOST_PAGES: usize = 3;

/// What the recording says.
#[derive(Debug, Serialize)]
pub(super) struct Against {
    /// Up to here everything that the log checks agrees, in instructions since the start.
    agrees_until: u64,
    /// Here it does not.
    differs_at: u64,
    /// The log's last event that agrees.
    last_event: Option<String>,
    memory: Vec<Memory>,
}

/// Memory that differs at the end of the interval.
#[derive(Debug, Serialize)]
struct Memory {
    /// Hexadecimal.
    address: String,
    expected: String,
    actual: String,
    /// The instruction after which it had its last value; none if the simulation never changed it.
    written_by: Option<Instruction>,
}

impl Searcher<'_> {
    pub(super) fn against(&self, report: &Report, divergence: &Divergence) -> Result<Against> {
        let start = self.interval.start_position().steps.0;
        let events = &self.interval.segment.events;
        let applied = events.iter().take(divergence.first.next_event);
        let applied = applied
            .filter(|event| matches!(event, Event::Async(_)))
            .count();
        let agreed = report.resolved.get(..applied).and_then(|all| all.last());
        let before = divergence.first.next_event.checked_sub(1);
        let mut memory = Vec::new();
        for gfn in divergence.frames.iter().take(MOST_PAGES) {
            memory.extend(self.memory(*gfn, report.steps.0)?);
        }
        Ok(Against {
            agrees_until: agreed.map_or(0, |position| position.steps.0.saturating_sub(start)),
            differs_at: report.steps.0,
            last_event: before.map(|index| format!("{index}: {}", events[index])),
            memory,
        })
    }

    /// The first quadword of a page that differs after `steps` instructions, and who wrote it.
    fn memory(&self, gfn: Gfn, steps: u64) -> Result<Option<Memory>> {
        let page = move |_: &mut Engine, ram: &Ram| Ok::<_, VcpuError>(Box::new(ram.page(gfn)));
        let mut seen = self.pass(Mode::Blocks, &[steps], page)?;
        let Some(actual) = seen.pop().flatten() else {
            return Ok(None);
        };
        let mut expected = [0; PAGE_BYTES as usize];
        let end = self.interval.number + 1;
        let read = self.recorded.page(end, gfn, &mut expected);
        read.map_err(ReplayError::Source)?;
        let pairs = expected.chunks_exact(8).zip(actual.chunks_exact(8));
        let Some((index, (expected, actual))) = pairs.enumerate().find(|(_, (a, b))| a != b) else {
            return Ok(None);
        };
        let address = GuestPhys(gfn.base().0 + 8 * index as u64);
        Ok(Some(Memory {
            address: address.to_string(),
            expected: hexadecimal(expected),
            actual: hexadecimal(actual),
            written_by: self.last_writer(address, steps)?,
        }))
    }

    /// The instruction after which the quadword had the value that it kept to the end.
    fn last_writer(&self, address: GuestPhys, steps: u64) -> Result<Option<Instruction>> {
        let value = move |_: &mut Engine, ram: &Ram| {
            let mut bytes = [0; 8];
            ram.read(address, &mut bytes)
                .map_err(|source| VcpuError::PageLoad {
                    address,
                    source: source.into(),
                })?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (mut low, mut high) = (0, steps);
        while high - low > 1 {
            let mut points = points(low, high);
            points.insert(0, low);
            let seen = self.pass(Mode::Blocks, &points, value)?;
            let last = seen.windows(2).rposition(|pair| pair[0] != pair[1]);
            let Some(before) = last else {
                return Ok(None);
            };
            (low, high) = (points[before], points[before + 1]);
        }
        self.instruction(low).map(Some)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  it agrees until instruction {} of the interval and differs at instruction {}",
            self.agrees_until, self.differs_at
        )?;
        if let Some(event) = &self.last_event {
            writeln!(f, "  last event that agrees: {event}")?;
        }
        for memory in &self.memory {
            let Memory {
                address,
                expected,
                actual,
                written_by,
            } = memory;
            writeln!(
                f,
                "  memory at {address}: expected {expected}, found {actual}"
            )?;
            match written_by {
                Some(instruction) => writeln!(f, "    last written by {instruction}")?,
                None => writeln!(f, "    no instruction of the interval changed it")?,
            }
        }
        Ok(())
    }
}
