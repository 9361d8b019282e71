//! Memory accesses that the inline check of translated code refuses.

use super::engine::{Engine, Left, Next};
use super::pieces::Piece;
use crate::instrument::facts::AccessFact;
use crate::instrument::probe::Noted;
use crate::jit::block::{MemoryAccess, Site};
use crate::mmu::{Access, AccessType, is_canonical};
use crate::sys::{self, Fault, vector};
use machine::state::{cr0, rflags};

/// MXCSR.MM (AMD): SSE operands need no alignment, and what the host makes of it holds.
const MISALIGNED_MODE: u32 = 1 << 17;

/// What an access consists of, in order.
pub(super) type Pieces = [Option<Piece>; 4];

/// A store in the bounce buffer.
#[derive(Clone, Copy)]
pub(super) struct Owed {
    pub(super) pieces: Pieces,
    /// Offset of the bytes in the bounce buffer.
    pub(super) offset: usize,
}

impl Engine {
    pub(super) fn handle_memory(&mut self, site: Site, access: MemoryAccess, direct: u64) -> Next {
        self.soft.counters.slow_accesses += 1;
        let va = self.env().core.t0;
        let one_step = self.soft.cache.block(site.block).key.mode.is_one_step();
        self.soft.keeps_code = !one_step;
        let prepared = self.access(site, va, access, one_step);
        self.soft.keeps_code = false;
        match prepared {
            Ok(Some(addend)) => {
                self.env().core.t1 = addend;
                if let Some(gfn) = self.soft.direct_frame(va, addend).filter(|_| !one_step) {
                    self.soft.probed().map((site.block, site.index), va, gfn);
                }
                Next::Resume(direct)
            }
            Ok(None) => {
                self.rewind(site);
                (self.step_alone, self.begun) = (true, true);
                Next::Left(Left::Boundary)
            }
            Err(fault) => {
                self.soft.counters.slow_faults += 1;
                self.faulted(site, va, access, direct, fault)
            }
        }
    }

    /// Prepares an access of translated code. `None`: the instruction must run alone.
    fn access(
        &mut self,
        site: Site,
        va: u64,
        access: MemoryAccess,
        alone: bool,
    ) -> Result<Option<u64>, Fault> {
        if self.mode.is_compat()
            && let instruction = self.instruction_at(site)
            && let Some(fault) = self.segment_fault(&instruction)
        {
            return Err(fault);
        }
        let bytes = usize::from(access.bytes);
        let kind = if access.write {
            AccessType::Write
        } else {
            AccessType::Read
        };
        let misaligned = va & u64::from(access.alignment) != 0;
        if misaligned && self.env().core.mxcsr & MISALIGNED_MODE == 0 {
            // Comes before everything that the address itself may be refused for.
            return Err(Fault::GP0);
        }
        let stack_fault = |fault: Fault| match fault {
            Fault {
                vector: vector::GP, ..
            } if access.stack => Fault::SS0,
            other => other,
        };
        let at = Access::at_cpl(kind, self.mode.cpl());
        if alone {
            self.check_address(va, access).map_err(stack_fault)?;
        }
        let second = self.second_part(site, va, access);
        if let Some(second) = second {
            if !alone {
                return Ok(None);
            }
            let pieces = self.two_parts(va, second, bytes, at)?;
            return Ok(Some(self.bounce(va, pieces, access)));
        }
        let crosses = (va & 0xfff) + bytes as u64 > 0x1000;
        // A store in two pieces is written when its instruction has finished, which only an
        // instruction that runs alone tells.
        if crosses && !alone {
            self.soft.counters.slow_crossing += 1;
            let watched = sys::debug::any_enabled(&self.cpu) || !self.soft.probe.set().is_empty();
            if access.write || watched {
                return Ok(None);
            }
            self.check_address(va, access).map_err(stack_fault)?;
        }
        let soft = &mut self.soft;
        if crosses {
            let (first, second) = soft.pieces(&self.cpu, va, bytes, at).map_err(stack_fault)?;
            if !alone && soft.code_changed {
                return Ok(None);
            }
            let pieces = [Some(first), second, None, None];
            return Ok(Some(self.bounce(va, pieces, access)));
        }
        let watched = sys::debug::watches_data(&self.cpu, va);
        if !alone
            && watched
            && sys::debug::data_hits(&self.cpu, va, bytes as u64, access.write) != 0
        {
            return Ok(None);
        }
        let mapping = soft.translate(&self.cpu, va, at).map_err(stack_fault)?;
        if !alone && soft.code_changed {
            // The walk sets a bit inside translated code, maybe of this instruction, which is decoded no
            // more once it runs alone. Or a table that leads to this code was found in another place,
            // where it counts from now on: no store to it would make this block stale.
            return Ok(None);
        }
        let table = access.write && soft.is_table(mapping.gpa.gfn());
        if !soft.is_ram(mapping.gpa.gfn()) {
            let piece = Piece {
                gpa: mapping.gpa,
                bytes,
            };
            soft.counters.slow_outside_ram += 1;
            let pieces = [Some(piece), None, None, None];
            return Ok(alone.then(|| self.bounce(va, pieces, access)));
        }
        if access.write {
            if alone {
                soft.before_store(mapping.gpa, bytes as u64);
            } else if !soft.before_direct_store(mapping.gpa, bytes as u64) {
                return Ok(None);
            }
        } else if let Err(error) = soft.ram.prepare_read(mapping.gpa.gfn()) {
            soft.ram_error.get_or_insert(error);
        }
        if alone {
            self.watch(va, bytes as u64, access.write);
            let bytes = usize::from(access.bytes);
            let gpa = mapping.gpa;
            self.note(va, access, Piece { gpa, bytes }, None);
        } else if !watched && !table {
            // A store to a table might be about to change what maps the table itself.
            soft.fill(&self.cpu, va, &mapping, self.mode, access.write);
        }
        Ok(Some(self.soft.addend(va, mapping.gpa)))
    }

    /// #GP for an address that is not canonical, or #AC where the guest asked for it, which comes before the
    /// #GP of an access that only ends beyond the canonical addresses. MASKMOVDQU stores its upper half first
    /// (both: Intel family 6 model 207).
    fn check_address(&self, va: u64, access: MemoryAccess) -> Result<(), Fault> {
        let halves = access.parts && access.bytes == 16;
        check_canonical(if halves { va.wrapping_add(8) } else { va }, 1)?;
        self.check_alignment(va, access)?;
        check_canonical(va, usize::from(access.bytes))
    }

    /// #AC, where the guest asked for it.
    fn check_alignment(&self, va: u64, access: MemoryAccess) -> Result<(), Fault> {
        let checked =
            self.cpu.cr0 & cr0::AM != 0 && self.cpu.rflags & rflags::AC != 0 && self.cpu.cpl() == 3;
        let natural = match access.bytes {
            16 if !access.parts => 1,
            bytes => u64::from(bytes).next_power_of_two().min(8),
        };
        if checked && va & (natural - 1) != 0 {
            return Err(Fault::AC);
        }
        Ok(())
    }

    /// Stages an access in the bounce buffer; returns the addend that leads there.
    fn bounce(&mut self, va: u64, pieces: Pieces, access: MemoryAccess) -> u64 {
        // The same alignment as the address, so that alignment faults stay what they are.
        let offset = (va & 63) as usize;
        let mut bytes = [0; 64];
        let mut total = 0;
        for piece in pieces.into_iter().flatten() {
            let end = total + piece.bytes;
            self.soft.read_piece(piece.gpa, &mut bytes[total..end]);
            total = end;
        }
        self.watch(va, total as u64, access.write);
        if let Some(first) = pieces[0] {
            self.note(va, access, first, pieces[1].or(pieces[2]));
        }
        if access.write {
            self.owed = Some(Owed { pieces, offset });
        }
        let buffer = &mut self.env().core.bounce.0;
        buffer[offset..offset + total].copy_from_slice(&bytes[..total]);
        let host = buffer.as_ptr() as u64 + offset as u64;
        host.wrapping_sub(va)
    }

    /// Writes what the finished instruction left in the bounce buffer.
    pub(super) fn pay(&mut self) {
        let Some(Owed { pieces, offset }) = self.owed.take() else {
            return;
        };
        let mut bytes = [0; 64];
        bytes.copy_from_slice(&self.env().core.bounce.0[offset..offset + 64]);
        let mut rest = &bytes[..];
        for piece in pieces.into_iter().flatten() {
            let (now, later) = rest.split_at(piece.bytes);
            self.soft.write_piece(piece.gpa, now);
            rest = later;
        }
    }

    /// Notes an access of an instruction that runs alone.
    fn note(&mut self, va: u64, access: MemoryAccess, first: Piece, second: Option<Piece>) {
        self.soft.probe.note(Noted {
            va,
            gpa: first.gpa.0,
            second: second.map(|piece| piece.gpa.0),
            bytes: access.bytes.into(),
            direction: AccessFact::of(access).direction,
            system: false,
        });
    }

    /// Compares an access with the data breakpoints.
    fn watch(&mut self, va: u64, bytes: u64, write: bool) {
        if self.cpu.dr7 & 0xff != 0 {
            self.watch_hits |= sys::debug::data_hits(&self.cpu, va, bytes, write);
        }
    }
}

fn check_canonical(va: u64, bytes: usize) -> Result<(), Fault> {
    let last = va.wrapping_add(bytes as u64 - 1);
    if is_canonical(va) && is_canonical(last) {
        Ok(())
    } else {
        Err(Fault::GP0)
    }
}
