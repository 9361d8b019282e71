//! Guest memory by its pages: what an access consists of, and page-table entries for the walker.

use super::frames::CODE;
use super::soft::Soft;
use crate::mmu::{Access, PhysMem, is_canonical};
use crate::sys::Fault;
use machine::state::{CpuState, Seg};
use machine::units::{GuestPhys, PAGE_BYTES};

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
    /// Reads one page's part of an access; what is not RAM reads as ones.
    pub(crate) fn read_piece(&mut self, gpa: GuestPhys, into: &mut [u8]) {
        if !self.ram.contains(gpa, into.len() as u64) {
            into.fill(0xff);
        } else if let Err(error) = self.ram.prepare_read(gpa.gfn()) {
            self.ram_error.get_or_insert(error);
            into.fill(0);
        } else {
            self.direct.read(gpa, into);
        }
    }

    /// Writes one page's part of an access; what is not RAM swallows it.
    pub(crate) fn write_piece(&mut self, gpa: GuestPhys, from: &[u8]) {
        if !self.ram.contains(gpa, from.len() as u64) {
            return;
        }
        // Reports and survives a page that cannot be had: the run ends with this instruction.
        self.before_store(gpa, from.len() as u64);
        self.direct.write(gpa, from);
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
        let first = self.locate(cpu, va, access)?;
        let room = (PAGE_BYTES - va % PAGE_BYTES) as usize;
        if bytes <= room {
            return Ok((Piece { gpa: first, bytes }, None));
        }
        let wraps = !cpu.segs[Seg::Cs as usize].long_mode() && va >> 32 == 0 && last >> 32 != 0;
        let next = if wraps { 0 } else { last & !(PAGE_BYTES - 1) };
        let second = self.locate(cpu, next, access)?;
        Ok((
            Piece {
                gpa: first,
                bytes: room,
            },
            Some(Piece {
                gpa: second,
                bytes: bytes - room,
            }),
        ))
    }
}

impl PhysMem for Soft {
    fn read_u64(&mut self, address: GuestPhys) -> u64 {
        if !self.ram.contains(address, 8) {
            return u64::MAX;
        }
        if let Err(error) = self.ram.prepare_read(address.gfn()) {
            self.ram_error.get_or_insert(error);
            return 0;
        }
        self.direct.read_u64(address)
    }

    fn update_u64(&mut self, address: GuestPhys, value: u64) {
        if !self.ram.contains(address, 8) {
            return;
        }
        // Accessed and dirty bits make no cached translation stale, but code might lie here.
        let gfn = address.gfn();
        if self.keeps_code
            && self.frames.flags(gfn) & CODE != 0
            && self.cache.overlaps(gfn, address.0 % PAGE_BYTES, 8)
        {
            self.code_changed = true;
            return;
        }
        if self.frames.flags(gfn) & CODE != 0
            && self
                .cache
                .invalidate(gfn, address.0 % PAGE_BYTES, 8, &mut self.frames)
        {
            self.flush_branches();
            self.stale = true;
        }
        match self.ram.prepare_write(gfn) {
            Ok(()) => self.direct.write(address, &value.to_le_bytes()),
            Err(error) => {
                self.ram_error.get_or_insert(error);
            }
        }
    }
}
