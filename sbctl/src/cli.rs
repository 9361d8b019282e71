//! The commands.

use crate::environment::CommonArguments;
use crate::{diff, log, record, run, show, simulate};
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
    /// Runs a guest without recording it
    Run(run::RunArguments),
    /// Runs a guest and records it
    Record(record::RecordArguments),
    /// Simulates all intervals of a recording in parallel and verifies each
    Simulate(simulate::SimulateArguments),
    /// Simulates without instruments, only to prove
    Verify(simulate::VerifyArguments),
    /// What `simulate` starts
    #[command(hide = true)]
    SimulateWorker(simulate::WorkerArguments),
    /// Shows what is in a recording
    Show(show::ShowArguments),
    /// Prints what entered the guest: reads, interrupts, device writes
    Log(log::LogArguments),
    /// Compares two checkpoints of a recording
    Diff(diff::DiffArguments),
}
