//! `sbctl init DIR`: makes a repository.

use crate::environment::Environment;
use crate::exit::Exit;
use anyhow::Result;
use checkpoint_dedup::Repository;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Options of `sbctl init`.
#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    /// The directory [default: the repository that other commands use]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Made {
    repository: PathBuf,
}

/// Makes a repository.
pub(crate) fn run(arguments: InitArguments, environment: &Environment) -> Result<Exit> {
    let path = match arguments.directory {
        Some(path) => path,
        None => environment.repository_path()?,
    };
    Repository::create(&path)?;
    let text = format!("new repository {}", path.display());
    environment.finish(&Made { repository: path }, text)?;
    Ok(Exit::Done)
}
