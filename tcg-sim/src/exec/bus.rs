//! Memory as the system semantics see it.

use super::pieces::Piece;
use super::soft::Soft;
use crate::instrument::Direction;
use crate::instrument::probe::Noted;
use crate::jit::mode::Mode;
use crate::mmu::{Access, AccessType};
use crate::sys::{AccessKind, Fault, Maker, StringRun, SysBus};
use machine::cpuid::CpuidTable;
use machine::state::CpuState;
use machine::units::{GuestPhys, PAGE_BYTES};

fn access(cpu: &CpuState, kind: AccessKind, write: bool) -> Access {
    let kind_of = if write {
        AccessType::Write
    } else {
        AccessType::Read
    };
    match kind {
        AccessKind::System => Access::system(kind_of),
        explicit => Access {
            kind: kind_of,
            user: explicit.user(cpu),
            implicit: false,
        },
    }
}

/// The parts of an access in its one or two pages.
type Pieces = (Piece, Option<Piece>);

/// The parts of the `bytes` bytes from `offset` on.
fn part((first, second): Pieces, offset: usize, bytes: usize) -> Pieces {
    let from = |piece: Piece, skip: usize, bytes: usize| Piece {
        gpa: GuestPhys(piece.gpa.0 + skip as u64),
        bytes,
    };
    match second {
        Some(second) if offset >= first.bytes => (from(second, offset - first.bytes, bytes), None),
        Some(second) if offset + bytes > first.bytes => {
            let low = first.bytes - offset;
            let high = from(second, 0, bytes - low);
            (from(first, offset, low), Some(high))
        }
        _ => (from(first, offset, bytes), None),
    }
}

impl Soft {
    fn note(&mut self, kind: AccessKind, va: u64, pieces: Pieces, direction: Direction) {
        let (first, second) = pieces;
        self.probe.note(Noted {
            va,
            gpa: first.gpa.0,
            second: second.map(|piece| piece.gpa.0),
            bytes: (first.bytes + second.map_or(0, |piece| piece.bytes)) as u32,
            direction,
            system: kind == AccessKind::System,
        });
    }

    fn write_unnoted(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &[u8],
        kind: AccessKind,
    ) -> Result<Pieces, Fault> {
        let (first, second) = self.pieces(cpu, va, bytes.len(), access(cpu, kind, true))?;
        let (low, high) = bytes.split_at(first.bytes);
        self.write_piece(first.gpa, low);
        if let Some(second) = second {
            self.write_piece(second.gpa, high);
        }
        self.watch(kind, va, bytes.len(), true);
        Ok((first, second))
    }

    fn watch(&mut self, kind: AccessKind, va: u64, bytes: usize, write: bool) {
        if let Some(watched) = self.watched.as_mut().filter(|_| kind == AccessKind::Data) {
            watched.push((va, bytes as u64, write));
        }
    }
}

impl SysBus for Soft {
    fn read(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &mut [u8],
        kind: AccessKind,
    ) -> Result<(), Fault> {
        let (first, second) = self.pieces(cpu, va, bytes.len(), access(cpu, kind, false))?;
        let (low, high) = bytes.split_at_mut(first.bytes);
        self.read_piece(first.gpa, low);
        if let Some(second) = second {
            self.read_piece(second.gpa, high);
        }
        self.watch(kind, va, bytes.len(), false);
        self.note(kind, va, (first, second), Direction::Read);
        Ok(())
    }

    fn write(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &[u8],
        kind: AccessKind,
    ) -> Result<(), Fault> {
        let pieces = self.write_unnoted(cpu, va, bytes, kind)?;
        self.note(kind, va, pieces, Direction::Write);
        Ok(())
    }

    fn write_slots(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &[u8],
        slot: usize,
        kind: AccessKind,
    ) -> Result<(), Fault> {
        let pieces = self
            .write_unnoted(cpu, va, bytes, kind)
            .map_err(|fault| self.first_failing_slot(cpu, va, bytes.len(), slot, kind, fault))?;
        for offset in (0..bytes.len()).step_by(slot).rev() {
            let at = va.wrapping_add(offset as u64);
            self.note(kind, at, part(pieces, offset, slot), Direction::Write);
        }
        Ok(())
    }

    fn iterated(&mut self, iterations: u64, run: Option<&StringRun>) {
        self.probed().iterate(iterations, run);
    }

    fn forget(&mut self) {
        self.probe.forget();
    }

    fn prepare_write(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        kind: AccessKind,
    ) -> Result<(), Fault> {
        self.pieces(cpu, va, len, access(cpu, kind, true))
            .map(|_| ())
    }

    fn host_run(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        write: bool,
    ) -> Result<Option<*mut u8>, Fault> {
        debug_assert!(
            va % PAGE_BYTES + len as u64 <= PAGE_BYTES,
            "a run lies in one page"
        );
        let access = access(cpu, AccessKind::Data, write);
        let mapping = self.translate(cpu, va, access)?;
        let piece = Piece {
            gpa: mapping.gpa,
            bytes: len,
        };
        if self.watched.is_some() || !self.ram.contains(piece.gpa, len as u64) {
            return Ok(None);
        }
        self.probed().note_run(va, piece.gpa.gfn());
        // A store to a table might be about to change what maps the table itself.
        let cacheable = self.may_cache(cpu) && !(write && self.is_table(piece.gpa.gfn()));
        if write {
            self.before_store(piece.gpa, len as u64);
        } else if let Err(error) = self.ram.prepare_read(piece.gpa.gfn()) {
            self.ram_error.get_or_insert(error);
        }
        if cacheable {
            // The next string instruction on this page finds it without Rust.
            self.fill(cpu, va, &mapping, Mode::of(cpu), write);
        }
        Ok(Some(self.addend(va, piece.gpa).wrapping_add(va) as *mut u8))
    }

    fn is_stale(&mut self) -> bool {
        self.stale
    }

    fn hits_instruction(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        instruction_len: usize,
    ) -> bool {
        if !self.code_stored {
            return false;
        }
        let stored = self.pieces(cpu, va, len, access(cpu, AccessKind::Data, true));
        let fetch = Access::at_cpl(AccessType::Fetch, cpu.cpl());
        let fetched = self.pieces(cpu, cpu.rip, instruction_len, fetch);
        let (Ok(stored), Ok(fetched)) = (stored, fetched) else {
            return false;
        };
        let parts = |(first, second): (Piece, Option<Piece>)| [Some(first), second];
        parts(stored).into_iter().flatten().any(|store| {
            parts(fetched)
                .into_iter()
                .flatten()
                .any(|code| store.overlaps(code))
        })
    }

    fn vendor(&self) -> Maker {
        self.host.vendor
    }

    fn cpuid(&self) -> &CpuidTable {
        &self.cpuid
    }
}
