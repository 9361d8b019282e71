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
use crate::wire::{Input, Output, unzigzag};

/// Shortest copy.
pub(super) const MIN_COPY: usize = 4;

/// An encoded page.
#[derive(Default, Clone)]
pub(crate) struct Edit {
    pub(crate) tokens: Vec<u8>,
    pub(crate) literals: Vec<u8>,
    /// Where the literals stand in the page: (start, length).
    pub(crate) literal_runs: Vec<(u16, u16)>,
}

impl Edit {
    pub(crate) fn whole(page: &Page) -> Self {
        let mut edit = Self::default();
        edit.push(page, 0, PAGE_BYTES, None);
        edit
    }

    /// Roughly what the edit takes after zstd, which halves the literals of most guests.
    pub(crate) fn estimate(&self) -> usize {
        self.literals.len() / 2 + self.tokens.len() * 3 / 4
    }

    /// Appends `count` literals from `start` and then a copy: its length and source code.
    pub(super) fn push(
        &mut self,
        page: &Page,
        start: usize,
        count: usize,
        copy: Option<(usize, u64)>,
    ) {
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
    use crate::codec::matcher::{Anchor, Effort, Matcher};
    use proptest::prelude::*;

    const HARD: Effort = Effort {
        chain: 8,
        step: 1,
        patience: 12,
    };

    fn noise(seed: u64) -> Page {
        let mut page = [0; PAGE_BYTES];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut page);
        page
    }

    fn round_trip(page: &Page, bases: &[&Page], effort: Effort) -> Edit {
        let edit = Matcher::new().encode(page, bases, &[], effort);
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
        let edit = round_trip(
            &page,
            &[&base],
            Effort {
                chain: 0,
                step: 1,
                patience: 12,
            },
        );
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
                round_trip(&page, bases, Effort { chain: 0, step: 1, patience: 12 });
            }
        }

        #[test]
        fn wrong_anchors_do_no_harm(
            anchors in prop::collection::vec((0u16..4096, 0u8..2, 0u16..4096), 0..40),
            from in 0usize..3000,
        ) {
            let bases = [noise(1), noise(2)];
            let mut page = noise(3);
            page[500..1500].copy_from_slice(&bases[1][from..from + 1000]);
            let mut anchors: Vec<Anchor> = anchors
                .into_iter()
                .map(|(end, base, base_end)| Anchor { end, base, base_end })
                .chain([Anchor { end: 1000, base: 1, base_end: from as u16 + 500 }])
                .collect();
            anchors.sort_by_key(|anchor| anchor.end);
            let bases = [&bases[0], &bases[1]];
            let quick = Effort { chain: 0, step: 1, patience: 6 };
            let edit = Matcher::new().encode(&page, &bases, &anchors, quick);
            prop_assert!(edit.literals.len() <= PAGE_BYTES - 1000);
            let mut out = [0; PAGE_BYTES];
            apply(&edit.tokens, &edit.literals, &bases, &mut out).unwrap();
            prop_assert!(out == page);
        }

        #[test]
        fn any_bytes_are_applied_without_panic(tokens: Vec<u8>, literals: Vec<u8>) {
            let base = noise(5);
            let mut out = [0; PAGE_BYTES];
            let _ = apply(&tokens, &literals, &[&base], &mut out);
        }
    }
}
