//! One window: what the devices gave in it, and its execution in other ways.

use super::difference::{Divergence, FirstDifference, Way, instruction_at};
use super::lost;
use crate::exec::{Engine, EngineOptions};
use crate::instrument::Instruments;
use crate::replay::register_differences as differences;
use machine::cpuid::CpuidTable;
use machine::ram::{Ram, RamError};
use machine::state::CpuState;
use machine::units::{Gfn, GuestPhys, Position, Vector};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::sync::Arc;

/// What was asked of the vCPU, and how it answered.
pub(super) enum Call {
    Run { exit: Exit, end: Position },
    CompleteRead(u64),
    Inject(Vector),
    RamWritten { start: GuestPhys, content: Vec<u8> },
}

/// A part of the execution.
pub(super) struct Window {
    pub(super) start: Position,
    state: CpuState,
    pub(super) calls: Vec<Call>,
}

impl Window {
    pub(super) fn at(start: Position, state: CpuState) -> Self {
        Self {
            start,
            state,
            calls: Vec::new(),
        }
    }
}

/// Instruments must not change where an engine comes to.
fn all_instruments() -> Instruments {
    Instruments::none()
        .with_counts()
        .with_memory_trace(Box::new(()))
}

/// Where another way came.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// To the end, or to where it was to stop.
    Came(Box<CpuState>),
    /// It left the devices' script.
    Strayed { at: Position, how: String },
}

/// One more engine with RAM of its own.
struct Other {
    engine: Engine,
    ram: Arc<Ram>,
    /// Frames that are not as in the origin, beside those written in this epoch.
    behind: Vec<Gfn>,
}

/// The other ways, and RAM as it was at the start of the window.
pub(super) struct Ways {
    origin: Ram,
    others: [(Way, Other); 2],
}

impl Ways {
    pub(super) fn new(
        bytes: u64,
        cpuid: &CpuidTable,
        options: &EngineOptions,
    ) -> Result<Self, VcpuError> {
        let other = |one_instruction_blocks| {
            let ram = Arc::new(Ram::new(bytes).map_err(lost)?);
            let options = EngineOptions {
                one_instruction_blocks,
                ..options.clone()
            };
            let engine = Engine::new(ram.clone(), cpuid.clone(), options)?;
            let behind = Vec::new();
            Ok::<_, VcpuError>(Other {
                engine,
                ram,
                behind,
            })
        };
        Ok(Self {
            origin: Ram::new(bytes).map_err(lost)?,
            others: [
                (Way::OneInstruction, other(true)?),
                (Way::Cold, other(false)?),
            ],
        })
    }

    pub(super) fn replace_cold(&mut self, cpuid: &CpuidTable) -> Result<(), VcpuError> {
        let [_, (_, cold)] = &mut self.others;
        cold.engine = Engine::new(cold.ram.clone(), cpuid.clone(), EngineOptions::default())?;
        Ok(())
    }

    /// Keeps RAM as it is now.
    pub(super) fn remember(&mut self, ram: &Ram) -> Result<(), RamError> {
        let mut changed = Vec::new();
        for gfn in frames(ram).filter(|gfn| differ(ram, &self.origin, *gfn)) {
            self.origin.write(gfn.base(), &ram.page(gfn))?;
            changed.push(gfn);
        }
        for (_, other) in &mut self.others {
            other.behind.extend(&changed);
        }
        Ok(())
    }

    /// Executes the window in the other ways, without and with instruments. `None`: all came to `state`
    /// and `ram`.
    pub(super) fn compare(
        &mut self,
        window: &Window,
        state: &CpuState,
        end: Position,
        ram: &Ram,
    ) -> Result<Option<Divergence>, VcpuError> {
        for instrumented in [false, true] {
            for (_, other) in &mut self.others {
                other.engine.set_instruments(match instrumented {
                    true => all_instruments(),
                    false => Instruments::none(),
                });
            }
            if let Some(found) = self.compare_once(window, state, end, ram)? {
                return Ok(Some(Divergence {
                    instrumented,
                    ..found
                }));
            }
        }
        Ok(None)
    }

    fn compare_once(
        &mut self,
        window: &Window,
        state: &CpuState,
        end: Position,
        ram: &Ram,
    ) -> Result<Option<Divergence>, VcpuError> {
        let mut same = true;
        for (_, other) in &mut self.others {
            let outcome = other.replay(&self.origin, window, None)?;
            same &= outcome == Outcome::Came(Box::new(state.clone()));
        }
        let [(_, single), (_, cold)] = &self.others;
        let wrong = |gfn: Gfn| differ(ram, &cold.ram, gfn);
        if same && single.first_difference(cold).is_none() && !frames(ram).any(wrong) {
            return Ok(None);
        }
        let first = self.bisect(window, end)?;
        let [(_, single), (_, cold)] = &mut self.others;
        // The ways stand where the bisection left them.
        let outcome = match &first {
            Some(_) => None,
            None => {
                single.replay(&self.origin, window, None)?;
                Some(cold.replay(&self.origin, window, None)?)
            }
        };
        let registers = match outcome {
            Some(Outcome::Came(other)) => differences(&other, state),
            _ => Vec::new(),
        };
        Ok(Some(Divergence {
            window: (window.start, end),
            instrumented: false,
            page: frames(ram).find_map(|gfn| first_byte_that_differs(&cold.ram, ram, gfn)),
            run_alone: first.is_none(),
            registers,
            first,
        }))
    }

    /// The first step after which the two other ways differ; `None` if they agree to the end.
    fn bisect(
        &mut self,
        window: &Window,
        end: Position,
    ) -> Result<Option<FirstDifference>, VcpuError> {
        if self.agree(window, None)? {
            return Ok(None);
        }
        // They agree at `low` and differ at `high`.
        let (mut low, mut high) = (window.start.steps.0, end.steps.0 + 1);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if self.agree(window, Some(Position::at(middle)))? {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.describe(window, low).map(Some)
    }

    fn agree(&mut self, window: &Window, stop: Option<Position>) -> Result<bool, VcpuError> {
        let [(_, single), (_, cold)] = &mut self.others;
        let outcomes = (
            single.replay(&self.origin, window, stop)?,
            cold.replay(&self.origin, window, stop)?,
        );
        Ok(outcomes.0 == outcomes.1 && single.first_difference(cold).is_none())
    }

    /// The instruction at `step`, up to which both agree, and what each makes of it.
    fn describe(&mut self, window: &Window, step: u64) -> Result<FirstDifference, VcpuError> {
        let [(_, single), (_, cold)] = &mut self.others;
        let before = match single.replay(&self.origin, window, Some(Position::at(step)))? {
            Outcome::Came(state) => *state,
            Outcome::Strayed { .. } => window.state.clone(),
        };
        let (bytes, instruction) = instruction_at(&single.ram, &before);
        let next = Some(Position::at(step + 1));
        let first = single.replay(&self.origin, window, next)?;
        let second = cold.replay(&self.origin, window, next)?;
        let (registers, strayed) = match (first, second) {
            (Outcome::Came(first), Outcome::Came(second)) => (differences(&first, &second), None),
            (Outcome::Strayed { at, how }, _) => (
                Vec::new(),
                Some(format!("{}: {how} at {at}", Way::OneInstruction)),
            ),
            (_, Outcome::Strayed { at, how }) => {
                (Vec::new(), Some(format!("{}: {how} at {at}", Way::Cold)))
            }
        };
        Ok(FirstDifference {
            step: Position::at(step),
            rip: before.rip,
            bytes,
            instruction,
            registers,
            address: single.first_difference(cold),
            strayed,
        })
    }
}

impl Other {
    /// Executes the window from its start, to its end or to the first boundary not before `stop`.
    fn replay(
        &mut self,
        origin: &Ram,
        window: &Window,
        stop: Option<Position>,
    ) -> Result<Outcome, VcpuError> {
        self.restore(origin).map_err(lost)?;
        self.engine.load(&window.state, window.start)?;
        for call in &window.calls {
            if stop.is_some_and(|stop| self.here() >= stop) {
                break;
            }
            if let Err(how) = self.follow(call, stop)? {
                return Ok(Outcome::Strayed {
                    at: self.here(),
                    how,
                });
            }
        }
        Ok(Outcome::Came(Box::new(self.engine.save()?)))
    }

    /// Makes RAM equal to the origin and starts an epoch in which only the replay writes.
    fn restore(&mut self, origin: &Ram) -> Result<(), RamError> {
        let mut frames = self.ram.dirty_frames();
        frames.append(&mut self.behind);
        for gfn in frames {
            self.ram.write(gfn.base(), &origin.page(gfn))?;
        }
        self.ram.begin_epoch(None);
        self.engine.arm_write_tracking();
        Ok(())
    }

    /// Address of the first byte in which two replays of one window differ.
    fn first_difference(&self, other: &Self) -> Option<u64> {
        let mut frames = self.ram.dirty_frames();
        frames.extend(other.ram.dirty_frames());
        frames.sort_unstable();
        frames
            .into_iter()
            .find_map(|gfn| first_byte_that_differs(&self.ram, &other.ram, gfn))
    }

    fn here(&self) -> Position {
        self.engine.position_now()
    }

    /// Does what a call did; the inner error says how that was not possible.
    fn follow(
        &mut self,
        call: &Call,
        stop: Option<Position>,
    ) -> Result<Result<(), String>, VcpuError> {
        match call {
            Call::Run { exit, end } => self.run(*exit, *end, stop),
            Call::CompleteRead(value) => {
                let done = self.engine.complete_read(*value);
                Ok(done.map_err(|error| error.to_string()))
            }
            Call::Inject(vector) => {
                let done = self.engine.inject_interrupt(*vector);
                Ok(done.map_err(|error| format!("interrupt {vector}: {error}")))
            }
            Call::RamWritten { start, content } => {
                self.ram.write(*start, content).map_err(lost)?;
                self.engine.ram_written(*start, content.len() as u64);
                Ok(Ok(()))
            }
        }
    }

    fn run(
        &mut self,
        exit: Exit,
        end: Position,
        stop: Option<Position>,
    ) -> Result<Result<(), String>, VcpuError> {
        if let Some(stop) = stop.filter(|stop| *stop <= end) {
            let found = match self.engine.run(Some(stop)) {
                Err(error @ VcpuError::Limit { .. }) => return Ok(Err(error.to_string())),
                found => found?,
            };
            let reached = self.here() == stop;
            return Ok(match reached {
                true => Ok(()),
                false => Err(format!("{found:?} instead of nothing")),
            });
        }
        let by_position = matches!(exit, Exit::Reached | Exit::Kicked | Exit::InterruptWindow);
        // An access is reported before anything behind it can be.
        let bound = match by_position {
            true => end,
            false => Position::at(end.steps.0 + 2),
        };
        let found = match self.engine.run(Some(bound)) {
            Err(error @ VcpuError::Limit { .. }) => return Ok(Err(error.to_string())),
            found => found?,
        };
        let here = self.here();
        let expected = match by_position {
            true => matches!(found, Exit::Reached | Exit::Halt),
            false => found == exit,
        };
        Ok(match expected && here == end {
            true => Ok(()),
            false => Err(format!("{found:?} at {here} instead of {exit:?} at {end}")),
        })
    }
}

fn frames(ram: &Ram) -> impl Iterator<Item = Gfn> {
    (0..ram.frames()).map(Gfn)
}

fn differ(one: &Ram, other: &Ram, gfn: Gfn) -> bool {
    one.page(gfn) != other.page(gfn)
}

/// Its address.
fn first_byte_that_differs(one: &Ram, other: &Ram, gfn: Gfn) -> Option<u64> {
    let (one, other) = (one.page(gfn), other.page(gfn));
    let offset = one.iter().zip(&other).position(|(a, b)| a != b)?;
    Some(gfn.base().0 + offset as u64)
}
