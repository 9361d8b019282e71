//! The edit code: a page as copies out of its bases and literal bytes between them.
//!
//! An edit is a list of tokens. A token's high nibble is the number of literal bytes (15: a varint
//! with the rest follows), its low nibble 0 for no copy or the copy length - 3 (15: a varint with
//! the rest follows). A copy has a source code: 0, go on where the last copy would be now had it
//! covered the literals too; 1, the same offset in base 0; otherwise 2 + zigzag of the distance
//! from where code 0 would read. Sources count through the bases, 4,096 to each. The edit ends
//! when the page is full. Literals stand in a stream of their own, so that zstd sees like by like.

use crate::error::FormatError;
use crate::id::{PAGE_BYTES, Page};
use crate::wire::{Input, Output, unzigzag, zigzag};

/// Shortest copy.
const MIN_COPY: usize = 4;
/// Shortest copy from somewhere unexpected: its source code costs up to three bytes.
const MIN_FAR_COPY: usize = 8;
const HASH_BITS: u32 = 13;

/// An encoded page.
#[derive(Default, Clone)]
pub(crate) struct Edit {
    pub(crate) tokens: Vec<u8>,
    pub(crate) literals: Vec<u8>,
    /// Where the literals stand in the page: (start, length).
    pub(crate) literal_runs: Vec<(u16, u16)>,
}

impl Edit {
    fn whole(page: &Page) -> Self {
        let mut edit = Self::default();
        edit.push(page, 0, PAGE_BYTES, None);
        edit
    }

    /// Roughly what the edit takes after zstd.
    pub(crate) fn estimate(&self) -> usize {
        self.literals.len() * 7 / 8 + self.tokens.len() * 3 / 4
    }

    fn push(&mut self, page: &Page, start: usize, count: usize, copy: Option<(usize, u64)>) {
        let length_code = copy.map_or(0, |(length, _)| length - MIN_COPY + 1);
        self.tokens
            .push((count.min(15) << 4 | length_code.min(15)) as u8);
        if count >= 15 {
            self.tokens.put_varint(count as u64 - 15);
        }
        if length_code >= 15 {
            self.tokens.put_varint(length_code as u64 - 15);
        }
        if let Some((_, source)) = copy {
            self.tokens.put_varint(source);
        }
        if count > 0 {
            self.literals.extend_from_slice(&page[start..start + count]);
            self.literal_runs.push((start as u16, count as u16));
        }
    }
}

/// How hard to look for copies.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Candidates tried per position; 0 looks only where the last copy or base 0 would go on.
    pub(crate) chain: usize,
    /// Distance of the positions of the bases that are indexed.
    pub(crate) step: usize,
}

/// Finds copies; owns the tables, so keep one per thread.
pub(crate) struct Matcher {
    heads: Vec<u16>,
    chain: Vec<u16>,
}

/// A copy found.
#[derive(Clone, Copy)]
struct Found {
    /// Start in the page (may lie before the position searched from).
    start: usize,
    source: usize,
    length: usize,
    gain: isize,
}

/// Where the encoder stands.
struct State<'a> {
    page: &'a Page,
    bases: &'a [&'a Page],
    literal_start: usize,
    /// Source after the last copy.
    source_end: usize,
}

impl State<'_> {
    /// Where source code 0 reads for a copy that starts at `position`.
    fn expected(&self, position: usize) -> usize {
        self.source_end + position - self.literal_start
    }

    fn source_code(&self, start: usize, source: usize) -> u64 {
        let expected = self.expected(start);
        match source {
            s if s == expected => 0,
            s if s == start => 1,
            s => 2 + zigzag(s as i64 - expected as i64),
        }
    }

    /// The copy from `source` that covers `position`, extended both ways.
    fn extend(&self, position: usize, source: usize, backwards: bool) -> Option<Found> {
        let base = self.bases.get(source / PAGE_BYTES)?;
        let offset = source % PAGE_BYTES;
        let mut length = common(&self.page[position..], &base[offset..]);
        let mut back = 0;
        if backwards {
            let most = (position - self.literal_start).min(offset);
            while back < most && self.page[position - back - 1] == base[offset - back - 1] {
                back += 1;
            }
        }
        length += back;
        let start = position - back;
        let cost = match self.source_code(start, source - back) {
            0 => 1,
            1 => 2,
            code if code < 128 => 3,
            code if code < 16384 => 4,
            _ => 5,
        };
        let min = if cost < 3 { MIN_COPY } else { MIN_FAR_COPY };
        (length >= min).then(|| Found {
            start,
            source: source - back,
            length,
            gain: length as isize - cost,
        })
    }
}

impl Matcher {
    pub(crate) fn new() -> Self {
        Self {
            heads: vec![0; 1 << HASH_BITS],
            chain: Vec::new(),
        }
    }

    /// Encodes a page against its bases.
    pub(crate) fn encode(&mut self, page: &Page, bases: &[&Page], effort: Effort) -> Edit {
        if bases.is_empty() {
            return Edit::whole(page);
        }
        if effort.chain > 0 {
            self.index(bases, effort.step);
        }
        let mut edit = Edit::default();
        let mut state = State {
            page,
            bases,
            literal_start: 0,
            source_end: 0,
        };
        let mut position = 0;
        while position + MIN_COPY <= PAGE_BYTES {
            let Some(found) = self.best(&state, position, effort) else {
                position += 1;
                continue;
            };
            let code = state.source_code(found.start, found.source);
            let literals = found.start - state.literal_start;
            edit.push(
                page,
                state.literal_start,
                literals,
                Some((found.length, code)),
            );
            position = found.start + found.length;
            state.literal_start = position;
            state.source_end = found.source + found.length;
        }
        if state.literal_start < PAGE_BYTES {
            edit.push(
                page,
                state.literal_start,
                PAGE_BYTES - state.literal_start,
                None,
            );
        }
        edit
    }

    fn index(&mut self, bases: &[&Page], step: usize) {
        self.heads.fill(0);
        self.chain.resize(bases.len() * PAGE_BYTES, 0);
        // Later bases first, so that chains meet base 0 first.
        for (number, base) in bases.iter().enumerate().rev() {
            for offset in (0..=PAGE_BYTES - 8).step_by(step) {
                let slot = hash(&base[offset..]);
                let at = number * PAGE_BYTES + offset;
                self.chain[at] = self.heads[slot];
                self.heads[slot] = at as u16 + 1;
            }
        }
    }

    /// The best copy at a position; waits one byte if that gives a better one.
    fn best(&self, state: &State<'_>, position: usize, effort: Effort) -> Option<Found> {
        let here = self.candidates(state, position, effort)?;
        if here.length >= 32 || effort.chain == 0 || position + 1 + MIN_COPY > PAGE_BYTES {
            return Some(here);
        }
        match self.candidates(state, position + 1, effort) {
            Some(next) if next.gain > here.gain + 1 => Some(next),
            _ => Some(here),
        }
    }

    fn candidates(&self, state: &State<'_>, position: usize, effort: Effort) -> Option<Found> {
        let mut best = state.extend(position, state.expected(position), false);
        let mut consider = |found: Option<Found>| {
            if let Some(found) = found
                && best.is_none_or(|b| found.gain > b.gain)
            {
                best = Some(found);
            }
        };
        consider(state.extend(position, position, false));
        if effort.chain > 0 && position + 8 <= PAGE_BYTES {
            let mut at = self.heads[hash(&state.page[position..])];
            for _ in 0..effort.chain {
                if at == 0 {
                    break;
                }
                consider(state.extend(position, usize::from(at) - 1, true));
                at = self.chain[usize::from(at) - 1];
            }
        }
        best
    }
}

/// Hash of the first six bytes.
#[inline]
fn hash(bytes: &[u8]) -> usize {
    let word = read8(bytes) << 16;
    (word.wrapping_mul(0x9e37_79b1_85eb_ca87) >> (64 - HASH_BITS)) as usize
}

#[inline]
fn read8(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

/// Length of the common start.
#[inline]
fn common(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let mut at = 0;
    while at + 8 <= most {
        let difference = read8(&a[at..]) ^ read8(&b[at..]);
        if difference != 0 {
            return at + difference.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < most && a[at] == b[at] {
        at += 1;
    }
    at
}

/// Rebuilds a page. Everything in `tokens` and `literals` is checked; damage is an error.
pub(crate) fn apply(
    tokens: &[u8],
    literals: &[u8],
    bases: &[&Page],
    page: &mut Page,
) -> Result<(), FormatError> {
    let mut tokens = Input::new(tokens);
    let mut literals = Input::new(literals);
    let (mut position, mut source_end) = (0, 0u64);
    while position < PAGE_BYTES {
        let (count, length) = read_token(&mut tokens)?;
        if count + length > PAGE_BYTES - position || count + length == 0 {
            return Err(tokens.malformed("edit length"));
        }
        page[position..position + count].copy_from_slice(literals.take(count)?);
        position += count;
        source_end += count as u64;
        if length > 0 {
            let source = match tokens.varint()? {
                0 => source_end,
                1 => position as u64,
                code => source_end.wrapping_add_signed(unzigzag(code - 2)),
            };
            let base = usize::try_from(source / PAGE_BYTES as u64)
                .ok()
                .and_then(|i| bases.get(i));
            let offset = source as usize % PAGE_BYTES;
            let from = base
                .and_then(|base| base.get(offset..offset + length))
                .ok_or_else(|| tokens.malformed("edit source"))?;
            page[position..position + length].copy_from_slice(from);
            position += length;
            source_end = source + length as u64;
        }
    }
    tokens.finish()?;
    literals.finish()
}

/// Reads literal count and copy length of a token.
#[inline]
fn read_token(tokens: &mut Input<'_>) -> Result<(usize, usize), FormatError> {
    let token = tokens.u8()?;
    let mut count = usize::from(token >> 4);
    if count == 15 {
        count += tokens.varint32()? as usize;
    }
    let mut code = usize::from(token & 15);
    if code == 15 {
        code += tokens.varint32()? as usize;
    }
    Ok((count, if code == 0 { 0 } else { code + MIN_COPY - 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HARD: Effort = Effort { chain: 8, step: 1 };

    fn noise(seed: u64) -> Page {
        let mut page = [0; PAGE_BYTES];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut page);
        page
    }

    fn round_trip(page: &Page, bases: &[&Page], effort: Effort) -> Edit {
        let edit = Matcher::new().encode(page, bases, effort);
        let mut out = [0; PAGE_BYTES];
        apply(&edit.tokens, &edit.literals, bases, &mut out).unwrap();
        assert!(out == *page);
        edit
    }

    #[test]
    fn a_tiny_change_takes_a_few_bytes() {
        let base = noise(1);
        let mut page = base;
        page[77] ^= 1;
        page[3000..3005].fill(9);
        let edit = round_trip(&page, &[&base], Effort { chain: 0, step: 1 });
        assert!(edit.tokens.len() + edit.literals.len() < 24);
    }

    #[test]
    fn data_moved_between_pages_is_found() {
        let (a, b, old) = (noise(1), noise(2), noise(3));
        let mut page = old;
        page[24..2024].copy_from_slice(&a[1001..3001]);
        page[2024..4000].copy_from_slice(&b[7..1983]);
        let edit = round_trip(&page, &[&old, &a, &b], HARD);
        assert!(edit.tokens.len() + edit.literals.len() < 40);
    }

    #[test]
    fn seven_bases_can_be_addressed() {
        let bases: Vec<Page> = (0..crate::codec::MAX_BASES as u64).map(noise).collect();
        let all: Vec<&Page> = bases.iter().collect();
        let mut page = bases[0];
        page[..4000].copy_from_slice(&bases[6][96..]);
        let edit = round_trip(&page, &all, HARD);
        assert!(edit.literals.len() < 16);
    }

    proptest! {
        #[test]
        fn edits_come_back(
            cuts in prop::collection::vec((0usize..4096, 0usize..4096, 0usize..600, 0usize..3), 0..20),
            seed: u8,
        ) {
            let bases = [noise(1), noise(2), [seed; PAGE_BYTES]];
            let all: Vec<&Page> = bases.iter().collect();
            let mut page = bases[usize::from(seed) % 3];
            for (to, from, length, base) in cuts {
                let length = length.min(PAGE_BYTES - to).min(PAGE_BYTES - from);
                page[to..to + length].copy_from_slice(&bases[base][from..from + length]);
                page[to] = page[to].wrapping_add(seed);
            }
            for bases in [&all[..], &all[..1], &[]] {
                round_trip(&page, bases, HARD);
                round_trip(&page, bases, Effort { chain: 0, step: 1 });
            }
        }

        #[test]
        fn any_bytes_are_applied_without_panic(tokens: Vec<u8>, literals: Vec<u8>) {
            let base = noise(5);
            let mut out = [0; PAGE_BYTES];
            let _ = apply(&tokens, &literals, &[&base], &mut out);
        }
    }
}
