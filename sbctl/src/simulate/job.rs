//! One interval.

use super::configuration::{Configuration, Instrument};
use super::finding::{Finding, Mode};
use super::results::{IntervalResult, Results};
use super::trace::TraceInProgress;
use crate::recording::{PositionsKind, Source};
use anyhow::Result;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::vcpu::{Kick, Vcpu};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tcg_sim::instrument::Instruments;
use tcg_sim::replay::{
    Instrumented, Interval, Limits, Outcome, ReplayError, Report, replay, replay_with,
};
use tcg_sim::{Engine, EngineOptions};

/// [`Limits::patience`] at first: more steps than lie between two timer interrupts of a guest that is
/// not idle (250 in a second, Debian's choice), even at 4 in a nanosecond.
const FIRST_PATIENCE: u64 = 1 << 24;

/// So many times more in each further search, as long as more can matter.
const MORE_PATIENCE: u64 = 16;

/// What all jobs of a worker process share.
pub(crate) struct Jobs {
    pub(crate) source: Source,
    pub(crate) cpuid: CpuidTable,
    pub(crate) configuration: Configuration,
    /// Code memory of each engine, in bytes.
    pub(crate) code_bytes: usize,
    /// Set when everything is to end.
    pub(crate) cancel: Arc<AtomicBool>,
}

impl Jobs {
    /// Simulates an interval; none if it was cancelled. `running` is told how to kick the engine.
    pub(crate) fn simulate(
        &self,
        interval: u64,
        results: &Results,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Option<IntervalResult> {
        match self.try_simulate(interval, results, running) {
            Ok(result) => Some(result),
            Err(error) if is_cancelled(&error) => None,
            Err(error) => {
                let finding = Finding::of_error(&error);
                Some(IntervalResult::without_replay(interval, finding))
            }
        }
    }

    fn try_simulate(
        &self,
        number: u64,
        results: &Results,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Result<IntervalResult> {
        let recorded: Arc<dyn CheckpointSource> = Arc::new(self.source.interval(number)?);
        let interval = Interval::load(&*recorded, number)?;
        let start = interval.start_position();
        let attempt = |patience| {
            let (instruments, trace) = self.instruments(number, results)?;
            let limits = Limits {
                patience,
                ..self.limits(&interval)
            };
            let (mut engine, ram) = self.engine(&interval, &recorded, Mode::Blocks)?;
            running(engine.kick_handle());
            let engine = &mut engine;
            let instrumented =
                replay_with(engine, &ram, &interval, &*recorded, &limits, instruments)?;
            anyhow::Ok((instrumented, trace))
        };
        let mut patience = FIRST_PATIENCE;
        let (Instrumented { report, counts }, trace) = loop {
            let attempted = attempt(patience)?;
            let report = &attempted.0.report;
            if report.outcome == Outcome::Verified || report.search.impatient == 0 {
                break attempted;
            }
            patience = patience.saturating_mul(MORE_PATIENCE);
        };
        let mut result = IntervalResult {
            counts,
            trace: trace.map(TraceInProgress::finish).transpose()?,
            finding: Finding::of(&report, Mode::Blocks, start),
            instructions: report.steps.0,
            pages_compared: report.frames_compared,
            search: report.search.into(),
            ..IntervalResult::without_replay(number, Finding::Verified)
        };
        if self.configuration.paranoid && result.finding.is_verified() {
            let mode = Mode::OneInstruction;
            // The other mode is slow: it need not search again.
            let interval = interval.with_positions(&report.resolved);
            let report = self.replay(&interval, &recorded, mode, running)?;
            result.finding = Finding::of(&report, mode, interval.start_position());
        }
        Ok(result)
    }

    /// Replays an interval in its own RAM, which is filled as it is touched and gone afterwards.
    pub(crate) fn replay(
        &self,
        interval: &Interval,
        recorded: &Arc<dyn CheckpointSource>,
        mode: Mode,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Result<Report> {
        let (mut engine, ram) = self.engine(interval, recorded, mode)?;
        running(engine.kick_handle());
        let limits = self.limits(interval);
        Ok(replay(&mut engine, &ram, interval, &**recorded, &limits)?)
    }

    fn instruments(
        &self,
        interval: u64,
        results: &Results,
    ) -> Result<(Instruments, Option<TraceInProgress>)> {
        let (mut instruments, mut trace) = (Instruments::none(), None);
        if self.configuration.has(Instrument::Count) {
            instruments = instruments.with_counts();
        }
        if self.configuration.has(Instrument::Mem) {
            let (file, sink) = TraceInProgress::create(results.trace_path(interval), interval)?;
            instruments = instruments.with_memory_trace(sink);
            trace = Some(file);
        }
        Ok((instruments, trace))
    }

    /// An engine over RAM as it is at the start of the interval.
    pub(crate) fn engine(
        &self,
        interval: &Interval,
        recorded: &Arc<dyn CheckpointSource>,
        mode: Mode,
    ) -> Result<(Engine, Arc<Ram>)> {
        let pages = CheckpointPages::new(Arc::clone(recorded), interval.number);
        let ram = Arc::new(Ram::lazy(interval.start.ram_bytes, Arc::new(pages))?);
        let options = EngineOptions {
            code_bytes: self.code_bytes,
            one_instruction_blocks: mode == Mode::OneInstruction,
        };
        let engine = Engine::new(Arc::clone(&ram), self.cpuid.clone(), options)?;
        Ok((engine, ram))
    }

    /// A guest that goes another way must end some time.
    pub(crate) fn limits(&self, interval: &Interval) -> Limits {
        /// More than any CPU retires.
        const STEPS_PER_NS: u64 = 20;
        const ALLOWANCE: u64 = 1 << 30;
        let positions = interval.start.position.zip(interval.end.position);
        let steps = match (self.source.note.positions, positions) {
            (PositionsKind::Count, Some((start, end))) => {
                end.steps.0 - start.steps.0.min(end.steps.0)
            }
            _ => {
                let time = interval.end.time.0.saturating_sub(interval.start.time.0);
                time.saturating_mul(STEPS_PER_NS)
            }
        };
        let max_steps = steps.saturating_add(ALLOWANCE);
        Limits {
            max_steps,
            patience: FIRST_PATIENCE * MORE_PATIENCE,
            max_lost_steps: max_steps.saturating_mul(2),
            cancel: Some(Arc::clone(&self.cancel)),
            ..Limits::default()
        }
    }
}

pub(crate) fn is_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ReplayError::Cancelled))
}
