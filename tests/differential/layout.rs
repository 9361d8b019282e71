//! Linear addresses of a sequence's memory, the same under the host's kernel and in the guest.
//!
//! Everything lies where a 32-bit displacement or an absolute address reaches it, except for the
//! second page of [`WRAP`], which starts at 4 GiB so that 32-bit effective addresses can end there.

use machine::units::PAGE_BYTES;

/// A run of pages with an unmapped page on both sides (only [`CONSTANT`] follows [`DATA`] at once).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Linear address of the first byte.
    pub base: u64,
    /// Length in pages.
    pub pages: u64,
}

impl Region {
    /// Linear address after the last byte.
    pub const fn end(self) -> u64 {
        self.base + self.pages * PAGE_BYTES
    }
    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.pages * PAGE_BYTES
    }
    /// Whether the byte at `address` belongs to the region.
    pub const fn contains(self, address: u64) -> bool {
        address >= self.base && address < self.end()
    }
}

/// Readable, writable, executable.
pub const CODE: Region = Region {
    base: 0x1000_0000,
    pages: 2,
};
/// Readable and writable.
pub const DATA: Region = Region {
    base: 0x2000_0000,
    pages: 2,
};
/// Readable only; follows [`DATA`] directly. Holds the second page of the memory image's data.
pub const CONSTANT: Region = Region {
    base: 0x2000_2000,
    pages: 1,
};
/// Readable and writable.
pub const STACK: Region = Region {
    base: 0x3000_0000,
    pages: 2,
};
/// Readable and writable, one page on each side of 4 GiB.
pub const WRAP: Region = Region {
    base: 0xffff_f000,
    pages: 2,
};

/// The regions a sequence may change, in the order of a memory image.
pub const WRITABLE: [Region; 4] = [CODE, DATA, STACK, WRAP];

/// Bytes in a memory image: all pages of [`WRITABLE`].
pub const IMAGE_BYTES: usize = (8 * PAGE_BYTES) as usize;

/// Bytes of [`CODE`], which comes first in a memory image.
pub const CODE_BYTES: usize = CODE.bytes() as usize;

/// Bytes behind it.
pub const DATA_BYTES: usize = IMAGE_BYTES - CODE_BYTES;

/// Offset in a memory image of the byte at a linear address.
pub fn image_offset(address: u64) -> Option<usize> {
    let mut offset = 0;
    for region in WRITABLE {
        if region.contains(address) {
            return Some((offset + address - region.base) as usize);
        }
        offset += region.bytes();
    }
    None
}

/// Linear address of the byte at an offset in a memory image, which must be inside the image.
pub fn image_address(offset: usize) -> u64 {
    let mut rest = offset as u64;
    for region in WRITABLE {
        if rest < region.bytes() {
            return region.base + rest;
        }
        rest -= region.bytes();
    }
    panic!("offset {offset} is outside a memory image");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_addresses_are_inverse_over_the_whole_image() {
        for offset in 0..IMAGE_BYTES {
            assert_eq!(image_offset(image_address(offset)), Some(offset));
        }
        assert_eq!(image_offset(CONSTANT.base), None);
        assert_eq!(image_offset(CODE.base - 1), None);
        assert_eq!(image_offset(WRAP.end()), None);
    }
}
