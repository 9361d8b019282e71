//! One interval.

use super::configuration::{Configuration, Instrument};
use super::finding::{Finding, Mode};
use super::results::{IntervalResult, Results};
use super::trace::TraceInProgress;
use crate::recording::{Accelerator, PositionsKind, Source};
use anyhow::Result;
use machine::checkpoint::{CheckpointPages, CheckpointSource};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::vcpu::{Kick, Vcpu};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tcg_sim::instrument::Instruments;
use tcg_sim::replay::{
    Instrumented, Interval, Limits, Outcome, ReplayError, Report, find_spurious_fault, replay_with,
};
use tcg_sim::{Engine, EngineOptions, SpuriousFault};

/// How an interval is replayed.
#[derive(Clone, Copy, Debug)]
struct How {
    mode: Mode,
    /// Number of the page fault to take for a translation that hardware may have remembered.
    fault_at: Option<u64>,
    /// [`Limits::patience`].
    patience: u64,
}

impl Default for How {
    fn default() -> Self {
        Self {
            mode: Mode::Blocks,
            fault_at: None,
            patience: FIRST_PATIENCE,
        }
    }
}

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
        let frozen_tsc = self.source.note.frozen_tsc;
        let interval = Interval::load(&*recorded, number)?.with_frozen_tsc(frozen_tsc);
        let start = interval.start_position();
        let mut how = How::default();
        let (mut replayed, mut trace) =
            self.searched(&interval, &recorded, results, &mut how, running)?;
        let fault = match replayed.report.outcome {
            Outcome::Diverged(_) => self.find_fault(&interval, &recorded, running)?,
            Outcome::Verified => None,
        };
        if let Some((number, _)) = fault {
            how = How {
                fault_at: Some(number),
                ..How::default()
            };
            drop(trace);
            (replayed, trace) = self.searched(&interval, &recorded, results, &mut how, running)?;
        }
        let Instrumented { report, counts } = replayed;
        let mut result = IntervalResult {
            counts,
            trace: trace.map(TraceInProgress::finish).transpose()?,
            finding: Finding::of(&report, Mode::Blocks, start),
            early_entries: report.early_entries,
            spurious_fault: fault.map(|(_, fault)| fault.into()),
            instructions: report.steps.0,
            pages_compared: report.frames_compared,
            search: report.search.into(),
            ..IntervalResult::without_replay(number, Finding::Verified)
        };
        if self.configuration.paranoid && result.finding.is_verified() {
            let mode = Mode::OneInstruction;
            // The other mode is slow: it need not search again.
            let interval = interval.with_positions(&report.resolved);
            let (how, none) = (How { mode, ..how }, Instruments::none());
            let report = self
                .replay_with(&interval, &recorded, how, none, running)?
                .report;
            result.finding = Finding::of(&report, mode, interval.start_position());
        }
        Ok(result)
    }

    /// Replays an interval with the instruments that are asked for, and more patience each time, as long as
    /// that may matter.
    fn searched(
        &self,
        interval: &Interval,
        recorded: &Arc<dyn CheckpointSource>,
        results: &Results,
        how: &mut How,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Result<(Instrumented, Option<TraceInProgress>)> {
        loop {
            let attempt = self.instrumented(interval, recorded, results, *how, running)?;
            let report = &attempt.0.report;
            if report.outcome == Outcome::Verified || report.search.impatient == 0 {
                return Ok(attempt);
            }
            how.patience = how.patience.saturating_mul(MORE_PATIENCE);
        }
    }

    /// Replays an interval with the instruments that are asked for.
    fn instrumented(
        &self,
        interval: &Interval,
        recorded: &Arc<dyn CheckpointSource>,
        results: &Results,
        how: How,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Result<(Instrumented, Option<TraceInProgress>)> {
        let (mut instruments, mut trace) = (Instruments::none(), None);
        if self.configuration.has(Instrument::Count) {
            instruments = instruments.with_counts();
        }
        if self.configuration.has(Instrument::Mem) {
            let path = results.trace_path(interval.number);
            let (file, sink) = TraceInProgress::create(path, interval.number)?;
            instruments = instruments.with_memory_trace(sink);
            trace = Some(file);
        }
        let replayed = self.replay_with(interval, recorded, how, instruments, running)?;
        Ok((replayed, trace))
    }

    /// A page fault that hardware may have taken for a translation that it remembered, if that explains why the
    /// interval diverges.
    fn find_fault(
        &self,
        interval: &Interval,
        recorded: &Arc<dyn CheckpointSource>,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Result<Option<(u64, SpuriousFault)>> {
        if self.source.note.accel != Accelerator::Kvm {
            return Ok(None);
        }
        let fresh = || -> Result<_> {
            let (engine, ram) = self.engine(interval, recorded, Mode::Blocks)?;
            running(engine.kick_handle());
            Ok((engine, ram))
        };
        find_spurious_fault(fresh, interval, &**recorded, &self.limits(interval))
    }

    /// Replays an interval in its own RAM, which is filled as it is touched and gone afterwards.
    pub(crate) fn replay(
        &self,
        interval: &Interval,
        recorded: &Arc<dyn CheckpointSource>,
        mode: Mode,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Result<Report> {
        let (how, none) = (
            How {
                mode,
                patience: FIRST_PATIENCE * MORE_PATIENCE,
                ..How::default()
            },
            Instruments::none(),
        );
        let replayed = self.replay_with(interval, recorded, how, none, running)?;
        Ok(replayed.report)
    }

    fn replay_with(
        &self,
        interval: &Interval,
        recorded: &Arc<dyn CheckpointSource>,
        how: How,
        instruments: Instruments,
        running: &dyn Fn(Arc<dyn Kick>),
    ) -> Result<Instrumented> {
        let (mut engine, ram) = self.engine(interval, recorded, how.mode)?;
        if how.fault_at.is_some() {
            engine.remember_translations(how.fault_at);
        }
        running(engine.kick_handle());
        let limits = Limits {
            patience: how.patience,
            ..self.limits(interval)
        };
        let (engine, recorded) = (&mut engine, &**recorded);
        Ok(replay_with(
            engine,
            &ram,
            interval,
            recorded,
            &limits,
            instruments,
        )?)
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
