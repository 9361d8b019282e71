//! The vCPU.

use super::dirty::{DirtyLog, Tracker};
use super::error::{KvmError, host};
use super::exits::Pending;
use super::host::{Capabilities, Host};
use super::kick::Kicker;
use super::run_page::{self, Reason};
use super::tsc::FrozenTsc;
use super::write_guard::WriteGuard;
use super::{failure, ioctls, msrs, state, string, vm};
use kvm_ioctls::VcpuFd;
use machine::cpuid::{CpuidTable, Maker};
use machine::msr::{FROZEN_TSC, number};
use machine::ram::Ram;
use machine::state::{Activity, CpuState};
use machine::units::{GuestPhys, Position, Vector};
use machine::vcpu::{Exit, Kick, Vcpu, VcpuError};
use std::io;
use std::sync::Arc;
use std::thread::ThreadId;

const WAITS: VcpuError = VcpuError::Protocol("a read waits for its value");
const BETWEEN: VcpuError =
    VcpuError::Protocol("elements of a string access have not been reported");

/// How writes of the guest are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// How KVM tells which pages were written.
    pub log: DirtyLog,
    /// Whether writes to pages of a checkpoint are held back until they are copied. If not, the guest
    /// stands still while they are.
    pub hold_writes: bool,
}

/// One virtual CPU with the VM that it is alone in.
pub struct KvmVcpu {
    fd: VcpuFd,
    tracker: Arc<Tracker>,
    hold_error: Option<io::Error>,
    ram: Arc<Ram>,
    kicker: Arc<Kicker>,
    capabilities: Capabilities,
    maker: Maker,
    pending: Pending,
    window_requested: bool,
    /// What KVM said of the interrupt window when it last came back.
    window_open: bool,
    /// Whether windows are reported where they open.
    exact_windows: bool,
    activity: Activity,
    /// TSC_AUX, which the guest has no instruction to read or write.
    tsc_aux: u64,
    thread: Option<ThreadId>,
    /// The guest has accessed no port since it was loaded.
    unseen: bool,
    frozen_tsc: Option<FrozenTsc>,
}

impl KvmVcpu {
    /// A vCPU that runs on `ram`, whose pages must all be there, and whose guest is told `cpuid`. Its state
    /// is that after a reset; [`Vcpu::load`] gives it one to start from.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(host: &Host, ram: Arc<Ram>, cpuid: &CpuidTable) -> Result<Self, KvmError> {
        let best = Tracking {
            log: DirtyLog::best(host),
            hold_writes: true,
        };
        Self::with_tracking(host, ram, cpuid, best)
    }

    /// As [`KvmVcpu::new`], with the given ways to follow writes. Writes that cannot be held back are not:
    /// [`KvmVcpu::holds_writes`].
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn with_tracking(
        host: &Host,
        ram: Arc<Ram>,
        cpuid: &CpuidTable,
        tracking: Tracking,
    ) -> Result<Self, KvmError> {
        let mut vcpu = Self::build(host, ram, cpuid, tracking)?;
        vcpu.exact_windows = host.exact_windows()?;
        Ok(vcpu)
    }

    /// The vCPU, with interrupt windows that are not known to be exact.
    pub(super) fn build(
        host: &Host,
        ram: Arc<Ram>,
        cpuid: &CpuidTable,
        tracking: Tracking,
    ) -> Result<Self, KvmError> {
        let (vm, mut fd) = vm::build(host, &ram, cpuid, tracking.log)?;
        let (guard, hold_error) = match tracking.hold_writes.then(|| WriteGuard::start(ram.clone()))
        {
            None => (None, None),
            Some(Ok(guard)) => (Some(guard), None),
            Some(Err(error)) => (None, Some(error)),
        };
        let tracker = Tracker::new(Arc::new(vm), &fd, tracking.log, ram.bytes(), guard)?;
        let tracker = Arc::new(tracker);
        ram.set_unasked_writes(Some(tracker.clone()));
        Ok(Self {
            frozen_tsc: FrozenTsc::start(&fd, host.capabilities()),
            kicker: Kicker::new(&mut fd),
            fd,
            tracker,
            hold_error,
            ram,
            capabilities: host.capabilities(),
            maker: cpuid.maker().unwrap_or_else(Maker::of_host),
            pending: Pending::None,
            window_requested: false,
            window_open: false,
            exact_windows: false,
            activity: Activity::Running,
            tsc_aux: 0,
            thread: None,
            unseen: true,
        })
    }

    /// Whether writes to pages of a checkpoint are held back until they are copied; if that was asked for
    /// and could not be had, why.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn holds_writes(&self) -> Result<bool, &io::Error> {
        match &self.hold_error {
            Some(error) => Err(error),
            None => Ok(self.ram.holds_writes()),
        }
    }

    /// What the guest reads of a time stamp counter that stands still; none where it does not.
    pub fn frozen_tsc(&self) -> Option<u64> {
        self.frozen_tsc.as_ref().map(|_| FROZEN_TSC)
    }

    /// Finishes a port, MMIO or MSR access, after which state is that of a boundary.
    fn finish(&mut self) -> Result<(), VcpuError> {
        self.run_without_entering()?;
        self.settle_rf()
    }

    /// KVM_RUN without entering the guest: what is pending is finished, and the shared page says whether the
    /// interrupt window is open.
    fn run_without_entering(&mut self) -> Result<(), VcpuError> {
        let kicker = self.kicker.clone();
        match kicker.set_meanwhile(|| self.kvm_run()) {
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            Err(error) => Err(host("KVM_RUN, to finish an access")(error)),
            // An access in several parts (REP OUTS, MMIO) goes on with its next one.
            Ok(()) => Err(VcpuError::Protocol(
                "an access came in parts that cannot be told apart",
            )),
        }
    }

    fn kvm_run(&mut self) -> Result<(), kvm_ioctls::Error> {
        let result = self.fd.run().map(drop);
        let run = self.fd.get_kvm_run();
        self.window_open = run.ready_for_interrupt_injection != 0 && run.if_flag != 0;
        result
    }

    fn enter(&mut self) -> Result<Exit, VcpuError> {
        loop {
            if self.kicker.take() {
                self.settle_rf()?;
                return Ok(Exit::Kicked);
            }
            match self.activity {
                Activity::Running => {}
                Activity::Halted => return Ok(Exit::Halt),
                Activity::Shutdown => return Ok(Exit::Shutdown),
            }
            if self.window_requested && self.interrupt_window_open() {
                self.window_requested = false;
                return Ok(Exit::InterruptWindow);
            }
            if let Some(tsc) = &mut self.frozen_tsc {
                tsc.freeze(&self.fd).map_err(|source| VcpuError::Host {
                    operation: "holding the time stamp counter still",
                    source,
                })?;
            }
            self.fd.get_kvm_run().request_interrupt_window = u8::from(self.window_requested);
            match self.kvm_run() {
                Ok(()) => {}
                // A kick, or a signal that has nothing to do with this.
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error) => return Err(host("KVM_RUN")(error)),
            }
            if let Some(exit) = self.came_out()? {
                return Ok(exit);
            }
        }
    }

    /// What the last KVM_RUN came back for; none if the guest simply goes on.
    fn came_out(&mut self) -> Result<Option<Exit>, VcpuError> {
        Ok(match run_page::reason(&mut self.fd) {
            Reason::Port(access) => {
                self.unseen = false;
                self.pending = Pending::Elements { access, next: 0 };
                if access.out {
                    self.finish()?;
                }
                self.pending.report(&mut self.fd)
            }
            Reason::ReadMsr(number::TSC) => {
                self.pending = Pending::Timestamp;
                Some(Exit::TimestampRead)
            }
            Reason::ReadMsr(index) => {
                self.answer_msr(index, None);
                None
            }
            Reason::WriteMsr(index, value) => {
                self.answer_msr(index, Some(value));
                None
            }
            Reason::Halt => {
                self.activity = Activity::Halted;
                Some(Exit::Halt)
            }
            Reason::Window => {
                self.settle_rf()?;
                self.window_requested = false;
                Some(Exit::InterruptWindow)
            }
            Reason::Shutdown if self.unseen => {
                let cpu = state::read(&self.fd, self.capabilities)?;
                return Err(failure::unable(
                    &self.ram,
                    &cpu,
                    failure::AT_START.into(),
                    None,
                ));
            }
            Reason::Shutdown => {
                self.activity = Activity::Shutdown;
                Some(Exit::Shutdown)
            }
            // Space that is not RAM reads as all ones, which has been filled in, and swallows writes.
            Reason::MmioRead | Reason::MmioWrite | Reason::TaskPriority => None,
            Reason::DirtyRingFull => {
                let ram = self.ram.clone();
                self.tracker.make_room(&mut |gfn| ram.mark_dirty(gfn));
                None
            }
            Reason::Failed(what, bytes) => {
                let cpu = state::read(&self.fd, self.capabilities)?;
                return Err(failure::unable(&self.ram, &cpu, what, bytes));
            }
        })
    }

    fn answer_msr(&mut self, index: u32, written: Option<u64>) {
        let answer = msrs::answer(self.maker, index, written);
        run_page::answer_msr(&mut self.fd, answer);
    }

    /// Deals with RF (see `string`).
    fn settle_rf(&mut self) -> Result<(), VcpuError> {
        let mut regs = self.fd.get_regs().map_err(host("KVM_GET_REGS"))?;
        if !string::is_resuming(regs.rflags) || !state::is_settled(&state::events(&self.fd)?) {
            // A fault that is about to be delivered has RF set, too, and setting registers would drop it.
            return Ok(());
        }
        let mut cpu = state::read(&self.fd, self.capabilities)?;
        let bytes = failure::instruction(&self.ram, &cpu);
        if string::settle(&mut cpu, &bytes) {
            (regs.rip, regs.rflags) = (cpu.rip, cpu.rflags);
            self.fd.set_regs(&regs).map_err(host("KVM_SET_REGS"))?;
        }
        Ok(())
    }

    /// Notes which thread kicks go to.
    fn runs_here(&mut self) {
        let here = std::thread::current().id();
        if self.thread != Some(here) {
            self.thread = Some(here);
            self.kicker.runs_here();
        }
    }

    fn at_boundary(&self) -> Result<(), VcpuError> {
        match self.pending {
            Pending::None => Ok(()),
            Pending::Elements { .. } => Err(BETWEEN),
            Pending::Element { .. } | Pending::Timestamp => Err(WAITS),
        }
    }

    fn read(&self) -> Result<CpuState, VcpuError> {
        let mut cpu = state::read(&self.fd, self.capabilities)?;
        cpu.activity = self.activity;
        cpu.msrs.tsc_aux = self.tsc_aux;
        Ok(cpu)
    }

    fn write(&mut self, cpu: &CpuState) -> Result<(), VcpuError> {
        state::write(&mut self.fd, self.capabilities, cpu)?;
        self.activity = cpu.activity;
        self.tsc_aux = cpu.msrs.tsc_aux;
        self.unseen = true;
        self.run_without_entering()
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        if until.is_some() {
            return Err(VcpuError::Protocol("KVM does not count steps"));
        }
        if self.pending.waits() {
            return Err(WAITS);
        }
        self.runs_here();
        match self.pending.report(&mut self.fd) {
            Some(exit) => Ok(exit),
            None => self.enter(),
        }
    }

    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        if !self.pending.waits() {
            return Err(VcpuError::Protocol("no read waits"));
        }
        self.pending.answer(&mut self.fd, value);
        match self.pending {
            Pending::None => self.finish(),
            _ => Ok(()),
        }
    }

    fn rip(&mut self) -> Result<u64, VcpuError> {
        if self.pending.waits() {
            return Err(WAITS);
        }
        // Between two elements of a string access this is the instruction's, as it should be.
        Ok(self.fd.get_regs().map_err(host("KVM_GET_REGS"))?.rip)
    }

    fn position(&self) -> Option<Position> {
        None
    }

    fn interrupt_window_open(&self) -> bool {
        self.pending == Pending::None && self.activity != Activity::Shutdown && self.window_open
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window_requested = wanted;
    }

    fn windows_are_exact(&self) -> bool {
        self.exact_windows
    }

    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError> {
        if !self.interrupt_window_open() {
            return Err(VcpuError::Protocol("the interrupt window is not open"));
        }
        ioctls::interrupt(&self.fd, vector.0).map_err(|source| VcpuError::Host {
            operation: "KVM_INTERRUPT",
            source,
        })?;
        self.activity = Activity::Running;
        // KVM says so only after the next KVM_RUN.
        self.window_open = false;
        Ok(())
    }

    fn is_settled(&mut self) -> Result<bool, VcpuError> {
        if self.pending != Pending::None {
            return Ok(false);
        }
        // With the window open there is no need to ask.
        Ok(self.window_open || state::is_settled(&state::events(&self.fd)?))
    }

    fn save(&mut self) -> Result<CpuState, VcpuError> {
        self.at_boundary()?;
        self.read()
    }

    fn load(&mut self, cpu: &CpuState, _position: Position) -> Result<(), VcpuError> {
        self.at_boundary()?;
        let valid = cpu.validate();
        valid.map_err(|invalid| VcpuError::InvalidState(invalid.to_string()))?;
        let before = self.read()?;
        let loaded = self
            .write(cpu)
            .and_then(|()| state::check(cpu, &self.read()?));
        if loaded.is_err() {
            self.write(&before)?;
        }
        loaded
    }

    fn ram_written(&mut self, _start: GuestPhys, _bytes: u64) {
        // Processors see it by themselves.
    }

    fn arm_write_tracking(&mut self) {}

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.kicker.clone()
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicker.close();
        self.ram.set_unasked_writes(None);
    }
}
