//! Pack files: groups, then a directory that says what is in them. Packs are the truth; every
//! index is derived from them.

mod builder;
mod directory;

pub(crate) use builder::{NewItem, PackBuilder};
pub(crate) use directory::{Directory, TRAILER, Trailer};

use crate::envelope::PACK;
use crate::id::PackId;
use crate::wire::Output;

/// Bytes before the first group.
pub(crate) const PACK_HEADER: usize = 32;

/// The bytes before the first group: magic, version, four zero bytes, the pack's id.
pub(crate) fn header(id: PackId) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    out.extend_from_slice(&PACK.magic);
    out.put_u32(PACK.version);
    out.put_u32(0);
    out.extend_from_slice(id.as_bytes());
    debug_assert_eq!(out.len(), PACK_HEADER);
    out
}

/// Key of a pack.
pub(crate) fn key(id: PackId) -> String {
    let name = id.to_string();
    format!("packs/{}/{name}", &name[..2])
}

/// The pack a key belongs to.
pub(crate) fn parse_key(key: &str) -> Option<PackId> {
    let id = PackId::parse(key.rsplit('/').next()?)?;
    (self::key(id) == key).then_some(id)
}
