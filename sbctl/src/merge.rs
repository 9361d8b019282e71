//! `sbctl merge N`: joins the results of several runs, such as the shards of a batch job.

use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::recording::Source;
use crate::simulate::{Configuration, InstrumentArguments, Merged, Report, Results};
use anyhow::{Result, bail};
use checkpoint_dedup::RecordingName;
use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Options of `sbctl merge`.
#[derive(Debug, Args)]
pub(crate) struct MergeArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    /// Where the runs put their results (their --out)
    #[arg(value_name = "DIR")]
    from: Vec<PathBuf>,
    /// Where the whole goes [default: beside the repository, REPOSITORY-results/NAME-ID]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    instruments: InstrumentArguments,
    /// The runs were made with --paranoid
    #[arg(long)]
    paranoid: bool,
}

/// Joins results.
pub(crate) fn run(arguments: MergeArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let source = Source::open(&repository, &arguments.name)?;
    let configuration = Configuration::new(&arguments.instruments, arguments.paranoid);
    let root = match arguments.out {
        Some(path) => path,
        None => Results::default_root(&environment.repository_path()?, &source),
    };
    let results = Results::create(&root, &source, &configuration)?;
    for from in &arguments.from {
        let Some(part) = Results::open(from, &source, &configuration)? else {
            bail!(
                "{} holds no results of this recording by {}",
                from.display(),
                configuration.key()
            );
        };
        for interval in source.intervals()? {
            results.take(&part, interval)?;
        }
    }
    let merged = Merged::collect(&source, &results, &configuration)?;
    results.write_merged(&merged)?;
    let wanted: BTreeSet<u64> = source.intervals()?.collect();
    let report = Report::of_merge(&merged, &results, &wanted);
    environment.finish(&report, &report)?;
    Ok(report.exit())
}
