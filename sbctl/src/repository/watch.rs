//! Progress of long store operations on the terminal, and Ctrl-C for them.

use crate::interrupt::Interrupt;
use crate::progress;
use checkpoint_dedup::Progress;
use indicatif::ProgressBar;
use std::sync::Mutex;

/// Shows how far an operation is and ends it in order on Ctrl-C.
pub(crate) struct Watch {
    interrupt: Interrupt,
    bar: Mutex<Option<(&'static str, ProgressBar)>>,
}

impl Watch {
    pub(crate) fn new(interrupt: &Interrupt) -> Self {
        Self {
            interrupt: interrupt.clone(),
            bar: Mutex::new(None),
        }
    }
}

impl Progress for Watch {
    fn step(&self, stage: &'static str, done: u64, total: u64) {
        let mut shown = self.bar.lock().expect("no panic under the lock");
        if shown.as_ref().is_none_or(|(of, _)| *of != stage) {
            if let Some((_, old)) = shown.take() {
                old.finish_and_clear();
            }
            let bar = progress::bar(total, "");
            bar.set_message(stage);
            *shown = Some((stage, bar));
        }
        if let Some((_, bar)) = &*shown {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.interrupt.requested()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let shown = self.bar.lock().expect("no panic under the lock").take();
        if let Some((_, bar)) = shown {
            bar.finish_and_clear();
        }
    }
}
