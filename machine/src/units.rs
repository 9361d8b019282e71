//! Numbers with a unit or a kind.

use std::fmt;

/// Bytes in a page frame. All bookkeeping (dirty, checkpoint, code) is done in these.
pub const PAGE_BYTES: u64 = 4096;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

unit!(
    /// A guest-physical address in bytes.
    GuestPhys(u64),
    "{:#x}"
);
unit!(
    /// A guest-linear ("virtual") address in bytes, after segmentation and before paging.
    GuestVirt(u64),
    "{:#x}"
);
unit!(
    /// A guest frame number: a guest-physical address divided by [`PAGE_BYTES`].
    Gfn(u64),
    "{:#x}"
);
unit!(
    /// A count of steps. A step is one retired instruction or one delivered exception or interrupt,
    /// so that a fault loop which retires nothing still advances.
    Steps(u64),
    "{}"
);
unit!(
    /// Virtual time in nanoseconds since the guest was started.
    VirtualNanos(u64),
    "{} ns"
);
unit!(
    /// Monotonic time of the host in nanoseconds since some fixed instant of this process's life.
    HostNanos(u64),
    "{} ns of host time"
);
unit!(
    /// An interrupt vector, 0 to 255.
    Vector(u8),
    "{:#04x}"
);
unit!(
    /// An input line of the interrupt controllers, 0 to 15.
    IrqLine(u8),
    "IRQ{}"
);
unit!(
    /// An I/O port.
    Port(u16),
    "{:#06x}"
);

impl GuestPhys {
    /// The frame that holds this address.
    pub fn gfn(self) -> Gfn {
        Gfn(self.0 / PAGE_BYTES)
    }
}

impl Gfn {
    /// The address of the frame's first byte. Frame numbers stay below 2^40 (52-bit addresses).
    pub fn base(self) -> GuestPhys {
        GuestPhys(self.0 * PAGE_BYTES)
    }
}

/// An exact place in an execution: completed steps, then completed iterations of the REP string
/// instruction that is in progress (0 where none is).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Steps completed since the recording started.
    pub steps: Steps,
    /// Iterations that the instruction at this position has completed without retiring.
    pub rep_iterations: u64,
}

impl Position {
    /// The boundary after `steps` steps, before the next instruction has begun.
    pub fn at(steps: u64) -> Self {
        Self {
            steps: Steps(steps),
            rep_iterations: 0,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rep_iterations {
            0 => write!(f, "step {}", self.steps),
            n => write!(f, "step {} + {n} REP iterations", self.steps),
        }
    }
}
