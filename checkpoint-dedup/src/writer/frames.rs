//! What each frame of a space holds right now, and since which checkpoint: 12 bytes per frame.

use std::collections::HashMap;

use crate::id::{CheckpointNo, Frame};
use crate::index::Item;
use crate::map::{Content, Layer};

const FILL: u32 = u32::MAX;

/// A dense map of a space.
pub(super) struct FrameTable {
    slots: Vec<Item>,
    /// The checkpoint that last named the frame.
    changed: Vec<u32>,
    fills: Vec<u64>,
    fill_numbers: HashMap<u64, u32>,
    /// For frames whose page is expensive to decode: an earlier version of the same frame that
    /// is cheap. Deltas turn to it before the budget forces a whole page.
    anchors: HashMap<u32, Item>,
}

impl FrameTable {
    /// A space of zero frames.
    pub(super) fn new(frames: u32) -> Self {
        Self {
            slots: vec![
                Item {
                    pack: FILL,
                    ordinal: 0
                };
                frames as usize
            ],
            changed: vec![0; frames as usize],
            fills: vec![0],
            fill_numbers: HashMap::from([(0, 0)]),
            anchors: HashMap::new(),
        }
    }

    pub(super) fn get(&self, frame: Frame) -> Content {
        let slot = self.slots[frame.0 as usize];
        match slot.pack {
            FILL => Content::Fill(self.fills[slot.ordinal as usize]),
            _ => Content::Item(slot),
        }
    }

    /// The frames that were named after a checkpoint, with what they hold now.
    pub(super) fn since(&self, after: CheckpointNo) -> Layer {
        let mut layer = Layer::default();
        for (frame, &changed) in (0..).map(Frame).zip(&self.changed) {
            if changed > after.0 {
                layer.push(frame, self.get(frame));
            }
        }
        layer
    }

    /// Notes what checkpoint `by` says of a frame.
    pub(super) fn set(&mut self, frame: Frame, content: Content, by: CheckpointNo) {
        self.changed[frame.0 as usize] = by.0;
        self.slots[frame.0 as usize] = match content {
            Content::Item(item) => item,
            Content::Fill(word) => {
                let fills = &mut self.fills;
                let number = *self.fill_numbers.entry(word).or_insert_with(|| {
                    fills.push(word);
                    fills.len() as u32 - 1
                });
                Item {
                    pack: FILL,
                    ordinal: number,
                }
            }
        };
    }

    /// Forgets anchors.
    pub(super) fn forget(&mut self, gone: impl Fn(Item) -> bool) {
        self.anchors.retain(|_, item| !gone(*item));
    }

    pub(super) fn anchor(&self, frame: Frame) -> Option<Item> {
        self.anchors.get(&frame.0).copied()
    }

    pub(super) fn set_anchor(&mut self, frame: Frame, item: Option<Item>) {
        match item {
            Some(item) => self.anchors.insert(frame.0, item),
            None => self.anchors.remove(&frame.0),
        };
    }
}
