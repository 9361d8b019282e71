//! Going back to a landmark that turned out to be the wrong one.
//!
//! At each landmark that was found, the registers are kept and a new epoch of RAM starts, whose
//! observer keeps the old content of each page that is written from then on. Going back restores the
//! pages of the newest landmark; the one before it goes on collecting what changes since it.

use super::run::Cursor;
use super::vcpu::ReplayVcpu;
use machine::ram::{Before, PageBytes, Ram, RamError, WriteObserver};
use machine::state::CpuState;
use machine::units::{Gfn, PAGE_BYTES, Position};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

/// The content that pages had at a landmark.
#[derive(Default)]
pub(super) struct Undo(Mutex<BTreeMap<Gfn, Box<PageBytes>>>);

impl Undo {
    /// Whether all these pages have this content now.
    pub(super) fn is_content_of(&self, ram: &Ram) -> Result<bool, RamError> {
        let mut now = [0; PAGE_BYTES as usize];
        for (gfn, page) in &*self.pages() {
            ram.read(gfn.base(), &mut now)?;
            if now != **page {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, BTreeMap<Gfn, Box<PageBytes>>> {
        self.0.lock().expect("no panic under the lock")
    }
}

impl WriteObserver for Undo {
    fn before_first_write(&self, gfn: Gfn, before: Before<'_>) {
        // Epochs start anew when a later landmark is given up; the oldest content is the right one.
        self.pages().entry(gfn).or_insert_with(|| before.copy());
    }
}

/// A state that matched a landmark.
pub(super) struct Choice {
    pub(super) cpu: CpuState,
    pub(super) position: Position,
    pub(super) cursor: Cursor,
    undo: Arc<Undo>,
}

impl Choice {
    fn pages(&self) -> u64 {
        self.undo.pages().len() as u64
    }
}

/// The landmarks that may still turn out wrong, oldest first.
#[derive(Default)]
pub(super) struct Choices {
    stack: VecDeque<Choice>,
    /// Pages kept by all choices but the newest, whose number still grows.
    kept_below: u64,
    /// Frames written in epochs that have ended.
    touched: BTreeSet<Gfn>,
}

impl Choices {
    /// Keeps the state at which `vcpu` stands. Returns how many older ones had to be given up.
    pub(super) fn push(
        &mut self,
        ram: &Ram,
        vcpu: &mut impl ReplayVcpu,
        (cpu, position, cursor): (CpuState, Position, Cursor),
        max_pages: u64,
    ) -> u64 {
        let undo = Arc::new(Undo::default());
        self.touched
            .extend(ram.begin_epoch(Some(undo.clone())).iter());
        vcpu.arm_write_tracking();
        vcpu.mark();
        self.kept_below += self.stack.back().map_or(0, Choice::pages);
        self.stack.push_back(Choice {
            cpu,
            position,
            cursor,
            undo,
        });
        let mut settled = 0;
        while self.kept_below > max_pages {
            self.kept_below -= self.stack.pop_front().map_or(0, |choice| choice.pages());
            settled += 1;
            vcpu.settle();
        }
        settled
    }

    /// What keeps old content for the newest choice.
    pub(super) fn newest(&self) -> Option<Arc<dyn WriteObserver>> {
        let newest = self.stack.back()?;
        Some(newest.undo.clone())
    }

    /// Shows writes to another observer from here on, who passes them on to [`Choices::newest`].
    pub(super) fn observe(
        &mut self,
        ram: &Ram,
        vcpu: &mut impl ReplayVcpu,
        observer: Option<Arc<dyn WriteObserver>>,
    ) {
        self.touched.extend(ram.begin_epoch(observer).iter());
        vcpu.arm_write_tracking();
    }

    /// Takes the newest choice and makes RAM what it was there. The caller loads the registers.
    pub(super) fn pop(
        &mut self,
        ram: &Ram,
        vcpu: &mut impl ReplayVcpu,
    ) -> Result<Option<Choice>, RamError> {
        let Some(choice) = self.stack.pop_back() else {
            return Ok(None);
        };
        let pages = std::mem::take(&mut *choice.undo.pages());
        for (gfn, page) in pages {
            ram.write(gfn.base(), &*page)?;
            vcpu.ram_written(gfn.base(), PAGE_BYTES);
        }
        self.kept_below -= self.stack.back().map_or(0, Choice::pages);
        self.observe(ram, vcpu, self.newest());
        vcpu.go_back();
        Ok(Some(choice))
    }

    /// All frames written since the start of the interval.
    pub(super) fn written(&self, ram: &Ram) -> BTreeSet<Gfn> {
        let mut all = self.touched.clone();
        all.extend(ram.dirty_frames());
        all
    }
}
