//! Checked little-endian fields of an image.

use super::error::BootError;

/// The `bytes` at `offset`, or an error that says `what` is cut off.
pub(super) fn slice<'a>(
    image: &'a [u8],
    offset: u64,
    bytes: u64,
    what: &'static str,
) -> Result<&'a [u8], BootError> {
    let present = image.len() as u64;
    match offset.checked_add(bytes) {
        Some(end) if end <= present => Ok(&image[offset as usize..end as usize]),
        end => Err(BootError::Truncated {
            what,
            needed: end.unwrap_or(u64::MAX),
            present,
        }),
    }
}

fn array<const N: usize>(
    image: &[u8],
    offset: u64,
    what: &'static str,
) -> Result<[u8; N], BootError> {
    let bytes = slice(image, offset, N as u64, what)?;
    Ok(bytes.try_into().expect("the slice has N bytes"))
}

pub(super) fn u8_at(image: &[u8], offset: u64, what: &'static str) -> Result<u8, BootError> {
    Ok(array::<1>(image, offset, what)?[0])
}

pub(super) fn u16_at(image: &[u8], offset: u64, what: &'static str) -> Result<u16, BootError> {
    array(image, offset, what).map(u16::from_le_bytes)
}

pub(super) fn u32_at(image: &[u8], offset: u64, what: &'static str) -> Result<u32, BootError> {
    array(image, offset, what).map(u32::from_le_bytes)
}

pub(super) fn u64_at(image: &[u8], offset: u64, what: &'static str) -> Result<u64, BootError> {
    array(image, offset, what).map(u64::from_le_bytes)
}
