//! The walk against hand-built tables.

use super::*;
use machine::state::{CpuState, cr0, cr4, efer};
use machine::units::{Gfn, GuestPhys};
use std::collections::BTreeMap;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const PAT_LARGE: u64 = 0x1000;
const XD: u64 = 1 << 63;

/// Sparse memory; what was never set is outside RAM.
#[derive(Default, Clone, PartialEq, Debug)]
struct Sparse(BTreeMap<u64, u64>);

impl PhysMem for Sparse {
    fn read_u64(&mut self, address: GuestPhys) -> u64 {
        self.0.get(&address.0).copied().unwrap_or(u64::MAX)
    }
    fn update_u64(&mut self, address: GuestPhys, value: u64) {
        if let Some(slot) = self.0.get_mut(&address.0) {
            *slot = value;
        }
    }
}

const VA: u64 = 0x0000_1234_5678_9abc;

fn index(level: u32) -> u64 {
    (VA >> (39 - 9 * level)) & 0x1ff
}

fn entry_address(level: u32) -> u64 {
    0x1000 * (u64::from(level) + 1) + index(level) * 8
}

/// Tables at 0x1000, 0x2000, ... with the given flags; the last entry points to 0x4000_0000.
fn tables(flags: &[u64]) -> Sparse {
    let mut memory = Sparse::default();
    for (level, flag) in flags.iter().enumerate() {
        let last = level + 1 == flags.len();
        let frame = if last {
            0x4000_0000
        } else {
            0x1000 * (level as u64 + 2)
        };
        memory.0.insert(entry_address(level as u32), frame | flag);
    }
    memory
}

fn paging() -> Paging {
    Paging::of(&CpuState::long_mode(0, 0, 0x1000))
}

const ALL: u64 = P | RW | US;
const USER_READ: Access = Access {
    kind: AccessType::Read,
    user: true,
    implicit: false,
};
const USER_WRITE: Access = Access {
    kind: AccessType::Write,
    user: true,
    implicit: false,
};
const USER_FETCH: Access = Access {
    kind: AccessType::Fetch,
    user: true,
    implicit: false,
};
const KERNEL_READ: Access = Access {
    kind: AccessType::Read,
    user: false,
    implicit: false,
};
const KERNEL_WRITE: Access = Access {
    kind: AccessType::Write,
    user: false,
    implicit: false,
};
const KERNEL_FETCH: Access = Access {
    kind: AccessType::Fetch,
    user: false,
    implicit: false,
};

#[test]
fn page_sizes_give_address_and_frames() {
    for (flags, size, levels, low) in [
        (&[ALL, ALL, ALL, ALL][..], PageSize::Small, 4, 0xabc),
        (
            &[ALL, ALL, ALL | PS | PAT_LARGE],
            PageSize::Large,
            3,
            0x189abc,
        ),
        (&[ALL, ALL | PS | PAT_LARGE], PageSize::Huge, 2, 0x1678_9abc),
    ] {
        let mut memory = tables(flags);
        let mapping = walk(&mut memory, &paging(), VA, USER_READ).unwrap();
        assert_eq!(mapping.gpa, GuestPhys(0x4000_0000 + low));
        assert_eq!((mapping.size, mapping.levels), (size, levels));
        assert_eq!(mapping.frames[0], Gfn(1));
        assert_eq!(mapping.frames[levels as usize - 1], Gfn(u64::from(levels)));
        assert!(mapping.writable && mapping.user && !mapping.nx && !mapping.dirty);
    }
}

#[test]
fn accessed_at_every_level_dirty_in_the_leaf_of_a_write() {
    for (access, leaf) in [(USER_READ, A), (USER_WRITE, A | D)] {
        let mut memory = tables(&[ALL; 4]);
        let mapping = walk(&mut memory, &paging(), VA, access).unwrap();
        assert_eq!(mapping.dirty, leaf & D != 0);
        let set: Vec<u64> = (0..4)
            .map(|l| memory.0[&entry_address(l)] & (A | D))
            .collect();
        assert_eq!(set, [A, A, A, leaf]);
    }
}

#[test]
fn a_fault_and_a_probe_change_nothing() {
    let mut memory = tables(&[ALL, ALL, ALL, P | US]);
    let before = memory.clone();
    walk(&mut memory, &paging(), VA, USER_WRITE).unwrap_err();
    assert_eq!(memory, before);
    probe(&mut memory, &paging(), VA, USER_READ).unwrap();
    assert_eq!(memory, before);
}

/// Flags per level, access, expected error code.
#[test]
fn rights_are_the_conjunction_of_all_levels() {
    for level in 0..4 {
        for (missing, access, error) in [
            (P, USER_READ, 4),
            (P, USER_WRITE, 6),
            (P, KERNEL_FETCH, 0x10),
            (US, USER_READ, 5),
            (RW, USER_WRITE, 7),
            (RW, KERNEL_WRITE, 3),
        ] {
            let mut flags = [ALL; 4];
            flags[level] &= !missing;
            let fault = walk(&mut tables(&flags), &paging(), VA, access).unwrap_err();
            assert_eq!(fault.error, error, "without {missing:#x} at {level}");
        }
        let mut flags = [ALL; 4];
        flags[level] |= XD;
        let fault = walk(&mut tables(&flags), &paging(), VA, USER_FETCH).unwrap_err();
        assert_eq!(fault.error, 0x15);
        walk(&mut tables(&flags), &paging(), VA, USER_READ).unwrap();
    }
}

#[test]
fn write_protect_off_lets_the_supervisor_write() {
    let mut open = paging();
    open.cr0 &= !cr0::WP;
    let mut memory = tables(&[ALL, ALL, ALL, P | US]);
    assert!(walk(&mut memory, &open, VA, KERNEL_WRITE).unwrap().dirty);
    assert_eq!(
        walk(&mut memory, &open, VA, USER_WRITE).unwrap_err().error,
        7
    );
}

#[test]
fn smep_and_smap() {
    let system = Access::system(AccessType::Read);
    for (cr4_bit, ac, access, error) in [
        (cr4::SMEP, false, KERNEL_FETCH, Some(0x11)),
        (cr4::SMEP, false, KERNEL_READ, None),
        (cr4::SMAP, false, KERNEL_READ, Some(1)),
        (cr4::SMAP, true, KERNEL_READ, None),
        (cr4::SMAP, true, system, Some(1)),
        (cr4::SMAP, false, KERNEL_FETCH, None),
        (cr4::SMAP, false, USER_READ, None),
    ] {
        let mut paging = paging();
        paging.cr4 |= cr4_bit;
        paging.ac = ac;
        let result = walk(&mut tables(&[ALL; 4]), &paging, VA, access);
        assert_eq!(
            result.err().map(|f| f.error),
            error,
            "{cr4_bit:#x} {access:?}"
        );
    }
}

#[test]
fn reserved_bits() {
    let plain = [ALL; 4];
    let cases: [(usize, &[u64], u64); 6] = [
        (0, &plain, PS),
        (0, &plain, 1 << 40),
        (3, &plain, 1 << 51),
        (1, &[ALL, ALL | PS], 1 << 13),
        (1, &[ALL, ALL | PS], 1 << 29),
        (2, &[ALL, ALL, ALL | PS], 1 << 20),
    ];
    for (level, flags, bit) in cases {
        let mut flags = flags.to_vec();
        flags[level] |= bit;
        let fault = walk(&mut tables(&flags), &paging(), VA, USER_READ).unwrap_err();
        assert_eq!(fault.error, 0xd, "bit {bit:#x} at {level}");
    }
}

#[test]
fn without_nxe_bit_63_is_reserved_and_fetches_are_not_marked() {
    let mut paging = paging();
    paging.efer &= !efer::NXE;
    let mut memory = tables(&[ALL, ALL, ALL, ALL | XD]);
    assert_eq!(
        walk(&mut memory, &paging, VA, USER_READ).unwrap_err().error,
        0xd
    );
    let mut memory = tables(&[ALL, ALL, ALL, US]);
    assert_eq!(
        walk(&mut memory, &paging, VA, USER_FETCH)
            .unwrap_err()
            .error,
        4
    );
}

#[test]
fn tables_outside_ram_read_as_reserved_bits() {
    let mut paging = paging();
    paging.cr3 = 0x7000_0000;
    let fault = walk(&mut Sparse::default(), &paging, VA, KERNEL_READ).unwrap_err();
    assert_eq!((fault.error, fault.levels), (9, 1));
}

#[test]
fn canonical_addresses() {
    for (va, canonical) in [
        (0, true),
        (0x7fff_ffff_ffff, true),
        (0x8000_0000_0000, false),
        (0xffff_7fff_ffff_ffff, false),
        (0xffff_8000_0000_0000, true),
        (u64::MAX, true),
    ] {
        assert_eq!(is_canonical(va), canonical, "{va:#x}");
    }
}
