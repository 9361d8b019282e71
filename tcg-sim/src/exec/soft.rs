//! The engine's side of memory: RAM, software TLBs, translations and the walker, kept coherent.
//!
//! Coherence is stronger than hardware's: a change of a page table or of code, by whatever way, is
//! seen by the next instruction. So nothing that is cached here can be observed (E7), and INVLPG and
//! CR3 writes need to drop nothing.

use super::blocks::Watch;
use super::cache::CodeCache;
use super::counters::EngineCounters;
use super::direct::Direct;
use super::frames::{CODE, Dependents, Frames, TABLE, Writers};
use super::host::HostCpu;
use super::remembered::Remembered;
use super::space::Space;
use crate::instrument::probe::{Probe, Probed};
use crate::jit::block::BlockId;
use crate::jit::layout::{Env, ibtc_index, tlb_index};
use crate::jit::mode::{Mode, TlbClass};
use crate::mmu::{Access, AccessType, Mapping, Paging, PhysMem, is_canonical, walk};
use crate::sys::Fault;
use machine::cpuid::CpuidTable;
use machine::ram::{Ram, RamError};
use machine::state::CpuState;
use machine::units::{Gfn, GuestPhys, PAGE_BYTES};
use std::sync::Arc;

/// Address spaces whose TLBs are kept.
const SPACES: usize = 8;

/// See the module.
pub(crate) struct Soft {
    pub(crate) ram: Arc<Ram>,
    pub(crate) cpuid: CpuidTable,
    pub(crate) cache: CodeCache,
    /// Whose rules hold where processors differ.
    pub(crate) host: HostCpu,
    pub(crate) frames: Frames,
    spaces: Vec<Space>,
    current: usize,
    uses: u64,
    pub(super) direct: Direct,
    /// Translations or fetch mappings changed: the executing block may be stale.
    pub(crate) code_changed: bool,
    /// Accessed and dirty bits that lie in translated code are not set: the access is made once more
    /// by an instruction that runs alone. `code_changed` tells.
    pub(super) keeps_code: bool,
    /// Something on the way to the bytes of the instruction that Rust executes may have changed.
    pub(super) stale: bool,
    /// The instruction that Rust executes has stored to a frame with translations.
    pub(crate) code_stored: bool,
    /// The host could not provide a page; the run ends with it.
    pub(crate) ram_error: Option<RamError>,
    /// Data accesses `(address, bytes, write)` made through the bus, while breakpoints are armed.
    pub(crate) watched: Option<Vec<(u64, u64, bool)>>,
    pub(crate) counters: EngineCounters,
    /// Where blocks end early, because a state is looked for there.
    pub(super) watch: Watch,
    pub(crate) probe: Probe,
    /// What hardware may remember, where that is looked at.
    pub(super) remembered: Option<Remembered>,
}

impl Soft {
    pub(crate) fn new(ram: Arc<Ram>, cpuid: CpuidTable, cache: CodeCache, host: HostCpu) -> Self {
        let (frames, direct) = (Frames::new(ram.frames()), Direct::new(ram.clone()));
        Self {
            ram,
            cpuid,
            cache,
            host,
            frames,
            spaces: vec![Space::new(0)],
            current: 0,
            uses: 0,
            direct,
            code_changed: false,
            keeps_code: false,
            stale: false,
            code_stored: false,
            ram_error: None,
            watched: None,
            counters: EngineCounters::default(),
            watch: Watch::default(),
            probe: Probe::default(),
            remembered: None,
        }
    }

    /// The instruments with what they work on.
    pub(crate) fn probed(&mut self) -> Probed<'_> {
        Probed {
            probe: &mut self.probe,
            cache: &self.cache,
            core: &mut self.spaces[self.current].env.get_mut().core,
        }
    }

    pub(crate) fn env(&mut self) -> &mut Env {
        self.spaces[self.current].env.get_mut()
    }

    pub(crate) fn core(&self) -> &crate::jit::layout::Core {
        &self.spaces[self.current].env.get().core
    }

    pub(crate) fn env_base(&self) -> *mut u8 {
        self.spaces[self.current].env.base()
    }

    /// Makes the tables of `cr3` current, with the registers of the old ones.
    pub(crate) fn switch_space(&mut self, cr3: u64) {
        self.uses += 1;
        if let Some(remembered) = &mut self.remembered {
            remembered.clear();
        }
        if self.spaces[self.current].cr3 == cr3 {
            return;
        }
        let left = self.current;
        self.counters.space_switches += 1;
        self.probed().space(cr3);
        let core = self.env().core.clone();
        let found = self.spaces.iter().position(|space| space.cr3 == cr3);
        let next = found.unwrap_or_else(|| self.replace_space(cr3));
        self.current = next;
        self.spaces[next].used = self.uses;
        let env = self.env();
        let slots = env.core.slots;
        env.core = core;
        env.core.slots = slots;
        self.share_upper_half(left);
    }

    /// Lets the current space start with what another has cached of the upper half, if both root
    /// tables have the same entries there and a walk would set no accessed bit in them.
    fn share_upper_half(&mut self, other: usize) {
        let (new, old) = (self.spaces[self.current].root(), self.spaces[other].root());
        // A memory trace names each mapping when it is cached.
        if self.spaces[self.current].upper_shared
            || !self.probe.set().is_empty()
            || !self.is_ram(new)
            || !self.is_ram(old)
        {
            return;
        }
        if self.ram.prepare_read(new).is_err() || self.ram.prepare_read(old).is_err() {
            // The next walk reports it.
            return;
        }
        let entry =
            |root: Gfn, index: u64| self.direct.read_u64(GuestPhys(root.base().0 + index * 8));
        let same = (256..512).all(|index| {
            let entry = (entry(new, index), entry(old, index));
            entry.0 == entry.1 && entry.0 & 0x21 != 1
        });
        if !same {
            return;
        }
        self.counters.spaces_shared += 1;
        self.mark_table(new, 4, 0, new);
        let [current, other] = self
            .spaces
            .get_disjoint_mut([self.current, other])
            .expect("two different spaces");
        current.share_upper_half(other);
    }

    fn replace_space(&mut self, cr3: u64) -> usize {
        self.counters.space_misses += 1;
        if self.spaces.len() < SPACES {
            self.spaces.push(Space::new(cr3));
            return self.spaces.len() - 1;
        }
        let oldest = (0..SPACES)
            .filter(|index| *index != self.current)
            .min_by_key(|index| self.spaces[*index].used)
            .expect("there are several spaces");
        self.spaces[oldest].flush();
        self.spaces[oldest].cr3 = cr3;
        oldest
    }

    /// Forgets all cached translations of addresses, in every address space.
    pub(crate) fn flush_all(&mut self) {
        self.counters.tlb_flushes += 1;
        self.spaces.iter_mut().for_each(Space::flush);
        (self.code_changed, self.stale) = (true, true);
    }

    /// Forgets all branch targets and fetches, in every address space.
    pub(crate) fn flush_branches(&mut self) {
        self.counters.branch_flushes += 1;
        for space in &mut self.spaces {
            space.flush_branches();
        }
        self.code_changed = true;
    }

    /// Makes the first write to each page come through the slow path again.
    pub(crate) fn flush_write_tags(&mut self) {
        self.counters.write_flushes += 1;
        for space in &mut self.spaces {
            space.env.get_mut().flush_write_tags();
        }
    }

    /// Forgets everything derived from RAM or paging state.
    pub(crate) fn reset(&mut self) {
        self.flush_all();
        self.probed().clear();
        self.cache.clear();
        self.frames.clear();
    }

    /// Forgets what is cached of one linear page, in every address space.
    pub(crate) fn flush_page(&mut self, page: u64) {
        self.counters.page_flushes += 1;
        for space in &mut self.spaces {
            space.env.get_mut().flush_page(page);
        }
    }

    pub(super) fn revoke(&mut self, writers: Writers) {
        match writers {
            Writers::None => {}
            Writers::Page(page) => self.flush_page(page),
            Writers::Any => self.flush_write_tags(),
        }
    }

    /// Whether the frame is RAM.
    pub(crate) fn is_ram(&self, gfn: Gfn) -> bool {
        gfn.0 < self.ram.frames()
    }

    /// Whether the frame is known as a page table.
    pub(crate) fn is_table(&self, gfn: Gfn) -> bool {
        self.is_ram(gfn) && self.frames.flags(gfn) & TABLE != 0
    }

    /// Walks the tables for an access and keeps watch over them.
    ///
    /// # Errors
    /// The fault of the access; #GP for a non-canonical address.
    pub(crate) fn translate(
        &mut self,
        cpu: &CpuState,
        va: u64,
        access: Access,
    ) -> Result<Mapping, Fault> {
        if !is_canonical(va) {
            return Err(Fault::GP0);
        }
        self.counters.walks += 1;
        if let Some(fault) = self.spurious_fault(cpu, va, access) {
            return Err(fault);
        }
        let paging = Paging::of(cpu);
        let mapping = walk(self, &paging, va, access).map_err(|f| Fault::page(va, f.error))?;
        let tables = &mapping.frames[..usize::from(mapping.levels)];
        for (index, gfn) in tables.iter().enumerate() {
            if tables[..index].contains(gfn) {
                // What is derived from it depends on several of its entries, at several levels.
                self.frames.share_table(*gfn);
            }
            self.mark_table(*gfn, 4 - index as u8, va, mapping.frames[0]);
        }
        self.remember(va, access, mapping.writable);
        Ok(mapping)
    }

    fn mark_table(&mut self, gfn: Gfn, level: u8, va: u64, root: Gfn) {
        let (writers, moved) = self.frames.mark_table(gfn, level, va, root);
        self.revoke(writers);
        if let Some(dependents) = moved {
            self.forget(dependents, true);
        }
    }

    /// Does what must precede a store to RAM: translations and page-table caches that depend on the
    /// old bytes go, the page is loaded and marked dirty.
    pub(crate) fn before_store(&mut self, gpa: GuestPhys, bytes: u64) {
        let gfn = gpa.gfn();
        let flags = self.frames.flags(gfn);
        self.code_stored |= flags & CODE != 0;
        if flags & CODE != 0
            && self
                .cache
                .invalidate(gfn, gpa.0 % PAGE_BYTES, bytes, &mut self.frames)
        {
            self.flush_branches();
        }
        if flags & TABLE != 0 {
            self.before_table_store(gpa, bytes);
        }
        if let Err(error) = self.ram.prepare_write(gfn) {
            self.ram_error.get_or_insert(error);
        }
    }

    /// RAM changed behind the vCPU's back (one page's part): what depends on it goes.
    pub(crate) fn ram_changed(&mut self, gpa: GuestPhys, bytes: u64) {
        let gfn = gpa.gfn();
        if self.frames.flags(gfn) & CODE != 0
            && self
                .cache
                .invalidate(gfn, gpa.0 % PAGE_BYTES, bytes, &mut self.frames)
        {
            self.flush_branches();
        }
        if self.frames.flags(gfn) & TABLE != 0 {
            // The old entries are gone.
            let dependents = self.frames.table_dependents(gfn);
            self.forget(dependents, true);
        }
    }

    fn before_table_store(&mut self, gpa: GuestPhys, bytes: u64) {
        let gfn = gpa.gfn();
        if bytes == PAGE_BYTES {
            let all = self.frames.table_dependents(gfn);
            self.forget(all, true);
            return self.frames.unmark_table(gfn);
        }
        for address in (gpa.0 & !7..gpa.0 + bytes).step_by(8) {
            let old = self.read_u64(GuestPhys(address));
            if old & 1 != 0 {
                let dependents = self.frames.table_store(gfn, address % PAGE_BYTES / 8);
                self.forget(dependents, old >> 63 == 0);
            }
        }
        let all = self.frames.table_dependents(gfn);
        if self.frames.table_idles(gfn) {
            self.forget(all, true);
        }
    }

    /// Forgets what depends on page-table entries; `executable` if code may have been reached
    /// through them.
    fn forget(&mut self, dependents: Dependents, executable: bool) {
        let Dependents::Pages { range, root } = dependents else {
            return self.flush_all();
        };
        self.counters.page_flushes += 1;
        for space in &mut self.spaces {
            if root.is_none_or(|root| root == space.root()) {
                space.forget(range.clone(), executable);
            }
        }
        let executing = self.core().page_base;
        let lost = |page: u64| page.wrapping_sub(range.start) < range.end.wrapping_sub(range.start);
        self.code_changed |= lost(executing);
        // An instruction may reach into the next page; it is the only one of its block then.
        self.stale |= lost(executing) || lost(executing.wrapping_add(PAGE_BYTES));
    }

    /// As [`Soft::before_store`], for a store of the block that executes, as its next act. False if
    /// that would make the block itself stale: the store must run alone, and maybe nothing is done.
    pub(crate) fn before_direct_store(&mut self, gpa: GuestPhys, bytes: u64) -> bool {
        let gfn = gpa.gfn();
        let flags = self.frames.flags(gfn);
        if flags & TABLE != 0 {
            self.counters.slow_table_stores += 1;
            // What depends on the old entry goes now, before the store: nothing walks in between,
            // since a store's check is the last of its instruction.
            self.code_changed = false;
            self.before_table_store(gpa, bytes);
            if self.code_changed {
                return false;
            }
        }
        if flags & CODE != 0 {
            if self.cache.overlaps(gfn, gpa.0 % PAGE_BYTES, bytes) {
                self.counters.slow_code_stores += 1;
                return false;
            }
            self.counters.slow_shared_stores += 1;
        }
        if let Err(error) = self.ram.prepare_write(gfn) {
            self.ram_error.get_or_insert(error);
        }
        true
    }

    fn is_cached(&mut self, page: u64, mode: Mode, wrote: bool) -> bool {
        let tlb = &self.env().tlb[mode.class() as usize];
        let tags = if wrote { &tlb.write_tag } else { &tlb.read_tag };
        tags[tlb_index(page)] == page.wrapping_neg()
    }

    /// Caches a translation that the access was granted by.
    pub(crate) fn fill(
        &mut self,
        cpu: &CpuState,
        va: u64,
        mapping: &Mapping,
        mode: Mode,
        wrote: bool,
    ) {
        let cached = self.is_cached(va & !(PAGE_BYTES - 1), mode, wrote);
        self.counters.slow_cached += u64::from(cached);
        let access = Access::at_cpl(AccessType::Read, mode.cpl());
        self.fill_class(cpu, va, mapping, (mode.class(), access), wrote);
    }

    /// Caches a translation for the accesses of a class, whose rights are those of the one given.
    fn fill_class(
        &mut self,
        cpu: &CpuState,
        va: u64,
        mapping: &Mapping,
        (class, access): (TlbClass, Access),
        wrote: bool,
    ) {
        let gfn = mapping.gpa.gfn();
        let page = va & !(PAGE_BYTES - 1);
        let addend = self
            .direct
            .base()
            .wrapping_add(gfn.base().0)
            .wrapping_sub(page);
        let write = Access {
            kind: AccessType::Write,
            ..access
        };
        let writable = self.frames.flags(gfn) == 0
            && mapping.dirty
            && (wrote || self.ram.is_dirty(gfn) && mapping.permits(&Paging::of(cpu), write));
        let env = self.env();
        let rsp = env.core.rsp;
        let tlb = &mut env.tlb[class as usize];
        let index = tlb_index(page);
        if tlb.read_tag[index] != page.wrapping_neg() {
            tlb.write_tag[index] = crate::jit::layout::invalid_tag(index);
        }
        tlb.read_tag[index] = page.wrapping_neg();
        tlb.addend[index] = addend;
        if writable {
            tlb.write_tag[index] = page.wrapping_neg();
            if rsp.wrapping_sub(page) < PAGE_BYTES || rsp.wrapping_sub(page + 8) < PAGE_BYTES {
                let slot = &mut env.core.slots[class as usize];
                (slot.tag, slot.addend) = (page.wrapping_neg(), addend);
            }
            self.frames.note_write_tag(gfn, page);
        }
    }

    /// Where an access of the system semantics goes: as the TLB knows, or else by a walk.
    pub(super) fn locate(
        &mut self,
        cpu: &CpuState,
        va: u64,
        access: Access,
    ) -> Result<GuestPhys, Fault> {
        if access.kind == AccessType::Fetch {
            // The TLB does not say what may be executed.
            return Ok(self.translate(cpu, va, access)?.gpa);
        }
        let (class, page) = (TlbClass::of(cpu, access), va & !(PAGE_BYTES - 1));
        let tlb = &self.spaces[self.current].env.get().tlb[class as usize];
        let reads = access.kind != AccessType::Write;
        let (tags, index) = match reads {
            true => (&tlb.read_tag, tlb_index(page)),
            false => (&tlb.write_tag, tlb_index(page)),
        };
        if tags[index] == page.wrapping_neg() {
            let host = va.wrapping_add(tlb.addend[index]);
            return Ok(GuestPhys(host.wrapping_sub(self.direct.base())));
        }
        let mapping = self.translate(cpu, va, access)?;
        let gfn = mapping.gpa.gfn();
        let loaded = self.is_ram(gfn) && self.ram.prepare_read(gfn).is_ok();
        if reads && loaded && self.may_cache(cpu) {
            self.fill_class(cpu, va, &mapping, (class, access), false);
        }
        Ok(mapping.gpa)
    }

    /// Whether translations may be cached that translated code did not ask for: no breakpoint and no
    /// instrument must see what it does with them.
    pub(crate) fn may_cache(&self, cpu: &CpuState) -> bool {
        !crate::sys::debug::any_enabled(cpu) && self.probe.set().is_empty()
    }

    /// The frame that an addend leads to, if it is one of RAM.
    pub(crate) fn direct_frame(&self, va: u64, addend: u64) -> Option<Gfn> {
        let offset = va.wrapping_add(addend).wrapping_sub(self.direct.base());
        let gfn = GuestPhys(offset).gfn();
        self.is_ram(gfn).then_some(gfn)
    }

    /// Host address minus linear address of a byte of RAM.
    pub(crate) fn addend(&self, va: u64, gpa: GuestPhys) -> u64 {
        self.direct.base().wrapping_add(gpa.0).wrapping_sub(va)
    }

    /// The frame that instructions at `rip` are fetched from.
    ///
    /// # Errors
    /// The fault of the fetch.
    pub(crate) fn fetch(&mut self, cpu: &CpuState, rip: u64) -> Result<Gfn, Fault> {
        let user = cpu.cpl() == 3;
        if let Some(gfn) = self.spaces[self.current].fetched(rip, user) {
            return Ok(gfn);
        }
        let mapping = self.translate(cpu, rip, Access::at_cpl(AccessType::Fetch, cpu.cpl()))?;
        let gfn = mapping.gpa.gfn();
        self.spaces[self.current].note_fetch(rip, user, gfn);
        Ok(gfn)
    }

    /// As [`Soft::fetch`], for the page `next` that the instruction at `rip` reaches into.
    ///
    /// # Errors
    /// The fault of the fetch.
    pub(super) fn fetch_second(
        &mut self,
        cpu: &CpuState,
        rip: u64,
        next: u64,
    ) -> Result<Gfn, Fault> {
        let second = self.fetch(cpu, next)?;
        if self.spaces[self.current]
            .fetched(rip, cpu.cpl() == 3)
            .is_some()
        {
            return Ok(second);
        }
        // A table of the first page's is one of the second's in another place, where it counts now;
        // the block depends on both.
        let access = Access::at_cpl(AccessType::Fetch, cpu.cpl());
        let first = self.translate(cpu, rip, access)?;
        for table in &first.frames[..usize::from(first.levels)] {
            self.frames.share_table(*table);
        }
        self.fetch(cpu, next)
    }

    /// Where translated code goes on at an address, if that is cached.
    pub(crate) fn cached_branch(&self, mode: Mode, rip: u64) -> Option<u64> {
        let table = &self.spaces[self.current].env.get().ibtc[mode.class() as usize];
        let index = ibtc_index(rip);
        (table.tag[index] == rip.wrapping_neg()).then(|| table.host[index])
    }

    /// Caches a branch target of the current space.
    pub(crate) fn cache_branch(&mut self, mode: Mode, rip: u64, block: BlockId) {
        let block = self.cache.block(block);
        let (host, straddles) = (block.far, block.second.is_some());
        self.spaces[self.current].cache_branch(mode.class(), rip, host, straddles);
    }

    /// Forgets the branch targets in a linear page, in every address space.
    pub(crate) fn forget_code(&mut self, page: u64) {
        for space in &mut self.spaces {
            space.forget(page..page.wrapping_add(PAGE_BYTES), true);
        }
        self.code_changed = true;
    }
}
