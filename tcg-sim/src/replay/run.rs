//! The events of an interval in order.

use super::choice::{Choice, Choices};
use super::place::with_resume_flag;
use super::tables::is_table;
use super::vcpu::Arrived;
use super::verify::end_state;
use super::{Divergence, Interval, Limits, Outcome, ReplayError, ReplayVcpu, Report, SearchCounts};
use machine::checkpoint::CheckpointSource;
use machine::ram::Ram;
use machine::state::Activity;
use machine::units::{GuestPhys, PAGE_BYTES, Position, Steps};
use machine::vcpu::{Exit, VcpuError};
use replay_log::{
    Async, Check, Content, Desync, Effect, Event, EventPosition, IoSteps, Observation,
    PositionKind, Read, ReadSource,
};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// How far the log has been replayed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// Index of the next event.
    pub(super) next: usize,
    /// I/O steps completed.
    pub(super) io_steps: IoSteps,
    /// Asynchronous events applied.
    applied: usize,
    /// Where the last event was.
    since: Steps,
}

/// Why the way that was taken ends.
pub(super) enum Stop {
    /// It differs from the recording.
    Diverged(Divergence),
    /// It cannot be gone on.
    Error(ReplayError),
}

impl<E: Into<ReplayError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

pub(super) type Way<T> = Result<T, Stop>;

/// What one entry of the vCPU came to, for whoever waits for a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// An I/O step has completed.
    Io,
    /// The interrupt window is open.
    Window,
    /// The bound was reached.
    Bound,
    /// The vCPU is in shutdown.
    Shutdown,
    /// Nothing to tell.
    Nothing,
}

/// A replay in progress.
pub(super) struct Run<'a, V> {
    pub(super) vcpu: &'a mut V,
    pub(super) ram: &'a Ram,
    pub(super) interval: &'a Interval,
    pub(super) source: &'a dyn CheckpointSource,
    pub(super) limits: &'a Limits,
    pub(super) cursor: Cursor,
    pub(super) halted: bool,
    pub(super) choices: Choices,
    pub(super) search: SearchCounts,
    resolved: Vec<Position>,
    frames_compared: u64,
    early_entries: u64,
    frozen_timestamps: u64,
    /// Number of the fact about a page that the last state did not fit.
    pub(super) suspect: usize,
    /// [`ReplayVcpu::spurious_faults`] where the replay got furthest, and at which event that was.
    furthest: (usize, u64),
    /// See [`Run::find_bound`].
    bound: (Range<usize>, Position),
}

impl<'a, V: ReplayVcpu> Run<'a, V> {
    pub(super) fn new(
        vcpu: &'a mut V,
        ram: &'a Ram,
        interval: &'a Interval,
        source: &'a dyn CheckpointSource,
        limits: &'a Limits,
    ) -> Result<Self, ReplayError> {
        vcpu.load(&interval.start.cpu, interval.start_position())?;
        Ok(Self {
            vcpu,
            ram,
            interval,
            source,
            limits,
            cursor: Cursor {
                next: 0,
                io_steps: IoSteps(0),
                applied: 0,
                since: interval.start_position().steps,
            },
            halted: interval.start.cpu.activity == Activity::Halted,
            choices: Choices::default(),
            search: SearchCounts::default(),
            resolved: Vec::new(),
            frames_compared: 0,
            early_entries: 0,
            frozen_timestamps: 0,
            suspect: 0,
            furthest: (0, 0),
            bound: (0..0, Position::default()),
        })
    }

    /// Replays to a verdict. Of several ways that all differ, the one that got furthest is reported.
    pub(super) fn finish(mut self) -> Result<Report, ReplayError> {
        let mut furthest: Option<Divergence> = None;
        let mut way = self.go_on();
        loop {
            match way {
                Ok(()) => return self.report(Outcome::Verified),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Diverged(divergence)) => {
                    if self.is_cancelled() {
                        return Err(ReplayError::Cancelled);
                    }
                    let reached = divergence.first.next_event;
                    if furthest
                        .as_ref()
                        .is_none_or(|known| known.first.next_event < reached)
                    {
                        furthest = Some(divergence);
                    }
                }
            }
            let lost_from = self.position()?.steps;
            let another = self.search.backtracks < self.limits.max_backtracks
                && self.search.lost_steps < self.limits.max_lost_steps;
            let choice = match another {
                true => self.choices.pop(self.ram, self.vcpu)?,
                false => None,
            };
            if let Some(choice) = &choice {
                let lost = lost_from.0.saturating_sub(choice.position.steps.0);
                self.search.lost_steps = self.search.lost_steps.saturating_add(lost);
            }
            way = match choice {
                Some(choice) => self.go_on_from(choice),
                None => {
                    let divergence = furthest.expect("only a divergence leads here");
                    return self.report(Outcome::Diverged(divergence));
                }
            };
        }
    }

    fn report(self, outcome: Outcome) -> Result<Report, ReplayError> {
        let position = self.position()?;
        let start = self.interval.start_position();
        Ok(Report {
            outcome,
            steps: Steps(position.steps.0.saturating_sub(start.steps.0)),
            frames_compared: self.frames_compared,
            early_entries: self.early_entries,
            frozen_timestamps: self.frozen_timestamps,
            met_furthest: self.furthest.1,
            resolved: self.resolved,
            search: self.search,
        })
    }

    /// The next state that fits the landmark at which `choice` was made, and on from there.
    fn go_on_from(&mut self, choice: Choice) -> Way<()> {
        self.search.backtracks += 1;
        self.restore(&choice)?;
        let interval = self.interval;
        match interval.segment.events.get(self.cursor.next) {
            Some(Event::Async(event)) => {
                self.match_again(&event.at, &event.check)?;
                self.apply(event)?;
                self.go_on()
            }
            Some(Event::Read(_)) => unreachable!("choices are made for asynchronous events"),
            None => {
                let end = interval.segment.end.as_ref();
                let end = end.expect("a choice was made for the end");
                self.match_again(&end.at, &end.check)?;
                self.verify()
            }
        }
    }

    /// Goes back to a state whose RAM is there again.
    pub(super) fn restore(&mut self, choice: &Choice) -> Result<(), VcpuError> {
        self.vcpu.request_interrupt_window(false);
        self.vcpu.rewind(&choice.cpu, choice.position)?;
        self.cursor = choice.cursor;
        self.halted = choice.cpu.activity == Activity::Halted;
        self.resolved.truncate(self.cursor.applied);
        Ok(())
    }

    fn match_again(&mut self, at: &EventPosition, check: &Check) -> Way<()> {
        let EventPosition::Landmark(landmark) = at else {
            unreachable!("choices are made at landmarks");
        };
        self.next_match(landmark, check)?;
        self.check(check)
    }

    /// Replays from here to the end of the interval.
    fn go_on(&mut self) -> Way<()> {
        let interval = self.interval;
        while let Some(event) = interval.segment.events.get(self.cursor.next) {
            self.run_through(event)?;
        }
        let Some(end) = &interval.segment.end else {
            let here = Observation::Position(self.position()?);
            return Err(self.diverged(Observation::LogEnds, here));
        };
        self.run_to(&end.at, &end.check)?;
        self.check_end()
    }

    fn run_through(&mut self, event: &Event) -> Way<()> {
        match event {
            Event::Read(read) => self.run_to_read(read),
            Event::Async(event) => {
                self.run_to(&event.at, &event.check)?;
                self.check(&event.check)?;
                self.apply(event)
            }
        }
    }

    /// Replays up to `goal`, before what happens there, or to the end if that is not behind it: then
    /// true, and [`Run::check_end`] is what is left to do.
    pub(super) fn run_until(&mut self, goal: Position) -> Way<bool> {
        let interval = self.interval;
        loop {
            let place = self.event_bound();
            let next = interval.segment.events.get(self.cursor.next);
            let at_end = self.bound.0.end > interval.segment.events.len();
            match (next, &interval.segment.end) {
                (Some(event), _) if place < goal => self.run_through(event)?,
                (None, Some(end)) if place <= goal => {
                    self.run_to(&end.at, &end.check)?;
                    return Ok(true);
                }
                (Some(event), Some(_)) if at_end && place <= goal => self.run_through(event)?,
                _ => return self.run_to_count(goal).map(|()| false),
            }
        }
    }

    /// The end of the interval, where it is known, else the step limit.
    pub(super) fn last_position(&self) -> Position {
        self.find_bound(self.interval.segment.events.len()).1
    }

    /// Compares the state here, at the end of the interval, with the recording.
    pub(super) fn check_end(&mut self) -> Way<()> {
        if let Some(end) = &self.interval.segment.end {
            self.check(&end.check)?;
        }
        self.verify()
    }

    fn run_to_read(&mut self, read: &Read) -> Way<()> {
        let before = self.cursor.next;
        while self.cursor.next == before {
            let expected = Observation::Read(read.source);
            match self.enter_bounded()? {
                Progress::Bound => {
                    let here = Observation::Position(self.position()?);
                    return Err(self.diverged(expected, here));
                }
                Progress::Shutdown => return Err(self.diverged(expected, Observation::Shutdown)),
                Progress::Io | Progress::Window | Progress::Nothing => {}
            }
        }
        Ok(())
    }

    /// Runs until something happens, at most to [`Run::bound`].
    pub(super) fn enter_bounded(&mut self) -> Way<Progress> {
        let bound = self.bound();
        let progress = self.enter(bound)?;
        if progress == Progress::Bound {
            self.note_bound(bound);
        }
        Ok(progress)
    }

    /// Runs until something happens, at most to `bound`.
    pub(super) fn enter(&mut self, bound: Position) -> Way<Progress> {
        if self.halted {
            let expected = self.expected();
            return Err(self.diverged(expected, Observation::Halted));
        }
        match self.run_watched(None, bound)? {
            Arrived::Exit(exit) => self.handle(exit),
            Arrived::Here => unreachable!("no state was looked for"),
        }
    }

    pub(super) fn handle(&mut self, exit: Exit) -> Way<Progress> {
        let source = match exit {
            Exit::PortRead { port, size } => ReadSource::Port { port, size },
            Exit::MmioRead { address, size } => ReadSource::Mmio { address, size },
            Exit::TimestampRead if !self.next_is_timestamp() => {
                self.unrecorded_timestamp()?;
                return Ok(Progress::Nothing);
            }
            Exit::TimestampRead => ReadSource::Timestamp,
            Exit::PortWrite { .. } | Exit::MmioWrite { .. } => {
                self.cursor.io_steps.0 += 1;
                return Ok(Progress::Io);
            }
            Exit::Halt => return Ok(self.halt()),
            Exit::InterruptWindow | Exit::Reached if self.is_halted()? => {
                return Ok(self.halt());
            }
            Exit::InterruptWindow => return Ok(Progress::Window),
            Exit::Reached => return Ok(Progress::Bound),
            Exit::Shutdown => return Ok(Progress::Shutdown),
            Exit::Kicked if self.is_cancelled() => return Err(ReplayError::Cancelled.into()),
            Exit::Kicked => return Ok(Progress::Nothing),
        };
        self.read(source)?;
        Ok(Progress::Io)
    }

    fn is_cancelled(&self) -> bool {
        let cancel = self.limits.cancel.as_ref();
        cancel.is_some_and(|cancel| cancel.load(Ordering::Acquire))
    }

    fn next_is_timestamp(&self) -> bool {
        let next = self.interval.segment.events.get(self.cursor.next);
        matches!(next, Some(Event::Read(read)) if read.source == ReadSource::Timestamp)
            || !self.recorded_without_counts()
    }

    /// A read of the time stamp counter that hardware answered unseen: with the number at which it stood
    /// still, or nobody knows with what.
    pub(super) fn unrecorded_timestamp(&mut self) -> Way<()> {
        if let Some(frozen) = self.interval.frozen_tsc {
            self.vcpu.complete_read(frozen)?;
            self.frozen_timestamps += 1;
            return Ok(());
        }
        let position = self.vcpu.position();
        // Any value: this way is given up.
        self.vcpu.complete_read(0)?;
        let cpu = self.vcpu.save()?;
        let (cpl, cr3) = (cpu.cpl(), cpu.cr3);
        let expected = self.expected();
        let found = Observation::UnrecordedTimestamp { cpl, cr3 };
        let Stop::Diverged(mut divergence) = self.diverged(expected, found) else {
            unreachable!("nothing waits, so RIP is known");
        };
        divergence.first.position = position;
        Err(Stop::Diverged(divergence))
    }

    /// HLT has retired, which is an I/O step whatever exit said so.
    fn halt(&mut self) -> Progress {
        self.cursor.io_steps.0 += 1;
        self.halted = true;
        Progress::Io
    }

    pub(super) fn is_halted(&mut self) -> Result<bool, VcpuError> {
        Ok(self.vcpu.save()?.activity == Activity::Halted)
    }

    /// Answers a read from the log.
    fn read(&mut self, source: ReadSource) -> Way<()> {
        let read = match self.interval.segment.events.get(self.cursor.next) {
            Some(Event::Read(read)) if read.source == source => *read,
            _ => {
                let expected = self.expected();
                return Err(self.diverged_in_read(expected, Observation::Read(source)));
            }
        };
        self.vcpu.complete_read(read.value)?;
        self.cursor.io_steps.0 += 1;
        let rip = self.vcpu.rip()?;
        if rip != read.rip {
            return Err(self.register("RIP", read.rip, rip));
        }
        self.cursor.next += 1;
        self.cursor.since = self.position()?.steps;
        Ok(())
    }

    /// Does what happened to the guest here.
    fn apply(&mut self, event: &Async) -> Way<()> {
        let here = self.position()?;
        self.resolved.push(here);
        self.cursor.since = here.steps;
        if self.cursor.next >= self.furthest.0 {
            self.furthest = (self.cursor.next, self.vcpu.spurious_faults().0);
        }
        match &event.effect {
            Effect::Interrupt(vector) => {
                if !self.vcpu.interrupt_window_open() {
                    let expected = Observation::Window { open: true };
                    return Err(self.diverged(expected, Observation::Window { open: false }));
                }
                self.vcpu.inject_interrupt(*vector)?;
                self.halted = false;
            }
            Effect::Write { to, content } => self.device_write(*to, content)?,
        }
        self.cursor.next += 1;
        self.cursor.applied += 1;
        Ok(())
    }

    fn device_write(&mut self, to: GuestPhys, content: &Content) -> Result<(), ReplayError> {
        match content {
            Content::Inline(bytes) => self.ram.write(to, bytes)?,
            Content::Page { id, offset, bytes } => {
                let mut page = [0; PAGE_BYTES as usize];
                self.source.content(&id.0, &mut page)?;
                let start = usize::from(*offset);
                let end = start + usize::from(*bytes);
                self.ram.write(to, &page[start..end.min(page.len())])?;
            }
        }
        self.vcpu.ram_written(to, content.bytes());
        Ok(())
    }

    fn verify(&mut self) -> Way<()> {
        self.resolved.push(self.position()?);
        let written = self.choices.written(self.ram);
        let cpu = self.vcpu.save()?;
        let by_hardware = self.recorded_without_counts();
        let (vcpu, ram) = (&*self.vcpu, self.ram);
        let is_table = |gfn| Ok(by_hardware && is_table(vcpu, ram, gfn)?);
        let difference = end_state(self.interval, ram, self.source, (&cpu, written), is_table)?;
        self.frames_compared = difference.frames_compared;
        self.early_entries = difference.early_entries;
        match difference.first {
            None => Ok(()),
            Some((expected, actual)) => {
                let Stop::Diverged(mut divergence) = self.diverged(expected, actual) else {
                    unreachable!("diverged() makes a divergence");
                };
                divergence.registers = difference.registers;
                divergence.frames = difference.frames;
                Err(Stop::Diverged(divergence))
            }
        }
    }

    /// Compares the registers with those the recorder saw here.
    fn check(&mut self, check: &Check) -> Way<()> {
        let cpu = self.vcpu.save()?;
        let mut found = Check::of(&cpu);
        if found != *check && self.recorded_without_counts() {
            let other = with_resume_flag(&cpu, !cpu.rflags);
            if Check::of(&other) == *check {
                // From here on the guest that was recorded had this flag, and an interrupt pushes it.
                self.vcpu.rewind(&other, self.position()?)?;
                found = *check;
            }
        }
        if found.rip != check.rip {
            return Err(self.register("RIP", check.rip, found.rip));
        }
        if found.rcx != check.rcx {
            return Err(self.register("RCX", check.rcx, found.rcx));
        }
        if found.registers != check.registers {
            let expected = Observation::RegisterHash(check.registers);
            return Err(self.diverged(expected, Observation::RegisterHash(found.registers)));
        }
        Ok(())
    }

    /// Whether the recording has landmarks, exact positions may have been found for which meanwhile.
    pub(super) fn recorded_without_counts(&self) -> bool {
        self.interval.start.position.is_none()
    }

    fn register(&mut self, name: &str, expected: u64, actual: u64) -> Stop {
        let observation = |value| Observation::Register {
            name: name.into(),
            value: u128::from(value),
        };
        self.diverged(observation(expected), observation(actual))
    }

    /// What the recording has next.
    pub(super) fn expected(&self) -> Observation {
        match self.interval.segment.events.get(self.cursor.next) {
            Some(Event::Read(read)) => Observation::Read(read.source),
            Some(Event::Async(event)) => Observation::Place(event.at.clone()),
            None => match &self.interval.segment.end {
                Some(end) => Observation::Place(end.at.clone()),
                None => Observation::LogEnds,
            },
        }
    }

    pub(super) fn diverged(&mut self, expected: Observation, actual: Observation) -> Stop {
        match self.vcpu.rip() {
            Ok(rip) => self.divergence(rip, expected, actual),
            Err(error) => error.into(),
        }
    }

    /// As [`Run::diverged`], while a read waits for its value: that has to be completed before the
    /// vCPU tells where it is, with any value, as this way is given up.
    fn diverged_in_read(&mut self, expected: Observation, actual: Observation) -> Stop {
        let position = self.vcpu.position();
        if let Err(error) = self.vcpu.complete_read(0) {
            return error.into();
        }
        match self.diverged(expected, actual) {
            Stop::Diverged(mut divergence) => {
                divergence.first.position = position;
                Stop::Diverged(divergence)
            }
            stop => stop,
        }
    }

    fn divergence(&self, rip: u64, expected: Observation, actual: Observation) -> Stop {
        Stop::Diverged(Divergence {
            first: Box::new(Desync {
                interval: self.interval.number,
                position: self.vcpu.position(),
                io_steps: self.cursor.io_steps,
                rip,
                expected,
                actual,
                next_event: self.cursor.next,
                events: Desync::context(&self.interval.segment.events, self.cursor.next),
            }),
            registers: Vec::new(),
            frames: Vec::new(),
        })
    }

    pub(super) fn position(&self) -> Result<Position, VcpuError> {
        self.vcpu
            .position()
            .ok_or(VcpuError::Protocol("replay needs a vCPU that counts"))
    }

    /// The guest has no business beyond this: [`Run::event_bound`], or nearer where patience ends.
    pub(super) fn bound(&mut self) -> Position {
        let bound = self.event_bound();
        match self.interval.segment.header.positions {
            PositionKind::Count { .. } => bound,
            PositionKind::Landmark => {
                let since = self.cursor.since.0;
                bound.min(Position::at(since.saturating_add(self.limits.patience)))
            }
        }
    }

    /// This bound of [`Run::bound`] was reached.
    pub(super) fn note_bound(&mut self, bound: Position) {
        self.search.impatient += u64::from(bound < self.event_bound());
    }

    /// Where the next asynchronous event, or the end, is known to be, or else the step limit.
    fn event_bound(&mut self) -> Position {
        let next = self.cursor.next;
        if !self.bound.0.contains(&next) {
            self.bound = self.find_bound(next);
        }
        self.bound.1
    }

    /// The bound, and for which next events it holds: those up to the one that gives it are reads.
    fn find_bound(&self, next: usize) -> (Range<usize>, Position) {
        let segment = &self.interval.segment;
        let rest = segment.events.iter().enumerate().skip(next);
        let event = rest.into_iter().find_map(|(index, event)| match event {
            Event::Async(event) => Some((index, &event.at)),
            Event::Read(_) => None,
        });
        let end = segment.end.as_ref();
        let end = end.map(|end| (segment.events.len(), &end.at));
        match event.or(end) {
            Some((index, EventPosition::Count(position))) => (next..index + 1, *position),
            known => {
                let index = known.map_or(segment.events.len(), |(index, _)| index);
                let start = self.interval.start_position().steps.0;
                let limit = Position::at(start.saturating_add(self.limits.max_steps));
                (next..index + 1, limit)
            }
        }
    }
}
