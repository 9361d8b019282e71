//! What a translation depends on besides the bytes of the guest code.

use machine::state::{CpuState, cr0, cr4, rflags};

/// Which software TLB the accesses of a privilege level use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum TlbClass {
    /// CPL 0 to 2, allowed to touch user pages.
    Supervisor = 0,
    /// CPL 3.
    User = 1,
    /// CPL 0 to 2 while SMAP forbids user pages.
    SupervisorSmap = 2,
}

/// Mode bits of a translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Mode(u16);

impl Mode {
    const CPL: u16 = 3;
    const SMAP: u16 = 1 << 2;
    const TASK_SWITCHED: u16 = 1 << 3;
    const EMULATION: u16 = 1 << 4;
    const NO_SSE: u16 = 1 << 5;
    const MONITOR_COPROCESSOR: u16 = 1 << 6;
    /// IOPL allows CLI and STI at CPL 3.
    const IO_PRIVILEGE: u16 = 1 << 7;
    const ONE_STEP: u16 = 1 << 8;
    /// The part that selects tables which are not flushed when it changes.
    const CLASS: u16 = Self::CPL | Self::SMAP | Self::ONE_STEP | Self::IO_PRIVILEGE;

    /// The mode bits of a CPU state.
    pub(crate) fn of(cpu: &CpuState) -> Self {
        let cpl = u16::from(cpu.cpl());
        let smap = cpl != 3 && cpu.cr4 & cr4::SMAP != 0 && cpu.rflags & rflags::AC == 0;
        let iopl = (cpu.rflags & rflags::IOPL) >> 12;
        let bit = |condition: bool, bit: u16| if condition { bit } else { 0 };
        Self(
            cpl | bit(smap, Self::SMAP)
                | bit(cpu.cr0 & cr0::TS != 0, Self::TASK_SWITCHED)
                | bit(cpu.cr0 & cr0::EM != 0, Self::EMULATION)
                | bit(cpu.cr0 & cr0::MP != 0, Self::MONITOR_COPROCESSOR)
                | bit(cpu.cr4 & cr4::OSFXSR == 0, Self::NO_SSE)
                | bit(u64::from(cpl) <= iopl, Self::IO_PRIVILEGE),
        )
    }

    /// The same mode, one instruction a block, every access through the slow path, nothing cached.
    pub(crate) fn one_step(self) -> Self {
        Self(self.0 | Self::ONE_STEP)
    }

    /// Whether this is [`Mode::one_step`].
    pub(crate) fn is_one_step(self) -> bool {
        self.0 & Self::ONE_STEP != 0
    }

    /// Whether the two differ in more than what has tables of its own.
    pub(crate) fn needs_branch_flush(self, other: Self) -> bool {
        (self.0 ^ other.0) & !Self::CLASS != 0
    }

    /// Which tables accesses and branches use.
    pub(crate) fn class(self) -> TlbClass {
        match (self.0 & Self::CPL, self.0 & Self::SMAP != 0) {
            (3, _) => TlbClass::User,
            (_, true) => TlbClass::SupervisorSmap,
            (_, false) => TlbClass::Supervisor,
        }
    }

    /// Current privilege level.
    pub(crate) fn cpl(self) -> u8 {
        (self.0 & Self::CPL) as u8
    }

    /// Whether CLI and STI are allowed.
    pub(crate) fn io_privilege(self) -> bool {
        self.0 & Self::IO_PRIVILEGE != 0
    }

    /// CR0.EM, TS and MP and CR4.OSFXSR, which say what the floating-point units may do.
    pub(crate) fn unit_controls(self) -> (u64, u64) {
        let bit = |flag: u16, bit: u64| if self.0 & flag != 0 { bit } else { 0 };
        let cr0 = bit(Self::EMULATION, cr0::EM)
            | bit(Self::TASK_SWITCHED, cr0::TS)
            | bit(Self::MONITOR_COPROCESSOR, cr0::MP);
        (cr0, cr4::OSFXSR & !bit(Self::NO_SSE, cr4::OSFXSR))
    }
}
