//! Which facts about memory make a landmark recognisable.

use crate::summary::LandmarkCost;
use crate::walk::translate;
use machine::ram::{FrameBits, PageBytes, Ram};
use machine::state::{CpuState, Gpr};
use machine::units::{Gfn, GuestPhys};
use replay_log::{Fingerprint, IoSteps, Landmark, digest};
use std::time::Instant;

/// If at most this many pages were written since the last checkpoint, all are hashed: together with
/// the registers that is the whole state, and the first match is then right.
const HASHED_PAGES: u64 = 16;

/// As many on hardware, where steps have no numbers with which a wrong match would be noticed sooner.
const HASHED_PAGES_ON_HARDWARE: u64 = 64;

/// This many of them are watched for words that change.
const WATCHED_PAGES: usize = 8;

/// Words taken from each.
const WORDS_PER_PAGE: usize = 2;

struct Watched {
    gfn: Gfn,
    content: Box<PageBytes>,
}

/// Takes landmarks. Keeps samples of pages between them to find words that change.
#[derive(Default)]
pub(crate) struct Sampler {
    watched: Vec<Watched>,
    /// The page that was watched last.
    last: Gfn,
    /// Accessed and dirty bits in page tables may be set before their time.
    early_bits: bool,
    pub(crate) cost: LandmarkCost,
}

impl Sampler {
    /// A sampler for a vCPU that sets accessed and dirty bits in page tables when their time has come, or
    /// earlier.
    pub(crate) fn new(early_bits: bool) -> Self {
        Self {
            early_bits,
            ..Self::default()
        }
    }

    /// The landmark for this state.
    pub(crate) fn landmark(&mut self, ram: &Ram, cpu: &CpuState, io_steps: IoSteps) -> Landmark {
        let start = Instant::now();
        let landmark = Landmark {
            io_steps,
            gpr: cpu.gpr,
            rflags: cpu.rflags,
            state: digest::state_digest(cpu),
            memory: self.facts(ram, cpu),
        };
        let is_page = |fact: &&Fingerprint| !matches!(fact, Fingerprint::Word { .. });
        self.cost.taken += 1;
        self.cost.pages += landmark.memory.iter().filter(is_page).count() as u64;
        self.cost.time += start.elapsed();
        landmark
    }

    fn facts(&mut self, ram: &Ram, cpu: &CpuState) -> Vec<Fingerprint> {
        let page = |gfn| Fingerprint::Page {
            gfn,
            hash: digest::page_hash(&ram.page(gfn)),
        };
        let written = ram.dirty_bits();
        let stack = translate(ram, cpu, cpu.gpr[Gpr::Rsp as usize]).map(GuestPhys::gfn);
        let mut facts = Vec::new();
        if let Some(gfn) = stack.filter(|gfn| ram.prepare_read(*gfn).is_ok()) {
            facts.push(page(gfn));
        }
        let hashed = match self.early_bits {
            true => HASHED_PAGES_ON_HARDWARE,
            false => HASHED_PAGES,
        };
        if written.count() <= hashed {
            for gfn in written.iter().filter(|gfn| stack != Some(*gfn)) {
                facts.push(page(gfn));
                // The stack is no page table; any other page may be one.
                if self.early_bits {
                    let hash = digest::table_hash(&ram.page(gfn));
                    facts.push(Fingerprint::Table { gfn, hash });
                }
            }
        }
        // What changes is looked at first: in a loop whose registers repeat, at every round.
        self.watched
            .retain_mut(|watched| words(ram, watched, &mut facts));
        self.watch_more(ram, &written);
        facts
    }

    fn watch_more(&mut self, ram: &Ram, written: &FrameBits) {
        for _ in 0..WATCHED_PAGES {
            if self.watched.len() >= WATCHED_PAGES {
                return;
            }
            let Some(gfn) = written.after(self.last) else {
                return;
            };
            self.last = gfn;
            if self.watched.iter().all(|watched| watched.gfn != gfn) {
                self.watched.push(Watched {
                    gfn,
                    content: Box::new(ram.page(gfn)),
                });
            }
        }
    }
}

/// Adds words of the page that changed since the last sample. Returns whether there were any.
fn words(ram: &Ram, watched: &mut Watched, facts: &mut Vec<Fingerprint>) -> bool {
    let now = ram.page(watched.gfn);
    let pairs = watched.content.chunks_exact(8).zip(now.chunks_exact(8));
    let changed = pairs.enumerate().filter(|(_, (before, now))| before != now);
    let mut found = false;
    for (index, (_, word)) in changed.take(WORDS_PER_PAGE) {
        let mut value = [0; 8];
        value.copy_from_slice(word);
        facts.push(Fingerprint::Word {
            address: GuestPhys(watched.gfn.base().0 + 8 * index as u64),
            value: u64::from_le_bytes(value),
        });
        found = true;
    }
    *watched.content = now;
    found
}
