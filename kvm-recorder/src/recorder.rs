//! The recording loop.

mod pace;

use crate::bus::{Bus, Writes};
use crate::checkpointer::{Checkpointer, Stored};
use crate::control::Control;
use crate::journal::{Closed, Here, Journal, Kind};
use crate::landmark::Sampler;
use crate::options::{Kicks, Length, Options, Positions};
use crate::summary::{Pauses, Summary};
use machine::board::Effects;
use machine::checkpoint::{Checkpoint, CheckpointSink, StoreError};
use machine::memory::DeviceMemory;
use machine::ram::Ram;
use machine::state::{Activity, CpuState, Shadow, rflags};
use machine::units::{Position, VirtualNanos};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use pace::Pace;
use replay_log::{EndReason, ReadSource, WriteError};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a recording ended early. What was published before is whole.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The vCPU cannot go on.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The log could not be written.
    #[error(transparent)]
    Log(#[from] WriteError),
    /// The store refused.
    #[error("the recording could not be stored: {0}")]
    Store(#[source] StoreError),
    /// The options ask for counts or step limits of a vCPU that does not count.
    #[error("this vCPU does not count steps, but {0} need it to")]
    DoesNotCount(&'static str),
    /// The host refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The guest's console output could not be written.
    #[error("cannot write the guest's console output: {0}")]
    Console(#[source] io::Error),
}

/// Records one guest.
pub struct Recorder<V, B> {
    vcpu: V,
    bus: B,
    ram: Arc<Ram>,
    options: Options,
    console: Box<dyn io::Write + Send>,
    control: Control,
}

impl<V: Vcpu, B: Bus> Recorder<V, B> {
    /// A recorder of the guest that stands at the first instruction: `vcpu` loaded, everything in
    /// `ram` (zero where it was never written). The console's output goes to `console`.
    ///
    /// # Errors
    /// [`RecordError::DoesNotCount`].
    pub fn new(
        vcpu: V,
        bus: B,
        ram: Arc<Ram>,
        options: Options,
        console: Box<dyn io::Write + Send>,
    ) -> Result<Self, RecordError> {
        if vcpu.position().is_none() {
            pace::check_without_counts(&options)?;
        }
        let control = Control::new(vcpu.kick_handle());
        Ok(Self {
            vcpu,
            bus,
            ram,
            options,
            console,
            control,
        })
    }

    /// How other threads reach the recording.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Records until the guest or the options or [`Control::stop`] end it. Everything is stored when
    /// this returns.
    ///
    /// # Errors
    /// [`RecordError`]; intervals that were published before stay.
    pub fn record(self, sink: Box<dyn CheckpointSink>) -> Result<Summary, RecordError> {
        let start = Instant::now();
        let checkpointer = Checkpointer::start(self.ram.clone(), sink, &self.options)
            .map_err(RecordError::Thread)?;
        let kind = match self.options.positions {
            Positions::Count => Kind::Count,
            // Hardware does not count, and may set bits in page tables early.
            Positions::Landmark(_) => Kind::Landmark(Sampler::new(self.vcpu.position().is_none())),
        };
        let position = self.vcpu.position();
        let journal = Journal::new(self.options.recording, kind, position)?;
        let pace = Pace::start(&self.options, &self.vcpu)?;
        let mut session = Session {
            guest: self,
            pace,
            journal,
            checkpointer,
            writes: Writes::default(),
            number: 0,
            halted: false,
            window_requested: false,
            pauses: Pauses::default(),
            pauses_on_cpu: Pauses::default(),
        };
        let outcome = session.run();
        session.close(outcome, start)
    }
}

/// A recording in progress.
struct Session<V, B> {
    guest: Recorder<V, B>,
    pace: Pace,
    journal: Journal,
    checkpointer: Checkpointer,
    writes: Writes,
    /// Number of the next checkpoint.
    number: u64,
    halted: bool,
    window_requested: bool,
    pauses: Pauses,
    pauses_on_cpu: Pauses,
}

/// Why the loop ended without a result: the error, or that the sink's thread knows it.
enum Broken {
    Error(RecordError),
    Sink,
}

impl<E: Into<RecordError>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

type Step<T> = Result<T, Broken>;

impl<V: Vcpu, B: Bus> Session<V, B> {
    fn run(&mut self) -> Step<EndReason> {
        let cpu = self.guest.vcpu.save()?;
        self.halted = cpu.activity == Activity::Halted;
        self.checkpoint(&cpu, None)?;
        self.pace.resume(self.guest.vcpu.position());
        loop {
            if let Some(reason) = self.at_boundary()? {
                return Ok(reason);
            }
            let ended = if self.halted {
                self.idle()
            } else {
                let until = self.next_stop();
                let exit = self.guest.vcpu.run(until)?;
                self.handle(exit)?
            };
            if let Some(reason) = ended {
                self.end_interval(reason)?;
                return Ok(reason);
            }
        }
    }

    /// What happens at every boundary where the loop has control and something may be logged: time
    /// passes, devices act, interrupts are delivered, intervals end.
    fn at_boundary(&mut self) -> Step<Option<EndReason>> {
        if !self.guest.vcpu.is_settled()? {
            self.pace.retry();
            return Ok(None);
        }
        if self.journal.needs_landmark() {
            let cpu = self.guest.vcpu.save()?;
            if cpu.shadow != Shadow::None {
                self.pace.retry();
                return Ok(None);
            }
            if self.guest.bus.writes_ram_unasked() {
                self.journal.prepare(&cpu, &self.guest.ram);
            }
        }
        let now = self.let_time_pass();
        self.log_writes()?;
        self.offer_interrupts()?;
        if !self.guest.vcpu.is_settled()? {
            // An interrupt is on its way.
            self.pace.retry();
            return Ok(None);
        }
        let position = self.guest.vcpu.position();
        if self.guest.control.stop_requested() || self.pace.is_over(now, position) {
            self.end_interval(EndReason::Stopped)?;
            return Ok(Some(EndReason::Stopped));
        }
        if self.pace.interval_is_over(now, position) {
            self.end_interval(EndReason::Checkpoint)?;
        }
        Ok(None)
    }

    fn now(&self) -> VirtualNanos {
        self.pace.now(self.guest.vcpu.position())
    }

    fn let_time_pass(&mut self) -> VirtualNanos {
        let now = self.now();
        let Recorder {
            vcpu,
            bus,
            ram,
            control,
            ..
        } = &mut self.guest;
        let memory = &mut DeviceMemory::new(ram, vcpu, &mut self.writes);
        bus.advance(now, memory);
        if control.has_input() {
            control.offer_input(|bytes| bus.console_input(bytes, now, memory));
        }
        now
    }

    fn log_writes(&mut self) -> Step<()> {
        if self.writes.0.is_empty() {
            return Ok(());
        }
        let cpu = self.guest.vcpu.save()?;
        let here = Here {
            cpu: &cpu,
            position: self.guest.vcpu.position(),
        };
        for write in self.writes.0.drain(..) {
            self.journal
                .device_write(&here, &self.guest.ram, &write, |id, page| {
                    self.checkpointer.content(id, page);
                })?;
        }
        Ok(())
    }

    fn offer_interrupts(&mut self) -> Step<()> {
        while self.guest.bus.interrupt_pending() && self.guest.vcpu.interrupt_window_open() {
            let Some(vector) = self.guest.bus.acknowledge() else {
                break;
            };
            let cpu = self.guest.vcpu.save()?;
            let here = Here {
                cpu: &cpu,
                position: self.guest.vcpu.position(),
            };
            self.journal.interrupt(&here, &self.guest.ram, vector)?;
            self.guest.vcpu.inject_interrupt(vector)?;
            self.halted = false;
        }
        let wanted = self.guest.bus.interrupt_pending();
        if wanted {
            self.journal.window_requested(self.window_requested);
        }
        if wanted || self.window_requested {
            self.guest.vcpu.request_interrupt_window(wanted);
        }
        self.window_requested = wanted;
        Ok(())
    }

    /// Where the vCPU is to come back at the latest; sets the alarm if that is a matter of host time.
    fn next_stop(&mut self) -> Option<Position> {
        let deadline = self.guest.bus.next_deadline();
        self.pace.next_stop(deadline, self.guest.vcpu.position())
    }

    /// Deals with an exit. A reason means that the guest ends here.
    fn handle(&mut self, exit: Exit) -> Step<Option<EndReason>> {
        let mut effects = Effects::default();
        match exit {
            Exit::PortRead { port, size } => {
                let now = self.now();
                let value = self.guest.bus.port_read(port, size, now);
                self.complete_read(ReadSource::Port { port, size }, u64::from(value))?;
            }
            Exit::MmioRead { address, size } => {
                let now = self.now();
                let value = self.guest.bus.mmio_read(address, size, now);
                self.complete_read(ReadSource::Mmio { address, size }, value)?;
            }
            Exit::TimestampRead => {
                let now = self.now();
                let value = self.guest.bus.timestamp(now);
                self.complete_read(ReadSource::Timestamp, value)?;
            }
            Exit::PortWrite { .. } | Exit::MmioWrite { .. } => effects = self.write(exit),
            Exit::Halt => return self.halt(),
            Exit::InterruptWindow | Exit::Reached | Exit::Kicked => {
                let at_window = exit == Exit::InterruptWindow;
                self.window_requested &= !at_window;
                if self.guest.vcpu.save()?.activity == Activity::Halted {
                    return self.halt();
                }
                let known = at_window && self.guest.vcpu.windows_are_exact();
                self.journal.stopped(known);
            }
            Exit::Shutdown => {
                self.journal.stopped(false);
                return Ok(Some(EndReason::Shutdown));
            }
        }
        self.show(effects)
    }

    /// HLT has retired, which is an I/O step whatever exit said so.
    fn halt(&mut self) -> Step<Option<EndReason>> {
        self.journal.io_step();
        self.halted = true;
        let interruptible = self.guest.vcpu.save()?.rflags & rflags::IF != 0;
        Ok((!interruptible).then_some(EndReason::PoweredOff))
    }

    fn complete_read(&mut self, source: ReadSource, value: u64) -> Step<()> {
        self.guest.vcpu.complete_read(value)?;
        let rip = self.guest.vcpu.rip()?;
        Ok(self.journal.read(source, value, rip)?)
    }

    fn write(&mut self, exit: Exit) -> Effects {
        let now = self.now();
        self.journal.io_step();
        let Recorder { vcpu, bus, ram, .. } = &mut self.guest;
        let memory = &mut DeviceMemory::new(ram, vcpu, &mut self.writes);
        match exit {
            Exit::PortWrite { port, size, value } => bus.port_write(port, size, value, now, memory),
            Exit::MmioWrite {
                address,
                size,
                value,
            } => bus.mmio_write(address, size, value, now, memory),
            _ => Effects::default(),
        }
    }

    fn show(&mut self, effects: Effects) -> Step<Option<EndReason>> {
        if let Some(byte) = effects.console {
            let console = &mut self.guest.console;
            console
                .write_all(&[byte])
                .and_then(|()| {
                    if byte == b'\n' {
                        console.flush()
                    } else {
                        Ok(())
                    }
                })
                .map_err(RecordError::Console)?;
        }
        Ok(effects.reset.then_some(EndReason::Reset))
    }

    /// The guest is halted with interrupts on and nothing is pending: lets the time pass until
    /// something may be.
    fn idle(&mut self) -> Option<EndReason> {
        let deadline = self.guest.bus.next_deadline();
        if deadline.is_none() && !self.guest.control.has_console() {
            return Some(EndReason::Idle);
        }
        let position = self.guest.vcpu.position();
        self.pace.idle(deadline, position, &self.guest.control);
        None
    }

    fn end_interval(&mut self, reason: EndReason) -> Step<()> {
        // A device may have acted on the last access.
        self.log_writes()?;
        let (start, on_cpu) = (Instant::now(), thread_time());
        let cpu = self.guest.vcpu.save()?;
        let position = self.guest.vcpu.position();
        let now = self.now();
        self.pace.pause(position);
        let here = Here {
            cpu: &cpu,
            position,
        };
        let next = self.number;
        let closed = self
            .journal
            .end(&here, &self.guest.ram, reason, now, next)?;
        self.checkpoint(&cpu, Some(closed))?;
        self.pace.resume(position);
        if reason == EndReason::Checkpoint {
            self.pauses.add(start.elapsed());
            self.pauses_on_cpu.add(thread_time() - on_cpu);
        }
        Ok(())
    }

    fn checkpoint(&mut self, cpu: &CpuState, closed: Option<Closed>) -> Step<()> {
        let position = self.guest.vcpu.position();
        let time = self.now();
        let counts = self.guest.options.positions == Positions::Count;
        let checkpoint = Checkpoint {
            number: self.number,
            cpu: cpu.clone(),
            position: position.filter(|_| counts),
            time,
            devices: self.guest.bus.save(),
            ram_bytes: self.guest.ram.bytes(),
            changed: Vec::new(),
        };
        self.number += 1;
        self.checkpointer
            .take(checkpoint, closed)
            .map_err(|_| Broken::Sink)?;
        self.guest.vcpu.arm_write_tracking();
        self.pace.interval_starts(time, position);
        Ok(())
    }

    fn close(self, outcome: Step<EndReason>, start: Instant) -> Result<Summary, RecordError> {
        let stored = self.checkpointer.close().map_err(RecordError::Store)?;
        let reason = match outcome {
            Ok(reason) => reason,
            Err(Broken::Error(error)) => return Err(error),
            Err(Broken::Sink) => {
                let lost = "the store's thread ended without an error";
                return Err(RecordError::Store(lost.into()));
            }
        };
        let Stored {
            pages,
            copied_on_write,
            log,
            stalled,
        } = stored;
        let position = self.guest.vcpu.position();
        Ok(Summary {
            reason,
            steps: position.map(|position| position.steps),
            guest_time: self.pace.now(position),
            host_time: start.elapsed(),
            intervals: self.number - 1,
            pages,
            pages_copied_on_write: copied_on_write,
            pauses: self.pauses,
            pauses_on_cpu: self.pauses_on_cpu,
            stalled,
            log_bytes: log.written_bytes,
            log_raw_bytes: log.raw_bytes,
            events: self.journal.events,
            positions: self.journal.positions,
            landmarks: self.journal.landmarks(),
        })
    }
}

/// Time that this thread has spent on a processor.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // It starts at zero with the thread, so neither part is negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
