//! `sbctl check`: finds damage, and repairs it when asked to.

use super::watch::Watch;
use crate::environment::Environment;
use crate::exit::Exit;
use crate::quantity::{Bytes, Grouped};
use anyhow::Result;
use checkpoint_dedup::{CheckOptions, CheckReport, Damage, Local, plan_repair};
use clap::Args;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// Options of `sbctl check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// Read all data and recompute every hash
    #[arg(long)]
    read_data: bool,
    /// Repair what is damaged, after showing how; reads all data
    #[arg(long)]
    repair: bool,
    /// With --repair: only show how
    #[arg(long, requires = "repair")]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    clean: bool,
    objects: u64,
    bytes: u64,
    packs: u64,
    checkpoints: u64,
    items_read: u64,
    damages: Vec<Row>,
    /// The steps of a repair, shown or done.
    repair: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    path: String,
    what: String,
    affected: Vec<Range>,
}

#[derive(Debug, Serialize)]
struct Range {
    recording: String,
    first: u32,
    last: u32,
    /// Whether the numbers are those of log segments.
    logs: bool,
}

/// Checks a repository.
pub(crate) fn run(arguments: CheckArguments, environment: &Environment) -> Result<Exit> {
    // Not through `open`: a damaged configuration is to be found, too.
    let backend = Arc::new(Local::new(environment.repository_path()?));
    let watch = Watch::new(&environment.interrupt);
    let shown = match arguments.repair {
        false => {
            let options = CheckOptions {
                read_data: arguments.read_data,
            };
            Shown::new(&checkpoint_dedup::check(backend, options, &watch)?)
        }
        true => {
            let plan = plan_repair(backend, &watch)?;
            let steps: Vec<String> = plan.actions().iter().map(ToString::to_string).collect();
            let mut shown = Shown::new(&plan.report);
            if !arguments.dry_run && !steps.is_empty() {
                eprint!("{shown}");
                for step in &steps {
                    eprintln!("repair: {step}");
                }
                shown = Shown::new(&plan.run(&watch)?);
            }
            shown.repair = steps;
            shown
        }
    };
    drop(watch);
    environment.finish(&shown, &shown)?;
    Ok(match shown.clean {
        true => Exit::Done,
        false => Exit::Unverified,
    })
}

impl Shown {
    fn new(report: &CheckReport) -> Self {
        Self {
            clean: report.is_clean(),
            objects: report.objects,
            bytes: report.bytes,
            packs: report.packs,
            checkpoints: report.checkpoints,
            items_read: report.items_read,
            damages: report.damages.iter().map(Row::new).collect(),
            repair: Vec::new(),
        }
    }
}

impl Row {
    fn new(damage: &Damage) -> Self {
        let affected = damage.affected.iter().map(|affected| Range {
            recording: affected.recording.to_string(),
            first: affected.first.0,
            last: affected.last.0,
            logs: affected.logs,
        });
        Self {
            kind: damage.kind.as_str(),
            path: damage.path.clone(),
            what: damage.what.clone(),
            affected: affected.collect(),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for damage in &self.damages {
            writeln!(f, "{}: {}", damage.path, damage.what)?;
            for range in &damage.affected {
                let kind = if range.logs { "log" } else { "checkpoint" };
                write!(f, "  affects {} {kind} {}", range.recording, range.first)?;
                match range.first == range.last {
                    true => writeln!(f)?,
                    false => writeln!(f, " to {}", range.last)?,
                }
            }
        }
        let verdict = match self.damages.len() {
            0 => "clean".to_owned(),
            1 => "1 object is damaged".to_owned(),
            n => format!("{n} objects are damaged"),
        };
        let read = match self.items_read {
            0 => "data not read (see --read-data)".to_owned(),
            n => format!("{} pages and chunks read", Grouped(n)),
        };
        writeln!(
            f,
            "{verdict}: {} objects, {}, {} packs, {} checkpoints, {read}",
            Grouped(self.objects),
            Bytes(self.bytes),
            Grouped(self.packs),
            Grouped(self.checkpoints)
        )
    }
}
