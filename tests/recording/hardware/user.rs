//! User mode: loops in memory and strings, and faults, by one of which it is left.

use super::{Emitted, REP};
use crate::guest::layout::sel;
use crate::guest::{Guest, Size, asm, layout, pte, tables};
use iced_x86::code_asm::*;
use machine::state::Seg;

/// Where the handlers lie; code of guests ends before.
const PAGE_FAULT_HANDLER: u64 = layout::CODE + 0xe000;
const LEAVE_HANDLER: u64 = layout::CODE + 0xe100;
/// A page of the user's that comes and goes.
const PAGE: u64 = layout::USER_DATA + 0xb000;
const UNDEFINED_OPCODE: u8 = 6;
const PAGE_FAULT: u8 = 14;
/// Rounds of the loop in memory.
const ROUNDS: u32 = 100_000;

/// Puts code for CPL 3 and handlers into the guest, and emits the way there and back.
pub(super) fn emit(guest: &mut Guest, a: &mut CodeAssembler) -> Emitted {
    let slot = guest.leaf_slot(PAGE, Size::Kib4);
    for index in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        guest.state.segs[index as usize] = guest.segment(sel::USER_DATA);
    }
    install_handlers(guest, slot)?;
    guest.code_at(layout::USER_CODE, layout::USER_CODE, program)?;
    let mut back = a.create_label();
    asm!(a;
        mov(rsi, slot);
        mov(qword_ptr(rsi), 0);
        mov(rdi, PAGE);
        invlpg(byte_ptr(rdi));
        lea(rbx, qword_ptr(back));
        push(i32::from(sel::USER_DATA));
        mov(rax, layout::USER_STACK);
        push(rax);
        push(0x202);
        push(i32::from(sel::USER_CODE));
        mov(rax, layout::USER_CODE);
        push(rax);
        iretq();
        set_label(&mut back);
        inc(r15));
    Ok(())
}

/// What runs at CPL 3.
fn program(a: &mut CodeAssembler) -> Emitted {
    let mut top = a.create_label();
    asm!(a;
        mov(rsi, layout::USER_DATA);
        mov(ecx, ROUNDS);
        set_label(&mut top);
        add(qword_ptr(rsi), rcx);
        push(rcx);
        xor(qword_ptr(rsp), rsi);
        pop(rdx);
        add(r8, rdx);
        dec(ecx);
        jne(top);
        // A string that runs into a page that is not there.
        mov(rdi, PAGE - 0x120);
        mov(ecx, 400);
        mov(rax, r8);
        db(&REP); stosq();
        ud2());
    Ok(())
}

fn install_handlers(guest: &mut Guest, slot: u64) -> Emitted {
    guest.code_at(PAGE_FAULT_HANDLER, PAGE_FAULT_HANDLER, |a| {
        asm!(a;
            push(rax);
            push(rsi);
            add(r12, qword_ptr(rsp + 16));
            mov(rax, cr2);
            add(r13, rax);
            mov(rsi, slot);
            mov(rax, PAGE | pte::ALL);
            mov(qword_ptr(rsi), rax);
            pop(rsi);
            pop(rax);
            add(rsp, 8);
            iretq());
        Ok(())
    })?;
    // RBX says where to; nothing on the stack is needed.
    guest.code_at(LEAVE_HANDLER, LEAVE_HANDLER, |a| {
        asm!(a; mov(rsp, layout::KERNEL_STACK); sti(); jmp(rbx));
        Ok(())
    })?;
    for (vector, handler) in [
        (PAGE_FAULT, PAGE_FAULT_HANDLER),
        (UNDEFINED_OPCODE, LEAVE_HANDLER),
    ] {
        guest.set_raw_gate(vector, tables::gate(handler, sel::CODE, 0x8e, 0));
    }
    Ok(())
}
