//! Feeds worker processes, watches them, and tries again what a crash left undone.

use super::configuration::Configuration;
use super::finding::Finding;
use super::messages::{Command, Event, Finished};
use super::process::{Ended, Priority, Process, Worker};
use super::results::{IntervalResult, Results};
use crate::environment::Environment;
use crate::progress;
use crate::recording::Source;
use anyhow::Result;
use checkpoint_dedup::{RecordingName, RecordingState};
use indicatif::ProgressBar;
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often Ctrl-C and a growing recording are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What is to be simulated, and how.
pub(super) struct Order<'a> {
    pub(super) name: &'a RecordingName,
    pub(super) configuration: &'a Configuration,
    pub(super) root: &'a Path,
    pub(super) parallel: usize,
    pub(super) follow: bool,
    /// Whether an interval that a running recording publishes is wanted.
    pub(super) wants: &'a (dyn Fn(u64) -> bool + Sync),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ran {
    pub(crate) intervals: u64,
    pub(crate) instructions: u64,
    pub(crate) trace_bytes: u64,
    pub(crate) interrupted: bool,
    /// Processes that died.
    pub(crate) crashes: u64,
}

pub(super) struct Supervisor<'a> {
    order: Order<'a>,
    environment: &'a Environment,
    repository: &'a Path,
    source: &'a Source,
    results: &'a Results,
    progress: ProgressBar,
    ran: Mutex<Ran>,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        order: Order<'a>,
        environment: &'a Environment,
        repository: &'a Path,
        source: &'a Source,
        results: &'a Results,
    ) -> Self {
        Self {
            order,
            environment,
            repository,
            source,
            results,
            progress: progress::bar(0, "intervals"),
            ran: Mutex::default(),
        }
    }

    /// Simulates `todo`, and with `--follow` what the recording still publishes, which is added to
    /// `wanted`.
    pub(super) fn run(self, todo: Vec<u64>, wanted: &mut BTreeSet<u64>) -> Result<Ran> {
        let known = wanted.len() as u64;
        self.progress.set_length(known);
        self.progress.set_position(known - todo.len() as u64);
        self.progress.reset_eta();
        let mut rest = VecDeque::from(todo);
        let mut follow = self.order.follow;
        while !self.interrupted() && (!rest.is_empty() || follow) {
            match self.pool(&mut rest, &mut follow, wanted)? {
                Ended::InOrder => {}
                Ended::Died(status, under_way) => {
                    self.ran().crashes += 1;
                    self.progress.suspend(|| {
                        eprintln!(
                            "sbctl: the simulating process died ({status}); the intervals under \
                             way run again, each in a process of its own: {under_way:?}"
                        );
                    });
                    self.alone(&under_way)?;
                }
            }
        }
        self.progress.finish_and_clear();
        let mut ran = *self.ran();
        ran.interrupted = self.interrupted();
        Ok(ran)
    }

    fn ran(&self) -> MutexGuard<'_, Ran> {
        self.ran.lock().expect("no panic under the lock")
    }

    fn interrupted(&self) -> bool {
        self.environment.interrupt.requested()
    }

    /// Simulates with all workers in one process. What was not begun stays in `rest`.
    fn pool(
        &self,
        rest: &mut VecDeque<u64>,
        follow: &mut bool,
        wanted: &mut BTreeSet<u64>,
    ) -> Result<Ended> {
        let mut process = self.start(self.order.parallel)?;
        let mut last_look = Instant::now();
        let mut sent = VecDeque::new();
        process.send_all(rest, &mut sent);
        if !*follow {
            process.send(Command::Last);
        }
        let ended = loop {
            if self.interrupted() {
                process.send(Command::Cancel);
            }
            if *follow && last_look.elapsed() >= LOOK {
                last_look = Instant::now();
                *follow = self.look(wanted, rest)?;
                process.send_all(rest, &mut sent);
                if !*follow {
                    process.send(Command::Last);
                }
            }
            match process.events.recv_timeout(LOOK) {
                Ok(event) => self.note(&mut process, event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break process.end()?,
            }
        };
        if let Ended::Died(_, under_way) = &ended {
            sent.retain(|interval| !process.finished.contains(interval));
            sent.retain(|interval| !under_way.contains(interval));
            rest.extend(sent);
        }
        Ok(ended)
    }

    /// Looks what a running recording has published. Returns whether it may publish more.
    fn look(&self, wanted: &mut BTreeSet<u64>, rest: &mut VecDeque<u64>) -> Result<bool> {
        // The state first: what comes after the last look at the intervals must not be missed.
        let running = self.source.refresh()?.state == RecordingState::Running;
        for interval in self.source.intervals()? {
            if (self.order.wants)(interval) && wanted.insert(interval) {
                rest.push_back(interval);
                self.progress.inc_length(1);
            }
        }
        Ok(running)
    }

    /// Simulates each interval in a process of its own, as many at once as there are workers.
    fn alone(&self, intervals: &BTreeSet<u64>) -> Result<()> {
        let queue = Mutex::new(intervals.iter().copied().collect::<VecDeque<_>>());
        let next = || queue.lock().expect("no panic under the lock").pop_front();
        let work = || -> Result<()> {
            while let Some(interval) = next() {
                if self.interrupted() {
                    break;
                }
                self.one_alone(interval)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers = self.order.parallel.min(intervals.len());
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("supervisors do not panic"))
        })
    }

    fn one_alone(&self, interval: u64) -> Result<()> {
        let mut process = self.start(1)?;
        process.send(Command::Simulate(interval));
        process.send(Command::Last);
        loop {
            if self.interrupted() {
                process.send(Command::Cancel);
            }
            match process.events.recv_timeout(LOOK) {
                Ok(event) => self.note(&mut process, event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Ended::Died(status, under_way) = process.end()? {
            self.ran().crashes += 1;
            if under_way.is_empty() {
                return Ok(());
            }
            let message = format!("the process that simulated it died ({status})");
            let result = IntervalResult::without_replay(interval, Finding::Failed { message });
            self.results.put(&result)?;
            self.progress.inc(1);
        }
        Ok(())
    }

    fn note(&self, process: &mut Process, event: Event) {
        let Finished {
            interval,
            verified,
            steps,
            trace_bytes,
            host_ns: _,
        } = match event {
            Event::Started(interval) => {
                process.started.insert(interval);
                return;
            }
            Event::Finished(finished) => finished,
        };
        process.started.remove(&interval);
        process.finished.insert(interval);
        let mut ran = self.ran();
        ran.intervals += 1;
        ran.instructions += steps;
        ran.trace_bytes += trace_bytes;
        self.progress.inc(1);
        if !verified {
            let message = format!("sbctl: interval {interval} is not verified");
            self.progress.suspend(|| eprintln!("{message}"));
        }
    }

    fn start(&self, parallel: usize) -> Result<Process> {
        Process::start(&Worker {
            repository: self.repository,
            name: self.order.name,
            configuration: self.order.configuration,
            root: self.order.root,
            parallel,
            priority: Priority::Normal,
        })
    }
}
