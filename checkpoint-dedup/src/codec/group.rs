//! A group: the unit of reading. A few dozen edits (or one blob chunk) that share two zstd frames
//! and one checksum.
//!
//! ```text
//!  2  magic "G1"
//!  1  kind: 0 pages, 1 chunk
//!  v  items, v  head bytes raw, v  stored, v  literal bytes raw, v  stored      (v: varint)
//! 16  first 16 bytes of the BLAKE3 of pack id, number of the group (4), everything else in the group
//!  *  head: per item its token bytes, literal bytes, bases; then all tokens
//!  *  literals
//! ```

use crate::codec::MAX_BASES;
use crate::codec::squeeze::{squeeze, unsqueeze};
use crate::error::FormatError;
use crate::id::{PackId, prefix};
use crate::wire::{Input, Output, unzigzag, zigzag};

const MAGIC: [u8; 2] = *b"G1";
const CHECK: usize = 16;

/// Most raw bytes of either stream; a chunk of a blob is the largest thing stored.
pub(crate) const MAX_RAW: usize = 1 << 20;

/// Which group of which pack: part of its checksum, so that no group passes for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GroupName {
    pub(crate) pack: PackId,
    pub(crate) number: u32,
}

/// What a group holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GroupKind {
    Pages,
    Chunk,
}

/// A base as a pack names it: 0 is the pack itself, n the n-th of its list of other packs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BaseRef {
    pub(crate) pack: u32,
    pub(crate) ordinal: u32,
}

/// One page on its way into a group.
#[derive(Clone, Default, Debug)]
pub(crate) struct Record {
    pub(crate) bases: Vec<BaseRef>,
    pub(crate) tokens: Vec<u8>,
    pub(crate) literals: Vec<u8>,
}

impl Record {
    /// Raw bytes the record adds to its group.
    pub(crate) fn raw_bytes(&self) -> usize {
        self.tokens.len() + self.literals.len() + 4 * self.bases.len() + 4
    }
}

/// A decoded group; its records are slices of two streams.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) kind: GroupKind,
    records: Vec<Span>,
    bases: Vec<BaseRef>,
    head: Vec<u8>,
    literals: Vec<u8>,
}

#[derive(Debug)]
struct Span {
    bases: (u32, u32),
    tokens: (u32, u32),
    literals: (u32, u32),
}

/// Remembers the last ordinal named per pack: bases of neighbours are neighbours.
#[derive(Default)]
struct Last(Vec<u32>);

impl Last {
    fn slot(&mut self, pack: u32) -> &mut u32 {
        let pack = pack as usize;
        if pack >= self.0.len() {
            self.0.resize(pack + 1, 0);
        }
        &mut self.0[pack]
    }
}

/// Encodes a group of pages.
pub(crate) fn encode_pages(name: GroupName, records: &[Record], level: i32) -> Vec<u8> {
    let mut head = Vec::new();
    let mut literals = Vec::new();
    let mut last = Last::default();
    for record in records {
        head.put_varint(record.tokens.len() as u64);
        head.put_varint(record.literals.len() as u64);
        head.put_varint(record.bases.len() as u64);
        for base in &record.bases {
            let slot = last.slot(base.pack);
            head.put_varint(u64::from(base.pack));
            head.put_varint(zigzag(i64::from(base.ordinal) - i64::from(*slot)));
            *slot = base.ordinal;
        }
    }
    for record in records {
        head.extend_from_slice(&record.tokens);
        literals.extend_from_slice(&record.literals);
    }
    frame(
        name,
        GroupKind::Pages,
        records.len(),
        [&head, &literals],
        level,
    )
}

/// Encodes one chunk of a blob.
pub(crate) fn encode_chunk(name: GroupName, bytes: &[u8], level: i32) -> Vec<u8> {
    frame(name, GroupKind::Chunk, 1, [&[], bytes], level)
}

fn frame(
    name: GroupName,
    kind: GroupKind,
    items: usize,
    [head, literals]: [&[u8]; 2],
    level: i32,
) -> Vec<u8> {
    let (stored_head, stored_literals) = (squeeze(head, level), squeeze(literals, level));
    let mut out = Vec::with_capacity(stored_head.len() + stored_literals.len() + 40);
    out.extend_from_slice(&MAGIC);
    out.push(kind as u8);
    for number in [
        items,
        head.len(),
        stored_head.len(),
        literals.len(),
        stored_literals.len(),
    ] {
        out.put_varint(number as u64);
    }
    let check = check(name, &out, &[&stored_head, &stored_literals]);
    out.extend_from_slice(&check);
    out.extend_from_slice(&stored_head);
    out.extend_from_slice(&stored_literals);
    out
}

fn check(name: GroupName, header: &[u8], payload: &[&[u8]]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.pack.as_bytes());
    hasher.update(&name.number.to_le_bytes());
    hasher.update(header);
    for part in payload {
        hasher.update(part);
    }
    prefix(hasher.finalize().as_bytes())
}

/// The header of a stored group.
struct Header {
    kind: GroupKind,
    items: usize,
    head: (usize, usize),
    literals: (usize, usize),
    /// Offset of the stored head.
    payload: usize,
}

impl Header {
    /// Reads a header, and checks the group if its name is given.
    fn read(name: Option<GroupName>, stored: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(stored);
        if input.array()? != MAGIC {
            return Err(input.malformed("group magic"));
        }
        let kind = match input.u8()? {
            0 => GroupKind::Pages,
            1 => GroupKind::Chunk,
            _ => return Err(input.malformed("group kind")),
        };
        let items = input.varint32()? as usize;
        let mut sizes = [0; 4];
        for size in &mut sizes {
            *size = input.varint32()? as usize;
            if *size > MAX_RAW {
                return Err(input.malformed("group size"));
            }
        }
        let header = input.position();
        let expected: [u8; CHECK] = input.array()?;
        let payload = input.position();
        if input.remaining() < sizes[1] + sizes[3] {
            return Err(input.malformed("group length"));
        }
        let body = input.take(sizes[1] + sizes[3])?;
        if name.is_some_and(|name| check(name, &stored[..header], &[body]) != expected) {
            return Err(FormatError::Checksum);
        }
        Ok(Self {
            kind,
            items,
            head: (sizes[0], sizes[1]),
            literals: (sizes[2], sizes[3]),
            payload,
        })
    }

    /// Stored bytes of the whole group.
    fn total(&self) -> usize {
        self.payload + self.head.1 + self.literals.1
    }
}

impl Group {
    /// Checks and decodes a group that fills `stored` exactly.
    pub(crate) fn decode(name: GroupName, stored: &[u8]) -> Result<Self, FormatError> {
        let (group, length) = Self::decode_prefix(name, stored)?;
        if length != stored.len() {
            return Err(FormatError::Malformed {
                what: "group end",
                offset: length,
            });
        }
        Ok(group)
    }

    /// Decodes a group whose checksum is not that of its name; for fuzzing what is behind it.
    pub(crate) fn decode_unchecked(stored: &[u8]) -> Result<Self, FormatError> {
        let header = Header::read(None, stored)?;
        Self::decode_behind(&header, stored)
    }

    /// Checks and decodes the group at the start of `stored`; also says how long it is.
    pub(crate) fn decode_prefix(
        name: GroupName,
        stored: &[u8],
    ) -> Result<(Self, usize), FormatError> {
        let header = Header::read(Some(name), stored)?;
        let group = Self::decode_behind(&header, stored)?;
        Ok((group, header.total()))
    }

    fn decode_behind(header: &Header, stored: &[u8]) -> Result<Self, FormatError> {
        let literals_at = header.payload + header.head.1;
        let head = unsqueeze(&stored[header.payload..literals_at], header.head.0)?;
        let literals = unsqueeze(&stored[literals_at..header.total()], header.literals.0)?;
        let mut group = Self {
            kind: header.kind,
            records: Vec::new(),
            bases: Vec::new(),
            head,
            literals,
        };
        if header.kind == GroupKind::Pages {
            group.read_spans(header.items)?;
        } else if header.items != 1 {
            return Err(FormatError::Malformed {
                what: "items of a chunk group",
                offset: 3,
            });
        }
        Ok(group)
    }

    fn read_spans(&mut self, items: usize) -> Result<(), FormatError> {
        let mut input = Input::new(&self.head);
        if items > input.remaining() / 3 {
            return Err(input.malformed("item count"));
        }
        let mut last = Last::default();
        let (mut token_bytes, mut literal_bytes) = (0u64, 0u64);
        for _ in 0..items {
            let (tokens, literals) = (input.varint32()?, input.varint32()?);
            let count = input.varint32()?;
            if count as usize > MAX_BASES {
                return Err(input.malformed("base count"));
            }
            let first = self.bases.len() as u32;
            for _ in 0..count {
                self.bases.push(read_base(&mut input, &mut last)?);
            }
            self.records.push(Span {
                bases: (first, count),
                tokens: (token_bytes as u32, tokens),
                literals: (literal_bytes as u32, literals),
            });
            token_bytes += u64::from(tokens);
            literal_bytes += u64::from(literals);
        }
        if token_bytes != input.remaining() as u64 || literal_bytes != self.literals.len() as u64 {
            return Err(input.malformed("stream lengths"));
        }
        let shift = input.position() as u32;
        for span in &mut self.records {
            span.tokens.0 += shift;
        }
        Ok(())
    }

    /// Items in the group.
    pub(crate) fn items(&self) -> usize {
        if self.kind == GroupKind::Chunk {
            1
        } else {
            self.records.len()
        }
    }

    /// Memory the group takes.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.head.len() + self.literals.len() + 24 * self.records.len() + 8 * self.bases.len()
    }

    /// The bases of a page.
    pub(crate) fn bases(&self, slot: usize) -> &[BaseRef] {
        let (first, count) = self.records.get(slot).map_or((0, 0), |span| span.bases);
        &self.bases[first as usize..(first + count) as usize]
    }

    /// Tokens and literals of a page.
    pub(crate) fn edit(&self, slot: usize) -> Option<(&[u8], &[u8])> {
        let span = self.records.get(slot)?;
        let part = |(first, count): (u32, u32), stream| -> &[u8] {
            let stream: &[u8] = stream;
            &stream[first as usize..(first + count) as usize]
        };
        Some((
            part(span.tokens, &self.head),
            part(span.literals, &self.literals),
        ))
    }

    /// The bytes of a chunk.
    pub(crate) fn chunk(&self) -> Option<&[u8]> {
        (self.kind == GroupKind::Chunk).then_some(&self.literals)
    }
}

fn read_base(input: &mut Input<'_>, last: &mut Last) -> Result<BaseRef, FormatError> {
    let pack = input.varint32()?;
    if pack > 1 << 20 {
        return Err(input.malformed("base pack"));
    }
    let slot = last.slot(pack);
    let ordinal = i64::from(*slot).checked_add(unzigzag(input.varint()?));
    let ordinal = ordinal.and_then(|o| u32::try_from(o).ok());
    *slot = ordinal.ok_or_else(|| input.malformed("base ordinal"))?;
    Ok(BaseRef {
        pack,
        ordinal: *slot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: GroupName = GroupName {
        pack: PackId::from_bytes([3; 16]),
        number: 7,
    };

    fn record() -> impl Strategy<Value = Record> {
        let base = (0u32..4, any::<u32>()).prop_map(|(pack, ordinal)| BaseRef { pack, ordinal });
        let bytes = || prop::collection::vec(any::<u8>(), 0..50);
        (prop::collection::vec(base, 0..=MAX_BASES), bytes(), bytes()).prop_map(
            |(bases, tokens, literals)| Record {
                bases,
                tokens,
                literals,
            },
        )
    }

    proptest! {
        #[test]
        fn groups_come_back(records in prop::collection::vec(record(), 1..20), flip: usize) {
            let stored = encode_pages(NAME, &records, 3);
            let group = Group::decode(NAME, &stored).unwrap();
            prop_assert_eq!(group.items(), records.len());
            for (slot, record) in records.iter().enumerate() {
                prop_assert_eq!(group.bases(slot), &record.bases[..]);
                prop_assert_eq!(group.edit(slot).unwrap(), (&record.tokens[..], &record.literals[..]));
            }
            let others = [
                GroupName { number: 8, ..NAME },
                GroupName { pack: PackId::from_bytes([4; 16]), ..NAME },
            ];
            for other in others {
                prop_assert_eq!(Group::decode(other, &stored).unwrap_err(), FormatError::Checksum);
            }
            let mut bad = stored.clone();
            let at = flip % bad.len();
            bad[at] ^= 1;
            prop_assert!(Group::decode(NAME, &bad).is_err(), "flip at {}", at);
        }

        #[test]
        fn chunks_come_back(bytes: Vec<u8>) {
            let group = Group::decode(NAME, &encode_chunk(NAME, &bytes, 3)).unwrap();
            prop_assert_eq!(group.chunk().unwrap(), &bytes[..]);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(mut bytes: Vec<u8>, patch: bool) {
            if patch && bytes.len() > 2 {
                bytes[..2].copy_from_slice(&MAGIC);
            }
            let _ = Group::decode(NAME, &bytes);
        }
    }
}
