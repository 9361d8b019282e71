//! Command line of SimuBoost: glue between the libraries and whoever types.
//!
//! Reading order: [`cli`] (the commands), `environment` (what they share), then one module per
//! command. Results go to standard output, progress and messages to standard error; errors are
//! printed here and nowhere else.

mod bisect;
mod builtin;
mod cli;
mod console;
mod cores;
mod demo;
mod diff;
mod doctor;
mod ending;
mod environment;
mod exit;
mod guest;
mod interrupt;
mod log;
mod merge;
mod progress;
mod quantity;
mod record;
mod recording;
mod repository;
mod run;
mod selfcheck;
mod show;
mod simulate;
mod trace;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command};
use environment::Environment;
use exit::Exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    match command(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("sbctl: {}", environment::visible(&exit::words(&error)));
            exit::code_of(&error).into()
        }
    }
}

fn command(cli: Cli) -> Result<Exit> {
    let environment = &Environment::new(cli.common)?;
    match cli.command {
        Command::Demo(arguments) => demo::run(arguments, environment),
        Command::Doctor(arguments) => doctor::run(arguments, environment),
        Command::Run(arguments) => run::run(arguments, environment),
        Command::Selfcheck(arguments) => selfcheck::run(arguments, environment),
        Command::Record(arguments) => record::run(arguments, environment),
        Command::Simulate(arguments) => simulate::run(arguments, environment),
        Command::Verify(arguments) => simulate::verify(arguments, environment),
        Command::Merge(arguments) => merge::run(arguments, environment),
        Command::Bisect(arguments) => bisect::run(arguments, environment),
        Command::SimulateWorker(arguments) => simulate::work(arguments, environment),
        Command::Show(arguments) => show::run(arguments, environment),
        Command::Log(arguments) => log::run(arguments, environment),
        Command::Diff(arguments) => diff::run(arguments, environment),
        Command::Trace(arguments) => trace::run(arguments, environment),
        Command::Init(arguments) => repository::init::run(arguments, environment),
        Command::Ls => repository::list::run(environment),
        Command::Stats(arguments) => repository::stats::run(arguments, environment),
        Command::Rm(arguments) => repository::remove::rm(arguments, environment),
        Command::Prune(arguments) => repository::remove::prune(arguments, environment),
        Command::Trim(arguments) => repository::remove::trim(arguments, environment),
        Command::Gc(arguments) => repository::gc::run(arguments, environment),
        Command::Check(arguments) => repository::check::run(arguments, environment),
        Command::RepairIndex => repository::gc::repair_index(environment),
        Command::Copy(arguments) => repository::copy::run(arguments, environment),
        Command::Import(arguments) => repository::import::run(arguments, environment),
        Command::Export(arguments) => repository::export::run(arguments, environment),
    }
}
