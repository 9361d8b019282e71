//! zstd with contexts that are kept per thread, and sizes that are known from outside.

use std::cell::RefCell;
use std::collections::HashMap;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use crate::error::FormatError;

thread_local! {
    static COMPRESSORS: RefCell<HashMap<i32, Compressor<'static>>> = RefCell::new(HashMap::new());
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses; the result is `bytes` itself when that is not longer.
pub(crate) fn squeeze(bytes: &[u8], level: i32) -> Vec<u8> {
    let squeezed = COMPRESSORS.with_borrow_mut(|all| {
        let compressor = all.entry(level).or_insert_with(|| new_compressor(level));
        compressor.compress(bytes).ok()
    });
    squeezed
        .filter(|s| s.len() < bytes.len())
        .unwrap_or_else(|| bytes.to_vec())
}

fn new_compressor(level: i32) -> Compressor<'static> {
    let mut compressor = Compressor::new(level).expect("zstd has memory for a context");
    compressor
        .set_parameter(CParameter::ContentSizeFlag(false))
        .expect("zstd knows this parameter");
    compressor
}

/// Undoes [`squeeze`], given the length before.
pub(crate) fn unsqueeze(bytes: &[u8], length: usize) -> Result<Vec<u8>, FormatError> {
    if bytes.len() == length {
        return Ok(bytes.to_vec());
    }
    // No zstd frame is denser than its blocks of one repeated byte: 4 bytes for 128 KiB.
    if length > (bytes.len() + 16) << 15 {
        return Err(FormatError::Malformed {
            what: "raw length",
            offset: 0,
        });
    }
    let out = DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor =
            slot.get_or_insert_with(|| Decompressor::new().expect("zstd has memory for a context"));
        decompressor.decompress(bytes, length)
    });
    out.ok()
        .filter(|out| out.len() == length)
        .ok_or(FormatError::Malformed {
            what: "zstd frame",
            offset: 0,
        })
}
