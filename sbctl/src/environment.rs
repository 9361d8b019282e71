//! What every command shares: the repository, where results go, Ctrl-C.

use crate::exit::Usage;
use crate::interrupt::Interrupt;
use anyhow::{Context, Result};
use checkpoint_dedup::{CacheLimits, Local, OpenOptions, RecordingName, Repository};
use clap::Args;
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct CommonArguments {
    /// The repository [default: $XDG_DATA_HOME/simuboost, made when first needed]
    #[arg(long, value_name = "DIR", env = "SBCTL_REPO", global = true)]
    repo: Option<PathBuf>,
    /// Results as JSON: on standard output, or in FILE
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "-"
    )]
    json: Option<PathBuf>,
}

/// Where results go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Text for people, on standard output.
    Text,
    /// JSON on standard output.
    Json,
    /// JSON in a file, and text for people.
    JsonFile(PathBuf),
}

/// What every command shares.
pub(crate) struct Environment {
    repo: Option<PathBuf>,
    /// Where results go.
    pub(crate) output: Output,
    /// Ctrl-C.
    pub(crate) interrupt: Interrupt,
}

impl Environment {
    pub(crate) fn new(arguments: CommonArguments) -> Result<Self> {
        let output = match arguments.json {
            None => Output::Text,
            Some(path) if path == Path::new("-") => Output::Json,
            Some(path) => Output::JsonFile(path),
        };
        Ok(Self {
            repo: arguments.repo,
            output,
            interrupt: Interrupt::install().context("cannot catch signals")?,
        })
    }

    /// The repository's directory, whether it is there or not.
    pub(crate) fn repository_path(&self) -> Result<PathBuf> {
        match &self.repo {
            Some(path) => Ok(path.clone()),
            None => Ok(data_home()?.join("simuboost")),
        }
    }

    /// How this program is called for this repository.
    pub(crate) fn command(&self) -> String {
        match &self.repo {
            Some(path) if std::env::var_os("SBCTL_REPO").as_deref() != Some(path.as_os_str()) => {
                format!("sbctl --repo {}", path.display())
            }
            _ => "sbctl".into(),
        }
    }

    /// Opens the repository, with caches of at most this size.
    pub(crate) fn open_with(&self, caches: CacheLimits) -> Result<Repository> {
        let path = self.repository_path()?;
        let backend = Arc::new(Local::new(&path));
        Ok(Repository::open_on(backend, OpenOptions { caches })?)
    }

    /// Opens the repository.
    pub(crate) fn open(&self) -> Result<Repository> {
        self.open_with(CacheLimits::default())
    }

    /// Opens the repository; the default one, or a new directory that was named, is made first.
    pub(crate) fn open_or_create(&self) -> Result<Repository> {
        let path = self.repository_path()?;
        let error = match self.open() {
            Ok(repository) => return Ok(repository),
            Err(error) => error,
        };
        let missing = matches!(
            error.downcast_ref(),
            Some(checkpoint_dedup::Error::NoRepository { .. })
        );
        if !missing || holds_other_files(&path) {
            return Err(error);
        }
        create_private(&path)
            .with_context(|| format!("cannot make the repository {}", path.display()))?;
        eprintln!("sbctl: new repository {}", path.display());
        Ok(Repository::create(&path)?)
    }

    /// Gives the result: JSON of `result`, or what `text` says, as was asked for.
    pub(crate) fn finish(&self, result: &impl Serialize, text: impl Display) -> Result<()> {
        let stdout = &mut io::stdout().lock();
        match &self.output {
            Output::Json => print(stdout, json(result)?),
            Output::Text => print(stdout, text),
            Output::JsonFile(path) => {
                std::fs::write(path, json(result)?)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                print(stdout, text)
            }
        }
    }

    /// As [`Environment::finish`] for commands whose guest has standard output: the text goes to
    /// standard error.
    pub(crate) fn finish_beside_console(
        &self,
        result: &impl Serialize,
        text: impl Display,
    ) -> Result<()> {
        if let Output::JsonFile(path) = &self.output {
            std::fs::write(path, json(result)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        print(&mut io::stderr().lock(), text)
    }

    /// Refuses JSON on standard output, which the guest's console has.
    pub(crate) fn require_stdout_free(&self) -> Result<()> {
        if self.output == Output::Json {
            let advice = "the guest's console has standard output: use --json=FILE or --console";
            return Err(Usage(advice.into()).into());
        }
        Ok(())
    }
}

/// A recording's name as it was typed.
pub(crate) fn recording_name(text: &str) -> Result<RecordingName, checkpoint_dedup::Error> {
    RecordingName::new(text)
}

fn json(result: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(result)? + "\n")
}

/// Prints text with a line feed at its end. A reader that has gone away is no error.
fn print(out: &mut impl Write, text: impl Display) -> Result<()> {
    let mut text = visible(&text.to_string());
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the result")
        }
        _ => Ok(()),
    }
}

/// Text without what a terminal would obey: recordings and results of others are not trusted.
pub(crate) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() && !matches!(character, '\n' | '\t') {
            true => visible.extend(character.escape_default()),
            false => visible.push(character),
        }
    }
    visible
}

fn data_home() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set("XDG_DATA_HOME") {
        return Ok(path.into());
    }
    let home = set("HOME").map(PathBuf::from).ok_or_else(|| {
        Usage("there is no HOME to put the repository in: give --repo DIR".to_owned())
    })?;
    Ok(home.join(".local/share"))
}

/// Whether the directory is there and not empty: then it is not ours to fill.
fn holds_other_files(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// Guest memory may hold secrets: only the owner may look.
fn create_private(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
