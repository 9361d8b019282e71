//! What a translation depends on besides the bytes of the guest code.

use crate::mmu::Access;
use crate::sys;
use machine::state::{CpuState, Seg, cr0, cr4, rflags};

/// Number of [`TlbClass`]es.
pub(crate) const TLB_CLASSES: usize = 4;

/// Which software TLB and branch cache a mode uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum TlbClass {
    /// Compatibility mode at CPL 3.
    UserCompat = 0,
    /// CPL 0 to 2, allowed to touch user pages.
    Supervisor = 1,
    /// 64-bit mode at CPL 3.
    User = 2,
    /// CPL 0 to 2 while SMAP forbids user pages.
    SupervisorSmap = 3,
}

impl TlbClass {
    /// The class whose accesses have the rights of this one.
    pub(crate) fn of(cpu: &CpuState, access: Access) -> Self {
        let smap = cpu.cr4 & cr4::SMAP != 0 && (access.implicit || cpu.rflags & rflags::AC == 0);
        match (access.user, smap) {
            (true, _) => Self::User,
            (false, true) => Self::SupervisorSmap,
            (false, false) => Self::Supervisor,
        }
    }
}

/// Mode bits of a translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Mode(u32);

impl Mode {
    const CPL: u32 = 3;
    const SMAP: u32 = 1 << 2;
    const TASK_SWITCHED: u32 = 1 << 3;
    const EMULATION: u32 = 1 << 4;
    const NO_SSE: u32 = 1 << 5;
    const MONITOR_COPROCESSOR: u32 = 1 << 6;
    /// IOPL allows CLI and STI at CPL 3.
    const IO_PRIVILEGE: u32 = 1 << 7;
    const ONE_STEP: u32 = 1 << 8;
    /// Compatibility mode: CS.L is 0.
    const COMPAT: u32 = 1 << 9;
    /// Compatibility mode, and CS is not a flat 32-bit segment.
    const ODD_CODE: u32 = 1 << 10;
    /// Compatibility mode, and no access goes through the segment register of this number.
    const ODD_SEGMENT: u32 = 1 << 16;
    /// Compatibility mode, and no write goes through the segment register of this number.
    const READ_ONLY_SEGMENT: u32 = 1 << 22;

    /// The mode bits of a CPU state.
    pub(crate) fn of(cpu: &CpuState) -> Self {
        let cpl = u32::from(cpu.cpl());
        let smap = cpl != 3 && cpu.cr4 & cr4::SMAP != 0 && cpu.rflags & rflags::AC == 0;
        let iopl = (cpu.rflags & rflags::IOPL) >> 12;
        let bit = |condition: bool, bit: u32| if condition { bit } else { 0 };
        let segments = if cpu.segs[Seg::Cs as usize].long_mode() {
            0
        } else {
            segment_bits(cpu)
        };
        Self(
            segments
                | cpl
                | bit(smap, Self::SMAP)
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

    /// Which tables accesses and branches use.
    pub(crate) fn class(self) -> TlbClass {
        match (self.0 & Self::CPL, self.0 & Self::SMAP != 0) {
            (3, _) if self.is_compat() => TlbClass::UserCompat,
            (3, _) => TlbClass::User,
            (_, true) => TlbClass::SupervisorSmap,
            (_, false) => TlbClass::Supervisor,
        }
    }

    /// Current privilege level.
    pub(crate) fn cpl(self) -> u8 {
        (self.0 & Self::CPL) as u8
    }

    /// Whether this is compatibility mode.
    pub(crate) fn is_compat(self) -> bool {
        self.0 & Self::COMPAT != 0
    }

    /// Whether code runs in a segment that the engine does not do: 16-bit, with a base or a limit.
    pub(crate) fn has_odd_code(self) -> bool {
        self.0 & Self::ODD_CODE != 0
    }

    /// Whether accesses through a segment register fault.
    pub(crate) fn is_odd(self, segment: Seg, writes: bool) -> bool {
        let refusing = match writes {
            true => Self::READ_ONLY_SEGMENT,
            false => Self::ODD_SEGMENT,
        };
        self.0 & (refusing << segment as u32) != 0
    }

    /// Whether any of the segments that need no prefix is odd for some access.
    pub(crate) fn has_odd_plain_segment(self) -> bool {
        [Seg::Es, Seg::Ss, Seg::Ds]
            .into_iter()
            .any(|segment| self.is_odd(segment, true))
    }

    /// Whether CLI and STI are allowed.
    pub(crate) fn io_privilege(self) -> bool {
        self.0 & Self::IO_PRIVILEGE != 0
    }

    /// CR0.EM, TS and MP and CR4.OSFXSR, which say what the floating-point units may do.
    pub(crate) fn unit_controls(self) -> (u64, u64) {
        let bit = |flag: u32, bit: u64| if self.0 & flag != 0 { bit } else { 0 };
        let cr0 = bit(Self::EMULATION, cr0::EM)
            | bit(Self::TASK_SWITCHED, cr0::TS)
            | bit(Self::MONITOR_COPROCESSOR, cr0::MP);
        (cr0, cr4::OSFXSR & !bit(Self::NO_SSE, cr4::OSFXSR))
    }
}

/// The mode bits of compatibility mode.
fn segment_bits(cpu: &CpuState) -> u32 {
    let code = &cpu.segs[Seg::Cs as usize];
    let flat = code.present() && code.limit == u32::MAX && code.base == 0;
    let mut bits = Mode::COMPAT;
    if !flat || !code.default_32() {
        bits |= Mode::ODD_CODE;
    }
    for segment in [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        for (writes, bit) in [(false, Mode::ODD_SEGMENT), (true, Mode::READ_ONLY_SEGMENT)] {
            if sys::refusal(cpu, segment, writes).is_some() {
                bits |= bit << segment as u32;
            }
        }
    }
    bits
}
