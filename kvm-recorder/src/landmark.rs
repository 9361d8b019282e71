//! Which facts about memory make a landmark recognisable.

use crate::summary::LandmarkCost;
use crate::walk::translate;
use machine::ram::{FrameBits, PageBytes, Ram};
use machine::state::{CpuState, Gpr};
use machine::units::{Gfn, GuestPhys};
use replay_log::{Fingerprint, IoSteps, Landmark, digest};
use std::collections::BTreeMap;
use std::time::Instant;

/// If at most this many pages were written since the last checkpoint, all are hashed: together with
/// the registers that is the whole state, and the first match is then right. If more were, as many
/// of those that changed since the last landmark.
const HASHED_PAGES: usize = 64;

/// So many pages are compared with what they were at the last landmark.
const WATCHED_PAGES: usize = 256;

/// If more than those were written, so many that were not looked at before are, from each landmark to
/// the next, in place of those that do not change.
const WATCHED_ANEW: usize = 16;

/// Pages of which words are taken too: a replay that comes by with the right registers compares those
/// before it hashes anything.
const PAGES_WITH_WORDS: usize = 32;

/// Words taken from each.
const WORDS_PER_PAGE: usize = 2;

/// Takes landmarks. Keeps samples of pages between them to find words that change.
#[derive(Default)]
pub(crate) struct Sampler {
    watched: BTreeMap<Gfn, Box<PageBytes>>,
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
        let changed = self.changed(ram, &written, &mut facts);
        let hashed = match written.count() <= HASHED_PAGES as u64 {
            true => written.iter().collect(),
            false => changed,
        };
        let others = hashed.into_iter().filter(|gfn| stack != Some(*gfn));
        for gfn in others.take(HASHED_PAGES) {
            facts.push(page(gfn));
            // The stack is no page table; any other page may be one.
            if self.early_bits {
                let hash = digest::table_hash(&ram.page(gfn));
                facts.push(Fingerprint::Table { gfn, hash });
            }
        }
        facts
    }

    /// Pages that changed since the last landmark, as far as they are watched, those that are known to
    /// have changed first. Adds some of the words that changed.
    fn changed(
        &mut self,
        ram: &Ram,
        written: &FrameBits,
        facts: &mut Vec<Fingerprint>,
    ) -> Vec<Gfn> {
        let all_fit = written.count() <= WATCHED_PAGES as u64;
        let mut changed = Vec::new();
        self.watched.retain(|&gfn, before| {
            if !written.contains(gfn) {
                return false;
            }
            let now = ram.page(gfn);
            if now == **before {
                return all_fit;
            }
            if changed.len() < PAGES_WITH_WORDS {
                facts.extend(words(gfn, before, &now));
            }
            changed.push(gfn);
            **before = now;
            true
        });
        self.watch_more(ram, written, all_fit, &mut changed);
        changed
    }

    fn watch_more(
        &mut self,
        ram: &Ram,
        written: &FrameBits,
        all_fit: bool,
        changed: &mut Vec<Gfn>,
    ) {
        if all_fit {
            for gfn in written.iter() {
                self.watched.entry(gfn).or_insert_with(|| {
                    changed.push(gfn);
                    Box::new(ram.page(gfn))
                });
            }
            return;
        }
        let room = WATCHED_PAGES.saturating_sub(self.watched.len());
        for _ in 0..room.min(WATCHED_ANEW) {
            let Some(gfn) = written.after(self.last) else {
                return;
            };
            self.last = gfn;
            let content = || Box::new(ram.page(gfn));
            self.watched.entry(gfn).or_insert_with(content);
        }
    }
}

/// The first words that differ, as they are now.
fn words(gfn: Gfn, before: &PageBytes, now: &PageBytes) -> impl Iterator<Item = Fingerprint> {
    let pairs = before.as_chunks::<8>().0.iter().zip(now.as_chunks::<8>().0);
    let changed = pairs.enumerate().filter(|(_, (before, now))| before != now);
    changed
        .take(WORDS_PER_PAGE)
        .map(move |(index, (_, word))| Fingerprint::Word {
            address: GuestPhys(gfn.base().0 + 8 * index as u64),
            value: u64::from_le_bytes(*word),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM_BYTES: u64 = 4 << 20;

    fn sample(sampler: &mut Sampler, ram: &Ram) -> Vec<Fingerprint> {
        sampler.facts(ram, &CpuState::default())
    }

    fn is_fact_of(frame: u64) -> impl Fn(&Fingerprint) -> bool {
        move |fact| match fact {
            Fingerprint::Page { gfn, .. } | Fingerprint::Table { gfn, .. } => gfn.0 == frame,
            Fingerprint::Word { address, .. } => address.gfn().0 == frame,
        }
    }

    fn write(ram: &Ram, frame: u64, byte: u8) {
        let place = GuestPhys(frame * 4096 + 1000);
        ram.write(place, &[byte]).expect("the frame is RAM");
    }

    /// RAM of which `frames` frames were written, and a sampler that has seen them often.
    fn scene(frames: u64, early_bits: bool) -> (Ram, Sampler) {
        let ram = Ram::new(RAM_BYTES).expect("RAM is small");
        let mut sampler = Sampler::new(early_bits);
        (1..=frames).for_each(|frame| write(&ram, frame, 1));
        for _ in 0..=frames as usize / WATCHED_ANEW {
            sample(&mut sampler, &ram);
        }
        (ram, sampler)
    }

    #[test]
    fn each_page_that_changed_is_a_fact_and_no_other() {
        let (ram, mut sampler) = scene(200, false);
        for byte in 2..20 {
            let changed: Vec<u64> = (1..=40).map(|n| n * u64::from(byte) % 200 + 1).collect();
            changed.iter().for_each(|frame| write(&ram, *frame, byte));
            let facts = sample(&mut sampler, &ram);
            for frame in 1..=200 {
                // Frame 0 is where RSP points.
                let is_fact = facts.iter().any(is_fact_of(frame));
                assert_eq!(is_fact, changed.contains(&frame), "{frame}");
            }
        }
    }

    #[test]
    fn of_many_pages_those_that_keep_changing_are_found_in_time() {
        let (ram, mut sampler) = scene(900, false);
        let mut facts = Vec::new();
        for byte in 2..=60 {
            write(&ram, 777, byte);
            facts = sample(&mut sampler, &ram);
        }
        assert!(facts.iter().any(is_fact_of(777)));
    }

    #[test]
    fn where_bits_are_early_each_page_has_two_hashes() {
        let (ram, mut sampler) = scene(200, true);
        (1..=40).for_each(|frame| write(&ram, frame, 2));
        let facts = sample(&mut sampler, &ram);
        for frame in 1..=40 {
            let of_frame = facts.iter().filter(|fact| is_fact_of(frame)(fact));
            let kinds: Vec<_> = of_frame.map(std::mem::discriminant).collect();
            let hashes = kinds.iter().filter(|kind| **kind != word_kind());
            assert_eq!(hashes.collect::<std::collections::HashSet<_>>().len(), 2);
        }
    }

    fn word_kind() -> std::mem::Discriminant<Fingerprint> {
        std::mem::discriminant(&Fingerprint::Word {
            address: GuestPhys(0),
            value: 0,
        })
    }
}
