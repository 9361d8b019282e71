//! Why a guest could not be loaded.

use super::payload::Compression;
use crate::ram::RamError;

/// Why [`super::load`] refused.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither a bzImage nor an ELF executable.
    #[error("not a Linux kernel: {0}")]
    NotAKernel(String),
    /// The file ends before something that it announces.
    #[error("truncated kernel: {what} ends at byte {needed}, the file has {present}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it would end, in bytes from the start of the file (or of the unpacked payload).
        needed: u64,
        /// Bytes that are there.
        present: u64,
    },
    /// A kernel for something that is not x86-64.
    #[error("the kernel is for {0}; this machine is x86-64")]
    Architecture(String),
    /// A bzImage older than boot protocol 2.12, which first said whether a kernel is 64-bit.
    #[error(
        "boot protocol {}.{:02} is too old; 2.12 (Linux 3.8) or newer is needed",
        .version >> 8, .version & 0xff
    )]
    Protocol {
        /// Major version in the high byte, minor in the low.
        version: u16,
    },
    /// The payload is packed in a way that is not known.
    #[error("unknown compression of the kernel payload (it begins with {magic:02x?})")]
    UnknownCompression {
        /// First bytes of the payload.
        magic: Vec<u8>,
    },
    /// The payload could not be unpacked.
    #[error("damaged {format} payload: {reason}")]
    Unpack {
        /// How it is packed.
        format: Compression,
        /// What the unpacker said.
        reason: String,
    },
    /// An ELF file that cannot be what it says.
    #[error("damaged or unsuitable ELF kernel: {what} ({value:#x})")]
    Elf {
        /// The field or rule.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Something does not fit.
    #[error("{what} needs RAM up to {end_bytes} bytes; the guest has {ram_bytes}")]
    TooLargeForRam {
        /// What does not fit.
        what: &'static str,
        /// End of the range it would need, in bytes from guest-physical 0.
        end_bytes: u64,
        /// RAM, or as much of it as the kernel can use for this.
        ram_bytes: u64,
    },
    /// More command line than the kernel takes.
    #[error("kernel command line of {bytes} bytes; this kernel takes {limit_bytes}")]
    CommandLineTooLong {
        /// Length without the final zero.
        bytes: u64,
        /// The kernel's limit, without the final zero.
        limit_bytes: u64,
    },
    /// A zero byte would end the command line early.
    #[error("the kernel command line holds a zero byte at offset {0}")]
    CommandLineZero(usize),
    /// RAM refused a write.
    #[error(transparent)]
    Ram(#[from] RamError),
}
