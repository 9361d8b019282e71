//! Faults and events as values.

/// Exception vectors (SDM vol. 3, table 6-1).
#[expect(missing_docs, reason = "architectural names")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// An exception, not yet delivered. Nothing architectural has changed for it: CR2, DR6 and DR7 are
/// written by [`super::deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// Linear address for CR2, #PF only.
    pub cr2: Option<u64>,
    /// Bits to set in DR6, #DB only.
    pub dr6: u64,
}

impl Fault {
    /// An exception without error code.
    pub const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            cr2: None,
            dr6: 0,
        }
    }
    /// An exception with an error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            error: Some(error),
            ..Self::plain(vector)
        }
    }
    /// #UD.
    pub const UD: Self = Self::plain(vector::UD);
    /// #NM.
    pub const NM: Self = Self::plain(vector::NM);
    /// #AC(0).
    pub const AC: Self = Self::with_error(vector::AC, 0);
    /// #GP(0).
    pub const GP0: Self = Self::with_error(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Self = Self::with_error(vector::SS, 0);
    /// #GP with a selector or IDT index as error code.
    pub const fn gp(error: u32) -> Self {
        Self::with_error(vector::GP, error)
    }
    /// #NP with a selector or IDT index as error code.
    pub const fn np(error: u32) -> Self {
        Self::with_error(vector::NP, error)
    }
    /// #SS with a selector as error code.
    pub const fn ss(error: u32) -> Self {
        Self::with_error(vector::SS, error)
    }
    /// #TS with a selector as error code.
    pub const fn ts(error: u32) -> Self {
        Self::with_error(vector::TS, error)
    }
    /// #PF at `va` with the error code of the walk.
    pub const fn page(va: u64, error: u32) -> Self {
        Self {
            cr2: Some(va),
            ..Self::with_error(vector::PF, error)
        }
    }
    /// #DB with the DR6 bits that explain it.
    pub const fn debug(dr6: u64) -> Self {
        Self {
            dr6,
            ..Self::plain(vector::DB)
        }
    }
}

/// Where an event comes from; decides privilege checks, the EXT bit and the pushed RF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// External interrupt at an instruction boundary (or, with `mid_rep`, between two iterations).
    External {
        /// The interrupted REP instruction goes on afterwards; RF is pushed set.
        mid_rep: bool,
    },
    /// Exception reported before its instruction: pushes RF set (but for #DB of an instruction
    /// breakpoint, SDM vol. 3, 17.3.1.1).
    Fault,
    /// Exception reported after its instruction (#DB of TF and data breakpoints).
    Trap {
        /// Between two iterations of a REP instruction; RF is pushed set.
        mid_rep: bool,
    },
    /// INT n, INT3 and INTO: the gate's DPL is checked, EXT is clear.
    Software,
    /// INT1 (ICEBP): the gate's DPL is not checked, EXT is set.
    PrivilegedSoftware,
}

/// Something to deliver through the IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Origin.
    pub kind: EventKind,
    /// Vector, error code and the registers that go with it.
    pub fault: Fault,
}

impl Event {
    /// An external interrupt at an instruction boundary.
    pub fn external(vector: u8) -> Self {
        Self {
            kind: EventKind::External { mid_rep: false },
            fault: Fault::plain(vector),
        }
    }
    /// A fault-class exception.
    pub fn fault(fault: Fault) -> Self {
        Self {
            kind: EventKind::Fault,
            fault,
        }
    }
    /// A trap-class exception after a retired instruction.
    pub fn trap(fault: Fault) -> Self {
        Self {
            kind: EventKind::Trap { mid_rep: false },
            fault,
        }
    }
}

/// A fault while delivering a double fault: the vCPU shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("triple fault")]
pub struct TripleFault;
