//! From instruction bytes to blocks: what is translated, and where blocks end early.

use super::cache::GuestCode;
use super::soft::Soft;
use crate::jit::block::{BlockId, BlockKey};
use crate::jit::mode::Mode;
use crate::jit::translate::NoTranslation;
use crate::mmu::is_canonical;
use crate::sys::Fault;
use machine::ram::{PageBytes, RamError};
use machine::state::CpuState;
use machine::units::{Gfn, PAGE_BYTES};

/// Where blocks end early.
#[derive(Default)]
pub(super) struct Watch {
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

impl Soft {
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
        let second = self.fetch_second(cpu, rip, next)?;
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
        if let Err(error) = self.prepare_code(key.gfn) {
            self.ram_error.get_or_insert(error);
        }
        let in_ram = self.is_ram(key.gfn);
        let page: &PageBytes = if in_ram {
            self.direct.page(key.gfn)
        } else {
            &ABSENT
        };
        let guest = GuestCode {
            bytes: &page[usize::from(key.offset)..],
            second: None,
            in_ram,
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
            Err(NoTranslation::NeedsNextPage) => self.make_straddling(cpu, rip, key),
        }
    }

    fn prepare_code(&self, gfn: Gfn) -> Result<(), RamError> {
        if self.is_ram(gfn) {
            self.ram.prepare_read(gfn)
        } else {
            Ok(())
        }
    }

    fn make_straddling(
        &mut self,
        cpu: &CpuState,
        rip: u64,
        key: BlockKey,
    ) -> Result<BlockId, Fault> {
        let next = next_code_page(rip, key.mode)?;
        let second = self.fetch_second(cpu, rip, next)?;
        let mut bytes = self.code_page(key.gfn)[usize::from(key.offset)..].to_vec();
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
            return Box::new(ABSENT);
        }
        if let Err(error) = self.prepare_code(gfn) {
            self.ram_error.get_or_insert(error);
        }
        Box::new(*self.direct.page(gfn))
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
}

/// What is read where nothing is.
const ABSENT: PageBytes = [0xff; PAGE_BYTES as usize];

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
