//! What the simulation of an interval found, as it is stored.

use crate::exit::words;
use machine::units::Position;
use replay_log::{Desync, Event};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use tcg_sim::replay::{Divergence, RegisterDifference, ReplayError, Report};

/// The verdict on an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub(crate) enum Finding {
    /// It ends in the next checkpoint, bit for bit.
    Verified,
    /// It does not.
    Diverged(Difference),
    /// What was recorded cannot be read as it was written.
    Damaged {
        /// What, and where.
        message: String,
    },
    /// It could not be simulated.
    Failed {
        /// Why.
        message: String,
    },
}

/// How the engine executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// As it does by default.
    #[serde(rename = "blocks")]
    Blocks,
    /// One instruction a block.
    #[serde(rename = "one-instruction blocks")]
    OneInstruction,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocks => "blocks",
            Self::OneInstruction => "one-instruction blocks",
        })
    }
}

/// Where and how a simulation differs from its recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Difference {
    /// How the engine executed.
    pub(crate) mode: Mode,
    /// Since the start of the interval.
    pub(crate) after_instructions: Option<u64>,
    /// Since the start of the recording, where it counts.
    pub(crate) position: Option<String>,
    pub(crate) io_steps: u64,
    /// Hexadecimal.
    pub(crate) rip: String,
    pub(crate) expected: String,
    pub(crate) actual: String,
    /// Registers that differ at the end of the interval, if it got there.
    pub(crate) registers: Vec<Register>,
    /// Addresses of pages that differ at the end of the interval, if it got there; hexadecimal.
    pub(crate) pages: Vec<String>,
    /// The event that was next.
    pub(crate) next_event: u64,
    /// Events around it.
    pub(crate) events: Vec<LoggedEvent>,
}

/// A register that differs; values are hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Register {
    pub(crate) name: String,
    pub(crate) expected: String,
    pub(crate) actual: String,
}

/// An event of the log, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoggedEvent {
    pub(crate) index: u64,
    pub(crate) event: String,
}

impl Difference {
    fn new(divergence: &Divergence, mode: Mode, start: Position) -> Self {
        let Divergence {
            first,
            registers,
            frames,
        } = divergence;
        let Desync {
            interval: _,
            position,
            io_steps,
            rip,
            expected,
            actual,
            next_event,
            events,
        } = &**first;
        let steps = position.map(|position| position.steps.0.saturating_sub(start.steps.0));
        Self {
            mode,
            after_instructions: steps,
            position: position.map(|position| position.to_string()),
            io_steps: io_steps.0,
            rip: format!("{rip:#x}"),
            expected: expected.to_string(),
            actual: actual.to_string(),
            registers: registers.iter().map(Register::from).collect(),
            pages: frames.iter().map(|gfn| gfn.base().to_string()).collect(),
            next_event: *next_event as u64,
            events: events.iter().map(LoggedEvent::from).collect(),
        }
    }
}

impl From<&(usize, Event)> for LoggedEvent {
    fn from((index, event): &(usize, Event)) -> Self {
        Self {
            index: *index as u64,
            event: event.to_string(),
        }
    }
}

impl From<&RegisterDifference> for Register {
    fn from(difference: &RegisterDifference) -> Self {
        let RegisterDifference {
            name,
            expected,
            actual,
        } = difference;
        Self {
            name: name.clone(),
            expected: format!("{expected:#x}"),
            actual: format!("{actual:#x}"),
        }
    }
}

impl Finding {
    /// What a replay came to.
    pub(crate) fn of(report: &Report, mode: Mode, start: Position) -> Self {
        match &report.outcome {
            tcg_sim::replay::Outcome::Verified => Self::Verified,
            tcg_sim::replay::Outcome::Diverged(divergence) => {
                Self::Diverged(Difference::new(divergence, mode, start))
            }
        }
    }

    /// What an error means: damage of the recording, or a failure.
    pub(crate) fn of_error(error: &anyhow::Error) -> Self {
        let message = words(error);
        match error.chain().any(is_damage) {
            true => Self::Damaged { message },
            false => Self::Failed { message },
        }
    }

    /// Whether the interval is proven.
    pub(crate) fn is_verified(&self) -> bool {
        *self == Self::Verified
    }
}

fn is_damage(cause: &(dyn Error + 'static)) -> bool {
    let store = cause.downcast_ref::<checkpoint_dedup::Error>();
    let replay = cause.downcast_ref::<ReplayError>();
    store.is_some_and(checkpoint_dedup::Error::is_damage)
        || cause.is::<machine::saved::DecodeError>()
        || cause.is::<machine::saved::InvalidSaved>()
        || cause.is::<crate::recording::MomentError>()
        || matches!(
            replay,
            Some(ReplayError::Log { .. } | ReplayError::OtherInterval { .. })
        )
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.after_instructions {
            Some(instructions) => write!(f, "after {instructions} instructions")?,
            None => write!(f, "after {} I/O steps", self.io_steps)?,
        }
        write!(
            f,
            " at RIP {}: expected {}, found {}",
            self.rip, self.expected, self.actual
        )?;
        if self.mode == Mode::OneInstruction {
            write!(f, " (in {})", self.mode)?;
        }
        writeln!(f)?;
        for register in &self.registers {
            let Register {
                name,
                expected,
                actual,
            } = register;
            writeln!(f, "    {name:<14} expected {expected}, found {actual}")?;
        }
        if !self.pages.is_empty() {
            let shown = &self.pages[..self.pages.len().min(8)];
            let more = self.pages.len() - shown.len();
            write!(f, "    pages that differ: {}", shown.join(", "))?;
            match more {
                0 => writeln!(f)?,
                more => writeln!(f, " and {more} more")?,
            }
        }
        for LoggedEvent { index, event } in &self.events {
            let mark = if *index == self.next_event { '>' } else { ' ' };
            writeln!(f, "  {mark} event {index}: {event}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified => f.write_str("verified"),
            Self::Diverged(difference) => write!(f, "diverged {difference}"),
            Self::Damaged { message } => write!(f, "damaged: {message}"),
            Self::Failed { message } => write!(f, "failed: {message}"),
        }
    }
}
