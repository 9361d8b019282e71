//! Finding the copies of an edit.

use super::edit::{Edit, MIN_COPY};
use super::sample::WINDOW;
use crate::id::{PAGE_BYTES, Page};
use crate::wire::zigzag;

/// Shortest copy from somewhere unexpected: its source code costs up to three bytes.
const MIN_FAR_COPY: usize = 8;
/// Bytes that are hashed.
const WORD: usize = 8;
const SLOT_BITS: u32 = 13;
/// A copy this long is taken without looking for a better one.
const LONG: usize = 32;

/// A place where page and base are known to be equal: the last byte of a window in both. Windows
/// have [`super::sample::WINDOW`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) end: u16,
    pub(crate) base: u8,
    pub(crate) base_end: u16,
}

/// How hard to look for copies.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Candidates tried per position. With 0 nothing is indexed: copies are found where the last
    /// one or base 0 would go on, and at anchors.
    pub(crate) chain: usize,
    /// Distance of the positions of the bases that are indexed.
    pub(crate) step: usize,
    /// A run of 2^patience literals makes the search one byte coarser.
    pub(crate) patience: u32,
}

/// Finds copies; owns the tables, so keep one per thread.
pub(crate) struct Matcher {
    /// The bases one after the other.
    text: Vec<u8>,
    /// By hash, the latest indexed position.
    heads: Vec<Entry>,
    /// By indexed position, the one before it with the same hash.
    chain: Vec<Entry>,
    step: usize,
}

/// An indexed position plus one, and more of the hash of what is there; zero is none.
#[derive(Clone, Copy, Default)]
struct Entry {
    position: u16,
    tag: u16,
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
    text: &'a [u8],
    /// Anchors that lie ahead, by position.
    anchors: &'a [Anchor],
    literal_start: usize,
    /// Source after the last copy.
    source_end: usize,
}

impl State<'_> {
    /// Where source code 0 reads for a copy that starts at `position`.
    #[inline]
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

    /// The copy to `position` from where it costs least to say so.
    #[inline]
    fn near(&self, position: usize, source: usize, cost: isize) -> Option<Found> {
        if source + MIN_COPY > self.text.len()
            || read4(&self.text[source..]) != read4(&self.page[position..])
        {
            return None;
        }
        let length = self.common(position, source);
        (length >= MIN_COPY).then(|| Found {
            start: position,
            source,
            length,
            gain: length as isize - cost,
        })
    }

    /// The best copy at the anchors whose windows begin at or before a position.
    fn anchored(&mut self, position: usize) -> Option<Found> {
        let mut best: Option<Found> = None;
        while let Some((anchor, rest)) = self.anchors.split_first() {
            let end = usize::from(anchor.end);
            if end >= position + WINDOW {
                break;
            }
            self.anchors = rest;
            let source = usize::from(anchor.base) * PAGE_BYTES + usize::from(anchor.base_end);
            if end < position {
                continue;
            }
            // From where the search stands, so that a copy that was cut off before is not taken again.
            let back = (end - position).min(usize::from(anchor.base_end));
            let found = self.extend(end - back, source - back);
            if let Some(found) = found
                && best.is_none_or(|best| found.gain > best.gain)
            {
                best = Some(found);
            }
        }
        best
    }

    /// The next copy where the last one or base 0 would go on, or at an anchor.
    fn quick(&mut self, from: usize, patience: u32) -> Option<Found> {
        let (page, text) = (self.page, self.text);
        let mut next = self.next_anchor();
        let mut at = from;
        while at + MIN_COPY <= PAGE_BYTES {
            let word = read4(&page[at..]);
            let expected = self.expected(at);
            let goes_on = expected + MIN_COPY <= text.len() && read4(&text[expected..]) == word;
            if goes_on || read4(&text[at..]) == word {
                let found = self.aligned(at, goes_on.then_some(expected));
                if found.is_some() {
                    return found;
                }
            }
            if at >= next {
                let found = self.anchored(at);
                if found.is_some() {
                    return found;
                }
                next = self.next_anchor();
            }
            let step = 1 + ((at - self.literal_start) >> patience);
            at = match at < next {
                true => (at + step).min(next),
                false => at + step,
            };
        }
        None
    }

    /// Where the first anchor ahead can be used.
    fn next_anchor(&self) -> usize {
        let ahead = self.anchors.first();
        ahead.map_or(PAGE_BYTES, |a| {
            (usize::from(a.end) + 1).saturating_sub(WINDOW)
        })
    }

    /// The better of going on where the last copy would and of the same offset in base 0.
    fn aligned(&self, at: usize, expected: Option<usize>) -> Option<Found> {
        let found = expected.and_then(|source| self.near(at, source, 1));
        match found {
            Some(found) if found.length >= LONG || found.source == at => Some(found),
            _ => {
                let same = self.near(at, at, 2);
                match (found, same) {
                    (Some(a), Some(b)) if a.gain >= b.gain => Some(a),
                    (a, None) => a,
                    (_, b) => b,
                }
            }
        }
        .map(|found| self.backwards(found))
    }

    /// The same copy, begun as early as bytes are equal.
    fn backwards(&self, found: Found) -> Found {
        let most = (found.start - self.literal_start).min(found.source % PAGE_BYTES);
        let equal = |back: &usize| self.page[found.start - back] == self.text[found.source - back];
        let back = (1..=most).take_while(equal).count();
        Found {
            start: found.start - back,
            source: found.source - back,
            length: found.length + back,
            ..found
        }
    }

    /// Equal bytes from a position and a source on, within one base.
    #[inline]
    fn common(&self, position: usize, source: usize) -> usize {
        let most = (PAGE_BYTES - position).min(PAGE_BYTES - source % PAGE_BYTES);
        common(
            &self.page[position..position + most],
            &self.text[source..source + most],
        )
    }

    /// The copy from `source` that covers `position`, extended both ways.
    fn extend(&self, position: usize, source: usize) -> Option<Found> {
        let mut length = self.common(position, source);
        let most = (position - self.literal_start).min(source % PAGE_BYTES);
        let before = self.page[position - most..position].iter().rev();
        let back = before
            .zip(self.text[source - most..source].iter().rev())
            .take_while(|(a, b)| a == b)
            .count();
        length += back;
        let (start, source) = (position - back, source - back);
        let cost = match self.source_code(start, source) {
            0 => 1,
            1 => 2,
            code if code < 128 => 3,
            code if code < 16384 => 4,
            _ => 5,
        };
        let min = if cost < 3 { MIN_COPY } else { MIN_FAR_COPY };
        (length >= min).then(|| Found {
            start,
            source,
            length,
            gain: length as isize - cost,
        })
    }
}

impl Matcher {
    pub(crate) fn new() -> Self {
        Self {
            text: Vec::new(),
            heads: vec![Entry::default(); 1 << SLOT_BITS],
            chain: Vec::new(),
            step: 1,
        }
    }

    /// Encodes a page against its bases. `anchors` ascend.
    pub(crate) fn encode(
        &mut self,
        page: &Page,
        bases: &[&Page],
        anchors: &[Anchor],
        effort: Effort,
    ) -> Edit {
        if bases.is_empty() {
            return Edit::whole(page);
        }
        self.text.clear();
        bases
            .iter()
            .for_each(|base| self.text.extend_from_slice(*base));
        if effort.chain > 0 {
            self.index(effort.step);
        }
        let mut edit = Edit::default();
        edit.tokens.reserve(256);
        edit.literals.reserve(512);
        edit.literal_runs.reserve(64);
        let mut state = State {
            page,
            text: &self.text,
            anchors,
            literal_start: 0,
            source_end: 0,
        };
        let mut position = 0;
        while position + MIN_COPY <= PAGE_BYTES {
            let found = match effort.chain {
                0 => state.quick(position, effort.patience),
                _ => self.best(&state, position, effort),
            };
            let Some(found) = found else {
                if effort.chain == 0 {
                    break;
                }
                position += 1 + ((position - state.literal_start) >> effort.patience);
                continue;
            };
            let code = state.source_code(found.start, found.source);
            let literals = found.start - state.literal_start;
            let copy = Some((found.length, code));
            edit.push(page, state.literal_start, literals, copy);
            position = found.start + found.length;
            state.literal_start = position;
            state.source_end = found.source + found.length;
        }
        if state.literal_start < PAGE_BYTES {
            let rest = PAGE_BYTES - state.literal_start;
            edit.push(page, state.literal_start, rest, None);
        }
        edit
    }

    fn index(&mut self, step: usize) {
        self.step = step;
        self.heads.fill(Entry::default());
        let bases = self.text.len() / PAGE_BYTES;
        self.chain
            .resize(bases * PAGE_BYTES / step, Entry::default());
        // Later bases first, so that chains meet base 0 first.
        for base in (0..bases).rev() {
            let mut last = None;
            for offset in (0..=PAGE_BYTES - WORD).step_by(step) {
                let at = base * PAGE_BYTES + offset;
                let word = read8(&self.text[at..]);
                // A run of one word is found by its start.
                if last == Some(word) {
                    continue;
                }
                last = Some(word);
                let (slot, tag) = hash(word);
                self.chain[at / step] = self.heads[slot];
                self.heads[slot] = Entry {
                    position: at as u16 + 1,
                    tag,
                };
            }
        }
    }

    /// The best copy at a position; waits one byte if that gives a better one.
    #[inline]
    fn best(&self, state: &State<'_>, position: usize, effort: Effort) -> Option<Found> {
        let here = self.candidates(state, position, effort)?;
        if here.length >= LONG || effort.chain == 0 || position + 1 + MIN_COPY > PAGE_BYTES {
            return Some(here);
        }
        match self.candidates(state, position + 1, effort) {
            Some(next) if next.gain > here.gain + 1 => Some(next),
            _ => Some(here),
        }
    }

    #[inline]
    fn candidates(&self, state: &State<'_>, position: usize, effort: Effort) -> Option<Found> {
        let mut best = state.near(position, state.expected(position), 1);
        if best.is_some_and(|b| b.length >= LONG) {
            return best;
        }
        let mut consider = |found: Option<Found>| {
            if let Some(found) = found
                && best.is_none_or(|b| found.gain > b.gain)
            {
                best = Some(found);
            }
        };
        consider(state.near(position, position, 2));
        if effort.chain > 0 && position + WORD <= PAGE_BYTES {
            let (slot, tag) = hash(read8(&state.page[position..]));
            let mut entry = self.heads[slot];
            for _ in 0..effort.chain {
                if entry.position == 0 {
                    break;
                }
                let source = usize::from(entry.position) - 1;
                if entry.tag == tag {
                    consider(state.extend(position, source));
                }
                entry = self.chain[source / self.step];
            }
        }
        best
    }
}

/// Where the hash of a word is kept, and more of it.
#[inline]
fn hash(word: u64) -> (usize, u16) {
    let hash = word.wrapping_mul(0x9e37_79b1_85eb_ca87);
    (
        (hash >> (64 - SLOT_BITS)) as usize,
        (hash >> (48 - SLOT_BITS)) as u16,
    )
}

#[inline]
fn read8(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

#[inline]
pub(super) fn read4(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(word)
}

/// Length of the common start of two slices of one length.
#[inline]
pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    let mut at = 0;
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        let difference = read8(a) ^ read8(b);
        if difference != 0 {
            return at + difference.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = a[at..].iter().zip(&b[at..]);
    at + rest.take_while(|(a, b)| a == b).count()
}
