//! Debug exceptions: single-step, breakpoints of DR0 to DR3, and what DR6 then says (SDM vol. 3,
//! 17.2 and 17.3; APM vol. 2, 13.1).
//!
//! - Instruction breakpoints are faults, checked before the instruction unless RF is set. A MOV SS
//!   shadow does not hide them on AMD (it does on Intel).
//! - Data and I/O breakpoints and single-step are traps after the instruction (after each iteration
//!   of a REP). A MOV SS shadow drops the single step of the instruction that opened it and holds its data
//!   breakpoints back until the next instruction has retired (seen under ptrace on an Intel processor,
//!   family 6 model 207; an INT n is entered first). A fault of that instruction drops them.
//! - All traps of one boundary become one #DB with the union of their DR6 bits.

use super::{Event, EventKind, Fault, Maker};
use iced_x86::{Instruction, Mnemonic};
use machine::state::{CpuState, Shadow, cr4, rflags};

/// DR6.BS: single step.
pub const DR6_BS: u64 = 1 << 14;

/// What a breakpoint register watches (DR7.R/W).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Execute,
    Write,
    Port,
    ReadWrite,
}

/// One enabled breakpoint.
struct Breakpoint {
    bit: u64,
    watch: Watch,
    address: u64,
    /// 1, 2, 4 or 8.
    len: u64,
}

impl Breakpoint {
    fn overlaps(&self, first: u64, len: u64) -> bool {
        // Addresses are aligned to the length by the hardware.
        let start = self.address & !(self.len - 1);
        first.wrapping_sub(start) < self.len || start.wrapping_sub(first) < len
    }
}

/// Whether DR7 enables any breakpoint; translations need no checks otherwise.
pub fn any_enabled(cpu: &CpuState) -> bool {
    cpu.dr7 & 0xff != 0
}

fn enabled(cpu: &CpuState) -> impl Iterator<Item = Breakpoint> + '_ {
    (0..4).filter(|n| cpu.dr7 >> (2 * n) & 3 != 0).map(|n| {
        let control = cpu.dr7 >> (16 + 4 * n);
        Breakpoint {
            bit: 1 << n,
            watch: match control & 3 {
                0 => Watch::Execute,
                1 => Watch::Write,
                2 => Watch::Port,
                _ => Watch::ReadWrite,
            },
            address: cpu.dr[n as usize],
            len: [1, 2, 8, 4][(control >> 2 & 3) as usize],
        }
    })
}

/// The 4 KiB pages of addresses that enabled breakpoints watch, and whether for execution. A data
/// breakpoint lies in one page, since its address is aligned to its length.
pub fn watched_pages(cpu: &CpuState) -> impl Iterator<Item = (u64, bool)> + '_ {
    enabled(cpu)
        .filter(|b| b.watch != Watch::Port)
        .map(|b| (b.address & !0xfff, b.watch == Watch::Execute))
}

/// Whether an instruction breakpoint lies in the page of `rip`.
pub fn watches_code(cpu: &CpuState, rip: u64) -> bool {
    any_enabled(cpu) && watched_pages(cpu).any(|watched| watched == (rip & !0xfff, true))
}

/// Whether a data breakpoint lies in the page of `va`.
pub fn watches_data(cpu: &CpuState, va: u64) -> bool {
    any_enabled(cpu) && watched_pages(cpu).any(|watched| watched == (va & !0xfff, false))
}

/// The #DB fault of an instruction breakpoint at `cpu.rip`, before the instruction there.
pub fn instruction_breakpoint(cpu: &CpuState, vendor: Maker) -> Option<Fault> {
    let hidden = vendor == Maker::Intel && cpu.shadow == Shadow::MovSs;
    if cpu.rflags & rflags::RF != 0 || hidden {
        return None;
    }
    let hits = enabled(cpu)
        .filter(|b| b.watch == Watch::Execute && b.address == cpu.rip)
        .fold(0, |bits, b| bits | b.bit);
    (hits != 0).then(|| Fault::debug(hits))
}

/// DR6 bits of the breakpoints that an access of `len` bytes at a linear address hits.
pub fn data_hits(cpu: &CpuState, va: u64, len: u64, write: bool) -> u64 {
    enabled(cpu)
        .filter(|b| b.watch == Watch::ReadWrite || b.watch == Watch::Write && write)
        .filter(|b| b.overlaps(va, len))
        .fold(0, |bits, b| bits | b.bit)
}

/// DR6 bits of the breakpoints that an access to a port hits; only with CR4.DE.
pub fn port_hits(cpu: &CpuState, port: u16, size: u8) -> u64 {
    if cpu.cr4 & cr4::DE == 0 {
        return 0;
    }
    enabled(cpu)
        .filter(|b| b.watch == Watch::Port && b.overlaps(u64::from(port), u64::from(size)))
        .fold(0, |bits, b| bits | b.bit)
}

/// Whether a single-step trap follows an instruction that has retired. `tf_before` is TF when it
/// began, `cpu` the state after it. SYSCALL and SYSRET go by TF after them; software interrupts
/// have cleared TF and never trap; POPF and IRET that set TF trap one instruction later.
pub fn single_steps(instr: &Instruction, tf_before: bool, cpu: &CpuState) -> bool {
    match instr.mnemonic() {
        Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq => cpu.rflags & rflags::TF != 0,
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 => false,
        _ => tf_before,
    }
}

/// The #DB trap of a boundary: `hits` of data and I/O breakpoints, and single-step. `None` without
/// either, and behind MOV SS and POP SS, where the caller holds hits back.
pub fn trap(cpu: &CpuState, hits: u64, single_step: bool, mid_rep: bool) -> Option<Event> {
    let dr6 = hits | if single_step { DR6_BS } else { 0 };
    if dr6 == 0 || cpu.shadow == Shadow::MovSs {
        return None;
    }
    Some(Event {
        kind: EventKind::Trap { mid_rep },
        fault: Fault::debug(dr6),
    })
}
