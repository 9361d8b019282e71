//! When the loop gets control back: virtual time, the ends of intervals, deadlines, kicks.

use super::{Kicks, Length, Options, Positions, RecordError};
use crate::alarm::Alarm;
use crate::control::Control;
use machine::clock::{Idle, Moment, RunLimit, VirtualClock};
use machine::units::{HostNanos, Position, Steps, VirtualNanos};
use machine::vcpu::Vcpu;
use std::time::{Duration, Instant};

/// How soon a kick comes again that found a place where nothing can be logged. Twice as late each time in
/// a row, up to this many times: entering the guest may take a host longer than this.
const RETRY: Duration = Duration::from_micros(20);
const MAX_DOUBLINGS: u32 = 9;

/// A guest that was woken from HLT mostly halts again before this many steps: until then no alarm is
/// set, whose thread would be woken for nothing, and the guest's devices look at the time at its next
/// exit or after these steps.
const SHORT_STEPS: u64 = 100_000;

/// A guest that has done nothing but halt again this often sleeps longer than to its next deadline: each
/// waking costs its host as much as several periods of a timer do in a row. What it slept through
/// then happens one after the other, each at its own virtual time, as if the guest had been a little slow.
const SLEEPY: [(u32, Duration); 2] = [
    (250, Duration::from_millis(12)),
    (32, Duration::from_millis(4)),
];

/// Most virtual time that a halted guest makes up for: beyond, the host has stood still and not slept.
const MAX_CATCH_UP: Duration = Duration::from_secs(1);

/// How many steps later, where steps count.
const RETRY_STEPS: u64 = 1;

/// Refuses options that a vCPU without counts cannot fulfil.
pub(super) fn check_without_counts(options: &Options) -> Result<(), RecordError> {
    let in_steps = |length: Option<Length>| matches!(length, Some(Length::Steps(_)));
    let random = matches!(options.positions, Positions::Landmark(Kicks::Random { .. }));
    let need = match options {
        Options {
            positions: Positions::Count,
            ..
        } => "exact positions",
        Options {
            clock: VirtualClock::Insn(_),
            ..
        } => "the instruction clock",
        _ if random => "random kicks",
        _ if in_steps(Some(options.interval)) || in_steps(options.stop_after) => {
            "lengths in instructions"
        }
        _ => return Ok(()),
    };
    Err(RecordError::DoesNotCount(need))
}

/// Where the interval, or the recording, ends.
#[derive(Clone, Copy)]
enum Goal {
    Steps(Steps),
    Time(VirtualNanos),
}

impl Goal {
    fn after(length: Length, time: VirtualNanos, steps: Steps) -> Self {
        match length {
            Length::Steps(n) => Self::Steps(Steps(steps.0.saturating_add(n.max(1)))),
            Length::Time(t) => Self::Time(VirtualNanos(time.0.saturating_add(t.0.max(1)))),
        }
    }

    fn is_reached(self, time: VirtualNanos, steps: Steps) -> bool {
        match self {
            Self::Steps(goal) => steps >= goal,
            Self::Time(goal) => time >= goal,
        }
    }

    fn time(self) -> Option<VirtualNanos> {
        match self {
            Self::Steps(_) => None,
            Self::Time(goal) => Some(goal),
        }
    }
}

/// Random numbers for kicks (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

struct Lateness {
    random: Random,
    steps: u64,
}

pub(super) struct Pace {
    clock: VirtualClock,
    started: Instant,
    alarm: Option<Alarm>,
    lateness: Option<Lateness>,
    interval: Length,
    interval_end: Goal,
    end: Option<Goal>,
    /// The last boundary was no place for an event: look again soon.
    retrying: bool,
    /// How often in a row.
    retries: u32,
    /// Stops by position need no landmarks.
    counts: bool,
    /// The guest was woken from HLT; no alarm is set before this step.
    no_alarm_before: Steps,
    /// How often in a row the guest halted again soon.
    naps: u32,
    /// Virtual time stands here for as long as the guest only does what it was woken for.
    held: Option<VirtualNanos>,
}

fn steps(position: Option<Position>) -> Steps {
    position.unwrap_or_default().steps
}

impl Pace {
    pub(super) fn start(options: &Options, vcpu: &impl Vcpu) -> Result<Self, RecordError> {
        let alarm = match options.clock {
            VirtualClock::Insn(_) => None,
            VirtualClock::Host(_) => {
                Some(Alarm::start(vcpu.kick_handle()).map_err(RecordError::Thread)?)
            }
        };
        let lateness = match options.positions {
            Positions::Landmark(Kicks::Random {
                seed,
                late_by_steps,
            }) => Some(Lateness {
                random: Random(seed),
                steps: late_by_steps,
            }),
            _ => None,
        };
        let mut this = Self {
            clock: options.clock.clone(),
            started: Instant::now(),
            alarm,
            lateness,
            interval: options.interval,
            interval_end: Goal::Steps(Steps(0)),
            end: None,
            retrying: false,
            retries: 0,
            counts: options.positions == Positions::Count,
            no_alarm_before: Steps(0),
            naps: 0,
            held: None,
        };
        let position = vcpu.position();
        let now = this.now(position);
        this.end = options
            .stop_after
            .map(|length| Goal::after(length, now, steps(position)));
        Ok(this)
    }

    fn moment(&self, position: Option<Position>) -> Moment {
        Moment {
            steps: steps(position),
            host: HostNanos(self.started.elapsed().as_nanos() as u64),
        }
    }

    pub(super) fn now(&self, position: Option<Position>) -> VirtualNanos {
        let now = self.clock.now(self.moment(position));
        self.held.map_or(now, |held| held.min(now))
    }

    pub(super) fn pause(&mut self, position: Option<Position>) {
        let moment = self.moment(position);
        self.clock.pause(moment);
    }

    pub(super) fn resume(&mut self, position: Option<Position>) {
        let moment = self.moment(position);
        self.clock.resume(moment);
    }

    pub(super) fn interval_starts(&mut self, time: VirtualNanos, position: Option<Position>) {
        self.interval_end = Goal::after(self.interval, time, steps(position));
    }

    pub(super) fn interval_is_over(&self, now: VirtualNanos, position: Option<Position>) -> bool {
        self.interval_end.is_reached(now, steps(position))
    }

    pub(super) fn is_over(&self, now: VirtualNanos, position: Option<Position>) -> bool {
        self.end
            .is_some_and(|end| end.is_reached(now, steps(position)))
    }

    /// Nothing could be logged where the vCPU stands: it is to come back soon.
    pub(super) fn retry(&mut self) {
        self.retrying = true;
    }

    /// The position to stop at for the next of: a device's deadline, the end of the interval, the
    /// end of the recording. Sets the alarm for those that are a matter of host time.
    pub(super) fn next_stop(
        &mut self,
        deadline: Option<VirtualNanos>,
        position: Option<Position>,
    ) -> Option<Position> {
        if std::mem::take(&mut self.retrying) {
            let delay = RETRY * (1 << self.retries.min(MAX_DOUBLINGS));
            self.retries += 1;
            self.set_alarm(Some(Instant::now() + delay));
            return position.map(|at| Position::at(at.steps.0 + RETRY_STEPS));
        }
        self.retries = 0;
        let goals = [Some(self.interval_end), self.end];
        let by_steps = goals.into_iter().flatten().filter_map(|goal| match goal {
            Goal::Steps(steps) => Some(steps),
            Goal::Time(_) => None,
        });
        let limit = self.clock.run_limit(self.with_goals(deadline));
        let by_time = match limit {
            RunLimit::Steps(steps) => Some(steps),
            RunLimit::Host(_) | RunLimit::Unlimited => None,
        };
        let short = self.counts && steps(position) < self.no_alarm_before;
        if !short {
            self.held = None;
        }
        let by_halting = match limit {
            RunLimit::Host(_) if short => Some(self.no_alarm_before),
            _ => None,
        };
        self.set_alarm(match limit {
            RunLimit::Host(_) if by_halting.is_some() => None,
            RunLimit::Host(host) => self.started.checked_add(Duration::from_nanos(host.0)),
            RunLimit::Steps(_) | RunLimit::Unlimited => None,
        });
        let stop = by_steps.chain(by_time).chain(by_halting).min()?;
        Some(self.late(stop))
    }

    /// The earlier of a deadline and the goals that are given in time.
    fn with_goals(&self, deadline: Option<VirtualNanos>) -> Option<VirtualNanos> {
        let goals = [self.interval_end.time(), self.end.and_then(Goal::time)];
        deadline
            .into_iter()
            .chain(goals.into_iter().flatten())
            .min()
    }

    fn late(&mut self, stop: Steps) -> Position {
        let Some(lateness) = &mut self.lateness else {
            return Position::at(stop.0);
        };
        let late = lateness.random.next() % lateness.steps.saturating_add(1).max(1);
        // Now and then inside a REP string instruction, if one is in progress there.
        let inside = lateness.random.next();
        Position {
            rep_iterations: if inside & 3 == 0 { inside >> 2 & 7 } else { 0 },
            ..Position::at(stop.0.saturating_add(late))
        }
    }

    fn set_alarm(&self, due: Option<Instant>) {
        if let Some(alarm) = &self.alarm {
            alarm.set(due);
        }
    }

    /// Lets the time pass in which a halted guest waits: until the deadline, the end of the interval
    /// or of the recording, or until there is news.
    pub(super) fn idle(
        &mut self,
        deadline: Option<VirtualNanos>,
        position: Option<Position>,
        control: &Control,
    ) {
        let napped = self.counts && steps(position) < self.no_alarm_before;
        self.naps = if napped { self.naps + 1 } else { 0 };
        self.no_alarm_before = Steps(steps(position).0.saturating_add(SHORT_STEPS));
        let moment = self.moment(position);
        let until = match (&self.clock, deadline) {
            // Nothing but input makes time pass, so do not run ahead of it.
            (VirtualClock::Insn(_), None) => None,
            _ => self.with_goals(deadline),
        };
        self.held = None;
        match self.clock.idle(until, moment) {
            Idle::Jumped => {}
            Idle::SleepUntil(host) => {
                let sleepy = self.sleep(host, control);
                self.held = until.filter(|until| {
                    let late = self.clock.now(self.moment(position)).0.checked_sub(until.0);
                    sleepy && late.is_some_and(|late| u128::from(late) < MAX_CATCH_UP.as_nanos())
                });
            }
            Idle::UntilInput => control.wait(None),
        }
    }

    /// Sleeps until then, or longer if the guest is sleepy. Returns whether it is.
    fn sleep(&mut self, until: HostNanos, control: &Control) -> bool {
        let sleepy = SLEEPY.iter().find(|(naps, _)| self.naps >= *naps);
        let now = self.started.elapsed().as_nanos() as u64;
        let left = Duration::from_nanos(until.0.saturating_sub(now));
        if !left.is_zero() {
            let longer = sleepy.map_or(Duration::ZERO, |(_, longer)| *longer);
            control.wait(Some(left + longer));
        }
        if control.has_input() {
            self.naps = 0;
        }
        sleepy.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::clock::HostClock;

    struct Nobody;

    impl machine::vcpu::Kick for Nobody {
        fn kick(&self) {}
    }

    fn pace() -> Pace {
        let mut clock = VirtualClock::Host(HostClock::new());
        clock.resume(Moment::default());
        Pace {
            clock,
            started: Instant::now(),
            alarm: None,
            lateness: None,
            interval: Length::Steps(u64::MAX),
            interval_end: Goal::Steps(Steps(u64::MAX)),
            end: None,
            retrying: false,
            retries: 0,
            counts: true,
            no_alarm_before: Steps(0),
            naps: 0,
            held: None,
        }
    }

    fn at(steps: u64) -> Option<Position> {
        Some(Position::at(steps))
    }

    #[test]
    fn a_guest_that_only_naps_oversleeps_and_lives_through_each_deadline() {
        let mut pace = pace();
        let control = Control::new(std::sync::Arc::new(Nobody));
        pace.idle(Some(VirtualNanos(0)), at(0), &control);
        pace.naps = SLEEPY[0].0;
        let period = Duration::from_millis(4).as_nanos() as u64;
        let first = pace.now(at(0)).0 + period;
        pace.idle(Some(VirtualNanos(first)), at(10), &control);
        assert!(pace.started.elapsed() >= Duration::from_nanos(first) + SLEEPY[0].1);
        // It slept through three periods, and wakes at the end of each.
        for deadline in (0..3).map(|n| first + n * period) {
            assert_eq!(pace.now(at(20)), VirtualNanos(deadline));
            assert_eq!(
                pace.next_stop(Some(VirtualNanos(deadline + period)), at(20)),
                at(10 + SHORT_STEPS)
            );
            assert_eq!(pace.now(at(30)), VirtualNanos(deadline));
            pace.idle(Some(VirtualNanos(deadline + period)), at(10), &control);
        }
        // With something to do it finds the time to be what it is.
        let late = pace.now(at(40));
        pace.next_stop(Some(VirtualNanos(u64::MAX)), at(10 + SHORT_STEPS));
        assert!(pace.now(at(10 + SHORT_STEPS)) > late);
    }

    #[test]
    fn a_guest_that_works_between_its_halts_sleeps_to_the_deadline() {
        let mut pace = pace();
        let control = Control::new(std::sync::Arc::new(Nobody));
        for round in 0..300 {
            pace.idle(Some(VirtualNanos(0)), at(round * SHORT_STEPS), &control);
            assert_eq!((pace.naps, pace.held), (0, None));
        }
    }

    #[test]
    fn a_woken_guest_needs_no_alarm_at_any_of_its_first_exits() {
        let mut pace = pace();
        let deadline = Some(VirtualNanos(1));
        let on_the_alarm = at(u64::MAX);
        assert_eq!(pace.next_stop(deadline, at(1_000)), on_the_alarm);
        pace.idle(
            deadline,
            at(1_000),
            &Control::new(std::sync::Arc::new(Nobody)),
        );
        let look = at(1_000 + SHORT_STEPS);
        for steps in [1_001, 1_300, 1_000 + SHORT_STEPS - 1] {
            assert_eq!(pace.next_stop(deadline, at(steps)), look, "{steps}");
        }
        assert_eq!(pace.next_stop(deadline, look), on_the_alarm);
    }
}
