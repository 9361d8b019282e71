//! What is cached of one address space: software TLBs, branch targets and fetches.

use crate::jit::layout::{EnvBox, TLB_ENTRIES, ibtc_index, invalid_branch_tag};
use crate::jit::mode::{TLB_CLASSES, TlbClass};
use machine::units::{Gfn, PAGE_BYTES};
use std::ops::Range;

/// Entries of the fetch cache.
const FETCHES: usize = 512;
/// Bits of the filter of code pages.
const CODE_PAGE_BITS: usize = 4096;
/// First address of the upper half.
const UPPER: u64 = 0xffff_8000_0000_0000;
/// Bytes before a page at which an instruction may begin that reaches into it.
const LONGEST: u64 = 15;
/// The classes whose accesses are made by the kernel.
const KERNEL: [TlbClass; 2] = [TlbClass::Supervisor, TlbClass::SupervisorSmap];

const NO_FETCH: (u64, Gfn) = (0, Gfn(0));

/// See the module.
pub(super) struct Space {
    pub(super) cr3: u64,
    pub(super) env: EnvBox,
    /// When it was last switched to.
    pub(super) used: u64,
    /// Whether it took over another space's upper half since it was last flushed.
    pub(super) upper_shared: bool,
    /// Linear page (plus one) and user bit to frame, for instruction fetches.
    fetches: Box<[(u64, Gfn); FETCHES]>,
    /// By class: entries of the indirect-branch cache that may be valid, each once.
    branches: [Vec<u16>; TLB_CLASSES],
    /// Pages (hashed) that fetches or cached branch targets depend on.
    code_pages: Box<[u64; CODE_PAGE_BITS / 64]>,
}

impl Space {
    pub(super) fn new(cr3: u64) -> Self {
        Self {
            cr3,
            env: EnvBox::new(),
            used: 0,
            upper_shared: false,
            fetches: Box::new([NO_FETCH; FETCHES]),
            branches: Default::default(),
            code_pages: Box::new([0; CODE_PAGE_BITS / 64]),
        }
    }

    /// Frame of the root table.
    pub(super) fn root(&self) -> Gfn {
        Gfn((self.cr3 & 0x000f_ffff_ffff_f000) / PAGE_BYTES)
    }

    /// Forgets everything.
    pub(super) fn flush(&mut self) {
        self.env.get_mut().flush_tlb();
        self.flush_branches();
        self.upper_shared = false;
    }

    /// Forgets all branch targets and fetches.
    pub(super) fn flush_branches(&mut self) {
        let env = self.env.get_mut();
        for (table, filled) in env.ibtc.iter_mut().zip(&mut self.branches) {
            for index in filled.drain(..) {
                table.tag[usize::from(index)] = invalid_branch_tag(usize::from(index));
            }
        }
        self.fetches.fill(NO_FETCH);
        self.code_pages.fill(0);
    }

    /// Frame that was last fetched from for the page of `rip`.
    pub(super) fn fetched(&self, rip: u64, user: bool) -> Option<Gfn> {
        let (tag, gfn) = self.fetches[fetch_slot(rip)];
        (tag == fetch_tag(rip, user)).then_some(gfn)
    }

    pub(super) fn note_fetch(&mut self, rip: u64, user: bool, gfn: Gfn) {
        self.fetches[fetch_slot(rip)] = (fetch_tag(rip, user), gfn);
        self.note_code_page(rip);
    }

    /// Caches a branch target whose block reads code of its page and, if it `straddles`, of the next.
    pub(super) fn cache_branch(&mut self, class: TlbClass, rip: u64, host: u64, straddles: bool) {
        let index = ibtc_index(rip);
        let table = &mut self.env.get_mut().ibtc[class as usize];
        if table.tag[index] == invalid_branch_tag(index) {
            self.branches[class as usize].push(index as u16);
        }
        table.tag[index] = rip.wrapping_neg();
        table.host[index] = host;
        self.note_code_page(rip);
        if straddles {
            self.note_code_page(rip.wrapping_add(PAGE_BYTES));
        }
    }

    fn note_code_page(&mut self, rip: u64) {
        let (word, bit) = code_page_bit(rip);
        self.code_pages[word] |= bit;
    }

    fn may_run_code_of(&self, page: u64) -> bool {
        let (word, bit) = code_page_bit(page);
        self.code_pages[word] & bit != 0
    }

    /// Forgets what depends on the translation of a range of whole pages; with `executable` also
    /// branch targets and fetches.
    pub(super) fn forget(&mut self, range: Range<u64>, executable: bool) {
        let pages = (range.end.wrapping_sub(range.start)) / PAGE_BYTES;
        if pages == 1 {
            self.env.get_mut().flush_page(range.start);
        } else if pages <= TLB_ENTRIES as u64 {
            for page in 0..pages {
                self.env
                    .get_mut()
                    .flush_page(range.start.wrapping_add(page * PAGE_BYTES));
            }
        } else {
            self.env.get_mut().flush_tlb();
            self.upper_shared = false;
        }
        if executable && (pages > 1 || self.may_run_code_of(range.start)) {
            self.forget_code(&range);
        }
    }

    fn forget_code(&mut self, range: &Range<u64>) {
        let bytes = range.end.wrapping_sub(range.start);
        let first = range.start.wrapping_sub(LONGEST);
        let env = self.env.get_mut();
        for (table, filled) in env.ibtc.iter_mut().zip(&mut self.branches) {
            filled.retain(|index| {
                let index = usize::from(*index);
                let target = table.tag[index].wrapping_neg();
                let stays = target.wrapping_sub(first) >= bytes + LONGEST;
                if !stays {
                    table.tag[index] = invalid_branch_tag(index);
                }
                stays
            });
        }
        for fetch in self.fetches.iter_mut() {
            if (fetch.0 & !(PAGE_BYTES - 1)).wrapping_sub(range.start) < bytes {
                *fetch = NO_FETCH;
            }
        }
    }

    /// Takes over what `other` has cached of the upper half, where both map the same.
    pub(super) fn share_upper_half(&mut self, other: &Space) {
        let (to, from) = (self.env.get_mut(), other.env.get());
        for class in KERNEL.map(|class| class as usize) {
            let (to, from) = (&mut to.tlb[class], &from.tlb[class]);
            for index in 0..TLB_ENTRIES {
                let cached = from.read_tag[index];
                // Invalid tags name pages below as well.
                if cached.wrapping_neg() < UPPER {
                    continue;
                }
                to.read_tag[index] = cached;
                to.write_tag[index] = from.write_tag[index];
                to.addend[index] = from.addend[index];
            }
        }
        for class in KERNEL {
            for index in &other.branches[class as usize] {
                let table = &other.env.get().ibtc[class as usize];
                let rip = table.tag[usize::from(*index)].wrapping_neg();
                if rip >= UPPER {
                    // It may straddle; one bit too many in the filter costs little.
                    self.cache_branch(class, rip, table.host[usize::from(*index)], true);
                }
            }
        }
        for fetch in other.fetches.iter().filter(|fetch| fetch.0 >= UPPER) {
            self.note_fetch(fetch.0, fetch.0 & 2 != 0, fetch.1);
        }
        self.upper_shared = true;
    }
}

fn fetch_slot(rip: u64) -> usize {
    (rip / PAGE_BYTES) as usize % FETCHES
}

/// The page address with bit 0 set and bit 1 for user mode: never 0.
fn fetch_tag(rip: u64, user: bool) -> u64 {
    (rip & !(PAGE_BYTES - 1)) | 1 | u64::from(user) << 1
}

fn code_page_bit(rip: u64) -> (usize, u64) {
    let page = rip / PAGE_BYTES;
    let hash = (page ^ page >> 12) as usize % CODE_PAGE_BITS;
    (hash / 64, 1 << (hash % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::layout::invalid_tag;

    const CLASS: TlbClass = TlbClass::Supervisor;

    fn target(space: &Space, rip: u64) -> Option<u64> {
        let table = &space.env.get().ibtc[CLASS as usize];
        let index = ibtc_index(rip);
        (table.tag[index] == rip.wrapping_neg()).then_some(table.host[index])
    }

    #[test]
    fn a_changed_page_forgets_the_code_in_it_and_what_reaches_into_it() {
        let mut space = Space::new(0);
        space.cache_branch(CLASS, 0x4ff8, 1, true);
        space.cache_branch(CLASS, 0x4100, 2, false);
        space.cache_branch(CLASS, 0x5000, 3, false);
        space.cache_branch(CLASS, 0x6000, 4, false);
        space.note_fetch(0x5000, false, Gfn(9));
        space.forget(0x5000..0x6000, true);
        assert_eq!(target(&space, 0x4ff8), None);
        assert_eq!(target(&space, 0x4100), Some(2));
        assert_eq!(target(&space, 0x5000), None);
        assert_eq!(target(&space, 0x6000), Some(4));
        assert_eq!(space.fetched(0x5000, false), None);
    }

    #[test]
    fn flushed_branches_are_gone_and_can_come_back() {
        let mut space = Space::new(0);
        for round in 1..3 {
            space.cache_branch(CLASS, 0x1234, round, false);
            assert_eq!(target(&space, 0x1234), Some(round));
            space.flush_branches();
            assert_eq!(target(&space, 0x1234), None);
        }
    }

    #[test]
    fn a_new_space_takes_over_the_upper_half_only() {
        let (mut old, mut new) = (Space::new(0x1000), Space::new(0x2000));
        old.cache_branch(CLASS, UPPER + 0x10, 5, false);
        old.cache_branch(CLASS, 0x4010, 6, false);
        old.note_fetch(UPPER + 0x3000, false, Gfn(7));
        let tlb = &mut old.env.get_mut().tlb[CLASS as usize];
        for page in [UPPER + 0x5000, 0x6000] {
            tlb.read_tag[crate::jit::layout::tlb_index(page)] = page.wrapping_neg();
        }
        new.share_upper_half(&old);
        assert_eq!(target(&new, UPPER + 0x10), Some(5));
        assert_eq!(target(&new, 0x4010), None);
        assert_eq!(new.fetched(UPPER + 0x3000, false), Some(Gfn(7)));
        let tlb = &new.env.get().tlb[CLASS as usize];
        assert_eq!(tlb.read_tag[5], (UPPER + 0x5000).wrapping_neg());
        assert_eq!(tlb.read_tag[6], invalid_tag(6));
        new.forget(UPPER..UPPER + 0x1000, true);
        assert_eq!(target(&new, UPPER + 0x10), None);
    }
}
