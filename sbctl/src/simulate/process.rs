//! A worker process, seen from the process that started it.

use super::configuration::Configuration;
use super::messages::{Command, Event, line};
use anyhow::{Context, Result, bail};
use checkpoint_dedup::RecordingName;
use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Whether a worker process gives way to everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// It is what the user waits for.
    Normal,
    /// It takes what nobody else wants.
    Low,
}

/// What a worker process is to do.
pub(crate) struct Worker<'a> {
    pub(crate) repository: &'a Path,
    pub(crate) name: &'a RecordingName,
    pub(crate) configuration: &'a Configuration,
    /// Where results go.
    pub(crate) root: &'a Path,
    /// Threads.
    pub(crate) parallel: usize,
    pub(crate) priority: Priority,
}

/// A worker process.
pub(crate) struct Process {
    child: Child,
    commands: ChildStdin,
    pub(crate) events: Receiver<Event>,
    /// Intervals that are under way.
    pub(super) started: BTreeSet<u64>,
    pub(super) finished: BTreeSet<u64>,
}

/// How a worker process ended.
pub(crate) enum Ended {
    /// All that it was given is done, or it was cancelled.
    InOrder,
    /// It died, and these intervals were under way.
    Died(ExitStatus, BTreeSet<u64>),
}

impl Process {
    /// Starts one.
    pub(crate) fn start(worker: &Worker<'_>) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut command = std::process::Command::new(program);
        command
            .arg("--repo")
            .arg(worker.repository)
            .arg("simulate-worker")
            .arg(worker.name.as_str())
            .args(["--parallel", &worker.parallel.to_string(), "--out"])
            .arg(worker.root)
            .args(worker.configuration.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the supervisor, which lets workers end in order.
            .process_group(0);
        if worker.priority == Priority::Low {
            command.arg("--low-priority");
        }
        let mut child = command.spawn().context("cannot start a worker process")?;
        let commands = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        let (to_events, events) = channel();
        std::thread::Builder::new()
            .name("events".into())
            .spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let event = serde_json::from_str(&line);
                    if event.is_ok_and(|event| to_events.send(event).is_err()) {
                        return;
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Self {
            child,
            commands,
            events,
            started: BTreeSet::new(),
            finished: BTreeSet::new(),
        })
    }

    /// Tells it something. A process that has died is found when its events end.
    pub(crate) fn send(&mut self, command: Command) {
        let _ = self.commands.write_all(line(&command).as_bytes());
    }

    pub(super) fn send_all(&mut self, from: &mut VecDeque<u64>, sent: &mut VecDeque<u64>) {
        for interval in from.drain(..) {
            self.send(Command::Simulate(interval));
            sent.push_back(interval);
        }
    }

    /// Waits for the end, which is near: its events have ended.
    pub(crate) fn end(&mut self) -> Result<Ended> {
        let status = self
            .child
            .wait()
            .context("cannot wait for a worker process")?;
        if status.signal().is_none() {
            return match status.code() {
                Some(0 | 130) => Ok(Ended::InOrder),
                _ => bail!("a worker process gave up ({status}); it said why above"),
            };
        }
        if self.started.is_empty() && self.finished.is_empty() {
            bail!("a worker process died before it began an interval ({status})");
        }
        Ok(Ended::Died(status, std::mem::take(&mut self.started)))
    }
}
