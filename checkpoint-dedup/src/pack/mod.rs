//! Pack files: groups, then a directory that says what is in them. Packs are the truth; every
//! index is derived from them.

mod builder;
mod directory;

pub(crate) use builder::{NewItem, PackBuilder};
pub(crate) use directory::{Directory, TRAILER, Trailer};

use crate::id::PackId;

/// Bytes before the first group: magic, version, four reserved zero bytes.
pub(crate) const PACK_HEADER: usize = 16;

/// Key of a pack.
pub(crate) fn key(id: PackId) -> String {
    let name = id.to_string();
    format!("packs/{}/{name}", &name[..2])
}

/// The pack a key belongs to.
pub(crate) fn parse_key(key: &str) -> Option<PackId> {
    PackId::parse(key.rsplit('/').next()?)
}
