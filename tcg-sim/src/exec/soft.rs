//! The engine's side of memory: RAM, software TLBs, translations and the walker, kept coherent.
//!
//! Coherence is stronger than hardware's: a change of a page table or of code, by whatever way, is
//! seen by the next instruction. So nothing that is cached here can be observed (E7), and INVLPG and
//! CR3 writes need to drop nothing.

use super::cache::{CodeCache, GuestCode};
use super::frames::{CODE, Dependents, Frames, TABLE, Writers};
use super::host::HostCpu;
use crate::instrument::probe::{Probe, Probed};
use crate::jit::block::{BlockId, BlockKey};
use crate::jit::layout::{Env, EnvBox, ibtc_index, invalid_branch_tag, tlb_index};
use crate::jit::mode::Mode;
use crate::jit::translate::NoTranslation;
use crate::mmu::{Access, AccessType, Mapping, Paging, PhysMem, is_canonical, walk};
use crate::sys::Fault;
use machine::cpuid::CpuidTable;
use machine::ram::{Ram, RamError};
use machine::state::{CpuState, Seg};
use machine::units::{Gfn, GuestPhys, PAGE_BYTES};
use std::sync::Arc;

/// Address spaces whose TLBs are kept.
const SPACES: usize = 8;
/// Cached branch targets that are forgotten one by one.
const FEW_BRANCHES: usize = 64;
/// Entries of the fetch cache of one address space.
const FETCHES: usize = 256;

/// Tables of one address space.
struct Space {
    cr3: u64,
    env: EnvBox,
    /// Linear page (plus one) and user bit to frame, for instruction fetches.
    fetches: Box<[(u64, Gfn); FETCHES]>,
    /// Class and index of the cached branch targets, while they are fewer than [`FEW_BRANCHES`].
    branches: Vec<(usize, usize)>,
    used: u64,
}

/// Where blocks end early.
#[derive(Default)]
struct Watch {
    /// Linear address; 0 at first, which is as good as any.
    rip: u64,
    /// The frames found under its page since it is watched.
    frames: Vec<Gfn>,
}

impl Watch {
    /// Whether `gfn` is a frame under the watched page, seen now for the first time.
    fn misses(&self, rip: u64, gfn: Gfn) -> bool {
        (self.rip ^ rip) < PAGE_BYTES && !self.frames.contains(&gfn)
    }

    fn offset_in(&self, gfn: Gfn) -> Option<u16> {
        let offset = (self.rip % PAGE_BYTES) as u16;
        self.frames.contains(&gfn).then_some(offset)
    }
}

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
    host_base: u64,
    /// Translations or fetch mappings changed: the executing block may be stale.
    pub(crate) code_changed: bool,
    /// The instruction that Rust executes has stored to a frame with translations.
    pub(crate) code_stored: bool,
    /// The host could not provide a page; the run ends with it.
    pub(crate) ram_error: Option<RamError>,
    /// Data accesses `(address, bytes, write)` made through the bus, while breakpoints are armed.
    pub(crate) watched: Option<Vec<(u64, u64, bool)>>,
    /// Where blocks end early, because a state is looked for there.
    watch: Watch,
    pub(crate) probe: Probe,
}

/// One page's part of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) gpa: GuestPhys,
    pub(crate) bytes: usize,
}

impl Piece {
    pub(crate) fn overlaps(self, other: Self) -> bool {
        let (a, b) = (self.gpa.0, other.gpa.0);
        a < b + other.bytes as u64 && b < a + self.bytes as u64
    }
}

impl Soft {
    pub(crate) fn new(ram: Arc<Ram>, cpuid: CpuidTable, cache: CodeCache, host: HostCpu) -> Self {
        let (frames, host_base) = (Frames::new(ram.frames()), ram.host_base() as u64);
        Self {
            ram,
            cpuid,
            cache,
            host,
            frames,
            spaces: vec![Space::new(0)],
            current: 0,
            uses: 0,
            host_base,
            code_changed: false,
            code_stored: false,
            ram_error: None,
            watched: None,
            watch: Watch::default(),
            probe: Probe::default(),
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
        if self.spaces[self.current].cr3 == cr3 {
            return;
        }
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
    }

    fn replace_space(&mut self, cr3: u64) -> usize {
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
        self.spaces.iter_mut().for_each(Space::flush);
        self.code_changed = true;
    }

    /// Forgets all branch targets and fetches, in every address space.
    pub(crate) fn flush_branches(&mut self) {
        self.code_changed = true;
        for space in &mut self.spaces {
            space.flush_branches();
        }
    }

    /// Caches where a branch target's code is.
    pub(crate) fn cache_branch(&mut self, class: usize, target: u64, host: u64) {
        let space = &mut self.spaces[self.current];
        let index = ibtc_index(target);
        if space.branches.len() < FEW_BRANCHES {
            space.branches.push((class, index));
        }
        let table = &mut space.env.get_mut().ibtc[class];
        table.tag[index] = target.wrapping_neg();
        table.host[index] = host;
    }

    /// Makes the first write to each page come through the slow path again.
    pub(crate) fn flush_write_tags(&mut self) {
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

    fn revoke(&mut self, writers: Writers) {
        match writers {
            Writers::None => {}
            Writers::Page(page) => {
                for space in &mut self.spaces {
                    space.env.get_mut().flush_page(page);
                }
            }
            Writers::Any => self.flush_write_tags(),
        }
    }

    /// Whether the frame is RAM.
    pub(crate) fn is_ram(&self, gfn: Gfn) -> bool {
        gfn.0 < self.ram.frames()
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
        let paging = Paging::of(cpu);
        let mapping = walk(self, &paging, va, access).map_err(|f| Fault::page(va, f.error))?;
        for (index, gfn) in mapping.frames[..usize::from(mapping.levels)]
            .iter()
            .enumerate()
        {
            let writers = self.frames.mark_table(*gfn, 4 - index as u8, va);
            self.revoke(writers);
        }
        Ok(mapping)
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
            self.flush_all();
        }
    }

    fn before_table_store(&mut self, gpa: GuestPhys, bytes: u64) {
        let gfn = gpa.gfn();
        let idles = self.frames.table_idles(gfn);
        for address in (gpa.0 & !7..gpa.0 + bytes).step_by(8) {
            let old = self.read_u64(GuestPhys(address));
            if old & 1 == 0 {
                continue;
            }
            match self.frames.table_store(gfn, address % PAGE_BYTES / 8) {
                Dependents::Page(va) => self.forget_page(va, old >> 63 == 0),
                Dependents::All => self.flush_all(),
            }
        }
        if idles {
            self.flush_all();
        }
    }

    /// `va` as a table's level gives it: bits 48 and up may need sign extension.
    fn forget_page(&mut self, va: u64, executable: bool) {
        let va = ((va << 16) as i64 >> 16) as u64;
        for space in &mut self.spaces {
            space.env.get_mut().flush_page(va);
        }
        if executable {
            self.flush_branches();
        }
    }

    /// Whether a store would make the block that executes stale.
    pub(crate) fn store_needs_boundary(&mut self, gpa: GuestPhys, bytes: u64) -> bool {
        let gfn = gpa.gfn();
        let flags = self.frames.flags(gfn);
        flags & TABLE != 0
            || flags & CODE != 0 && self.cache.overlaps(gfn, gpa.0 % PAGE_BYTES, bytes)
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
        let gfn = mapping.gpa.gfn();
        let page = va & !(PAGE_BYTES - 1);
        let addend = self.host_base.wrapping_add(gfn.base().0).wrapping_sub(page);
        let write = Access::at_cpl(AccessType::Write, mode.cpl());
        let writable = self.frames.flags(gfn) == 0
            && mapping.dirty
            && (wrote || self.ram.is_dirty(gfn) && mapping.permits(&Paging::of(cpu), write));
        let env = self.env();
        let rsp = env.core.rsp;
        let tlb = &mut env.tlb[mode.class() as usize];
        let index = tlb_index(page);
        if tlb.read_tag[index] != page.wrapping_neg() {
            tlb.write_tag[index] = crate::jit::layout::invalid_tag(index);
        }
        tlb.read_tag[index] = page.wrapping_neg();
        tlb.addend[index] = addend;
        if writable {
            tlb.write_tag[index] = page.wrapping_neg();
            if rsp.wrapping_sub(page) < PAGE_BYTES || rsp.wrapping_sub(page + 8) < PAGE_BYTES {
                let slot = &mut env.core.slots[mode.class() as usize];
                (slot.tag, slot.addend) = (page.wrapping_neg(), addend);
            }
            self.frames.note_write_tag(gfn, page);
        }
    }

    /// The frame that an addend leads to, if it is one of RAM.
    pub(crate) fn direct_frame(&self, va: u64, addend: u64) -> Option<Gfn> {
        let offset = va.wrapping_add(addend).wrapping_sub(self.host_base);
        let gfn = GuestPhys(offset).gfn();
        self.is_ram(gfn).then_some(gfn)
    }

    /// Host address minus linear address of a byte of RAM.
    pub(crate) fn addend(&self, va: u64, gpa: GuestPhys) -> u64 {
        self.host_base.wrapping_add(gpa.0).wrapping_sub(va)
    }

    /// The frame that instructions at `rip` are fetched from.
    ///
    /// # Errors
    /// The fault of the fetch.
    pub(crate) fn fetch(&mut self, cpu: &CpuState, rip: u64) -> Result<Gfn, Fault> {
        let tag = (rip & !(PAGE_BYTES - 1)) | 1 | u64::from(cpu.cpl() == 3) << 1;
        let slot = (rip >> 12) as usize % FETCHES;
        let (known, gfn) = self.spaces[self.current].fetches[slot];
        if known == tag {
            return Ok(gfn);
        }
        let mapping = self.translate(cpu, rip, Access::at_cpl(AccessType::Fetch, cpu.cpl()))?;
        let gfn = mapping.gpa.gfn();
        self.spaces[self.current].fetches[slot] = (tag, gfn);
        Ok(gfn)
    }

    /// The block for an address, translated if need be.
    ///
    /// # Errors
    /// The fault of fetching it.
    pub(crate) fn block_for(
        &mut self,
        cpu: &CpuState,
        rip: u64,
        mode: Mode,
        limit: u8,
    ) -> Result<BlockId, Fault> {
        if !is_canonical(rip) {
            return Err(Fault::GP0);
        }
        let gfn = self.fetch(cpu, rip)?;
        if self.watch.misses(rip, gfn) {
            self.split_at_watch(gfn);
        }
        let key = BlockKey {
            gfn,
            offset: (rip % PAGE_BYTES) as u16,
            mode,
            limit,
            instruments: self.probe.set(),
        };
        match self.cache.find(&key) {
            Some(id) if self.cache.block(id).second.is_none() => Ok(id),
            Some(id) => self.check_second(cpu, rip, key, id),
            None => self.make_block(cpu, rip, key),
        }
    }

    /// Makes blocks end before `rip`, and begin there with a comparison, from the next one that is
    /// looked up on: all that are known for its page are looked up anew.
    pub(crate) fn watch_for(&mut self, rip: u64) {
        if self.watch.rip != rip {
            self.watch = Watch {
                rip,
                frames: Vec::new(),
            };
            self.flush_branches();
        }
    }

    /// The frame is one that the watched address is fetched from: its blocks that hold the address go.
    fn split_at_watch(&mut self, gfn: Gfn) {
        self.watch.frames.push(gfn);
        let offset = self.watch.rip % PAGE_BYTES;
        if self.cache.invalidate(gfn, offset, 1, &mut self.frames) {
            self.flush_branches();
        }
    }

    /// A block whose instruction straddles pages is valid while the second page is the same.
    fn check_second(
        &mut self,
        cpu: &CpuState,
        rip: u64,
        key: BlockKey,
        id: BlockId,
    ) -> Result<BlockId, Fault> {
        let next = next_code_page(rip, key.mode)?;
        let second = self.fetch(cpu, next)?;
        if self.cache.block(id).second == Some(second) {
            return Ok(id);
        }
        self.cache
            .invalidate(key.gfn, u64::from(key.offset), 1, &mut self.frames);
        self.flush_branches();
        self.make_block(cpu, rip, key)
    }

    fn make_block(&mut self, cpu: &CpuState, rip: u64, key: BlockKey) -> Result<BlockId, Fault> {
        if !self.cache.has_room() {
            self.probed().clear();
            self.cache.clear();
            self.frames.clear_code();
            self.flush_branches();
        }
        let page = self.code_page(key.gfn);
        let first = &page[usize::from(key.offset)..];
        let guest = GuestCode {
            bytes: first,
            second: None,
            in_ram: self.is_ram(key.gfn),
            stop: self.watch.offset_in(key.gfn),
            first_slot: self.probe.next_slot(),
        };
        match self.cache.translate(key, &guest, &mut self.frames) {
            Ok((id, writers)) => {
                writers.into_iter().for_each(|w| self.revoke(w));
                self.instrumented(id);
                Ok(id)
            }
            Err(NoTranslation::TooLong) => Err(Fault::GP0),
            Err(NoTranslation::NeedsNextPage) => self.make_straddling(cpu, rip, key, first),
        }
    }

    fn make_straddling(
        &mut self,
        cpu: &CpuState,
        rip: u64,
        key: BlockKey,
        first: &[u8],
    ) -> Result<BlockId, Fault> {
        let next = next_code_page(rip, key.mode)?;
        let second = self.fetch(cpu, next)?;
        let mut bytes = first.to_vec();
        bytes.extend(&self.code_page(second)[..15]);
        let in_ram = self.is_ram(key.gfn) && self.is_ram(second);
        let guest = GuestCode {
            bytes: &bytes,
            second: in_ram.then_some(second),
            in_ram,
            stop: self.watch.offset_in(key.gfn),
            first_slot: self.probe.next_slot(),
        };
        let (id, writers) = self
            .cache
            .translate(key, &guest, &mut self.frames)
            .map_err(|_| Fault::GP0)?;
        writers.into_iter().for_each(|w| self.revoke(w));
        self.instrumented(id);
        Ok(id)
    }

    /// Gives a new block the counters that it uses.
    fn instrumented(&mut self, id: BlockId) {
        let slots = self.cache.block(id).facts.as_ref().map(|f| f.slots.len());
        if let Some(slots) = slots {
            self.probed().translated(slots);
        }
    }

    /// A copy of a frame's bytes; what is not RAM reads as ones.
    pub(crate) fn code_page(&mut self, gfn: Gfn) -> Box<[u8; PAGE_BYTES as usize]> {
        if !self.is_ram(gfn) {
            return Box::new([0xff; PAGE_BYTES as usize]);
        }
        if let Err(error) = self.ram.prepare_read(gfn) {
            self.ram_error.get_or_insert(error);
        }
        Box::new(self.ram.page(gfn))
    }

    /// Up to 15 bytes at `rip` for a message.
    pub(crate) fn peek_code(&mut self, cpu: &CpuState, rip: u64) -> Vec<u8> {
        let Ok(gfn) = self.fetch(cpu, rip) else {
            return Vec::new();
        };
        let page = self.code_page(gfn);
        page[(rip % PAGE_BYTES) as usize..]
            .iter()
            .take(15)
            .copied()
            .collect()
    }

    /// Reads one page's part of an access; what is not RAM reads as ones.
    pub(crate) fn read_piece(&mut self, gpa: GuestPhys, into: &mut [u8]) {
        if !self.ram.contains(gpa, into.len() as u64) {
            into.fill(0xff);
        } else if let Err(error) = self.ram.read(gpa, into) {
            self.ram_error.get_or_insert(error);
            into.fill(0);
        }
    }

    /// Writes one page's part of an access; what is not RAM swallows it.
    pub(crate) fn write_piece(&mut self, gpa: GuestPhys, from: &[u8]) {
        if !self.ram.contains(gpa, from.len() as u64) {
            return;
        }
        self.before_store(gpa, from.len() as u64);
        if let Err(error) = self.ram.write(gpa, from) {
            self.ram_error.get_or_insert(error);
        }
    }

    /// Translates an access that may cross a page boundary. The lower page faults first. In
    /// compatibility mode addresses wrap at 4 GiB (seen on an Intel processor, family 6 model 207).
    ///
    /// # Errors
    /// The fault of the access; the caller turns #GP into #SS for stack accesses.
    pub(crate) fn pieces(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: usize,
        access: Access,
    ) -> Result<(Piece, Option<Piece>), Fault> {
        let last = va.wrapping_add(bytes as u64 - 1);
        if !is_canonical(va) || !is_canonical(last) {
            return Err(Fault::GP0);
        }
        let first = self.translate(cpu, va, access)?;
        let room = (PAGE_BYTES - va % PAGE_BYTES) as usize;
        if bytes <= room {
            return Ok((
                Piece {
                    gpa: first.gpa,
                    bytes,
                },
                None,
            ));
        }
        let wraps = !cpu.segs[Seg::Cs as usize].long_mode() && va >> 32 == 0 && last >> 32 != 0;
        let next = if wraps { 0 } else { last & !(PAGE_BYTES - 1) };
        let second = self.translate(cpu, next, access)?;
        Ok((
            Piece {
                gpa: first.gpa,
                bytes: room,
            },
            Some(Piece {
                gpa: second.gpa,
                bytes: bytes - room,
            }),
        ))
    }
}

const NO_FETCH: (u64, Gfn) = (0, Gfn(0));

impl Space {
    fn new(cr3: u64) -> Self {
        Self {
            cr3,
            env: EnvBox::new(),
            fetches: Box::new([NO_FETCH; FETCHES]),
            branches: Vec::with_capacity(FEW_BRANCHES),
            used: 0,
        }
    }

    fn flush(&mut self) {
        let env = self.env.get_mut();
        env.flush_tlb();
        self.flush_branches();
    }

    fn flush_branches(&mut self) {
        let env = self.env.get_mut();
        if self.branches.len() < FEW_BRANCHES {
            for (class, index) in self.branches.drain(..) {
                env.ibtc[class].tag[index] = invalid_branch_tag(index);
            }
        } else {
            env.flush_branches();
            self.branches.clear();
        }
        self.fetches.fill(NO_FETCH);
    }
}

/// The page behind an instruction's; #GP where code cannot be (SDM vol. 3, 5.3).
fn next_code_page(rip: u64, mode: Mode) -> Result<u64, Fault> {
    let next = (rip & !(PAGE_BYTES - 1)).wrapping_add(PAGE_BYTES);
    let beyond_limit = mode.is_compat() && next >> 32 != 0;
    if is_canonical(next) && !beyond_limit {
        Ok(next)
    } else {
        Err(Fault::GP0)
    }
}

impl PhysMem for Soft {
    fn read_u64(&mut self, address: GuestPhys) -> u64 {
        if !self.ram.contains(address, 8) {
            return u64::MAX;
        }
        match self.ram.read_aligned(address) {
            Ok(entry) => entry,
            Err(error) => {
                self.ram_error.get_or_insert(error);
                0
            }
        }
    }

    fn update_u64(&mut self, address: GuestPhys, value: u64) {
        if !self.ram.contains(address, 8) {
            return;
        }
        // Accessed and dirty bits make no cached translation stale, but code might lie here.
        let gfn = address.gfn();
        if self.frames.flags(gfn) & CODE != 0
            && self
                .cache
                .invalidate(gfn, address.0 % PAGE_BYTES, 8, &mut self.frames)
        {
            self.flush_branches();
        }
        if let Err(error) = self.ram.write(address, &value.to_le_bytes()) {
            self.ram_error.get_or_insert(error);
        }
    }
}
