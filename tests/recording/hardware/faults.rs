//! Page faults at CPL 0: pages that are not there or only to be read, met by single accesses and in the
//! middle of a string instruction.

use super::{Emitted, REP};
use crate::guest::layout::sel;
use crate::guest::{Guest, Size, asm, layout, pte, tables};
use iced_x86::code_asm::*;

/// Where the handler lies; code of guests ends before.
const HANDLER: u64 = layout::CODE + 0xe000;
/// The page that comes and goes.
const PAGE: u64 = layout::DATA + 0xb000;
const PAGE_FAULT: u8 = 14;
/// Rounds between two jumps to the top of the guest.
const ROUNDS: u32 = 20;

/// Puts the handler into the guest, and emits what faults.
pub(super) fn emit(guest: &mut Guest, a: &mut CodeAssembler) -> Emitted {
    let slot = guest.leaf_slot(PAGE, Size::Kib4);
    install_handler(guest, slot)?;
    let mut top = a.create_label();
    asm!(a;
        mov(ebp, ROUNDS);
        set_label(&mut top);
        mov(rdi, PAGE);
        mov(rsi, slot));
    // Not there: a read-modify-write.
    set_entry(a, 0)?;
    asm!(a; add(qword_ptr(rdi + 0x10), rbp));
    // Not there: a read. The entry then says that it was accessed and not written.
    set_entry(a, 0)?;
    asm!(a; mov(rax, qword_ptr(rdi + 8)); add(r10, qword_ptr(rsi)));
    // Only to be read, and written.
    set_entry(a, PAGE | pte::P)?;
    asm!(a; mov(rax, qword_ptr(rdi + 8)); mov(qword_ptr(rdi + 0x18), rax); add(r11, qword_ptr(rsi)));
    // A string that runs into it.
    set_entry(a, 0)?;
    asm!(a;
        mov(rdi, PAGE - 0x120);
        mov(ecx, 70);
        mov(rax, rbp);
        db(&REP); stosq();
        dec(ebp);
        jne(top));
    Ok(())
}

/// Sets the entry, to which RSI points, of the page, to which RDI does.
fn set_entry(a: &mut CodeAssembler, entry: u64) -> Emitted {
    asm!(a; mov(rax, entry); mov(qword_ptr(rsi), rax); invlpg(byte_ptr(rdi)));
    Ok(())
}

/// Adds up error codes and addresses, lets the page be there, and returns to what faulted.
fn install_handler(guest: &mut Guest, slot: u64) -> Emitted {
    guest.code_at(HANDLER, HANDLER, |a| {
        asm!(a;
            push(rax);
            push(rsi);
            add(r12, qword_ptr(rsp + 16));
            mov(rax, cr2);
            add(r13, rax);
            mov(rsi, slot);
            mov(rax, PAGE | pte::P | pte::RW);
            mov(qword_ptr(rsi), rax);
            pop(rsi);
            pop(rax);
            add(rsp, 8);
            iretq());
        Ok(())
    })?;
    let gate = tables::gate(HANDLER, sel::CODE, 0x8e, 0);
    guest.set_raw_gate(PAGE_FAULT, gate);
    Ok(())
}
