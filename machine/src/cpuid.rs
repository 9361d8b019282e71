//! The CPUID table of a guest. It travels with the recording, so that every replay answers alike.

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// Input EAX.
    pub leaf: u32,
    /// Input ECX, where the leaf has subleaves; else 0.
    pub subleaf: u32,
    /// Whether `subleaf` matters.
    pub has_subleaves: bool,
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// Feature bits of leaf 1, ECX and EDX, as offered.
#[expect(missing_docs, reason = "architectural names")]
pub mod leaf1 {
    pub const ECX_SSE3: u32 = 1 << 0;
    pub const ECX_SSSE3: u32 = 1 << 9;
    pub const ECX_CX16: u32 = 1 << 13;
    pub const ECX_SSE41: u32 = 1 << 19;
    pub const ECX_SSE42: u32 = 1 << 20;
    pub const ECX_POPCNT: u32 = 1 << 23;
    pub const EDX_FPU: u32 = 1 << 0;
    pub const EDX_DE: u32 = 1 << 2;
    pub const EDX_PSE: u32 = 1 << 3;
    pub const EDX_MSR: u32 = 1 << 5;
    pub const EDX_PAE: u32 = 1 << 6;
    pub const EDX_CX8: u32 = 1 << 8;
    pub const EDX_SEP: u32 = 1 << 11;
    pub const EDX_PGE: u32 = 1 << 13;
    pub const EDX_CMOV: u32 = 1 << 15;
    pub const EDX_PAT: u32 = 1 << 16;
    pub const EDX_CLFLUSH: u32 = 1 << 19;
    pub const EDX_MMX: u32 = 1 << 23;
    pub const EDX_FXSR: u32 = 1 << 24;
    pub const EDX_SSE: u32 = 1 << 25;
    pub const EDX_SSE2: u32 = 1 << 26;
}

/// Feature bits of leaf 7, EBX.
#[expect(missing_docs, reason = "architectural names")]
pub mod leaf7 {
    pub const EBX_SMEP: u32 = 1 << 7;
    pub const EBX_SMAP: u32 = 1 << 20;
}

/// The answers of CPUID, in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidTable {
    /// Rows, sorted by (leaf, subleaf).
    pub entries: Vec<CpuidEntry>,
}

impl CpuidTable {
    /// x86-64-v2 without TSC, APIC, XSAVE, AVX, RDRAND, RDSEED, RDTSCP, MONITOR and PMU.
    ///
    /// The vendor string is one no manufacturer uses: kernels then touch no vendor-specific
    /// registers.
    pub fn x86_64_v2() -> Self {
        use leaf1::*;
        let plain = |leaf, registers| CpuidEntry {
            leaf,
            subleaf: 0,
            has_subleaves: false,
            registers,
        };
        let brand: Vec<u32> = b"SimuBoost x86-64-v2 virtual processor\0\0\0\0\0\0\0\0\0\0\0"
            .chunks(4)
            .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect();
        let ecx1 = ECX_SSE3 | ECX_SSSE3 | ECX_CX16 | ECX_SSE41 | ECX_SSE42 | ECX_POPCNT;
        let edx1 = EDX_FPU
            | EDX_DE
            | EDX_PSE
            | EDX_MSR
            | EDX_PAE
            | EDX_CX8
            | EDX_SEP
            | EDX_PGE
            | EDX_CMOV
            | EDX_PAT
            | EDX_CLFLUSH
            | EDX_MMX
            | EDX_FXSR
            | EDX_SSE
            | EDX_SSE2;
        // EBX, ECX, EDX; the string reads EBX, EDX, ECX.
        let vendor = [*b"Simu", *b"tVCP", *b"Boos"].map(u32::from_le_bytes);
        // Extended features: SYSCALL 11, NX 20, 1 GiB pages 26, LM 29; LAHF in ECX bit 0.
        let edx81 = (1 << 11) | (1 << 20) | (1 << 26) | (1 << 29);
        Self {
            entries: vec![
                plain(0, [7, vendor[0], vendor[1], vendor[2]]),
                // Family 15 model 6 stepping 1; CLFLUSH line 64 bytes (EBX bits 8..16, units of 8).
                plain(1, [0x0000_0f61, 8 << 8, ecx1, edx1]),
                CpuidEntry {
                    leaf: 7,
                    subleaf: 0,
                    has_subleaves: true,
                    registers: [0; 4],
                },
                plain(0x8000_0000, [0x8000_0008, vendor[0], vendor[1], vendor[2]]),
                plain(0x8000_0001, [0x0000_0f61, 0, 1, edx81]),
                plain(0x8000_0002, [brand[0], brand[1], brand[2], brand[3]]),
                plain(0x8000_0003, [brand[4], brand[5], brand[6], brand[7]]),
                plain(0x8000_0004, [brand[8], brand[9], brand[10], brand[11]]),
                // 40 physical, 48 linear address bits.
                plain(0x8000_0008, [0x3028, 0, 0, 0]),
            ],
        }
    }

    /// EAX, EBX, ECX, EDX for an input. Leaves the table does not hold read as zero.
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.entries
            .iter()
            .find(|e| e.leaf == leaf && (!e.has_subleaves || e.subleaf == subleaf))
            .map_or([0; 4], |e| e.registers)
    }
}
