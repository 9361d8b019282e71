//! What the engine remembers of each guest frame, so that nothing it caches is visible (E7).
//!
//! Frames with translations and frames that were walked as page tables never have a write tag in any
//! TLB; a store to them comes through the slow path, which drops what depends on the old content.

use machine::units::{Gfn, PAGE_BYTES};
use std::collections::BTreeSet;
use std::ops::Range;

/// The frame holds translated code.
pub(crate) const CODE: u8 = 1;
/// The frame was walked as a page table.
pub(crate) const TABLE: u8 = 2;
/// Several different linear pages had a write tag for the frame.
const WRITTEN_ELSEWHERE: u8 = 4;
/// A linear page had a write tag for the frame.
const WRITTEN: u8 = 8;
/// The table is reached at more than one level or linear base.
const SHARED_TABLE: u8 = 16;

/// Tables of several address spaces lead to a table.
const SEVERAL: u32 = u32::MAX;
/// Moves after which a table counts as shared: one that is used anew elsewhere is stored to between.
const MOVES: u8 = 8;

/// Stores to a table without a walk through it after which it counts as ordinary memory again.
const TABLE_IDLE_STORES: u8 = 48;

#[derive(Clone, Copy, Default)]
struct Frame {
    flags: u8,
    /// Level of the table, 1 (holds 4 KiB leaves) to 4.
    level: u8,
    idle_stores: u8,
    /// How often the table was found at another level or linear base since it was last stored to.
    moves: u8,
    /// Number of the root table's frame, or [`SEVERAL`].
    root: u32,
    /// Linear page of the last write tag.
    write_page: u64,
    /// Linear address that entry 0 of the table maps.
    table_base: u64,
}

/// Which write tags must go before a frame may count as code or page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writers {
    /// None exist.
    None,
    /// Those of one linear page.
    Page(u64),
    /// Unknown ones.
    Any,
}

/// What a store to a page table makes stale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dependents {
    /// Linear pages.
    Pages {
        /// Whole pages, canonical; the end may wrap to 0.
        range: Range<u64>,
        /// The only root table whose address space has them.
        root: Option<Gfn>,
    },
    /// Possibly everything.
    All,
}

impl Frame {
    fn dependents(&self) -> Dependents {
        self.entry_dependents(0, 512)
    }

    fn entry_dependents(&self, index: u64, entries: u64) -> Dependents {
        if self.flags & SHARED_TABLE != 0 {
            return Dependents::All;
        }
        let entry_bytes = PAGE_BYTES << (9 * (u32::from(self.level) - 1));
        let start = self.table_base + index * entry_bytes;
        // Bits 48 and up repeat bit 47.
        let start = ((start << 16) as i64 >> 16) as u64;
        Dependents::Pages {
            range: start..start.wrapping_add(entries * entry_bytes),
            root: (self.root != SEVERAL).then_some(Gfn(u64::from(self.root))),
        }
    }
}

/// Bookkeeping of all frames.
pub(crate) struct Frames {
    frames: Vec<Frame>,
    /// Frames that were ever walked, a bit each.
    walked: Vec<u64>,
    /// Of these, those that translation started from.
    roots: BTreeSet<Gfn>,
}

impl Frames {
    pub(crate) fn new(frames: u64) -> Self {
        Self {
            frames: vec![Frame::default(); frames as usize],
            walked: vec![0; frames.div_ceil(64) as usize],
            roots: BTreeSet::new(),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.frames.fill(Frame::default());
        self.walked.fill(0);
        self.roots.clear();
    }

    /// Whether the frame was walked as a page table since [`Frames::clear`].
    pub(crate) fn was_walked(&self, gfn: Gfn) -> bool {
        let word = self.walked.get(gfn.0 as usize / 64);
        word.is_some_and(|word| word >> (gfn.0 % 64) & 1 != 0)
    }

    /// The tables that translation started from since [`Frames::clear`].
    pub(crate) fn roots(&self) -> &BTreeSet<Gfn> {
        &self.roots
    }

    /// No frame holds translated code any more.
    pub(crate) fn clear_code(&mut self) {
        for frame in &mut self.frames {
            frame.flags &= !CODE;
        }
    }

    /// The flags [`CODE`] and [`TABLE`] of a frame of RAM.
    pub(crate) fn flags(&self, gfn: Gfn) -> u8 {
        self.frames[gfn.0 as usize].flags & (CODE | TABLE)
    }

    /// Notes that a linear page gets a write tag for the frame.
    pub(crate) fn note_write_tag(&mut self, gfn: Gfn, page: u64) {
        let frame = &mut self.frames[gfn.0 as usize];
        if frame.flags & WRITTEN != 0 && frame.write_page != page {
            frame.flags |= WRITTEN_ELSEWHERE;
        }
        frame.flags |= WRITTEN;
        frame.write_page = page;
    }

    fn take_writers(&mut self, gfn: Gfn) -> Writers {
        let frame = &mut self.frames[gfn.0 as usize];
        let flags = frame.flags;
        frame.flags &= !(WRITTEN | WRITTEN_ELSEWHERE);
        match (flags & WRITTEN != 0, flags & WRITTEN_ELSEWHERE != 0) {
            (false, _) => Writers::None,
            (true, false) => Writers::Page(frame.write_page),
            (true, true) => Writers::Any,
        }
    }

    /// Marks a frame as holding translated code.
    pub(crate) fn mark_code(&mut self, gfn: Gfn) -> Writers {
        self.frames[gfn.0 as usize].flags |= CODE;
        self.take_writers(gfn)
    }

    /// The frame holds no translated code any more.
    pub(crate) fn unmark_code(&mut self, gfn: Gfn) {
        self.frames[gfn.0 as usize].flags &= !CODE;
    }

    /// Marks a frame as a page table of `level` that was walked for `va` from `root`. Says which write
    /// tags must go and, if the frame was a table elsewhere before, what was derived from it there.
    pub(crate) fn mark_table(
        &mut self,
        gfn: Gfn,
        level: u8,
        va: u64,
        root: Gfn,
    ) -> (Writers, Option<Dependents>) {
        let Some(frame) = self.frames.get_mut(gfn.0 as usize) else {
            return (Writers::None, None);
        };
        frame.idle_stores = 0;
        self.walked[gfn.0 as usize / 64] |= 1 << (gfn.0 % 64);
        if frame.flags & TABLE == 0 && gfn == root {
            self.roots.insert(root);
        }
        let base = va & 0xffff_ffff_ffff & !((PAGE_BYTES << (9 * u32::from(level))) - 1);
        let root = root.0 as u32;
        if frame.flags & TABLE == 0 {
            frame.flags = frame.flags & !SHARED_TABLE | TABLE;
            (frame.level, frame.table_base, frame.root, frame.moves) = (level, base, root, 0);
            return (self.take_writers(gfn), None);
        }
        let mut moved = None;
        if (frame.level, frame.table_base) != (level, base) && frame.flags & SHARED_TABLE == 0 {
            moved = Some(frame.dependents());
            frame.moves += 1;
            if frame.moves == MOVES {
                frame.flags |= SHARED_TABLE;
            }
            (frame.level, frame.table_base, frame.root) = (level, base, root);
        } else if frame.root != root {
            frame.root = SEVERAL;
        }
        (Writers::None, moved)
    }

    /// A table counts as reached in several ways from now on: a store to it makes everything stale.
    pub(crate) fn share_table(&mut self, gfn: Gfn) {
        if let Some(frame) = self.frames.get_mut(gfn.0 as usize) {
            frame.flags |= SHARED_TABLE;
        }
    }

    /// What a store to entry `index` of a table makes stale.
    pub(crate) fn table_store(&self, gfn: Gfn, index: u64) -> Dependents {
        self.frames[gfn.0 as usize].entry_dependents(index, 1)
    }

    /// What is derived from any entry of a table.
    pub(crate) fn table_dependents(&self, gfn: Gfn) -> Dependents {
        self.frames[gfn.0 as usize].dependents()
    }

    /// Counts a store to a table; true when the frame stops being one (all its dependents are stale
    /// then).
    pub(crate) fn table_idles(&mut self, gfn: Gfn) -> bool {
        let frame = &mut self.frames[gfn.0 as usize];
        frame.idle_stores += 1;
        frame.moves = 0;
        if frame.idle_stores >= TABLE_IDLE_STORES {
            frame.flags &= !(TABLE | SHARED_TABLE);
            return true;
        }
        false
    }

    /// The frame is no table any more, since all of it is stored to.
    pub(crate) fn unmark_table(&mut self, gfn: Gfn) {
        self.frames[gfn.0 as usize].flags &= !(TABLE | SHARED_TABLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE_FRAME: Gfn = Gfn(3);

    #[test]
    fn a_store_to_a_table_makes_the_pages_of_its_entry_stale() {
        let mut frames = Frames::new(8);
        let root = Gfn(1);
        frames.mark_table(TABLE_FRAME, 1, 0xffff_8000_0040_3000, root);
        let pages = |start: u64, end: u64, root| Dependents::Pages {
            range: start..end,
            root,
        };
        assert_eq!(
            frames.table_store(TABLE_FRAME, 2),
            pages(0xffff_8000_0040_2000, 0xffff_8000_0040_3000, Some(root))
        );
        frames.mark_table(TABLE_FRAME, 1, 0xffff_8000_0040_0000, Gfn(2));
        assert_eq!(
            frames.table_store(TABLE_FRAME, 0),
            pages(0xffff_8000_0040_0000, 0xffff_8000_0040_1000, None)
        );
        frames.mark_table(root, 4, 0x1000, root);
        assert_eq!(
            frames.table_store(root, 511),
            pages(0xffff_ff80_0000_0000, 0, Some(root))
        );
    }

    #[test]
    fn what_was_walked_is_known_after_it_is_no_table_any_more() {
        let mut frames = Frames::new(8);
        let root = Gfn(1);
        frames.mark_table(root, 4, 0x1000, root);
        frames.mark_table(TABLE_FRAME, 1, 0x1000, root);
        frames.unmark_table(TABLE_FRAME);
        let walked: Vec<Gfn> = (0..100)
            .map(Gfn)
            .filter(|gfn| frames.was_walked(*gfn))
            .collect();
        assert_eq!(walked, [root, TABLE_FRAME]);
        assert_eq!(frames.roots().iter().collect::<Vec<_>>(), [&root]);
        frames.clear();
        assert!(!frames.was_walked(root) && frames.roots().is_empty());
    }

    #[test]
    fn a_table_that_moves_without_a_store_is_shared_and_one_that_is_stored_to_is_not() {
        for stored in [true, false] {
            let mut frames = Frames::new(8);
            for round in 0..100u64 {
                let va = round << 30;
                let (_, moved) = frames.mark_table(TABLE_FRAME, 1, va, Gfn(1));
                let expected = round != 0 && (stored || round <= u64::from(MOVES));
                assert_eq!(moved.is_some(), expected, "round {round}, stored {stored}");
                if stored {
                    frames.table_idles(TABLE_FRAME);
                }
            }
            let all = frames.table_store(TABLE_FRAME, 0) == Dependents::All;
            assert_eq!(all, !stored);
        }
    }
}
