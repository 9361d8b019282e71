//! The commands.

use crate::run::RunArguments;
use clap::{Parser, Subcommand};

/// Records, checkpoints and simulates virtual machines.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One command each.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a guest without recording it
    Run(RunArguments),
}
