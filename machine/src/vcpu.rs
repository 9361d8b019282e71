//! The contract of a virtual CPU, kept by the KVM backend and by the engine.

use crate::state::CpuState;
use crate::units::{GuestPhys, Port, Position, Vector};
use std::sync::Arc;

/// Why [`Vcpu::run`] returned.
///
/// Accesses complete in one of two ways. A write has retired when it is reported. A read retires in
/// [`Vcpu::complete_read`], which must be called before anything else is asked of the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN, or one element of INS: waits for [`Vcpu::complete_read`].
    PortRead {
        /// Port read.
        port: Port,
        /// Bytes: 1, 2 or 4.
        size: u8,
    },
    /// OUT, or one element of OUTS; has retired (an element of REP OUTS: that iteration is done).
    PortWrite {
        /// Port written.
        port: Port,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// Value, zero-extended.
        value: u32,
    },
    /// A load from guest-physical space that is not RAM: waits for [`Vcpu::complete_read`].
    /// Only a vCPU that traps such space reports it.
    MmioRead {
        /// First byte.
        address: GuestPhys,
        /// Bytes: 1 to 8.
        size: u8,
    },
    /// A store to guest-physical space that is not RAM; has retired.
    MmioWrite {
        /// First byte.
        address: GuestPhys,
        /// Bytes: 1 to 8.
        size: u8,
        /// Value, zero-extended.
        value: u64,
    },
    /// RDTSC, RDTSCP or RDMSR of the time stamp counter: waits for [`Vcpu::complete_read`].
    TimestampRead,
    /// HLT has retired. With IF clear nothing but a reset can wake the guest. Where another exit is
    /// due at the boundary after HLT (the window opens, the position is reached), that one may be
    /// reported instead: [`crate::state::CpuState::activity`] tells.
    Halt,
    /// The window asked for by [`Vcpu::request_interrupt_window`] is open now.
    InterruptWindow,
    /// The position given to [`Vcpu::run`] is reached, exactly.
    Reached,
    /// [`Kick::kick`] was called.
    Kicked,
    /// Triple fault; the vCPU is in shutdown.
    Shutdown,
}

/// Why a vCPU cannot go on. The guest did nothing wrong by itself: a fault of the guest is a value
/// delivered to the guest, never one of these.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The guest needs something this vCPU does not do.
    #[error("{what} at RIP {rip:#x} (bytes {bytes:02x?}), {position}")]
    Limit {
        /// What is not supported, in words.
        what: String,
        /// RIP of the instruction.
        rip: u64,
        /// Its first bytes, as far as they could be fetched.
        bytes: Vec<u8>,
        /// Where in the execution.
        position: Position,
    },
    /// The host's hypervisor cannot execute the guest.
    #[error("{what}: RIP {rip:#x}, bytes {bytes:02x?}")]
    Unable {
        /// What happened, in words.
        what: String,
        /// RIP of the instruction.
        rip: u64,
        /// Its first bytes, as far as they could be fetched.
        bytes: Vec<u8>,
    },
    /// The state given to [`Vcpu::load`] is not one a CPU can be in.
    #[error("invalid vCPU state: {0}")]
    InvalidState(String),
    /// A call that the contract forbids at this moment.
    #[error("vCPU protocol error: {0}")]
    Protocol(&'static str),
    /// A page that was to be loaded on first touch could not be had.
    #[error("guest page {address} could not be loaded: {source}")]
    PageLoad {
        /// Address of the page.
        address: GuestPhys,
        /// What the source of pages said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Ways to execute the same instructions did not end in the same state.
    #[error("{0}")]
    Diverged(Box<dyn std::error::Error + Send + Sync>),
    /// The host refused something.
    #[error("{operation}: {source}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}

impl VcpuError {
    /// Whether it is this host's hypervisor that cannot go on, where another vCPU may.
    pub fn is_of_host(&self) -> bool {
        matches!(self, Self::Unable { .. } | Self::Host { .. })
    }
}

/// Makes a running vCPU return [`Exit::Kicked`] soon, from any thread.
pub trait Kick: Send + Sync {
    /// Requests the exit. Idempotent until the exit is delivered.
    fn kick(&self);
}

/// One virtual CPU. All calls come from one thread; devices act between two calls of `run`.
pub trait Vcpu {
    /// Runs until something needs attention, at latest until the first boundary not before `until`,
    /// where the vCPU counts steps. At once [`Exit::Reached`] if that is here.
    ///
    /// # Errors
    /// [`VcpuError::Protocol`] while a read waits for completion, or if `until` is given and this
    /// vCPU does not count; the others as documented there.
    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError>;

    /// Completes the read reported last with the value (low `size` bytes; the full 64 bits for a time
    /// stamp) and retires the instruction or the string element.
    ///
    /// # Errors
    /// [`VcpuError::Protocol`] when no read waits.
    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError>;

    /// RIP at this boundary.
    ///
    /// # Errors
    /// As [`Vcpu::save`].
    fn rip(&mut self) -> Result<u64, VcpuError> {
        Ok(self.save()?.rip)
    }

    /// The exact position, where this vCPU counts.
    fn position(&self) -> Option<Position>;

    /// Whether an external interrupt would be taken at this boundary: IF set, no shadow, nothing
    /// pending or being delivered.
    fn interrupt_window_open(&self) -> bool;

    /// Asks that `run` returns [`Exit::InterruptWindow`] at the first boundary where the window is
    /// open (at once, if it is open now). The request ends when it is reported or withdrawn.
    fn request_interrupt_window(&mut self, wanted: bool);

    /// Whether [`Exit::InterruptWindow`] always comes at the first boundary where the window is open, so
    /// that "the first open window" names it.
    fn windows_are_exact(&self) -> bool {
        true
    }

    /// Delivers an external interrupt at this boundary; takes one step. Wakes a halted vCPU.
    ///
    /// # Errors
    /// [`VcpuError::Protocol`] when the window is not open.
    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError>;

    /// Whether a log may name this boundary, and a checkpoint be taken: no shadow is open, no event is
    /// pending or being delivered, no string access is reported in part. The engine tells of shadows in its
    /// state, and the rest does not occur there.
    ///
    /// # Errors
    /// As [`Vcpu::save`].
    fn is_settled(&mut self) -> Result<bool, VcpuError> {
        Ok(true)
    }

    /// The complete state at this boundary.
    ///
    /// # Errors
    /// [`VcpuError::Protocol`] while a read waits for completion, or where [`Vcpu::is_settled`] is false.
    fn save(&mut self) -> Result<CpuState, VcpuError>;

    /// Replaces the complete state and sets the position (vCPUs that do not count ignore it). Cached
    /// translations of memory and code are dropped.
    ///
    /// # Errors
    /// [`VcpuError::InvalidState`] for a state no CPU can be in; the old state then stays.
    fn load(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError>;

    /// Must be called after RAM changed other than through this vCPU, so that stale code and cached
    /// page-table walks are dropped.
    fn ram_written(&mut self, start: GuestPhys, bytes: u64);

    /// Must be called after [`crate::ram::Ram::begin_epoch`], so that the next write to each page is
    /// reported again.
    fn arm_write_tracking(&mut self);

    /// A handle with which other threads interrupt `run`.
    fn kick_handle(&self) -> Arc<dyn Kick>;
}

/// A vCPU around another one. What a layer does not say itself, the one below does: a layer that lets a
/// method of [`Vcpu`] be answered by that trait's default would speak for a vCPU it is not.
#[expect(missing_docs, reason = "the methods are those of Vcpu")]
#[expect(clippy::missing_errors_doc, reason = "the methods are those of Vcpu")]
pub trait VcpuLayer {
    /// What is below.
    type Below: Vcpu;

    /// The vCPU below.
    fn below(&self) -> &Self::Below;

    /// The vCPU below.
    fn below_mut(&mut self) -> &mut Self::Below;

    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        self.below_mut().run(until)
    }
    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        self.below_mut().complete_read(value)
    }
    fn rip(&mut self) -> Result<u64, VcpuError> {
        self.below_mut().rip()
    }
    fn position(&self) -> Option<Position> {
        self.below().position()
    }
    fn interrupt_window_open(&self) -> bool {
        self.below().interrupt_window_open()
    }
    fn request_interrupt_window(&mut self, wanted: bool) {
        self.below_mut().request_interrupt_window(wanted);
    }
    fn windows_are_exact(&self) -> bool {
        self.below().windows_are_exact()
    }
    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError> {
        self.below_mut().inject_interrupt(vector)
    }
    fn is_settled(&mut self) -> Result<bool, VcpuError> {
        self.below_mut().is_settled()
    }
    fn save(&mut self) -> Result<CpuState, VcpuError> {
        self.below_mut().save()
    }
    fn load(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError> {
        self.below_mut().load(state, position)
    }
    fn ram_written(&mut self, start: GuestPhys, bytes: u64) {
        self.below_mut().ram_written(start, bytes);
    }
    fn arm_write_tracking(&mut self) {
        self.below_mut().arm_write_tracking();
    }
    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.below().kick_handle()
    }
}

impl<L: VcpuLayer> Vcpu for L {
    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        VcpuLayer::run(self, until)
    }
    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        VcpuLayer::complete_read(self, value)
    }
    fn rip(&mut self) -> Result<u64, VcpuError> {
        VcpuLayer::rip(self)
    }
    fn position(&self) -> Option<Position> {
        VcpuLayer::position(self)
    }
    fn interrupt_window_open(&self) -> bool {
        VcpuLayer::interrupt_window_open(self)
    }
    fn request_interrupt_window(&mut self, wanted: bool) {
        VcpuLayer::request_interrupt_window(self, wanted);
    }
    fn windows_are_exact(&self) -> bool {
        VcpuLayer::windows_are_exact(self)
    }
    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError> {
        VcpuLayer::inject_interrupt(self, vector)
    }
    fn is_settled(&mut self) -> Result<bool, VcpuError> {
        VcpuLayer::is_settled(self)
    }
    fn save(&mut self) -> Result<CpuState, VcpuError> {
        VcpuLayer::save(self)
    }
    fn load(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError> {
        VcpuLayer::load(self, state, position)
    }
    fn ram_written(&mut self, start: GuestPhys, bytes: u64) {
        VcpuLayer::ram_written(self, start, bytes);
    }
    fn arm_write_tracking(&mut self) {
        VcpuLayer::arm_write_tracking(self);
    }
    fn kick_handle(&self) -> Arc<dyn Kick> {
        VcpuLayer::kick_handle(self)
    }
}

/// Lends a vCPU to something that wants one of its own, such as a recorder.
impl<V: Vcpu> VcpuLayer for &mut V {
    type Below = V;
    fn below(&self) -> &V {
        self
    }
    fn below_mut(&mut self) -> &mut V {
        self
    }
}
