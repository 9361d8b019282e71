//! `sbctl log N`: what entered the guest.

use crate::environment::{Environment, Output, recording_name};
use crate::exit::Exit;
use crate::quantity::{Bytes, Grouped};
use crate::recording::Source;
use anyhow::{Context, Result, bail};
use checkpoint_dedup::RecordingName;
use clap::Args;
use replay_log::{
    Async, Content, Effect, End, Event, EventPosition, Read, ReadSource, Segment, Tail,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;

/// Options of `sbctl log`.
#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    /// Every event of this interval, instead of totals of all intervals
    #[arg(long, value_name = "NUMBER")]
    interval: Option<u64>,
}

/// Prints logs.
pub(crate) fn run(arguments: LogArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let source = Source::open(&repository, &arguments.name)?;
    let complete = match arguments.interval {
        Some(interval) => events(&source, interval, environment)?,
        None => totals(&source, environment)?,
    };
    Ok(match complete {
        true => Exit::Done,
        false => Exit::Unverified,
    })
}

fn read(source: &Source, interval: u64) -> Result<Segment> {
    let intervals = source.intervals()?;
    if !intervals.contains(&interval) {
        let name = &source.info().name;
        match intervals.is_empty() {
            true => bail!("recording {name} has no complete interval"),
            false => bail!(
                "recording {name} has intervals {} to {}",
                intervals.start,
                intervals.end - 1
            ),
        }
    }
    let bytes = source.segment(interval)?;
    Segment::read(bytes.bytes()).with_context(|| format!("the log of interval {interval}"))
}

/// Prints every event. Returns whether the segment is complete.
fn events(source: &Source, interval: u64, environment: &Environment) -> Result<bool> {
    let segment = read(source, interval)?;
    let complete = segment.tail == Tail::Complete;
    if environment.output == Output::Text {
        environment.finish(&(), Lines(&segment))?;
    } else {
        let events: Vec<Value> = segment.events.iter().map(event).collect();
        let result = json!({
            "recording": source.info().name.as_str(),
            "interval": interval,
            "events": events,
            "end": segment.end.as_ref().map(end),
            "tail": segment.tail.to_string(),
        });
        environment.finish(&result, Lines(&segment))?;
    }
    Ok(complete)
}

struct Lines<'a>(&'a Segment);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, event) in self.0.events.iter().enumerate() {
            writeln!(f, "{index:>8}  {event}")?;
        }
        if let Some(end) = &self.0.end {
            writeln!(f, "{:>8}  {end}", "end")?;
        }
        match self.0.tail {
            Tail::Complete => Ok(()),
            tail => writeln!(f, "{:>8}  {tail}", "cut"),
        }
    }
}

fn event(event: &Event) -> Value {
    match event {
        Event::Read(Read {
            vcpu,
            source,
            rip,
            value,
        }) => {
            let mut object = match source {
                ReadSource::Port { port, size } => {
                    json!({ "kind": "port-read", "port": port.0, "size": size })
                }
                ReadSource::Mmio { address, size } => {
                    json!({ "kind": "mmio-read", "address": address.0, "size": size })
                }
                ReadSource::Timestamp => json!({ "kind": "timestamp-read" }),
            };
            object["vcpu"] = vcpu.0.into();
            object["value"] = (*value).into();
            object["rip"] = (*rip).into();
            object
        }
        Event::Async(Async {
            vcpu,
            at,
            check,
            effect,
        }) => {
            let mut object = match effect {
                Effect::Interrupt(vector) => json!({ "kind": "interrupt", "vector": vector.0 }),
                Effect::Write { to, content } => {
                    let page = match content {
                        Content::Inline(_) => None,
                        Content::Page { id, .. } => Some(id.to_string()),
                    };
                    json!({
                        "kind": "device-write",
                        "address": to.0,
                        "bytes": content.bytes(),
                        "page": page,
                    })
                }
            };
            object["vcpu"] = vcpu.0.into();
            object["at"] = position(at);
            object["rip"] = check.rip.into();
            object
        }
    }
}

fn end(end: &End) -> Value {
    json!({
        "reason": end.reason.to_string(),
        "at": position(&end.at),
        "rip": end.check.rip,
        "guest_time_ns": end.time.0,
    })
}

fn position(at: &EventPosition) -> Value {
    match at {
        EventPosition::Count(position) => {
            json!({ "steps": position.steps.0, "rep_iterations": position.rep_iterations })
        }
        EventPosition::AfterIo(n) => json!({ "after_io_step": n.0 }),
        EventPosition::Window(n) => json!({ "window_after_io_step": n.0 }),
        EventPosition::Landmark(landmark) => {
            json!({ "landmark_after_io_step": landmark.io_steps.0 })
        }
        EventPosition::Follows => json!("follows"),
    }
}

/// Events of one interval by kind.
#[derive(Debug, Default, Serialize)]
struct Totals {
    interval: u64,
    reads: u64,
    interrupts: u64,
    device_writes: u64,
    landmarks: u64,
    bytes: u64,
    tail: String,
}

/// Totals of all intervals.
#[derive(Debug, Serialize)]
struct AllTotals {
    recording: String,
    intervals: Vec<Totals>,
}

fn totals(source: &Source, environment: &Environment) -> Result<bool> {
    let mut all = AllTotals {
        recording: source.info().name.to_string(),
        intervals: Vec::new(),
    };
    let mut complete = true;
    for interval in source.intervals()? {
        let segment = read(source, interval)?;
        complete &= segment.tail == Tail::Complete;
        let mut totals = Totals {
            interval,
            bytes: source.segment(interval)?.bytes().len() as u64,
            tail: segment.tail.to_string(),
            ..Totals::default()
        };
        segment.events.iter().for_each(|event| totals.add(event));
        all.intervals.push(totals);
    }
    environment.finish(&all, &all)?;
    Ok(complete)
}

impl Totals {
    fn add(&mut self, event: &Event) {
        let Event::Async(event) = event else {
            self.reads += 1;
            return;
        };
        match event.effect {
            Effect::Interrupt(_) => self.interrupts += 1,
            Effect::Write { .. } => self.device_writes += 1,
        }
        if matches!(event.at, EventPosition::Landmark(_)) {
            self.landmarks += 1;
        }
    }
}

impl fmt::Display for AllTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>8} {:>12} {:>12} {:>14} {:>10} {:>10}",
            "interval", "reads", "interrupts", "device writes", "landmarks", "size"
        )?;
        for totals in &self.intervals {
            writeln!(
                f,
                "{:>8} {:>12} {:>12} {:>14} {:>10} {:>10}",
                totals.interval,
                Grouped(totals.reads).to_string(),
                Grouped(totals.interrupts).to_string(),
                Grouped(totals.device_writes).to_string(),
                Grouped(totals.landmarks).to_string(),
                Bytes(totals.bytes).to_string(),
            )?;
        }
        Ok(())
    }
}
