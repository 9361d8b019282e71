//! Command line of SimuBoost.

mod cli;
mod console;
mod guest;
mod quantity;
mod run;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = match cli.command {
        cli::Command::Run(arguments) => run::run(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sbctl: {error:#}");
        ExitCode::FAILURE
    })
}
