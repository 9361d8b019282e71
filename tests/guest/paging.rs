//! Page tables inside the RAM image.

use super::Guest;
use super::layout;

/// Page-table entry bits.
#[expect(missing_docs, reason = "architectural names")]
pub mod pte {
    pub const P: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// Present, writable, user.
    pub const ALL: u64 = P | RW | US;
    /// Physical address bits.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Size of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 4 KiB.
    Kib4,
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

impl Size {
    /// All sizes.
    pub const ALL: [Self; 3] = [Self::Kib4, Self::Mib2, Self::Gib1];

    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Short name for case names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kib4 => "4k",
            Self::Mib2 => "2m",
            Self::Gib1 => "1g",
        }
    }

    fn shift(self) -> u32 {
        match self {
            Self::Kib4 => 12,
            Self::Mib2 => 21,
            Self::Gib1 => 30,
        }
    }
}

impl Guest {
    /// Lays out the initial address space: the first 2 MiB by 4 KiB pages (user pages where the
    /// layout says so), the rest of RAM by 2 MiB supervisor pages.
    pub(super) fn default_map(&mut self) {
        self.zero_frame(layout::PML4);
        for page in (0..layout::FREE).step_by(4096) {
            let user = (layout::USER_CODE..layout::DATA).contains(&page)
                || (layout::USER_DATA..layout::USER_END).contains(&page);
            let bits = pte::P | pte::RW | if user { pte::US } else { 0 };
            self.map(page, page, bits, Size::Kib4);
        }
        for page in (layout::FREE..layout::RAM_BYTES).step_by(2 << 20) {
            self.map(page, page, pte::P | pte::RW, Size::Mib2);
        }
    }

    fn zero_frame(&mut self, frame: u64) {
        self.ram[frame as usize..][..4096].fill(0);
    }

    /// A new page-table frame, all zero.
    pub fn table_frame(&mut self) -> u64 {
        let frame = self.next_table;
        assert!(frame < layout::CODE, "out of frames for page tables");
        self.next_table += 4096;
        self.zero_frame(frame);
        frame
    }

    /// Maps one page of the initial address space. `bits` are those of the leaf without PS; levels
    /// above it are present, writable and user.
    pub fn map(&mut self, va: u64, pa: u64, bits: u64, size: Size) {
        self.map_in(layout::PML4, va, pa, bits, size);
    }

    /// Like [`Guest::map`] in the address space with this root.
    pub fn map_in(&mut self, root: u64, va: u64, pa: u64, bits: u64, size: Size) {
        let slot = self.leaf_slot_in(root, va, size);
        let large = if size == Size::Kib4 { 0 } else { pte::PS };
        self.poke_u64(slot, pa | bits | large);
    }

    /// Guest-physical address of the entry that maps `va` at this size in the initial address space;
    /// tables above it are made as needed.
    pub fn leaf_slot(&mut self, va: u64, size: Size) -> u64 {
        self.leaf_slot_in(layout::PML4, va, size)
    }

    /// Like [`Guest::leaf_slot`] in the address space with this root.
    pub fn leaf_slot_in(&mut self, root: u64, va: u64, size: Size) -> u64 {
        let mut table = root;
        let mut shift = 39;
        loop {
            let slot = table + (va >> shift & 0x1ff) * 8;
            if shift == size.shift() {
                return slot;
            }
            let entry = self.peek_u64(slot);
            table = if entry & pte::P == 0 {
                let frame = self.table_frame();
                self.poke_u64(slot, frame | pte::ALL);
                frame
            } else {
                assert!(
                    entry & pte::PS == 0,
                    "{va:#x} is already mapped by a large page"
                );
                entry & pte::ADDRESS
            };
            shift -= 9;
        }
    }

    /// The entry slots that translate `va`, root first, leaf last.
    pub fn walk_slots(&mut self, va: u64, size: Size) -> Vec<u64> {
        [39, 30, 21, 12]
            .into_iter()
            .filter(|&shift| shift >= size.shift())
            .scan(layout::PML4, |table, shift| {
                let slot = *table + (va >> shift & 0x1ff) * 8;
                *table = self.peek_u64(slot) & pte::ADDRESS;
                Some(slot)
            })
            .collect()
    }

    /// A second address space with the same upper-half-free content: a copy of the root only.
    pub fn clone_root(&mut self) -> u64 {
        let frame = self.table_frame();
        let root = self.ram[layout::PML4 as usize..][..4096].to_vec();
        self.poke(frame, &root);
        frame
    }
}
