//! What the host CPU does where x86-64 processors differ, and the guest's CPU with it: most guest
//! instructions execute natively, so everything else follows the same rules.

use crate::sys::Maker;
use std::arch::x86_64::{__cpuid, __cpuid_count};

/// The rules of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostCpu {
    pub(crate) vendor: Maker,
    pub(crate) x87: X87Rules,
}

/// What the x87 unit remembers of its last instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct X87Rules {
    /// Data pointer and opcode change only with an unmasked exception (CPUID 7, EBX bit 6: SDM vol. 1,
    /// 8.1.8 for the pointer; the opcode goes with it, as measured on family 6 model 207).
    pub(crate) pointers_on_exception_only: bool,
    /// FCS and FDS read as zero (CPUID 7, EBX bit 13).
    pub(crate) no_selectors: bool,
    /// Bits of FIP that FXRSTOR keeps, the rest being the sign; FDP is kept whole.
    pub(crate) pointer_bits: u32,
    /// FXSAVE and FXRSTOR leave the pointers out unless an unmasked exception waits (APM vol. 5, FXSAVE).
    pub(crate) lazy_fxsave: bool,
}

impl HostCpu {
    /// The rules of a guest's vendor on the CPU that this program runs on.
    pub(crate) fn of(vendor: Maker) -> Self {
        let features = if __cpuid(0).eax >= 7 {
            __cpuid_count(7, 0).ebx
        } else {
            0
        };
        Self {
            vendor,
            x87: X87Rules {
                pointers_on_exception_only: features & 1 << 6 != 0,
                no_selectors: features & 1 << 13 != 0,
                pointer_bits: match vendor {
                    Maker::Intel => __cpuid(0x8000_0008).eax >> 8 & 0xff,
                    Maker::Amd => 64,
                },
                lazy_fxsave: vendor == Maker::Amd,
            },
        }
    }
}

impl X87Rules {
    /// An instruction pointer as the unit keeps it.
    pub(crate) fn instruction_pointer(self, value: u64) -> u64 {
        let sign = 64 - self.pointer_bits.clamp(1, 64);
        ((value << sign) as i64 >> sign) as u64
    }
}
