//! Finding positions.

use super::run::{Progress, Run, Way};
use super::tables::{is_same_entry, is_table};
use super::vcpu::{Arrival, Arrived, ReplayVcpu};
use machine::ram::PageBytes;
use machine::state::{CpuState, Shadow, rflags};
use machine::units::{Gfn, PAGE_BYTES, Position};
use machine::vcpu::Exit;
use replay_log::{
    Check, EventPosition, Fingerprint, IoSteps, Landmark, Observation, ReadSource, digest,
};
use std::borrow::Cow;

/// What a search for a landmark met.
enum Candidate {
    /// The RIP is right.
    Here,
    /// The vCPU is in shutdown: the last state there is.
    Last,
    /// There are no more: the guest did this.
    None(Observation),
}

impl<V: ReplayVcpu> Run<'_, V> {
    /// Runs to a position of the log.
    pub(super) fn run_to(&mut self, at: &EventPosition, check: &Check) -> Way<()> {
        match at {
            EventPosition::Count(position) => self.run_to_count(*position),
            EventPosition::AfterIo(n) => self.run_to_io(*n),
            EventPosition::Window(n) => {
                self.run_to_io(*n)?;
                let found = self.run_to_window(*n);
                self.vcpu.request_interrupt_window(false);
                found
            }
            EventPosition::Landmark(landmark) => {
                self.run_to_io(landmark.io_steps)?;
                let cpu = self.vcpu.save()?;
                if cpu.rip == check.rip && self.matches(landmark, &cpu)? {
                    return self.choose(cpu);
                }
                self.next_match(landmark, check)
            }
            EventPosition::Follows => Ok(()),
        }
    }

    pub(super) fn run_to_count(&mut self, goal: Position) -> Way<()> {
        loop {
            let here = self.position()?;
            if here == goal {
                return Ok(());
            }
            if here > goal {
                let expected = self.expected();
                return Err(self.diverged(expected, Observation::Passed));
            }
            if self.enter(goal)? == Progress::Shutdown && self.position()? != goal {
                let expected = self.expected();
                return Err(self.diverged(expected, Observation::Shutdown));
            }
        }
    }

    fn run_to_io(&mut self, goal: IoSteps) -> Way<()> {
        while self.cursor.io_steps < goal {
            let met = match self.enter_bounded()? {
                Progress::Io | Progress::Window | Progress::Nothing => continue,
                Progress::Bound => Observation::StepLimit,
                Progress::Shutdown => Observation::Shutdown,
            };
            let expected = self.expected();
            return Err(self.diverged(expected, met));
        }
        if self.cursor.io_steps > goal {
            let expected = self.expected();
            return Err(self.diverged(expected, Observation::Passed));
        }
        Ok(())
    }

    fn run_to_window(&mut self, goal: IoSteps) -> Way<()> {
        self.vcpu.request_interrupt_window(true);
        loop {
            let met = match self.enter_bounded()? {
                Progress::Window => return Ok(()),
                Progress::Nothing => continue,
                Progress::Io if self.cursor.io_steps == goal => continue,
                Progress::Io => Observation::Passed,
                Progress::Bound => Observation::StepLimit,
                Progress::Shutdown => Observation::Shutdown,
            };
            let expected = self.expected();
            return Err(self.diverged(expected, met));
        }
    }

    /// Runs to the next state that fits, the present one excluded, and keeps it as a choice.
    pub(super) fn next_match(&mut self, landmark: &Landmark, check: &Check) -> Way<()> {
        let arrival = Arrival {
            rip: check.rip,
            gpr: landmark.gpr,
            rflags: landmark.rflags,
        };
        loop {
            let (last, met) = match self.candidate(&arrival)? {
                Candidate::Here => (false, None),
                Candidate::Last => (true, None),
                Candidate::None(met) => (true, Some(met)),
            };
            if met.is_none() {
                let cpu = self.vcpu.save()?;
                if cpu.rip == check.rip && self.matches(landmark, &cpu)? {
                    return self.choose(cpu);
                }
            }
            if last {
                let expected = self.expected();
                return Err(self.diverged(expected, met.unwrap_or(Observation::Shutdown)));
            }
        }
    }

    fn candidate(&mut self, arrival: &Arrival) -> Way<Candidate> {
        if self.halted {
            return Ok(Candidate::None(Observation::Halted));
        }
        loop {
            let bound = self.bound();
            let exit = match self.run_watched(Some(arrival), bound)? {
                // HLT has retired there: an I/O step, and landmarks lie before the next one.
                Arrived::Here if self.is_halted()? => Exit::Halt,
                Arrived::Here => return Ok(Candidate::Here),
                Arrived::Exit(exit) => exit,
            };
            let read = match exit {
                Exit::Kicked => {
                    self.handle(exit)?;
                    continue;
                }
                Exit::InterruptWindow => continue,
                Exit::Reached => {
                    self.note_bound(bound);
                    return Ok(Candidate::None(Observation::StepLimit));
                }
                Exit::Shutdown => return Ok(Candidate::Last),
                Exit::PortWrite { .. } | Exit::MmioWrite { .. } | Exit::Halt => {
                    self.cursor.io_steps.0 += 1;
                    return Ok(Candidate::None(Observation::Passed));
                }
                Exit::PortRead { port, size } => ReadSource::Port { port, size },
                Exit::MmioRead { address, size } => ReadSource::Mmio { address, size },
                Exit::TimestampRead if self.recorded_without_counts() => {
                    self.unrecorded_timestamp()?;
                    if self.vcpu.rip()? == arrival.rip {
                        return Ok(Candidate::Here);
                    }
                    continue;
                }
                Exit::TimestampRead => ReadSource::Timestamp,
            };
            // This way is given up; the value only lets the vCPU go on.
            self.vcpu.complete_read(0)?;
            return Ok(Candidate::None(Observation::Read(read)));
        }
    }

    fn matches(&mut self, landmark: &Landmark, cpu: &CpuState) -> Way<bool> {
        self.search.arrivals += 1;
        let cpu = &with_resume_flag(cpu, landmark.rflags);
        // No position is taken under a shadow.
        if cpu.shadow != Shadow::None || cpu.gpr != landmark.gpr || cpu.rflags != landmark.rflags {
            return Ok(false);
        }
        // Cheap facts first: in a loop whose registers repeat they are what differs.
        let is_word = |fact: &&Fingerprint| matches!(fact, Fingerprint::Word { .. });
        let words = landmark.memory.iter().filter(is_word);
        let pages = landmark.memory.iter().filter(|fact| !is_word(fact));
        let mut known = true;
        for fact in words {
            known = known && self.holds(fact, landmark)?;
        }
        if known && !landmark.matches_registers(cpu) {
            return Ok(false);
        }
        let pages: Vec<&Fingerprint> = pages.collect();
        let suspect = self.suspect.min(pages.len());
        // From the page that gave the last candidate away.
        for (index, fact) in (0..)
            .zip(&pages)
            .skip(suspect)
            .chain((0..).zip(&pages).take(suspect))
        {
            if known && !self.holds(fact, landmark)? {
                (known, self.suspect) = (false, index);
            }
        }
        self.search.wrong_memory += u64::from(!known);
        Ok(known)
    }

    fn holds(&self, fact: &Fingerprint, landmark: &Landmark) -> Way<bool> {
        match *fact {
            Fingerprint::Word { address, value } => {
                let mut word = [0; 8];
                self.ram.read(address, &mut word)?;
                let found = u64::from_le_bytes(word);
                Ok(found == value
                    || (self.recorded_without_counts()
                        && is_same_entry(value, found)
                        && is_table(self.vcpu, self.ram, address.gfn())?))
            }
            Fingerprint::Page { gfn, hash } => {
                let page = self.page(gfn)?;
                Ok(digest::page_hash(&page) == hash
                    || (has_table_hash(landmark, gfn, digest::table_hash(&page))
                        && is_table(self.vcpu, self.ram, gfn)?))
            }
            // Where the page's own hash is there, too, this one is only for tables.
            Fingerprint::Table { gfn, hash } => {
                Ok(has_page_hash(landmark, gfn) || digest::table_hash(&self.page(gfn)?) == hash)
            }
        }
    }

    fn page(&self, gfn: Gfn) -> Way<PageBytes> {
        let mut page = [0; PAGE_BYTES as usize];
        self.ram.read(gfn.base(), &mut page)?;
        Ok(page)
    }

    fn choose(&mut self, cpu: CpuState) -> Way<()> {
        self.search.landmarks += 1;
        let state = (cpu, self.position()?, self.cursor);
        let most = self.limits.max_undo_pages;
        let settled = self.choices.push(self.ram, self.vcpu, state, most);
        self.search.settled += settled;
        Ok(())
    }
}

fn has_page_hash(landmark: &Landmark, of: Gfn) -> bool {
    let is_it = |fact: &_| matches!(fact, Fingerprint::Page { gfn, .. } if *gfn == of);
    landmark.memory.iter().any(is_it)
}

fn has_table_hash(landmark: &Landmark, gfn: Gfn, hash: [u8; 16]) -> bool {
    landmark.memory.contains(&Fingerprint::Table { gfn, hash })
}

/// The state with RF as in `flags`: at landmarks that bit says nothing of where the guest is.
///
/// Hardware sets it where an access met a fault that is the host's, such as a page that the hypervisor had
/// write-protected, and recorders of hardware take it away where no string instruction is under way.
pub(super) fn with_resume_flag(cpu: &CpuState, flags: u64) -> Cow<'_, CpuState> {
    if (cpu.rflags ^ flags) & rflags::RF == 0 {
        return Cow::Borrowed(cpu);
    }
    let mut other = cpu.clone();
    other.rflags ^= rflags::RF;
    Cow::Owned(other)
}
