//! The engine's instruments: chosen, read, and taken back with a way that was wrong.

use super::engine::Engine;
use crate::instrument::{Counts, Instruments};
use std::io;

impl Engine {
    /// Chooses what is learned from here on, and starts it at nothing. At a boundary; the guest
    /// cannot notice.
    pub fn set_instruments(&mut self, instruments: Instruments) {
        let (position, cr3) = (self.here(), self.cpu.cr3);
        self.soft.probed().choose(instruments, position, cr3);
        // Translations are others now, and the trace is told of mappings when they are cached.
        self.soft.flush_all();
    }

    /// What was counted since [`Engine::set_instruments`]: nothing unless that was chosen.
    pub fn counts(&mut self) -> Counts {
        self.soft.probed().counts()
    }

    /// Completes the memory trace, if there is one; counts go on.
    ///
    /// # Errors
    /// What the sink of the trace says.
    pub fn finish_trace(&mut self) -> io::Result<()> {
        let position = self.here();
        self.soft.probed().finish(position)
    }

    /// Notes that the run may come back to here.
    pub(crate) fn mark_instruments(&mut self) {
        self.soft.probed().mark();
    }

    /// Forgets what was learned since the last mark, and the mark.
    pub(crate) fn rewind_instruments(&mut self) {
        self.soft.probed().go_back();
    }

    /// Forgets the oldest mark.
    pub(crate) fn settle_instruments(&mut self) {
        self.soft.probed().settle();
    }
}
