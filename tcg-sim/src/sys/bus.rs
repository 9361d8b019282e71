//! The way from system semantics to memory.

use super::Fault;
use crate::instrument::Direction;
use machine::cpuid::CpuidTable;
use machine::cpuid::Maker;
use machine::state::CpuState;

/// With which privilege memory is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// As the instruction's own operand: by the current CPL, RFLAGS.AC lifts SMAP.
    Data,
    /// As the CPU's own access to GDT, LDT, IDT or TSS: supervisor, SMAP always holds.
    System,
    /// As an operand at this privilege level: the pushes onto an inner stack.
    AtCpl(u8),
}

impl AccessKind {
    /// Whether pages must have U/S set.
    pub fn user(self, cpu: &CpuState) -> bool {
        match self {
            Self::Data => cpu.cpl() == 3,
            Self::System => false,
            Self::AtCpl(cpl) => cpl == 3,
        }
    }
}

/// One operand of a run of string elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringOperand {
    /// Linear address of the first element processed.
    pub va: u64,
    /// Bytes of an element.
    pub bytes: u8,
    /// What is done to it.
    pub direction: Direction,
}

/// String elements that were processed through [`SysBus::host_run`] pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringRun {
    /// Operands in the order in which each iteration accesses them.
    pub operands: [Option<StringOperand>; 2],
    /// Addresses go down.
    pub backward: bool,
}

impl StringRun {
    /// The operands that there are.
    pub fn parts(&self) -> impl Iterator<Item = StringOperand> {
        self.operands.into_iter().flatten()
    }
}

/// Linear memory, as the engine provides it. Addresses have been checked to be canonical from first
/// to last byte; ranges are at most two pages long and may cross a page boundary, also from the top
/// of the address space to 0.
///
/// Guest-physical space outside RAM reads as all ones and swallows writes. Writes honour code and
/// dirty tracking. A page of RAM that the host cannot provide is no fault of the guest: the bus
/// remembers the error, answers with zeros, and the dispatcher stops after the call.
pub trait SysBus {
    /// Reads `bytes.len()` bytes. Faults at the lower page come first.
    ///
    /// # Errors
    /// The #PF of the access.
    fn read(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &mut [u8],
        kind: AccessKind,
    ) -> Result<(), Fault>;

    /// Writes all bytes or, when either page faults, none.
    ///
    /// # Errors
    /// The #PF of the access.
    fn write(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &[u8],
        kind: AccessKind,
    ) -> Result<(), Fault>;

    /// As [`SysBus::write`], of several values of `slot` bytes that are stored one by one, the
    /// highest address first.
    ///
    /// # Errors
    /// The #PF of the access.
    fn write_slots(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &[u8],
        slot: usize,
        kind: AccessKind,
    ) -> Result<(), Fault> {
        self.write(cpu, va, bytes, kind)
            .map_err(|fault| self.first_failing_slot(cpu, va, bytes.len(), slot, kind, fault))
    }

    /// The fault of the slot that fails first, the highest being pushed first; `fault` is that of all
    /// of them as one.
    fn first_failing_slot(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        slot: usize,
        kind: AccessKind,
        fault: Fault,
    ) -> Fault {
        (0..len)
            .step_by(slot)
            .rev()
            .find_map(|offset| {
                let at = va.wrapping_add(offset as u64);
                self.prepare_write(cpu, at, slot, kind).err()
            })
            .unwrap_or(fault)
    }

    /// Iterations of a REP instruction are complete, and with them what was accessed since it began
    /// or since the last call; `run` says what was accessed through pointers.
    fn iterated(&mut self, _iterations: u64, _run: Option<&StringRun>) {}

    /// What was accessed since the last event led nowhere: its delivery begins anew.
    fn forget(&mut self) {}

    /// Does everything [`SysBus::write`] would do up to, but not including, storing: a following
    /// write of the same bytes cannot fault. Accessed and dirty bits are set.
    ///
    /// # Errors
    /// The #PF of the access.
    fn prepare_write(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        kind: AccessKind,
    ) -> Result<(), Fault>;

    /// A host pointer to `len` bytes at `va`, all inside one 4 KiB page, that may be read (and with
    /// `write` written) directly until the next call of this trait's writing methods or end of the
    /// instruction; `None` where only the other methods may be used (not RAM, code page, traced, ...).
    /// Accessed and dirty bits are set as by the access itself.
    ///
    /// # Errors
    /// The #PF of the access.
    fn host_run(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        write: bool,
    ) -> Result<Option<*mut u8>, Fault>;

    /// Whether the instruction at `cpu.rip` may be another one since it began, because something on the
    /// way to its bytes changed: a repetition ends after this iteration, so that it is fetched anew.
    fn is_stale(&mut self) -> bool {
        false
    }

    /// Whether the last store or [`SysBus::host_run`], of `len` bytes at `va`, is to bytes of the
    /// instruction at `cpu.rip`, `instruction_len` long, by whatever address.
    fn hits_instruction(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        instruction_len: usize,
    ) -> bool {
        let behind = va.wrapping_sub(cpu.rip);
        behind < instruction_len as u64 || behind.wrapping_neg() < len as u64
    }

    /// The CPU model.
    fn cpuid(&self) -> &CpuidTable;

    /// The recording host's vendor.
    fn vendor(&self) -> Maker {
        Maker::Amd
    }
}
