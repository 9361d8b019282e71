//! What the engine remembers of each guest frame, so that nothing it caches is visible (E7).
//!
//! Frames with translations and frames that were walked as page tables never have a write tag in any
//! TLB; a store to them comes through the slow path, which drops what depends on the old content.

use machine::units::{Gfn, PAGE_BYTES};

/// The frame holds translated code.
pub(crate) const CODE: u8 = 1;
/// The frame was walked as a page table.
pub(crate) const TABLE: u8 = 2;
/// Several different linear pages had a write tag for the frame.
const WRITTEN_ELSEWHERE: u8 = 4;
/// A linear page had a write tag for the frame.
const WRITTEN: u8 = 8;
/// The table was reached at more than one level or linear base.
const SHARED_TABLE: u8 = 16;

/// Stores to a table without a walk through it after which it counts as ordinary memory again.
const TABLE_IDLE_STORES: u8 = 48;

#[derive(Clone, Copy, Default)]
struct Frame {
    flags: u8,
    /// Level of the table, 1 (holds 4 KiB leaves) to 4.
    level: u8,
    idle_stores: u8,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dependents {
    /// One linear page of 4 KiB.
    Page(u64),
    /// Possibly everything.
    All,
}

/// Bookkeeping of all frames.
pub(crate) struct Frames(Vec<Frame>);

impl Frames {
    pub(crate) fn new(frames: u64) -> Self {
        Self(vec![Frame::default(); frames as usize])
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.0.fill(Frame::default());
    }

    /// No frame holds translated code any more.
    pub(crate) fn clear_code(&mut self) {
        for frame in &mut self.0 {
            frame.flags &= !CODE;
        }
    }

    /// The flags [`CODE`] and [`TABLE`] of a frame of RAM.
    pub(crate) fn flags(&self, gfn: Gfn) -> u8 {
        self.0[gfn.0 as usize].flags & (CODE | TABLE)
    }

    /// Notes that a linear page gets a write tag for the frame.
    pub(crate) fn note_write_tag(&mut self, gfn: Gfn, page: u64) {
        let frame = &mut self.0[gfn.0 as usize];
        if frame.flags & WRITTEN != 0 && frame.write_page != page {
            frame.flags |= WRITTEN_ELSEWHERE;
        }
        frame.flags |= WRITTEN;
        frame.write_page = page;
    }

    fn take_writers(&mut self, gfn: Gfn) -> Writers {
        let frame = &mut self.0[gfn.0 as usize];
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
        self.0[gfn.0 as usize].flags |= CODE;
        self.take_writers(gfn)
    }

    /// The frame holds no translated code any more.
    pub(crate) fn unmark_code(&mut self, gfn: Gfn) {
        self.0[gfn.0 as usize].flags &= !CODE;
    }

    /// Marks a frame as a page table of `level` that was walked for `va`.
    pub(crate) fn mark_table(&mut self, gfn: Gfn, level: u8, va: u64) -> Writers {
        let Some(frame) = self.0.get_mut(gfn.0 as usize) else {
            return Writers::None;
        };
        let base = va & !((PAGE_BYTES << (9 * u32::from(level))) - 1);
        frame.idle_stores = 0;
        if frame.flags & TABLE != 0 {
            if (frame.level, frame.table_base) != (level, base) {
                frame.flags |= SHARED_TABLE;
            }
            return Writers::None;
        }
        frame.flags = frame.flags & !SHARED_TABLE | TABLE;
        (frame.level, frame.table_base) = (level, base);
        self.take_writers(gfn)
    }

    /// What a store to entry `index` of a table makes stale. May decide that the frame is no table
    /// any more; everything is stale then.
    pub(crate) fn table_store(&mut self, gfn: Gfn, index: u64) -> Dependents {
        let frame = &mut self.0[gfn.0 as usize];
        if frame.level == 1 && frame.flags & SHARED_TABLE == 0 {
            Dependents::Page(frame.table_base.wrapping_add(index * PAGE_BYTES))
        } else {
            Dependents::All
        }
    }

    /// Counts a store to a table; true when the frame stops being one (everything is stale then).
    pub(crate) fn table_idles(&mut self, gfn: Gfn) -> bool {
        let frame = &mut self.0[gfn.0 as usize];
        frame.idle_stores += 1;
        if frame.idle_stores >= TABLE_IDLE_STORES {
            frame.flags &= !(TABLE | SHARED_TABLE);
            return true;
        }
        false
    }
}
