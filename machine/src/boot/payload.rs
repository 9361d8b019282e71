//! The packed kernel inside a bzImage (Documentation/arch/x86/boot.rst, `payload_offset`).
//!
//! Every packer but gzip is followed by the unpacked size in four bytes, so whatever follows the
//! packed stream is ignored.

use super::error::BootError;
use std::fmt;
use std::io::Read;

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// bzip2.
    Bzip2,
    /// The `.lzma` format of LZMA utils.
    Lzma,
    /// xz, usually with the x86 branch filter.
    Xz,
    /// The legacy LZ4 frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// The magics that Linux' own decompressor knows (lib/decompress.c), without LZO.
const MAGICS: [(&[u8], Compression); 7] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0x1f, 0x9e], Compression::Gzip),
    (b"BZh", Compression::Bzip2),
    (&[0x5d, 0, 0], Compression::Lzma),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&LZ4_LEGACY_MAGIC, Compression::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
];
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Blocks of the legacy frame unpack to this much, the last one to less.
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;
/// Memory that one unpacker may use for its dictionary, in KiB.
const DICTIONARY_LIMIT_KIB: u32 = 256 << 10;

/// How `payload` is packed, by its magic.
pub(super) fn compression(payload: &[u8]) -> Option<Compression> {
    MAGICS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .map(|(_, format)| *format)
}

/// Unpacks `payload` to at most `limit_bytes` bytes, which callers choose from the size of RAM.
pub(super) fn unpack(payload: &[u8], limit_bytes: u64) -> Result<Vec<u8>, BootError> {
    let Some(format) = compression(payload) else {
        return Err(BootError::UnknownCompression {
            magic: payload[..payload.len().min(6)].to_vec(),
        });
    };
    let damaged = |reason: String| BootError::Unpack { format, reason };
    let reader = match format {
        Compression::Lz4 => return lz4_legacy(payload, limit_bytes),
        Compression::Gzip => Ok(Box::new(flate2::read::GzDecoder::new(payload)) as Box<dyn Read>),
        Compression::Bzip2 => Ok(Box::new(bzip2::read::BzDecoder::new(payload)) as Box<dyn Read>),
        Compression::Xz => Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(
            payload,
            false,
            DICTIONARY_LIMIT_KIB,
        )) as Box<dyn Read>),
        Compression::Lzma => {
            lzma_rust2::LzmaReader::new_mem_limit(payload, DICTIONARY_LIMIT_KIB, None)
                .map(|reader| Box::new(reader) as Box<dyn Read>)
        }
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(payload)
            .map(|reader| Box::new(reader.single_frame()) as Box<dyn Read>),
    }
    .map_err(|e| damaged(e.to_string()))?;
    let mut unpacked = Vec::new();
    reader
        .take(limit_bytes.saturating_add(1))
        .read_to_end(&mut unpacked)
        .map_err(|e| damaged(e.to_string()))?;
    within(unpacked, limit_bytes)
}

fn within(unpacked: Vec<u8>, limit_bytes: u64) -> Result<Vec<u8>, BootError> {
    if unpacked.len() as u64 > limit_bytes {
        return Err(BootError::TooLargeForRam {
            what: "the unpacked kernel",
            end_bytes: unpacked.len() as u64,
            ram_bytes: limit_bytes,
        });
    }
    Ok(unpacked)
}

/// The legacy frame: the magic, then blocks with their packed size in front. A last "block" of
/// four bytes is the unpacked size that the kernel build appends.
fn lz4_legacy(payload: &[u8], limit_bytes: u64) -> Result<Vec<u8>, BootError> {
    let damaged = |reason: String| BootError::Unpack {
        format: Compression::Lz4,
        reason,
    };
    let mut rest = &payload[LZ4_LEGACY_MAGIC.len()..];
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        if tail.is_empty() {
            break;
        }
        if *head == LZ4_LEGACY_MAGIC {
            rest = tail;
            continue;
        }
        let bytes = u32::from_le_bytes(*head) as usize;
        if bytes > tail.len() {
            return Err(damaged(format!(
                "a block of {bytes} bytes where {} are left",
                tail.len()
            )));
        }
        let (packed, next) = tail.split_at(bytes);
        let written = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|e| damaged(e.to_string()))?;
        unpacked.extend_from_slice(&block[..written]);
        if unpacked.len() as u64 > limit_bytes {
            break;
        }
        rest = next;
    }
    within(unpacked, limit_bytes)
}
