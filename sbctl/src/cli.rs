//! The commands.

use crate::environment::CommonArguments;
use crate::{
    bisect, demo, diff, doctor, log, merge, record, repository, run, selfcheck, show, simulate,
    trace,
};
use clap::{Parser, Subcommand};

/// Records, checkpoints and simulates virtual machines.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 a divergence, damage or an unverified interval,
/// 130 interrupted.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: CommonArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One command each.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the main job, end to end: records a guest, simulates it in parallel, proves it
    Demo(demo::DemoArguments),
    /// Examines this host: what can be recorded here, and what would make it better
    Doctor(doctor::DoctorArguments),
    /// Runs a guest without recording it
    Run(run::RunArguments),
    /// Runs a guest and compares the engine's ways to execute it with each other
    Selfcheck(selfcheck::SelfcheckArguments),
    /// Runs a guest and records it
    Record(record::RecordArguments),
    /// Simulates all intervals of a recording in parallel and verifies each
    Simulate(simulate::SimulateArguments),
    /// Simulates without instruments, only to prove
    Verify(simulate::VerifyArguments),
    /// Joins the results of several runs, such as the shards of a batch job
    Merge(merge::MergeArguments),
    /// Finds the first point at which an interval goes another way
    Bisect(bisect::BisectArguments),
    /// What `simulate` starts
    #[command(hide = true)]
    SimulateWorker(simulate::WorkerArguments),
    /// Shows what is in a recording
    Show(show::ShowArguments),
    /// Prints what entered the guest: reads, interrupts, device writes
    Log(log::LogArguments),
    /// Compares two checkpoints of a recording
    Diff(diff::DiffArguments),
    /// Shows what is in a memory trace
    Trace(trace::TraceArguments),
    /// Makes a repository
    Init(repository::init::InitArguments),
    /// Lists the recordings
    Ls,
    /// Shows how much is stored, and how
    Stats(repository::stats::StatsArguments),
    /// Removes recordings
    Rm(repository::remove::RemoveArguments),
    /// Removes all but the newest recordings
    Prune(repository::remove::PruneArguments),
    /// Cuts a recording at either end
    Trim(repository::remove::TrimArguments),
    /// Frees the space of what was removed
    Gc(repository::gc::GcArguments),
    /// Finds damage, and repairs it when asked to
    Check(repository::check::CheckArguments),
    /// Makes the index and the catalogue anew out of the packs
    RepairIndex,
    /// Copies recordings between repositories
    Copy(repository::copy::CopyArguments),
    /// Makes a recording out of memory dumps
    Import(repository::import::ImportArguments),
    /// Writes the memory of a checkpoint to a file
    Export(repository::export::ExportArguments),
}
