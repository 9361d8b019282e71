//! `sbctl gc` and `sbctl repair-index`.

use super::watch::Watch;
use crate::environment::Environment;
use crate::exit::Exit;
use crate::quantity::{Bytes, Grouped, Span};
use anyhow::Result;
use checkpoint_dedup::{GcOptions, GcPlan, GcReport, RebuildReport};
use clap::Args;
use serde::Serialize;
use std::fmt;

/// Options of `sbctl gc`.
#[derive(Debug, Args)]
pub(crate) struct GcArguments {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Encode everything anew as small as can be found, which takes long
    #[arg(long)]
    recompress: bool,
    /// How long to wait for recorders to let go of what is to be deleted
    #[arg(long, value_name = "TIME", default_value = "30s")]
    wait: Span,
}

#[derive(Debug, Serialize)]
struct Shown {
    plan: Plan,
    /// Absent if this was a dry run.
    done: Option<Done>,
}

#[derive(Debug, Serialize)]
struct Plan {
    pack_bytes: u64,
    dead_packs: usize,
    rewritten_packs: usize,
    removed_series: usize,
    expected_bytes: u64,
    recompress: bool,
}

#[derive(Debug, Serialize)]
struct Done {
    freed_bytes: u64,
    written_bytes: u64,
    deleted_packs: u64,
    rebased_pages: u64,
    recompressed_pages: u64,
    pending_bytes: u64,
    waiting_for: Vec<Waiting>,
}

#[derive(Debug, Serialize)]
struct Waiting {
    host: String,
    pid: u32,
    purpose: String,
    path: String,
}

/// Collects garbage.
pub(crate) fn run(arguments: GcArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let watch = Watch::new(&environment.interrupt);
    let options = GcOptions {
        writers: arguments.wait.0,
        recompress: arguments.recompress,
        ..GcOptions::default()
    };
    let plan = repository.gc(options, &watch)?;
    let mut shown = Shown {
        plan: Plan::from(&plan),
        done: None,
    };
    if !arguments.dry_run {
        eprint!("{}", shown.plan);
        shown.done = Some(plan.run(&watch)?.into());
    }
    drop(watch);
    environment.finish(&shown, &shown)?;
    Ok(Exit::Done)
}

impl From<&GcPlan> for Plan {
    fn from(plan: &GcPlan) -> Self {
        Self {
            pack_bytes: plan.pack_bytes(),
            dead_packs: plan.dead_packs(),
            rewritten_packs: plan.rewritten_packs(),
            removed_series: plan.removed_series(),
            expected_bytes: plan.expected_bytes(),
            recompress: plan.recompresses(),
        }
    }
}

impl From<GcReport> for Done {
    fn from(report: GcReport) -> Self {
        let waiting_for = report.waiting_for.into_iter().map(|holder| Waiting {
            host: holder.host,
            pid: holder.pid,
            purpose: holder.purpose,
            path: holder.path,
        });
        Self {
            freed_bytes: report.freed_bytes,
            written_bytes: report.written_bytes,
            deleted_packs: report.deleted_packs,
            rebased_pages: report.rebased_pages,
            recompressed_pages: report.recompressed_pages,
            pending_bytes: report.pending_bytes,
            waiting_for: waiting_for.collect(),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "plan: of {} in packs delete {} packs, rewrite {}, remove {} recordings' leftovers; about {} come free",
            Bytes(self.pack_bytes),
            self.dead_packs,
            self.rewritten_packs,
            self.removed_series,
            Bytes(self.expected_bytes)
        )
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(done) = &self.done else {
            return self.plan.fmt(f);
        };
        writeln!(
            f,
            "freed {}, wrote {}; {} packs deleted, {} pages rebased",
            Bytes(done.freed_bytes),
            Bytes(done.written_bytes),
            done.deleted_packs,
            Grouped(done.rebased_pages)
        )?;
        if done.pending_bytes > 0 {
            writeln!(
                f,
                "{} wait for the next run, because these have not let go of them:",
                Bytes(done.pending_bytes)
            )?;
        }
        for waiting in &done.waiting_for {
            writeln!(
                f,
                "  process {} on {} ({}); if it is gone, remove {}",
                waiting.pid, waiting.host, waiting.purpose, waiting.path
            )?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct Rebuilt {
    packs: u64,
    unreadable: Vec<String>,
    items: u64,
    directory_bytes: u64,
    took_ns: u64,
    catalogue_took_ns: u64,
}

/// Makes the index and the catalogue anew.
pub(crate) fn repair_index(environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let watch = Watch::new(&environment.interrupt);
    let report = repository.rebuild_index(&watch)?;
    drop(watch);
    let shown = Rebuilt::from(report);
    environment.finish(&shown, &shown)?;
    Ok(match shown.unreadable.is_empty() {
        true => Exit::Done,
        false => Exit::Unverified,
    })
}

impl From<RebuildReport> for Rebuilt {
    fn from(report: RebuildReport) -> Self {
        Self {
            packs: report.packs,
            unreadable: report.unreadable,
            items: report.items,
            directory_bytes: report.directory_bytes,
            took_ns: report.took.as_nanos() as u64,
            catalogue_took_ns: report.catalogue_took.as_nanos() as u64,
        }
    }
}

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took_ns as f64 / 1e9;
        writeln!(
            f,
            "index: {} packs with {} items in {seconds:.3} s ({} of directories, {:.0} items/s); catalogue: {:.3} s",
            self.packs,
            Grouped(self.items),
            Bytes(self.directory_bytes),
            self.items as f64 / seconds.max(1e-9),
            self.catalogue_took_ns as f64 / 1e9
        )?;
        for path in &self.unreadable {
            writeln!(f, "unreadable: {path} (see `sbctl check --read-data`)")?;
        }
        Ok(())
    }
}
