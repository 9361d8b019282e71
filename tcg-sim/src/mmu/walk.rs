//! The 4-level page walk (SDM vol. 3, 4.5 to 4.7; APM vol. 2, 5.3 to 5.6).
//!
//! Accessed and dirty bits are set only by a walk that succeeds: accessed at every level, dirty in
//! the leaf for a write. Hardware may set accessed bits at the levels it passed before it faulted
//! (SDM vol. 3, 4.8, "may"); we never do, so that a fault leaves memory untouched.

use machine::state::{CpuState, cr0, cr4, efer, rflags};
use machine::units::{Gfn, GuestPhys};

/// Guest-physical memory as the walker sees it.
///
/// Addresses are multiples of 8. Outside RAM reads give all ones and updates vanish.
pub trait PhysMem {
    /// The quadword at `address`.
    fn read_u64(&mut self, address: GuestPhys) -> u64;
    /// Replaces the quadword at `address`; only accessed and dirty bits differ from what was read.
    fn update_u64(&mut self, address: GuestPhys, value: u64);
}

/// Everything outside memory that a translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0, of which WP matters.
    pub cr0: u64,
    /// Root of the tables.
    pub cr3: u64,
    /// CR4, of which SMEP and SMAP matter.
    pub cr4: u64,
    /// IA32_EFER, of which NXE matters.
    pub efer: u64,
    /// RFLAGS.AC, which lifts SMAP for explicit accesses.
    pub ac: bool,
    /// Physical address bits (CPUID 8000_0008h EAX bits 0..8), 32 to 52.
    pub phys_bits: u8,
    /// Whether the CPU model has 1 GiB pages (CPUID 8000_0001h EDX bit 26).
    pub gib_pages: bool,
}

impl Paging {
    /// The translation context of a vCPU whose CPU model has 40 physical address bits and 1 GiB
    /// pages, as `CpuidTable::x86_64_v2` says. Other tables: change the two fields.
    pub fn of(cpu: &CpuState) -> Self {
        Self {
            cr0: cpu.cr0,
            cr3: cpu.cr3,
            cr4: cpu.cr4,
            efer: cpu.msrs.efer,
            ac: cpu.rflags & rflags::AC != 0,
            phys_bits: 40,
            gib_pages: true,
        }
    }
}

/// What is done to the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessType {
    /// Data read.
    Read,
    /// Data write, or the read half of a read-modify-write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: AccessType,
    /// Made at CPL 3 and not implicitly.
    pub user: bool,
    /// Made by the CPU itself to a system structure (GDT, LDT, IDT, TSS): supervisor whatever the
    /// CPL, and RFLAGS.AC does not lift SMAP.
    pub implicit: bool,
}

impl Access {
    /// An explicit access at a privilege level.
    pub fn at_cpl(kind: AccessType, cpl: u8) -> Self {
        Self {
            kind,
            user: cpl == 3,
            implicit: false,
        }
    }

    /// An implicit supervisor access.
    pub fn system(kind: AccessType) -> Self {
        Self {
            kind,
            user: false,
            implicit: true,
        }
    }
}

/// Size of the page that maps an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

impl PageSize {
    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Small => 1 << 12,
            Self::Large => 1 << 21,
            Self::Huge => 1 << 30,
        }
    }
}

/// A successful translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical address of the byte asked for. It may lie outside RAM.
    pub gpa: GuestPhys,
    /// Size of the page.
    pub size: PageSize,
    /// R/W is set at every level.
    pub writable: bool,
    /// U/S is set at every level.
    pub user: bool,
    /// XD is set at some level and EFER.NXE is on.
    pub nx: bool,
    /// G is set in the leaf (it counts only while CR4.PGE is on).
    pub global: bool,
    /// D is set in the leaf, after this access.
    pub dirty: bool,
    /// Frames of the tables walked, root first; the first `levels` entries are valid.
    pub frames: [Gfn; 4],
    /// Tables walked: 4, 3 or 2.
    pub levels: u8,
}

/// A translation that failed. The caller raises #PF with `error` and the address in CR2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// Error code: P 0, W 1, U 2, RSVD 3, I 4 (SDM vol. 3, 4.7).
    pub error: u32,
    /// Frames of the tables read, root first: a cached denial depends on them.
    pub frames: [Gfn; 4],
    /// How many of `frames` are valid.
    pub levels: u8,
}

/// Page-table entry bits.
mod pte {
    pub(super) const P: u64 = 1 << 0;
    pub(super) const RW: u64 = 1 << 1;
    pub(super) const US: u64 = 1 << 2;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const G: u64 = 1 << 8;
    pub(super) const XD: u64 = 1 << 63;
    /// Physical address bits 12 to 51.
    pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

const FAULT_PRESENT: u32 = 1 << 0;
const FAULT_RESERVED: u32 = 1 << 3;

/// Whether bits 47 to 63 of a linear address are equal (4-level paging). The caller of [`walk`]
/// checks this first and raises #GP(0) or, through the stack segment, #SS(0).
pub fn is_canonical(va: u64) -> bool {
    ((va << 16) as i64 >> 16) as u64 == va
}

/// Translates `va`, which is canonical, for an access, and sets accessed and dirty bits.
///
/// # Errors
/// The page fault that the access raises; no table entry has changed then.
pub fn walk(
    phys: &mut impl PhysMem,
    paging: &Paging,
    va: u64,
    access: Access,
) -> Result<Mapping, PageFault> {
    let mut trail = Trail::default();
    let mut mapping = descend(phys, paging, va, access, &mut trail)?;
    let leaf = trail.levels - 1;
    for (level, (&address, &entry)) in trail.addresses.iter().zip(&trail.entries).enumerate() {
        if level > leaf {
            break;
        }
        let mut value = entry | pte::A;
        if level == leaf && access.kind == AccessType::Write {
            value |= pte::D;
            mapping.dirty = true;
        }
        if value != entry {
            phys.update_u64(address, value);
        }
    }
    Ok(mapping)
}

/// Translates `va` like [`walk`] but changes nothing: for looking ahead while decoding, and for
/// checks whose access comes later.
///
/// # Errors
/// The page fault that the access would raise.
pub fn probe(
    phys: &mut impl PhysMem,
    paging: &Paging,
    va: u64,
    access: Access,
) -> Result<Mapping, PageFault> {
    descend(phys, paging, va, access, &mut Trail::default())
}

/// The entries that a walk used.
#[derive(Default)]
struct Trail {
    addresses: [GuestPhys; 4],
    entries: [u64; 4],
    levels: usize,
}

impl Trail {
    fn frames(&self) -> [Gfn; 4] {
        self.addresses.map(GuestPhys::gfn)
    }
}

fn descend(
    phys: &mut impl PhysMem,
    paging: &Paging,
    va: u64,
    access: Access,
    trail: &mut Trail,
) -> Result<Mapping, PageFault> {
    let physical = (1u64 << paging.phys_bits) - 1;
    let nxe = paging.efer & efer::NXE != 0;
    let mut table = paging.cr3 & pte::ADDRESS & physical;
    let (mut rights, mut nx) = (pte::RW | pte::US, false);
    for level in 0..4 {
        let shift = 39 - 9 * level as u32;
        let address = GuestPhys(table + ((va >> shift) & 0x1ff) * 8);
        let entry = phys.read_u64(address);
        trail.addresses[level] = address;
        trail.entries[level] = entry;
        trail.levels = level + 1;
        if entry & pte::P == 0 {
            return Err(fault(paging, access, 0, trail));
        }
        let leaf = level == 3 || (level > 0 && entry & pte::PS != 0);
        if entry & reserved_bits(paging, level, leaf) != 0 {
            let bits = FAULT_PRESENT | FAULT_RESERVED;
            return Err(fault(paging, access, bits, trail));
        }
        rights &= entry;
        nx |= nxe && entry & pte::XD != 0;
        if leaf {
            let offset_mask = (1u64 << shift) - 1;
            let mapping = Mapping {
                gpa: GuestPhys((entry & pte::ADDRESS & !offset_mask) | (va & offset_mask)),
                size: [PageSize::Huge, PageSize::Large, PageSize::Small][level - 1],
                writable: rights & pte::RW != 0,
                user: rights & pte::US != 0,
                nx,
                global: entry & pte::G != 0,
                dirty: entry & pte::D != 0,
                frames: trail.frames(),
                levels: trail.levels as u8,
            };
            if !mapping.permits(paging, access) {
                return Err(fault(paging, access, FAULT_PRESENT, trail));
            }
            return Ok(mapping);
        }
        table = entry & pte::ADDRESS;
    }
    unreachable!("the fourth level is always a leaf")
}

/// Bits that must be zero in a present entry (SDM vol. 3, tables 4-15 to 4-20). Bit 12 of a large
/// leaf is PAT and not reserved.
fn reserved_bits(paging: &Paging, level: usize, leaf: bool) -> u64 {
    let mut bits = pte::ADDRESS & !((1u64 << paging.phys_bits) - 1);
    if paging.efer & efer::NXE == 0 {
        bits |= pte::XD;
    }
    match (level, leaf) {
        (0, _) => bits |= pte::PS,
        (1, true) if !paging.gib_pages => bits |= pte::PS,
        (1, true) => bits |= 0x3fff_e000,
        (2, true) => bits |= 0x001f_e000,
        _ => {}
    }
    bits
}

fn fault(paging: &Paging, access: Access, bits: u32, trail: &Trail) -> PageFault {
    let write = u32::from(access.kind == AccessType::Write) << 1;
    let user = u32::from(access.user) << 2;
    // The I bit is reported only where fetches can be denied (SDM vol. 3, 4.7).
    let fetches_checked = paging.efer & efer::NXE != 0 || paging.cr4 & cr4::SMEP != 0;
    let fetch = u32::from(access.kind == AccessType::Fetch && fetches_checked) << 4;
    PageFault {
        error: bits | write | user | fetch,
        frames: trail.frames(),
        levels: trail.levels as u8,
    }
}

impl Mapping {
    /// Whether the rights allow an access (SDM vol. 3, 4.6.1).
    pub fn permits(&self, paging: &Paging, access: Access) -> bool {
        let supervisor_blocked = match access.kind {
            AccessType::Fetch => paging.cr4 & cr4::SMEP != 0,
            _ => paging.cr4 & cr4::SMAP != 0 && (access.implicit || !paging.ac),
        };
        if access.user && !self.user || !access.user && self.user && supervisor_blocked {
            return false;
        }
        match access.kind {
            AccessType::Read => true,
            AccessType::Write => self.writable || !access.user && paging.cr0 & cr0::WP == 0,
            AccessType::Fetch => !self.nx,
        }
    }
}
