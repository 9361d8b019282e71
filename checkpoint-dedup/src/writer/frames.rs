//! What each frame of a space holds right now: 8 bytes per frame.

use std::collections::HashMap;

use crate::id::Frame;
use crate::index::Item;
use crate::map::Content;

const FILL: u32 = u32::MAX;

/// A dense map of a space.
pub(super) struct FrameTable {
    slots: Vec<Item>,
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

    pub(super) fn set(&mut self, frame: Frame, content: Content) {
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
