//! Delivery of exceptions and interrupts through the IDT in long mode (SDM vol. 3, 6.12 to 6.15;
//! APM vol. 2, 8.9).

use super::context::{Place, check_canonical};
use super::descriptor::{self, Descriptor, Selector, system_type};
use super::fault::vector;
use super::{AccessKind, Event, EventKind, Fault, SysBus, TripleFault};
use crate::mmu::is_canonical;
use machine::state::{Activity, CpuState, Gpr, Seg, Shadow, rflags};

/// Error-code bit: the cause is outside the program.
const EXT: u32 = 1;
/// Error-code bit: the index is of the IDT.
const IDT: u32 = 2;
/// DR6 bits that a debug exception replaces.
const DR6_HITS: u64 = 0xf;
/// DR7.GD.
const DR7_GD: u64 = 1 << 13;

/// Delivers an exception or interrupt through the IDT.
///
/// On entry `cpu.rip` is the address to be pushed: the instruction of a fault, the next one of a
/// trap or interrupt. Faults met on the way are delivered in turn, as double fault where the
/// architecture says so; what was delivered in the end is returned. A halted CPU runs afterwards.
///
/// # Errors
/// [`TripleFault`]; `cpu.activity` is then `Shutdown`.
pub fn deliver(
    cpu: &mut CpuState,
    bus: &mut dyn SysBus,
    event: Event,
) -> Result<Event, TripleFault> {
    let mut event = event;
    note_registers(cpu, &event.fault);
    // Every round either ends, escalates, or starts the handler of a benign event's fault; of those
    // at most three follow each other before a double fault.
    loop {
        let rip = cpu.rip;
        match attempt(cpu, bus, event, rip) {
            Ok(()) => {
                cpu.activity = Activity::Running;
                return Ok(event);
            }
            Err(second) => {
                bus.forget();
                // CR2 is the second page fault's even where a double fault takes its place.
                note_registers(cpu, &second);
                let Some(next) = escalate(class_of(&event), second) else {
                    cpu.activity = Activity::Shutdown;
                    return Err(TripleFault);
                };
                event = Event::fault(next);
            }
        }
    }
}

/// CR2, DR6 and DR7 change when the exception is recognised, even if its delivery then fails.
fn note_registers(cpu: &mut CpuState, fault: &Fault) {
    if let Some(va) = fault.cr2 {
        cpu.cr2 = va;
    }
    if fault.vector == vector::DB && fault.dr6 != 0 {
        cpu.dr6 = (cpu.dr6 & !DR6_HITS) | fault.dr6;
        cpu.dr7 &= !DR7_GD;
    }
}

/// Classes of SDM vol. 3, table 6-4.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    Page,
    Double,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::Page,
        vector::DF => Class::Double,
        _ => Class::Benign,
    }
}

fn class_of(event: &Event) -> Class {
    match event.kind {
        EventKind::Fault | EventKind::Trap { .. } => class(event.fault.vector),
        _ => Class::Benign,
    }
}

/// What to deliver after `second` hit the delivery of an event of class `first` (SDM vol. 3,
/// table 6-5); `None` is shutdown.
fn escalate(first: Class, second: Fault) -> Option<Fault> {
    let double = Fault::with_error(vector::DF, 0);
    match (first, class(second.vector)) {
        (Class::Double, Class::Benign) => Some(second),
        (Class::Double, _) => None,
        (Class::Contributory, Class::Contributory) => Some(double),
        (Class::Page, Class::Contributory | Class::Page) => Some(double),
        _ => Some(second),
    }
}

/// The parts of an IDT gate.
struct Gate {
    clears_if: bool,
    ist: u64,
    selector: Selector,
    target: u64,
}

/// One attempt to deliver; `return_rip` is pushed.
///
/// # Errors
/// The fault met; no register has changed then.
pub(super) fn attempt(
    cpu: &mut CpuState,
    bus: &mut dyn SysBus,
    event: Event,
    return_rip: u64,
) -> Result<(), Fault> {
    let ext = match event.kind {
        EventKind::Software => 0,
        _ => EXT,
    };
    let gate = read_gate(cpu, bus, event, ext)?;
    let code = handler_code(cpu, bus, &gate, ext)?;
    let cpl = cpu.cpl();
    let new_cpl = if code.is_conforming() {
        cpl
    } else {
        code.dpl()
    };
    let top = match (gate.ist, new_cpl < cpl) {
        (0, false) => cpu.gpr[Gpr::Rsp as usize],
        (0, true) => descriptor::tss_stack(cpu, bus, u64::from(new_cpl), ext)?,
        // IST1 follows RSP0 to RSP2 and a reserved quadword.
        (ist, _) => descriptor::tss_stack(cpu, bus, 3 + ist, ext)?,
    };
    if !is_canonical(gate.target) {
        return Err(Fault::gp(ext));
    }
    let frame = [
        event.fault.error.map_or(0, u64::from),
        return_rip,
        u64::from(cpu.segs[Seg::Cs as usize].selector),
        pushed_flags(cpu, event),
        cpu.gpr[Gpr::Rsp as usize],
        u64::from(cpu.segs[Seg::Ss as usize].selector),
    ];
    let slots = if event.fault.error.is_some() {
        &frame[..]
    } else {
        &frame[1..]
    };
    descriptor::mark(cpu, bus, gate.selector, code, 1)?;
    let rsp = push_frame(cpu, bus, top & !0xf, slots, new_cpl, ext)?;

    let selector = Selector((gate.selector.0 & !3) | u16::from(new_cpl));
    cpu.segs[Seg::Cs as usize] = code.segment(selector);
    if new_cpl != cpl {
        cpu.segs[Seg::Ss as usize] = descriptor::null_segment(u16::from(new_cpl), new_cpl);
    }
    cpu.gpr[Gpr::Rsp as usize] = rsp;
    cpu.rip = gate.target;
    cpu.rflags &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM);
    if gate.clears_if {
        cpu.rflags &= !rflags::IF;
    }
    cpu.shadow = Shadow::None;
    Ok(())
}

fn read_gate(cpu: &CpuState, bus: &mut dyn SysBus, event: Event, ext: u32) -> Result<Gate, Fault> {
    let offset = u64::from(event.fault.vector) * 16;
    let error = (u32::from(event.fault.vector) << 3) | IDT | ext;
    if offset + 15 > u64::from(cpu.idtr.limit) {
        return Err(Fault::gp(error));
    }
    let va = cpu.idtr.base.wrapping_add(offset);
    let low = descriptor::read_system(cpu, bus, va)?;
    let high = descriptor::read_system(cpu, bus, va.wrapping_add(8))?;
    let gate = Descriptor(low);
    let known = matches!(
        gate.kind(),
        system_type::INTERRUPT_GATE | system_type::TRAP_GATE
    );
    if gate.is_segment() || !known {
        return Err(Fault::gp(error));
    }
    if event.kind == EventKind::Software && gate.dpl() < cpu.cpl() {
        return Err(Fault::gp(error));
    }
    if !gate.present() {
        return Err(Fault::np(error));
    }
    Ok(Gate {
        clears_if: gate.kind() == system_type::INTERRUPT_GATE,
        ist: (low >> 32) & 7,
        selector: Selector((low >> 16) as u16),
        target: (low & 0xffff) | ((low >> 32) & 0xffff_0000) | (high << 32),
    })
}

/// The handler's code segment: 64-bit, present, not less privileged than the CPL.
fn handler_code(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    gate: &Gate,
    ext: u32,
) -> Result<Descriptor, Fault> {
    if gate.selector.is_null() {
        return Err(Fault::gp(ext));
    }
    let error = gate.selector.error() | ext;
    let code = descriptor::read(cpu, bus, gate.selector)?.ok_or(Fault::gp(error))?;
    if !code.is_code() || code.dpl() > cpu.cpl() {
        return Err(Fault::gp(error));
    }
    if !code.present() {
        return Err(Fault::np(error));
    }
    if !code.is_long() || code.is_default_32() {
        return Err(Fault::gp(error));
    }
    Ok(code)
}

/// RFLAGS in the frame; RF is set for faults but those of instruction breakpoints, and between
/// iterations (SDM vol. 3, 17.3.1.1).
fn pushed_flags(cpu: &CpuState, event: Event) -> u64 {
    let code_breakpoint = event.fault.vector == vector::DB && event.fault.dr6 & DR6_HITS != 0;
    match event.kind {
        EventKind::Fault if !code_breakpoint => cpu.rflags | rflags::RF,
        EventKind::External { mid_rep: true } | EventKind::Trap { mid_rep: true } => {
            cpu.rflags | rflags::RF
        }
        _ => cpu.rflags,
    }
}

/// Writes quadwords, the last one highest, below `top`; returns the new stack pointer.
pub(super) fn push_frame(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    top: u64,
    slots: &[u64],
    cpl: u8,
    ext: u32,
) -> Result<u64, Fault> {
    let mut bytes = [0; 48];
    let len = slots.len() * 8;
    for (chunk, slot) in bytes.chunks_exact_mut(8).zip(slots) {
        chunk.copy_from_slice(&slot.to_le_bytes());
    }
    let va = top.wrapping_sub(len as u64);
    check_canonical(Place { stack: true, va }, len).map_err(|_| Fault::ss(ext))?;
    bus.write_slots(cpu, va, &bytes[..len], 8, AccessKind::AtCpl(cpl))?;
    Ok(va)
}
