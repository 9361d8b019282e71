//! `sbctl show N`: what is in a recording.

use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::quantity::{Bytes, Grouped};
use crate::recording::{HostMatch, Note, Source};
use anyhow::Result;
use checkpoint_dedup::RecordingName;
use clap::Args;
use serde::Serialize;
use std::fmt;

/// Options of `sbctl show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
}

/// What is in a recording.
#[derive(Debug, Serialize)]
struct Shown {
    recording: String,
    id: String,
    /// finished, running or dead.
    state: &'static str,
    #[serde(flatten)]
    note: Note,
    /// How the processor that recorded compares with this host's.
    host_match: HostMatch,
    intervals: Vec<Interval>,
}

/// One interval.
#[derive(Debug, Serialize)]
struct Interval {
    interval: u64,
    /// Absent where the recording does not count.
    instructions: Option<u64>,
    guest_time_ns: u64,
    changed_pages: u64,
    log_bytes: u64,
}

/// Shows a recording.
pub(crate) fn run(arguments: ShowArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let source = Source::open(&repository, &arguments.name)?;
    let intervals = source.intervals()?;
    let shown = Shown {
        recording: arguments.name.to_string(),
        id: source.id_text(),
        state: source.info().state.as_str(),
        note: (*source.note).clone(),
        host_match: source.host(),
        intervals: intervals
            .map(|number| interval(&source, number))
            .collect::<Result<_>>()?,
    };
    environment.finish(&shown, &shown)?;
    Ok(Exit::Done)
}

fn interval(source: &Source, number: u64) -> Result<Interval> {
    let (start, end) = (source.checkpoint(number)?, source.checkpoint(number + 1)?);
    let positions = start.position.zip(end.position);
    Ok(Interval {
        interval: number,
        instructions: positions.map(|(start, end)| end.steps.0.saturating_sub(start.steps.0)),
        guest_time_ns: end.time.0.saturating_sub(start.time.0),
        changed_pages: source.changed(number)?.len() as u64,
        log_bytes: source.segment(number)?.bytes().len() as u64,
    })
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            recording,
            id,
            state,
            note,
            host_match,
            intervals,
        } = self;
        writeln!(f, "recording {recording} ({state}), {id}")?;
        writeln!(f, "  kernel   {}", note.kernel)?;
        if let Some(initrd) = &note.initrd {
            writeln!(f, "  initrd   {initrd}")?;
        }
        writeln!(f, "  options  {}", note.command_line)?;
        writeln!(
            f,
            "  machine  {} of RAM, on {}, clock {}, positions by {}",
            Bytes(note.memory_bytes),
            note.accel.name(),
            note.clock,
            note.positions.name(),
        )?;
        writeln!(f, "  host     {host_match}")?;
        writeln!(
            f,
            "{:>8} {:>16} {:>12} {:>14} {:>10}",
            "interval", "instructions", "guest time", "changed pages", "log"
        )?;
        for interval in intervals {
            let instructions = match interval.instructions {
                Some(instructions) => Grouped(instructions).to_string(),
                None => "not counted".into(),
            };
            writeln!(
                f,
                "{:>8} {instructions:>16} {:>10.3} s {:>14} {:>10}",
                interval.interval,
                interval.guest_time_ns as f64 / 1e9,
                Grouped(interval.changed_pages).to_string(),
                Bytes(interval.log_bytes).to_string(),
            )?;
        }
        Ok(())
    }
}
