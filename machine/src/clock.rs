//! Virtual time: what the devices of the guest take for time.
//!
//! Neither clock reads anything by itself: the caller says where the vCPU and the host are
//! ([`Moment`]). A recording loop uses them like this:
//!
//! 1. After each exit: `now = clock.now(moment)`, `board.advance(now)`, serve the access, inject what
//!    is pending.
//! 2. Before it runs the vCPU: [`VirtualClock::run_limit`] of `board.next_deadline()`. A limit in
//!    steps goes to [`crate::vcpu::Vcpu::run`] as the position to stop at; a limit in host time goes
//!    to a timer that kicks the vCPU.
//! 3. On HLT with nothing pending: [`VirtualClock::idle`] with the next deadline. It either has moved
//!    virtual time to the deadline, or says until when to sleep; host input ends the sleep early.
//!    Either way go on with 1.
//!
//! With the instruction clock all of that is a function of positions and of the guest, so the same
//! guest sees the same times in every run. With the host clock it is not, and need not be: what a
//! guest saw is in the log.

use crate::saved::clock::SavedClock;
use crate::saved::{InvalidSaved, require};
use crate::units::{HostNanos, Steps, VirtualNanos};
use std::num::NonZeroU64;

const NANOS: u128 = 1_000_000_000;

/// Where vCPU and host are. Each clock looks at one of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Steps completed since the guest was started; 0 for vCPUs that do not count.
    pub steps: Steps,
    /// Monotonic time of the host.
    pub host: HostNanos,
}

/// How long the vCPU may run until a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunLimit {
    /// Until this many steps are completed. Not in the future if the deadline is past.
    Steps(Steps),
    /// Until this host time.
    Host(HostNanos),
    /// No deadline.
    Unlimited,
}

/// What to do while the guest idles in HLT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Nothing: virtual time is at the deadline.
    Jumped,
    /// Sleep until this host time; host input wakes earlier.
    SleepUntil(HostNanos),
    /// Only host input can wake the guest.
    UntilInput,
}

/// Virtual time from the position: `skipped + steps / steps_per_second`, rounded down to whole
/// nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsnClock {
    steps_per_second: NonZeroU64,
    /// Idle time that was jumped over.
    skipped: VirtualNanos,
}

/// One step per nanosecond.
pub const DEFAULT_STEPS_PER_SECOND: NonZeroU64 =
    NonZeroU64::new(1_000_000_000).expect("a billion is not zero");

impl InsnClock {
    /// A clock at virtual time 0 and step 0.
    pub fn new(steps_per_second: NonZeroU64) -> Self {
        Self {
            steps_per_second,
            skipped: VirtualNanos(0),
        }
    }

    fn now(&self, steps: Steps) -> VirtualNanos {
        let ns = u128::from(steps.0) * NANOS / u128::from(self.steps_per_second.get());
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        VirtualNanos(self.skipped.0.saturating_add(ns))
    }

    /// The first step count at which [`InsnClock::now`] is at least `deadline`.
    fn steps_at(&self, deadline: VirtualNanos) -> Steps {
        let ns = u128::from(deadline.0.saturating_sub(self.skipped.0));
        let steps = (ns * u128::from(self.steps_per_second.get())).div_ceil(NANOS);
        Steps(u64::try_from(steps).unwrap_or(u64::MAX))
    }
}

/// Virtual time that runs with the host's. It stands while paused: while a checkpoint is taken, or
/// after a restore until it is resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostClock {
    /// Virtual time at `since`, or now while paused.
    base: VirtualNanos,
    /// `None` while paused.
    since: Option<HostNanos>,
}

impl HostClock {
    /// A paused clock at virtual time 0.
    pub fn new() -> Self {
        Self {
            base: VirtualNanos(0),
            since: None,
        }
    }

    fn now(&self, host: HostNanos) -> VirtualNanos {
        let elapsed = self.since.map_or(0, |since| host.0.saturating_sub(since.0));
        VirtualNanos(self.base.0.saturating_add(elapsed))
    }

    fn host_at(&self, deadline: VirtualNanos) -> Option<HostNanos> {
        let ahead = deadline.0.saturating_sub(self.base.0);
        self.since
            .map(|since| HostNanos(since.0.saturating_add(ahead)))
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Either clock. Time never runs backwards as long as moments do not, and ends (stands) after 2^64 ns,
/// 584 years.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtualClock {
    /// `--clock insn`.
    Insn(InsnClock),
    /// `--clock host`.
    Host(HostClock),
}

impl VirtualClock {
    /// Virtual time at `moment`.
    pub fn now(&self, moment: Moment) -> VirtualNanos {
        match self {
            Self::Insn(clock) => clock.now(moment.steps),
            Self::Host(clock) => clock.now(moment.host),
        }
    }

    /// How far the vCPU may run so that it does not miss `deadline`. A paused host clock never
    /// reaches one.
    pub fn run_limit(&self, deadline: Option<VirtualNanos>) -> RunLimit {
        match (self, deadline) {
            (_, None) => RunLimit::Unlimited,
            (Self::Insn(clock), Some(deadline)) => RunLimit::Steps(clock.steps_at(deadline)),
            (Self::Host(clock), Some(deadline)) => clock
                .host_at(deadline)
                .map_or(RunLimit::Unlimited, RunLimit::Host),
        }
    }

    /// The guest idles at `moment` and nothing is pending before `deadline`.
    pub fn idle(&mut self, deadline: Option<VirtualNanos>, moment: Moment) -> Idle {
        let now = self.now(moment);
        match (self, deadline) {
            (_, None) => Idle::UntilInput,
            (Self::Insn(clock), Some(deadline)) => {
                clock.skipped.0 += deadline.0.saturating_sub(now.0);
                Idle::Jumped
            }
            (Self::Host(clock), Some(deadline)) => clock
                .host_at(deadline)
                .map_or(Idle::UntilInput, Idle::SleepUntil),
        }
    }

    /// Stops virtual time. The instruction clock stands anyhow while the vCPU does.
    pub fn pause(&mut self, moment: Moment) {
        if let Self::Host(clock) = self {
            *clock = HostClock {
                base: clock.now(moment.host),
                since: None,
            };
        }
    }

    /// Lets virtual time run from where it stands. Without effect on a running clock.
    pub fn resume(&mut self, moment: Moment) {
        if let Self::Host(clock) = self {
            clock.since.get_or_insert(moment.host);
        }
    }

    /// The saved form at `moment`.
    pub fn save(&self, moment: Moment) -> SavedClock {
        match self {
            Self::Insn(InsnClock {
                steps_per_second,
                skipped,
            }) => SavedClock {
                kind: 0,
                steps_per_second: steps_per_second.get(),
                base_ns: skipped.0,
            },
            Self::Host(clock) => SavedClock {
                kind: 1,
                steps_per_second: 0,
                base_ns: clock.now(moment.host).0,
            },
        }
    }

    /// The saved clock; a host clock is paused.
    ///
    /// # Errors
    /// [`InvalidSaved`] for values no clock has.
    pub fn restore(saved: &SavedClock) -> Result<Self, InvalidSaved> {
        let base = VirtualNanos(saved.base_ns);
        match (saved.kind, NonZeroU64::new(saved.steps_per_second)) {
            (0, Some(steps_per_second)) => Ok(Self::Insn(InsnClock {
                steps_per_second,
                skipped: base,
            })),
            (kind, rate) => {
                require(kind == 1 && rate.is_none(), "clock kind or rate")?;
                Ok(Self::Host(HostClock { base, since: None }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use crate::units::{Port, Vector};
    use proptest::prelude::*;

    const CENTURY_NS: u64 = 100 * 366 * 86_400 * 1_000_000_000;

    fn steps(steps: u64) -> Moment {
        Moment {
            steps: Steps(steps),
            host: HostNanos(12_345),
        }
    }

    fn host(ns: u64) -> Moment {
        Moment {
            steps: Steps(99),
            host: HostNanos(ns),
        }
    }

    proptest! {
        #[test]
        fn the_run_limit_is_the_first_step_at_or_after_the_deadline(
            rate in 1..20_000_000_000_u64,
            at in 0..1_000_000_000_000_u64,
            ahead in 1..CENTURY_NS,
        ) {
            let mut clock = VirtualClock::Insn(InsnClock::new(NonZeroU64::new(rate).unwrap()));
            let now = clock.now(steps(at));
            let deadline = VirtualNanos(now.0.saturating_add(ahead));
            let RunLimit::Steps(limit) = clock.run_limit(Some(deadline)) else { panic!() };
            prop_assert!(limit.0 > at);
            prop_assert!(limit.0 == u64::MAX || clock.now(steps(limit.0)) >= deadline);
            prop_assert!(clock.now(steps(limit.0 - 1)) < deadline);
            prop_assert_eq!(clock.idle(Some(deadline), steps(at)), Idle::Jumped);
            prop_assert_eq!(clock.now(steps(at)), deadline);
            prop_assert!(clock.now(steps(at + 1)) >= deadline);
            let saved = clock.save(steps(at));
            prop_assert_eq!(VirtualClock::restore(&saved), Ok(clock));
        }
    }

    #[test]
    fn a_century_does_not_overflow() {
        let clock = VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND));
        assert_eq!(clock.now(steps(CENTURY_NS)), VirtualNanos(CENTURY_NS));
        let fast = VirtualClock::Insn(InsnClock::new(NonZeroU64::MAX));
        assert_eq!(
            fast.run_limit(Some(VirtualNanos(CENTURY_NS))),
            RunLimit::Steps(Steps(u64::MAX))
        );
        let slow = VirtualClock::Insn(InsnClock::new(NonZeroU64::MIN));
        assert_eq!(slow.now(steps(u64::MAX)), VirtualNanos(u64::MAX));
    }

    #[test]
    fn the_host_clock_runs_with_the_host_and_stands_while_paused() {
        let mut clock = VirtualClock::Host(HostClock::new());
        assert_eq!(clock.now(host(5_000)), VirtualNanos(0));
        assert_eq!(clock.run_limit(Some(VirtualNanos(1))), RunLimit::Unlimited);
        clock.resume(host(5_000));
        clock.resume(host(5_500));
        assert_eq!(clock.now(host(6_000)), VirtualNanos(1_000));
        let deadline = Some(VirtualNanos(3_000));
        assert_eq!(clock.run_limit(deadline), RunLimit::Host(HostNanos(8_000)));
        assert_eq!(
            clock.idle(deadline, host(6_000)),
            Idle::SleepUntil(HostNanos(8_000))
        );
        assert_eq!(clock.idle(None, host(6_000)), Idle::UntilInput);
        clock.pause(host(7_000));
        assert_eq!(clock.now(host(9_000)), VirtualNanos(2_000));
        let mut restored = VirtualClock::restore(&clock.save(host(9_000))).unwrap();
        assert_eq!(restored, clock);
        restored.resume(host(100));
        assert_eq!(restored.now(host(150)), VirtualNanos(2_050));
    }

    #[test]
    fn damaged_clocks_are_refused() {
        for (kind, steps_per_second) in [(0, 0), (1, 1), (2, 0), (2, 1)] {
            let saved = SavedClock {
                kind,
                steps_per_second,
                base_ns: 0,
            };
            assert!(VirtualClock::restore(&saved).is_err());
        }
    }

    /// The loop of the module's documentation, over a guest that programs a 250 Hz timer, halts, and
    /// spends 1,000 steps on each tick.
    #[test]
    fn an_idle_guest_gets_every_tick_at_its_exact_time() {
        let mut clock = VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND));
        let mut board = Board::new(1 << 20, 0);
        let now = VirtualNanos(0);
        for (port, value) in [(0x21, 0xfe), (0x43, 0x34), (0x40, 0xa5), (0x40, 0x12)] {
            let _ = board.port_write(Port(port), 1, value, now);
        }
        let (mut at, mut ticks) = (0, Vec::new());
        while ticks.len() < 500 {
            let now = clock.now(steps(at));
            board.advance(now);
            if let Some(vector) = board.acknowledge() {
                assert_eq!(vector, Vector(0x08));
                let _ = board.port_write(Port(0x20), 1, 0x20, now);
                ticks.push(now.0);
                at += 1_000;
            } else {
                assert_eq!(clock.idle(board.next_deadline(), steps(at)), Idle::Jumped);
            }
        }
        for (n, tick) in ticks.into_iter().enumerate() {
            let clocks = 1 + 4_773 * (n as u128 + 1);
            assert_eq!(u128::from(tick), (clocks * NANOS).div_ceil(1_193_182));
        }
    }
}
