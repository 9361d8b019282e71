//! Memory as the system semantics see it.

use super::soft::{Piece, Soft};
use crate::jit::mode::Mode;
use crate::mmu::{Access, AccessType};
use crate::sys::{self, AccessKind, Fault, SysBus, Vendor};
use machine::cpuid::CpuidTable;
use machine::state::CpuState;
use machine::units::PAGE_BYTES;

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

impl Soft {
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
        Ok(())
    }

    fn write(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &[u8],
        kind: AccessKind,
    ) -> Result<(), Fault> {
        let (first, second) = self.pieces(cpu, va, bytes.len(), access(cpu, kind, true))?;
        let (low, high) = bytes.split_at(first.bytes);
        self.write_piece(first.gpa, low);
        if let Some(second) = second {
            self.write_piece(second.gpa, high);
        }
        self.watch(kind, va, bytes.len(), true);
        Ok(())
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
        if write {
            self.before_store(piece.gpa, len as u64);
        } else if let Err(error) = self.ram.prepare_read(piece.gpa.gfn()) {
            self.ram_error.get_or_insert(error);
        }
        if !sys::debug::any_enabled(cpu) {
            // The next string instruction on this page finds it without Rust.
            self.fill(cpu, va, &mapping, Mode::of(cpu), write);
        }
        Ok(Some(self.addend(va, piece.gpa).wrapping_add(va) as *mut u8))
    }

    fn vendor(&self) -> Vendor {
        self.vendor
    }

    fn cpuid(&self) -> &CpuidTable {
        &self.cpuid
    }
}
