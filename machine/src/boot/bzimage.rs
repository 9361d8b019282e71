//! The setup header of a bzImage (Documentation/arch/x86/boot.rst).

use super::error::BootError;
use super::field::{slice, u8_at, u16_at, u32_at};
use std::ops::Range;

/// Where the setup header begins, in the file and in boot_params.
pub(super) const HEADER_START: u64 = 0x1f1;
const BOOT_FLAG: u64 = 0x1fe;
/// Second byte of the jump at 0x200: the header ends that far behind 0x202.
const JUMP_OFFSET: u64 = 0x201;
pub(super) const MAGIC: u64 = 0x202;
const VERSION: u64 = 0x206;
const INITRD_ADDR_MAX: u64 = 0x22c;
const XLOADFLAGS: u64 = 0x236;
const CMDLINE_SIZE: u64 = 0x238;
const PAYLOAD_OFFSET: u64 = 0x248;
const PAYLOAD_LENGTH: u64 = 0x24c;
const PREF_ADDRESS: u64 = 0x258;
const INIT_SIZE: u64 = 0x260;
/// xloadflags: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// First protocol with xloadflags.
const OLDEST_PROTOCOL: u16 = 0x20c;
const SECTOR_BYTES: u64 = 512;
/// The header may not run into the e820 table of boot_params.
const HEADER_END_MAX: u64 = 0x290;

/// What the loader needs from a setup header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    /// The header, to be copied to offset [`HEADER_START`] of boot_params.
    pub(super) header: Vec<u8>,
    /// Highest address that may hold a byte of the initrd.
    pub(super) initrd_max: u64,
    /// Longest command line without the final zero, in bytes.
    pub(super) command_line_bytes: u64,
    /// End of the memory that the kernel needs before it reads the memory map.
    pub(super) init_end: u64,
}

impl Setup {
    /// For an ELF kernel, which has no header: the values of every kernel since 2.6.
    pub(super) fn for_elf() -> Self {
        let mut header = vec![0; (PAYLOAD_OFFSET - HEADER_START) as usize];
        let mut put = |offset: u64, bytes: &[u8]| {
            let start = (offset - HEADER_START) as usize;
            header[start..start + bytes.len()].copy_from_slice(bytes);
        };
        put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
        put(MAGIC, b"HdrS");
        put(VERSION, &0x020f_u16.to_le_bytes());
        put(INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
        put(XLOADFLAGS, &XLF_KERNEL_64.to_le_bytes());
        put(CMDLINE_SIZE, &2047_u32.to_le_bytes());
        Self {
            header,
            initrd_max: 0x7fff_ffff,
            command_line_bytes: 2047,
            init_end: 0,
        }
    }
}

/// Whether `image` has the two magics of a bzImage.
pub(super) fn is_bzimage(image: &[u8]) -> bool {
    image
        .get(BOOT_FLAG as usize..)
        .is_some_and(|b| b.starts_with(&[0x55, 0xaa]))
        && image
            .get(MAGIC as usize..)
            .is_some_and(|b| b.starts_with(b"HdrS"))
}

/// Checks the header and returns it with the range of the payload in the file.
pub(super) fn parse(image: &[u8]) -> Result<(Setup, Range<u64>), BootError> {
    let what = "the setup header";
    let version = u16_at(image, VERSION, what)?;
    if version < OLDEST_PROTOCOL {
        return Err(BootError::Protocol { version });
    }
    if u16_at(image, XLOADFLAGS, what)? & XLF_KERNEL_64 == 0 {
        return Err(BootError::Architecture("32-bit x86".into()));
    }
    let header_end = (MAGIC + u64::from(u8_at(image, JUMP_OFFSET, what)?)).min(HEADER_END_MAX);
    if header_end < INIT_SIZE + 4 {
        return Err(BootError::Truncated {
            what,
            needed: INIT_SIZE + 4,
            present: header_end,
        });
    }
    let header = slice(image, HEADER_START, header_end - HEADER_START, what)?.to_vec();
    let setup_sectors = match u8_at(image, HEADER_START, what)? {
        // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        0 => 4,
        n => u64::from(n),
    };
    let pref_address = super::field::u64_at(image, PREF_ADDRESS, what)?;
    let start =
        (setup_sectors + 1) * SECTOR_BYTES + u64::from(u32_at(image, PAYLOAD_OFFSET, what)?);
    let bytes = u64::from(u32_at(image, PAYLOAD_LENGTH, what)?);
    slice(image, start, bytes, "the payload")?;
    let setup = Setup {
        header,
        initrd_max: u64::from(u32_at(image, INITRD_ADDR_MAX, what)?),
        command_line_bytes: u64::from(u32_at(image, CMDLINE_SIZE, what)?),
        init_end: pref_address.saturating_add(u64::from(u32_at(image, INIT_SIZE, what)?)),
    };
    Ok((setup, start..start + bytes))
}
