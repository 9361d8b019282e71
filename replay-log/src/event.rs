//! What crosses inward.

use crate::position::{Check, EventPosition};
use machine::units::{GuestPhys, PAGE_BYTES, Port, Vector, VirtualNanos};
use std::fmt;

/// Which vCPU an event concerns. Recordings have one today, number 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u16);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu{}", self.0)
    }
}

/// Names the content of one stored page. Opaque to the log; equal ids mean equal content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub [u8; 32]);

impl ContentId {
    /// The id that recorders give to a page: the BLAKE3 hash of its 4096 bytes.
    pub fn of(page: &[u8; PAGE_BYTES as usize]) -> Self {
        Self(*blake3::hash(page).as_bytes())
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({self})")
    }
}

/// Anything that crossed inward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest asked, and the answer is not a function of its state.
    Read(Read),
    /// Something happened to the guest.
    Async(Async),
}

impl Event {
    /// The vCPU concerned.
    pub fn vcpu(&self) -> VcpuId {
        match self {
            Self::Read(read) => read.vcpu,
            Self::Async(event) => event.vcpu,
        }
    }
}

/// What a read asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadSource {
    /// IN, or one element of INS.
    Port {
        /// Port read.
        port: Port,
        /// Bytes: 1, 2 or 4.
        size: u8,
    },
    /// A load from guest-physical space that is not RAM.
    Mmio {
        /// First byte.
        address: GuestPhys,
        /// Bytes: 1 to 8.
        size: u8,
    },
    /// RDTSC, RDTSCP or RDMSR of the time stamp counter.
    Timestamp,
}

/// A read and its answer. Reads are replayed in order and have no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The vCPU that read.
    pub vcpu: VcpuId,
    /// Check: what it asked.
    pub source: ReadSource,
    /// Check: RIP once the read has completed (that of the next instruction, or of the same one
    /// where more elements of REP INS follow).
    pub rip: u64,
    /// The answer, zero-extended.
    pub value: u64,
}

/// Something that happened to the guest without its asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Async {
    /// The vCPU whose position is meant.
    pub vcpu: VcpuId,
    /// Where it happened. Several events at one position apply in log order.
    pub at: EventPosition,
    /// What the registers were just before it.
    pub check: Check,
    /// What happened.
    pub effect: Effect,
}

/// What happened to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An external interrupt was delivered.
    Interrupt(Vector),
    /// A device wrote RAM: exactly these bytes, so that a replay heals nothing else.
    Write {
        /// First byte.
        to: GuestPhys,
        /// What was written.
        content: Content,
    },
}

/// Bytes that a device wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes themselves, at most [`Content::INLINE_MAX`].
    Inline(Vec<u8>),
    /// `bytes` bytes from `offset` of a stored page; they lie inside it.
    Page {
        /// The page.
        id: ContentId,
        /// First byte within it.
        offset: u16,
        /// Length.
        bytes: u16,
    },
}

impl Content {
    /// Most bytes that one event carries inline.
    pub const INLINE_MAX: usize = 1 << 20;

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Page { bytes, .. } => u64::from(*bytes),
        }
    }

    /// Whether the length is within limits and, for a stored page, inside it.
    pub(crate) fn is_valid(&self) -> bool {
        match self {
            Self::Inline(bytes) => bytes.len() <= Self::INLINE_MAX,
            Self::Page { offset, bytes, .. } => {
                u64::from(*offset) + u64::from(*bytes) <= PAGE_BYTES
            }
        }
    }
}

/// Why an interval ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// A checkpoint between two intervals.
    Checkpoint,
    /// The guest halted with interrupts off, which is how it powers off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// Triple fault.
    Shutdown,
    /// Whoever records asked for the end.
    Stopped,
    /// The guest halted and nothing could ever wake it.
    Idle,
}

/// The end of an interval: where the next checkpoint was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The vCPU whose position is meant.
    pub vcpu: VcpuId,
    /// Where the interval ended.
    pub at: EventPosition,
    /// What the registers were there.
    pub check: Check,
    /// Why it ended.
    pub reason: EndReason,
    /// Virtual time at the end.
    pub time: VirtualNanos,
}

impl fmt::Display for ReadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { port, size } => write!(f, "read of {size} bytes from port {port}"),
            Self::Mmio { address, size } => write!(f, "read of {size} bytes at {address}"),
            Self::Timestamp => write!(f, "read of the time stamp counter"),
        }
    }
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vcpu,
            source,
            rip,
            value,
        } = self;
        write!(f, "{vcpu}: {source} = {value:#x}, then RIP {rip:#x}")
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupt(vector) => write!(f, "interrupt {vector}"),
            Self::Write { to, content } => {
                write!(f, "device write of {} bytes to {to}", content.bytes())
            }
        }
    }
}

impl fmt::Display for Async {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vcpu,
            at,
            check,
            effect,
        } = self;
        write!(f, "{vcpu}: {effect} {at}, {check}")
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(read) => read.fmt(f),
            Self::Async(event) => event.fmt(f),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checkpoint => "checkpoint",
            Self::PoweredOff => "the guest powered off",
            Self::Reset => "the guest asked for a reset",
            Self::Shutdown => "triple fault",
            Self::Stopped => "recording stopped",
            Self::Idle => "the guest halted and nothing could wake it",
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vcpu,
            at,
            check,
            reason,
            time,
        } = self;
        write!(
            f,
            "{vcpu}: end ({reason}) {at}, {check}, virtual time {time}"
        )
    }
}
