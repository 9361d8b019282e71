//! `sbctl trace FILE`: what is in a memory trace.

use crate::environment::{Environment, Output};
use crate::exit::{Exit, Usage};
use crate::quantity::{Bytes, Count, Grouped};
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use tcg_sim::instrument::{Counts, Direction};
use tcg_sim::trace::{Access, Item, TraceError, TraceReader};

/// Options of `sbctl trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArguments {
    /// The trace, as `simulate --instrument mem` stored it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Every access of these steps, instead of totals
    #[arg(long, value_name = "A..B")]
    range: Option<Steps>,
}

/// Steps from A up to, but not including, B; either may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Steps(Range<u64>);

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once("..").ok_or("A..B is expected")?;
        let number = |text: &str, missing| match text {
            "" => Ok(missing),
            _ => Count::from_str(text).map(|count| count.0),
        };
        let from = number(from, 0).map_err(|error| error.to_string())?;
        let to = number(to, u64::MAX).map_err(|error| error.to_string())?;
        match from < to {
            true => Ok(Self(from..to)),
            false => Err("A must be before B".to_owned()),
        }
    }
}

/// Prints a trace.
pub(crate) fn run(arguments: TraceArguments, environment: &Environment) -> Result<Exit> {
    let name = arguments.file.display();
    let file = File::open(&arguments.file).with_context(|| format!("cannot open {name}"))?;
    let reader = TraceReader::new(BufReader::with_capacity(1 << 16, file));
    let read = reader.and_then(|reader| match &arguments.range {
        Some(steps) => accesses(reader, &steps.0, environment),
        None => totals(reader, environment),
    });
    match read {
        Ok(()) => Ok(Exit::Done),
        // Whoever reads the other end of a pipe has seen enough.
        Err(TraceError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(error @ (TraceError::Torn { .. } | TraceError::Damaged { .. })) => {
            eprintln!("sbctl: {name}: {error}");
            Ok(Exit::Unverified)
        }
        Err(error @ TraceError::Magic) => Err(Usage(format!("{name}: {error}")).into()),
        Err(error) => Err(error).with_context(|| format!("cannot read {name}")),
    }
}

type Reader = TraceReader<BufReader<File>>;

/// What one interval amounts to.
#[derive(Debug, Serialize)]
struct Interval {
    interval: u64,
    first_step: u64,
    steps: u64,
    chunks: u64,
    stored_bytes: u64,
    accesses: u64,
    counts: Counts,
}

#[derive(Debug, Serialize)]
struct Totals {
    intervals: Vec<Interval>,
}

fn totals(mut reader: Reader, environment: &Environment) -> Result<(), TraceError> {
    let mut totals = Totals {
        intervals: Vec::new(),
    };
    let all = loop {
        let (info, chunk) = match reader.chunk() {
            Ok(Some(next)) => next,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let start = info.start.steps.0;
        match totals.intervals.last() {
            Some(last) if last.interval == info.interval => {}
            _ => totals.intervals.push(Interval {
                interval: info.interval,
                first_step: start,
                steps: 0,
                chunks: 0,
                stored_bytes: 0,
                accesses: 0,
                counts: Counts::default(),
            }),
        }
        let last = totals.intervals.last_mut().expect("one was pushed above");
        last.steps += info.end.steps.0 - start;
        last.chunks += 1;
        last.stored_bytes += info.stored_bytes;
        last.accesses += info.accesses;
        chunk.items().for_each(|item| item.count(&mut last.counts));
    };
    // What could be read is shown even where the rest could not.
    let printed = environment.finish(&totals, &totals);
    all.and(printed.map_err(|error| TraceError::Io(io::Error::other(error))))
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>8} {:>15} {:>15} {:>15} {:>15} {:>15} {:>10}",
            "interval", "first step", "steps", "accesses", "reads", "writes", "size"
        )?;
        for interval in &self.intervals {
            let Counts { data, system, .. } = interval.counts;
            let numbers = [
                interval.first_step,
                interval.steps,
                interval.accesses,
                data.reads + system.reads,
                data.writes + system.writes,
            ];
            write!(f, "{:>8}", interval.interval)?;
            for number in numbers {
                write!(f, " {:>15}", Grouped(number).to_string())?;
            }
            writeln!(f, " {:>10}", Bytes(interval.stored_bytes).to_string())?;
        }
        Ok(())
    }
}

/// An access as it is printed.
#[derive(Debug, Serialize)]
struct Line {
    step: u64,
    rep_iteration: u64,
    pc: u64,
    privilege: u8,
    direction: &'static str,
    bytes: u16,
    linear: u64,
    physical: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    second_physical: Option<u64>,
    system: bool,
}

impl From<Access> for Line {
    fn from(access: Access) -> Self {
        Self {
            step: access.at.steps.0,
            rep_iteration: access.at.rep_iterations,
            pc: access.pc,
            privilege: access.cpl,
            direction: match access.direction {
                Direction::Read => "read",
                Direction::Write => "write",
                Direction::Update => "update",
            },
            bytes: access.bytes,
            linear: access.linear,
            physical: access.physical.0,
            second_physical: access.second.map(|second| second.0),
            system: access.system,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>14}", self.step)?;
        match self.rep_iteration {
            0 => write!(f, "        ")?,
            iteration => write!(f, "+{iteration:<7}")?,
        }
        write!(
            f,
            " {:016x} {} {:<6} {:>3} {:016x} {:010x}",
            self.pc, self.privilege, self.direction, self.bytes, self.linear, self.physical
        )?;
        if let Some(second) = self.second_physical {
            write!(f, "+{second:010x}")?;
        }
        if self.system {
            write!(f, " system")?;
        }
        Ok(())
    }
}

/// Prints every access of some steps: lines of text, or one JSON object a line.
fn accesses(
    mut reader: Reader,
    steps: &Range<u64>,
    environment: &Environment,
) -> Result<(), TraceError> {
    let (json, mut out): (bool, Box<dyn Write>) = match &environment.output {
        Output::Text => (false, Box::new(io::stdout().lock())),
        Output::Json => (true, Box::new(io::stdout().lock())),
        Output::JsonFile(path) => (true, Box::new(File::create(path)?)),
    };
    let mut out = BufWriter::new(&mut out);
    while let Some((info, chunk)) = reader.chunk()? {
        if info.end.steps.0 < steps.start || info.start.steps.0 >= steps.end {
            continue;
        }
        for item in chunk.items() {
            let Item::Access(access) = item else { continue };
            if !steps.contains(&access.at.steps.0) {
                continue;
            }
            let line = Line::from(access);
            match json {
                true => {
                    serde_json::to_writer(&mut out, &line).map_err(io::Error::from)?;
                    writeln!(out)?;
                }
                false => writeln!(out, "{line}")?,
            }
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_steps() {
        let rows = [
            ("5..10", Some(5..10)),
            ("1M..", Some(1_000_000..u64::MAX)),
            ("..2k", Some(0..2_000)),
            ("..", Some(0..u64::MAX)),
            ("7..7", None),
            ("7", None),
            ("a..b", None),
        ];
        for (text, expected) in rows {
            let found = Steps::from_str(text).ok().map(|steps| steps.0);
            assert_eq!(found, expected, "{text}");
        }
    }
}
