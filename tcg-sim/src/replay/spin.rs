//! A guest that went another way may wait for ever for what does not come. If it waits in a loop that
//! changes nothing, every state of the loop has been seen: there is no use in going on.

use super::choice::Undo;
use super::run::{Run, Way};
use super::vcpu::{Arrival, Arrived, ReplayVcpu};
use machine::ram::{Before, Ram, RamError, WriteObserver};
use machine::state::CpuState;
use machine::units::{Gfn, Position};
use machine::vcpu::Exit;
use replay_log::{Observation, PositionKind};
use std::sync::Arc;

/// Steps in which nothing happens before the first look for such a loop; twice as many before each
/// further one, so that looking costs little however long the guest computes.
const FIRST_LOOK: u64 = 1 << 26;

/// Steps of the longest loop that is noticed.
const LONGEST_LOOP: u32 = 4096;

/// A look at one round of what may be a loop.
struct Lap {
    start: CpuState,
    left: u32,
    written: Arc<Written>,
}

/// Keeps the old content of pages for the lap, and for whoever wanted to keep it anyhow.
struct Written {
    lap: Undo,
    below: Option<Arc<dyn WriteObserver>>,
}

impl WriteObserver for Written {
    fn before_first_write(&self, gfn: Gfn, before: Before<'_>) {
        if let Some(below) = &self.below {
            below.before_first_write(gfn, before);
        }
        self.lap.before_first_write(gfn, before);
    }
}

impl Lap {
    /// Whether the guest is where the lap began, with everything as it was.
    fn is_closed(&self, cpu: &CpuState, ram: &Ram) -> Result<bool, RamError> {
        Ok(*cpu == self.start && self.written.lap.is_content_of(ram)?)
    }
}

impl<V: ReplayVcpu> Run<'_, V> {
    /// Runs the vCPU to the next exit, to a state with the registers of `arrival`, or to `bound`. Gives
    /// this way up if the guest runs in a loop that changes nothing.
    pub(super) fn run_watched(
        &mut self,
        arrival: Option<&Arrival>,
        bound: Position,
    ) -> Way<Arrived> {
        if let PositionKind::Count { .. } = self.interval.segment.header.positions {
            // The bound is the next event.
            return self.run_once(arrival, bound);
        }
        let mut lap = None;
        let arrived = self.run_laps(arrival, bound, &mut lap);
        if lap.is_some() {
            self.choices
                .observe(self.ram, self.vcpu, self.choices.newest());
        }
        arrived
    }

    fn run_laps(
        &mut self,
        arrival: Option<&Arrival>,
        bound: Position,
        lap: &mut Option<Lap>,
    ) -> Way<Arrived> {
        let mut pause = FIRST_LOOK;
        loop {
            let here = self.position()?;
            let until = match lap {
                None => Position::at(here.steps.0.saturating_add(pause)),
                Some(_) => Position {
                    rep_iterations: here.rep_iterations + 1,
                    ..here
                },
            };
            let arrived = self.run_once(arrival, until.min(bound))?;
            if arrived != Arrived::Exit(Exit::Reached) || self.position()? >= bound {
                return Ok(arrived);
            }
            if self.is_halted()? {
                return Ok(Arrived::Exit(Exit::Halt));
            }
            *lap = match lap.take() {
                None => Some(self.begin_lap()?),
                Some(lap) if lap.left == 0 => {
                    pause *= 2;
                    self.choices
                        .observe(self.ram, self.vcpu, self.choices.newest());
                    None
                }
                Some(lap) => Some(self.go_on_lap(lap)?),
            };
        }
    }

    fn run_once(&mut self, arrival: Option<&Arrival>, until: Position) -> Way<Arrived> {
        Ok(match arrival {
            Some(arrival) => self.vcpu.run_to_arrival(arrival, Some(until))?,
            None => Arrived::Exit(self.vcpu.run(Some(until))?),
        })
    }

    fn begin_lap(&mut self) -> Way<Lap> {
        let written = Arc::new(Written {
            lap: Undo::default(),
            below: self.choices.newest(),
        });
        self.choices
            .observe(self.ram, self.vcpu, Some(written.clone()));
        Ok(Lap {
            start: self.vcpu.save()?,
            left: LONGEST_LOOP,
            written,
        })
    }

    fn go_on_lap(&mut self, mut lap: Lap) -> Way<Lap> {
        lap.left -= 1;
        let cpu = self.vcpu.save()?;
        if lap.is_closed(&cpu, self.ram)? {
            let expected = self.expected();
            return Err(self.diverged(expected, Observation::Spins));
        }
        Ok(lap)
    }
}
