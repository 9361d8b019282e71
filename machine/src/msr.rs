//! Model-specific registers of the guest machine: their numbers, and those that are constants.

use crate::cpuid::Maker;

/// What a time stamp counter reads that hardware was told to hold still.
pub const FROZEN_TSC: u64 = 1 << 40;

/// MSR numbers.
pub mod number {
    #![expect(missing_docs, reason = "architectural names")]
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const DE_CFG: u32 = 0xc001_1029;
}

/// The value of a register that holds one value and accepts only that one: what Linux 6.1 touches
/// before it asks CPUID, or without a fix-up for #GP.
pub fn constant(maker: Maker, index: u32) -> Option<u64> {
    Some(match (index, maker) {
        (number::PLATFORM_ID, _) => 0,
        // Microcode revision: "none".
        (number::BIOS_SIGN_ID, _) => 0,
        // No variable or fixed ranges.
        (number::MTRR_CAP, _) => 0,
        // Read by the #DB handler and by context switches of stepped tasks.
        (number::DEBUGCTL, _) => 0,
        // MTRRs disabled.
        (number::MTRR_DEF_TYPE, _) => 0,
        // Fast strings (bit 0); CPUID leaves are not limited (SDM vol. 4).
        (number::MISC_ENABLE, Maker::Intel) => 1,
        // No memory encryption, no large top of memory.
        (number::SYSCFG, Maker::Amd) => 0,
        (number::HWCR, Maker::Amd) => 0,
        // LFENCE serialises (bit 1), as on every family from 17h on.
        (number::DE_CFG, Maker::Amd) => 2,
        _ => return None,
    })
}
