//! The CPUID table of a guest. It travels with the recording, so that every replay answers alike.
//!
//! What a processor leaves undefined is the recording host's in every recording, so a guest is told
//! the vendor, family and model of that host ([`CpuidTable::of_host`]): kernels work around the
//! right errata, and C libraries refuse vendors that they do not know. Features are the same on all.

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

/// Who made a processor; designs derived from one maker's count as that maker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD.
    Amd,
}

impl Maker {
    /// The vendor string.
    pub fn name(self) -> [u8; 12] {
        match self {
            Self::Intel => *b"GenuineIntel",
            Self::Amd => *b"AuthenticAMD",
        }
    }

    /// The maker of this host's processor.
    pub fn of_host() -> Self {
        match vendor_of_host() == Self::Intel.name() {
            true => Self::Intel,
            false => Self::Amd,
        }
    }
}

/// The vendor string of this host's processor, as it is.
pub fn vendor_of_host() -> [u8; 12] {
    let leaf = std::arch::x86_64::__cpuid(0);
    vendor_name(&[leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
}

/// The string reads EBX, EDX, ECX.
fn vendor_name([_, ebx, ecx, edx]: &[u32; 4]) -> [u8; 12] {
    let mut name = [0; 12];
    for (part, register) in name.chunks_mut(4).zip([ebx, edx, ecx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    name
}

/// What tells processors with the same features apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Maker.
    pub maker: Maker,
    /// Family, model and stepping, as EAX of leaf 1 has them.
    pub signature: u32,
}

impl Identity {
    /// That of this host.
    pub fn of_host() -> Self {
        Self {
            maker: Maker::of_host(),
            signature: std::arch::x86_64::__cpuid(1).eax,
        }
    }

    /// The family: the extended one counts where the plain one is 15 (SDM vol. 2, CPUID).
    pub fn family(self) -> u32 {
        let plain = self.signature >> 8 & 0xf;
        match plain {
            15 => plain + (self.signature >> 20 & 0xff),
            _ => plain,
        }
    }

    /// The model, with the extended one where the family has it.
    pub fn model(self) -> u32 {
        let plain = self.signature >> 4 & 0xf;
        match self.signature >> 8 & 0xf {
            6 | 15 => plain | self.signature >> 12 & 0xf0,
            _ => plain,
        }
    }

    /// The stepping.
    pub fn stepping(self) -> u32 {
        self.signature & 0xf
    }
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
    /// The vendor string is one no manufacturer uses: enough for bare-metal guests, and the same on
    /// every host. C libraries refuse it; see [`Self::with_identity`].
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

    /// [`Self::x86_64_v2`] with the identity of this host: what a recording made here tells its guest.
    pub fn of_host() -> Self {
        Self::x86_64_v2().with_identity(Identity::of_host())
    }

    /// The table with another vendor, family and model, and caches described the way of that vendor:
    /// 32 KiB for data and for instructions, 1 MiB at level 2, 16 MiB at level 3.
    ///
    /// The highest basic leaf stays all zero, so that it makes no difference that Intel processors
    /// answer with it to leaves beyond.
    #[must_use]
    pub fn with_identity(mut self, identity: Identity) -> Self {
        let name = identity.maker.name();
        let part =
            |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        for entry in &mut self.entries {
            match entry.leaf {
                0 | 0x8000_0000 => {
                    entry.registers[1..].copy_from_slice(&[part(0), part(8), part(4)])
                }
                1 => entry.registers[0] = identity.signature,
                // Intel keeps the signature to leaf 1 (SDM vol. 2, CPUID).
                0x8000_0001 => {
                    entry.registers[0] = match identity.maker {
                        Maker::Intel => 0,
                        Maker::Amd => identity.signature,
                    }
                }
                _ => {}
            }
        }
        self.entries.extend(match identity.maker {
            Maker::Intel => intel_caches(),
            Maker::Amd => amd_caches(),
        });
        self.entries
            .sort_by_key(|entry| (entry.leaf, entry.subleaf));
        self
    }

    /// The maker that the table names, if it is one of those that are known.
    pub fn maker(&self) -> Option<Maker> {
        let name = vendor_name(&self.lookup(0, 0));
        [Maker::Intel, Maker::Amd]
            .into_iter()
            .find(|maker| maker.name() == name)
    }

    /// EAX, EBX, ECX, EDX for an input. Leaves the table does not hold read as zero.
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.entries
            .iter()
            .find(|e| e.leaf == leaf && (!e.has_subleaves || e.subleaf == subleaf))
            .map_or([0; 4], |e| e.registers)
    }
}

/// Leaf 2 (descriptor 0xff: see leaf 4) and leaf 4 (SDM vol. 2, CPUID).
fn intel_caches() -> Vec<CpuidEntry> {
    // Type (1 data, 2 instructions, 3 unified), level, ways, sets. Lines have 64 bytes.
    let caches = [
        (1, 1, 8, 64),
        (2, 1, 8, 64),
        (3, 2, 16, 1024),
        (3, 3, 16, 16384),
    ];
    let row = |leaf, subleaf, has_subleaves, registers| CpuidEntry {
        leaf,
        subleaf,
        has_subleaves,
        registers,
    };
    let mut rows = vec![row(2, 0, false, [0x00fe_ff01, 0, 0, 0])];
    rows.extend(
        (0..)
            .zip(caches)
            .map(|(subleaf, (kind, level, ways, sets))| {
                // Self-initialising (bit 8).
                let eax = kind | level << 5 | 1 << 8;
                let ebx = 63 | (ways - 1) << 22;
                row(4, subleaf, true, [eax, ebx, sets - 1, 0])
            }),
    );
    rows
}

/// Leaves 0x80000005 and 0x80000006 (APM vol. 3, appendix E.4): sizes in KiB, ways, lines of 64 bytes.
fn amd_caches() -> Vec<CpuidEntry> {
    let level_1 = 32 << 24 | 8 << 16 | 1 << 8 | 64;
    let row = |leaf, registers| CpuidEntry {
        leaf,
        subleaf: 0,
        has_subleaves: false,
        registers,
    };
    // Associativity code 8 stands for 16 ways; level 3 is counted in units of 512 KiB.
    let level_2 = 1024 << 16 | 8 << 12 | 1 << 8 | 64;
    let level_3 = 32 << 18 | 8 << 12 | 1 << 8 | 64;
    vec![
        row(0x8000_0005, [0, 0, level_1, level_1]),
        row(0x8000_0006, [0, 0, level_2, level_3]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_changes_who_but_not_what() {
        let plain = CpuidTable::x86_64_v2();
        assert_eq!(plain.maker(), None);
        for maker in [Maker::Intel, Maker::Amd] {
            let identity = Identity {
                maker,
                signature: 0x00a2_0f10,
            };
            let table = plain.clone().with_identity(identity);
            assert_eq!(table.maker(), Some(maker));
            assert_eq!(table.lookup(1, 0)[0], identity.signature);
            assert_eq!(table.lookup(1, 0)[1..], plain.lookup(1, 0)[1..]);
            assert_eq!(table.lookup(7, 0), plain.lookup(7, 0));
            assert_eq!(
                table.lookup(0x8000_0001, 0)[1..],
                plain.lookup(0x8000_0001, 0)[1..]
            );
            assert!(table.entries.is_sorted_by_key(|e| (e.leaf, e.subleaf)));
        }
    }

    #[test]
    fn signatures_are_taken_apart() {
        // As the kernel shows them for these processors.
        for (signature, family, model, stepping) in [
            (0x000c_06f2, 6, 207, 2),
            (0x00a0_0f11, 25, 1, 1),
            (0x0000_0f61, 15, 6, 1),
            (0x0000_0543, 5, 4, 3),
        ] {
            let maker = Maker::Intel;
            let identity = Identity { maker, signature };
            let parts = (identity.family(), identity.model(), identity.stepping());
            assert_eq!(parts, (family, model, stepping), "{signature:#x}");
        }
    }

    #[test]
    fn the_highest_basic_leaf_is_zero() {
        let table = CpuidTable::of_host();
        assert_eq!(table.lookup(table.lookup(0, 0)[0], 0), [0; 4]);
    }

    #[test]
    fn tables_of_hosts_can_be_saved() {
        let table = CpuidTable::of_host();
        assert_eq!(CpuidTable::restore(&table.save()), Ok(table));
    }
}
