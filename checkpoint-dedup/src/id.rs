//! The kinds of identity the store knows, one type each.

use std::fmt;

use crate::error::Error;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;

/// The content of one page.
pub type Page = [u8; PAGE_BYTES];

/// Domain of chunk identities, so that a chunk and a page of equal bytes never share an id.
const CHUNK_CONTEXT: &str = "simuboost checkpoint-dedup 2026-11 chunk v1";

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

hash_id!(
    /// BLAKE3 of the 4,096 bytes of a page.
    PageId, 32
);
hash_id!(
    /// BLAKE3 of the whole content of a blob.
    BlobId, 32
);
hash_id!(
    /// Names a pack file, and is the first half of the address of every page that was first stored
    /// in it. Made of the process, the time and chance, and never used twice, so an address always
    /// means the same bytes.
    PackId, 16
);
hash_id!(
    /// Tells a recording from an earlier one of the same name.
    RecordingId, 16
);
hash_id!(
    /// What a pack keeps of the identity of an item: the first 8 bytes of a [`ContentId`]. It finds
    /// duplicates (which are then compared byte by byte) and lets `check` verify content.
    ItemId, 8
);
/// The whole identity of an item: a [`PageId`], or the identity of a blob's chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ContentId([u8; 32]);

impl PageId {
    /// The identity of this content.
    pub fn of(page: &Page) -> Self {
        Self(*blake3::hash(page).as_bytes())
    }

    /// As the identity of an item of a pack.
    pub(crate) fn content(&self) -> ContentId {
        ContentId(self.0)
    }
}

impl BlobId {
    /// The identity of this content.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl ContentId {
    /// The identity of one chunk of a blob.
    pub(crate) fn of_chunk(bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CHUNK_CONTEXT);
        hasher.update(bytes);
        Self(*hasher.finalize().as_bytes())
    }

    /// What packs keep of it.
    pub(crate) fn item(&self) -> ItemId {
        let mut out = [0; 8];
        out.copy_from_slice(&self.0[..8]);
        ItemId(out)
    }
}

impl PackId {
    /// Parses the hexadecimal form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }
}

impl RecordingId {
    /// Parses the hexadecimal form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }
}

/// Sixteen bytes written as 32 lower-case hexadecimal digits.
pub(crate) fn parse_hex(text: &str) -> Option<[u8; 16]> {
    let digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 32 || !text.bytes().all(digit) {
        return None;
    }
    let mut bytes = [0; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

/// First 16 bytes of a hash.
pub(crate) fn prefix(hash: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash[..16]);
    out
}

/// Number of a frame in its page space: guest-physical address or disk offset divided by 4,096.
/// Below 2^28, which is 1 TiB.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Frame(pub u32);

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Number of a checkpoint in its recording. The first is 0; there are no gaps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct CheckpointNo(pub u32);

impl CheckpointNo {
    /// The checkpoint after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for CheckpointNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Name of a recording: 1 to 100 of `A-Z a-z 0-9 . _ -`, not starting with a dot or a dash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RecordingName(String);

impl RecordingName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`Error::BadName`] if the name is empty, too long or has another character.
    pub fn new(name: &str) -> Result<Self, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty()
            || name.len() > 100
            || name.starts_with(['.', '-'])
            || !name.chars().all(good)
        {
            return Err(Error::BadName {
                name: name.to_owned(),
            });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an item was first stored: the pack and its number in it. Stable for ever; after garbage
/// collection another pack may hold the item, and says so in its directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Address {
    /// The pack that first held the item.
    pub pack: PackId,
    /// Number of the item in that pack.
    pub ordinal: u32,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pack, self.ordinal)
    }
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageRef {
    /// Every 8-byte little-endian word of the page is this value. Zero pages are `Fill(0)`.
    Fill(u64),
    /// The page is stored.
    Stored(Address),
}

/// The value all 8-byte words of the page share, if they do.
pub(crate) fn fill_of(page: &Page) -> Option<u64> {
    let (head, tail) = (&page[..PAGE_BYTES - 8], &page[8..]);
    (head == tail).then(|| {
        let mut word = [0; 8];
        word.copy_from_slice(&page[..8]);
        u64::from_le_bytes(word)
    })
}

/// Writes a same-filled page.
pub(crate) fn write_fill(word: u64, page: &mut Page) {
    if word == 0 {
        page.fill(0);
        return;
    }
    for chunk in page.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// A zero page on the heap.
pub(crate) fn new_page() -> Box<Page> {
    Box::new([0; PAGE_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", "a b", "ä", &"x".repeat(101)] {
            assert!(RecordingName::new(bad).is_err(), "{bad:?}");
        }
        assert!(RecordingName::new("boot-1.2_x").is_ok());
    }

    #[test]
    fn fill_is_found_and_written_back() {
        let mut page = [0; PAGE_BYTES];
        write_fill(0x0102_0304_0506_0708, &mut page);
        assert_eq!(fill_of(&page), Some(0x0102_0304_0506_0708));
        page[4095] ^= 1;
        assert_eq!(fill_of(&page), None);
    }
}
