//! Which frame holds what: layers of changed frames, and their encoding.

use crate::error::FormatError;
use crate::id::{Frame, PageRef};
use crate::index::{Index, Item};
use crate::wire::{Input, Output, unzigzag, zigzag};

/// Stands for a pack in a [`Slot`] that is a fill.
const FILL: u32 = u32::MAX;

/// What a frame holds, in memory: an item, or (pack = [`FILL`]) the number of a fill value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Slot {
    pack: u32,
    ordinal: u32,
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    Fill(u64),
    Item(Item),
}

impl Content {
    pub(crate) fn to_ref(self, index: &Index) -> PageRef {
        match self {
            Self::Fill(word) => PageRef::Fill(word),
            Self::Item(item) => PageRef::Stored(index.address(item)),
        }
    }
}

/// Frames with new content, ascending: 12 bytes each.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    frames: Vec<u32>,
    slots: Vec<Slot>,
    fills: Vec<u64>,
}

impl Layer {
    /// Appends a frame above all before.
    pub(crate) fn push(&mut self, frame: Frame, content: Content) {
        debug_assert!(self.frames.last().is_none_or(|&last| last < frame.0));
        let slot = match content {
            Content::Item(item) => Slot {
                pack: item.pack,
                ordinal: item.ordinal,
            },
            Content::Fill(word) => Slot {
                pack: FILL,
                ordinal: self.fill(word),
            },
        };
        self.frames.push(frame.0);
        self.slots.push(slot);
    }

    fn fill(&mut self, word: u64) -> u32 {
        // Nearly always zero, or what the frame before had.
        let at = self
            .fills
            .iter()
            .rev()
            .take(8)
            .position(|&known| known == word);
        let at = at.map_or(self.fills.len(), |back| self.fills.len() - 1 - back);
        if at == self.fills.len() {
            self.fills.push(word);
        }
        at as u32
    }

    pub(crate) fn get(&self, frame: Frame) -> Option<Content> {
        let at = self.frames.binary_search(&frame.0).ok()?;
        Some(self.content(at))
    }

    fn content(&self, at: usize) -> Content {
        let slot = self.slots[at];
        match slot.pack {
            FILL => Content::Fill(self.fills[slot.ordinal as usize]),
            pack => Content::Item(Item {
                pack,
                ordinal: slot.ordinal,
            }),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Frame, Content)> + '_ {
        self.frames
            .iter()
            .enumerate()
            .map(|(at, &frame)| (Frame(frame), self.content(at)))
    }

    /// Frames below `end` only.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame> + '_ {
        self.frames.iter().map(|&frame| Frame(frame))
    }

    /// The union; where both have a frame, `newer` wins.
    pub(crate) fn merge(&self, newer: &Self) -> Self {
        let mut out = Self::default();
        let (mut old, mut new) = (self.iter().peekable(), newer.iter().peekable());
        loop {
            let next = match (old.peek(), new.peek()) {
                (Some(o), Some(n)) if o.0 < n.0 => old.next(),
                (Some(o), Some(n)) => {
                    if o.0 == n.0 {
                        old.next();
                    }
                    new.next()
                }
                (Some(_), None) => old.next(),
                (None, _) => new.next(),
            };
            let Some((frame, content)) = next else {
                return out;
            };
            out.push(frame, content);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.frames.len() * 12 + self.fills.len() * 8
    }

    /// Encodes frames and contents as two columns of runs. `slot` names packs.
    pub(crate) fn encode(&self, slot: &mut dyn FnMut(u32) -> u32, out: &mut Vec<u8>) {
        let mut frames = Vec::new();
        let mut runs = 0u64;
        let mut next = 0;
        for run in self.frames.chunk_by(|a, b| a + 1 == *b) {
            frames.put_varint(u64::from(run[0] - next));
            frames.put_varint(run.len() as u64);
            next = run[0] + run.len() as u32;
            runs += 1;
        }
        out.put_varint(runs);
        out.extend_from_slice(&frames);
        self.encode_slots(slot, out);
    }

    /// Runs of contents: tag (0 zero fill, 1 other fill, 2 + n item of the n-th pack), operand,
    /// count. An item run covers ascending ordinals; its operand is the distance from the ordinal
    /// after the last run of that pack.
    fn encode_slots(&self, slot: &mut dyn FnMut(u32) -> u32, out: &mut Vec<u8>) {
        let mut expected = Expected::default();
        let mut at = 0;
        while at < self.slots.len() {
            let first = self.slots[at];
            let same = |s: &Slot, i: u32| {
                s.pack == first.pack
                    && s.ordinal
                        == if first.pack == FILL {
                            first.ordinal
                        } else {
                            first.ordinal + i
                        }
            };
            let count = self.slots[at..]
                .iter()
                .zip(0..)
                .take_while(|&(s, i)| same(s, i))
                .count();
            match self.content(at) {
                Content::Fill(0) => out.put_varint(0),
                Content::Fill(word) => {
                    out.put_varint(1);
                    out.put_u64(word);
                }
                Content::Item(item) => {
                    let pack = slot(item.pack);
                    out.put_varint(2 + u64::from(pack));
                    let expected = expected.of(pack);
                    out.put_varint(zigzag(i64::from(item.ordinal) - i64::from(*expected)));
                    *expected = item.ordinal + count as u32;
                }
            }
            out.put_varint(count as u64);
            at += count;
        }
    }

    /// Decodes; `packs` maps what the encoder's `slot` said back to pack numbers.
    /// No frame may lie at or above `limit`.
    pub(crate) fn decode(
        input: &mut Input<'_>,
        packs: &[u32],
        limit: u32,
    ) -> Result<Self, FormatError> {
        let mut layer = Self {
            frames: decode_frames(input, limit)?,
            ..Self::default()
        };
        let mut expected = Expected::default();
        while layer.slots.len() < layer.frames.len() {
            let tag = input.varint()?;
            let fill = match tag {
                0 => Some(0),
                1 => Some(input.u64()?),
                _ => None,
            };
            let (pack, first) = match fill {
                Some(word) => (FILL, layer.fill(word)),
                None => {
                    let slot = usize::try_from(tag - 2).unwrap_or(usize::MAX);
                    let &pack = packs.get(slot).ok_or_else(|| input.malformed("pack"))?;
                    let distance = unzigzag(input.varint()?);
                    let first = i64::from(*expected.of(slot as u32)).checked_add(distance);
                    let first = first.and_then(|o| u32::try_from(o).ok());
                    (pack, first.ok_or_else(|| input.malformed("ordinal"))?)
                }
            };
            let count = input.varint32()?;
            let left = (layer.frames.len() - layer.slots.len()) as u64;
            if count == 0 || u64::from(count) > left || first.checked_add(count).is_none() {
                return Err(input.malformed("run length"));
            }
            if fill.is_none() {
                *expected.of((tag - 2) as u32) = first + count;
            }
            let step = u32::from(fill.is_none());
            let run = (0..count).map(|i| Slot {
                pack,
                ordinal: first + i * step,
            });
            layer.slots.extend(run);
        }
        Ok(layer)
    }

    /// Frames in the layer.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }
}

fn decode_frames(input: &mut Input<'_>, limit: u32) -> Result<Vec<u32>, FormatError> {
    let limit = u64::from(limit);
    let mut frames = Vec::new();
    let mut next = 0u64;
    for run in 0..input.count(2)? {
        let gap = input.varint()?;
        let start = next.checked_add(gap).filter(|&start| start < limit);
        let start = start.ok_or_else(|| input.malformed("frame"))?;
        let count = input.varint()?;
        // Zero-length runs would let a small file make large loops; adjacent runs are one run.
        if count == 0 || count > limit - start || (gap == 0 && run > 0) {
            return Err(input.malformed("frame run"));
        }
        next = start + count;
        frames.extend((start..next).map(|frame| frame as u32));
    }
    Ok(frames)
}

/// Next expected ordinal per pack.
#[derive(Default)]
struct Expected(Vec<u32>);

impl Expected {
    fn of(&mut self, pack: u32) -> &mut u32 {
        let at = pack as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        &mut self.0[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            Just(Content::Fill(0)),
            (0u64..3).prop_map(Content::Fill),
            (0u32..3, 0u32..50).prop_map(|(pack, ordinal)| Content::Item(Item { pack, ordinal })),
        ]
    }

    fn layer() -> impl Strategy<Value = (BTreeMap<u32, u8>, Layer)> {
        prop::collection::btree_map(0u32..300, content(), 0..60).prop_map(|map| {
            let mut layer = Layer::default();
            map.iter()
                .for_each(|(&frame, &content)| layer.push(Frame(frame), content));
            (map.keys().map(|&frame| (frame, 0)).collect(), layer)
        })
    }

    proptest! {
        #[test]
        fn layers_come_back((keys, layer) in layer()) {
            let mut bytes = Vec::new();
            let mut packs = Vec::new();
            layer.encode(&mut |pack| {
                packs.iter().position(|&p| p == pack).unwrap_or_else(|| {
                    packs.push(pack);
                    packs.len() - 1
                }) as u32
            }, &mut bytes);
            let mut input = Input::new(&bytes);
            let back = Layer::decode(&mut input, &packs, 300).unwrap();
            prop_assert!(input.finish().is_ok());
            prop_assert!(back.iter().eq(layer.iter()));
            prop_assert_eq!(keys.len(), layer.len());
        }

        #[test]
        fn the_newer_layer_wins((_, old) in layer(), (_, new) in layer()) {
            let merged = old.merge(&new);
            for frame in (0..300).map(Frame) {
                prop_assert_eq!(merged.get(frame), new.get(frame).or(old.get(frame)));
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            // Frame counts are bounded by what a few varints can say; keep them small here.
            let small: Vec<u8> = bytes.iter().map(|b| b & 0x7f).collect();
            let _ = Layer::decode(&mut Input::new(&small), &[0, 1], 1 << 16);
        }
    }
}
