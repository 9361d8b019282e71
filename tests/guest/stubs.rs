//! The code every guest has: interrupt stubs, the recording handler and the finishing code.

use super::layout as at;
use super::{Action, asm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Vectors that push an error code (SDM vol. 3, 6.13).
pub const WITH_ERROR_CODE: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];

/// Quadwords of an event record, see [`super::EventRecord`].
pub(super) mod field {
    pub(crate) const VECTOR: u64 = 0;
    pub(crate) const ERROR: u64 = 8;
    pub(crate) const RIP: u64 = 16;
    pub(crate) const CS: u64 = 24;
    pub(crate) const RFLAGS: u64 = 32;
    pub(crate) const RSP: u64 = 40;
    pub(crate) const SS: u64 = 48;
    pub(crate) const CR2: u64 = 56;
    pub(crate) const DR6: u64 = 64;
    pub(crate) const FRAME: u64 = 72;
    pub(crate) const RAX: u64 = 80;
    pub(crate) const RCX: u64 = 88;
    pub(crate) const RSI: u64 = 96;
    pub(crate) const RDI: u64 = 104;
    pub(crate) const RDX: u64 = 112;
    pub(crate) const RBX: u64 = 120;
}

/// Quadwords of the final registers at [`at::FINAL`], see [`super::FinalState`].
pub(super) mod last {
    pub(crate) const GPR: u64 = 0;
    pub(crate) const RFLAGS: u64 = 0x80;
    pub(crate) const CR: u64 = 0x88;
    pub(crate) const DR: u64 = 0xb0;
    pub(crate) const SEGS: u64 = 0xe0;
    pub(crate) const BASES: u64 = 0x110;
    pub(crate) const VALID: u64 = 0x128;
    pub(crate) const FXSAVE: u64 = 0x200;
}

/// The stub of one vector: pushes an error code where the CPU does not, then the vector.
pub(super) fn stub(vector: u8) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    if !WITH_ERROR_CODE.contains(&vector) {
        a.push(0)?;
    }
    a.push(i32::from(vector))?;
    a.jmp(at::HANDLER)?;
    a.assemble(at::STUBS + u64::from(vector) * at::STUB_BYTES)
}

const SAVED: [AsmRegister64; 8] = [rax, rcx, rdx, rbx, rsi, rdi, r8, r9];
/// From RSP in the handler's body to the vector.
const FRAME_VECTOR: u64 = 8 * 8;

/// Records an event at `EVENTS[EVENT_COUNT]` and does what `ACTIONS[EVENT_COUNT]` says.
pub(super) fn handler() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in SAVED {
        a.push(register)?;
    }
    // RBX: index, RDI: record, R8: handler's frame (vector, error, RIP, CS, RFLAGS, RSP, SS).
    let mut finish = a.create_label();
    asm!(a;
        mov(rbx, qword_ptr(at::EVENT_COUNT));
        mov(rdi, rbx);
        shl(rdi, 7);
        add(rdi, at::EVENTS as i32);
        inc(qword_ptr(at::EVENT_COUNT));
        lea(r8, ptr(rsp + FRAME_VECTOR));
    );
    let from_frame = [
        (field::VECTOR, 0),
        (field::ERROR, 8),
        (field::RIP, 16),
        (field::CS, 24),
        (field::RFLAGS, 32),
        (field::RSP, 40),
        (field::SS, 48),
    ];
    for (to, from) in from_frame {
        asm!(a; mov(rax, ptr(r8 + from)); mov(ptr(rdi + to), rax););
    }
    record_registers(&mut a)?;
    asm!(a;
        cmp(rbx, at::EVENT_LIMIT as i32 - 1);
        jae(finish);
        cmp(rbx, at::ACTION_SLOTS as i32);
        jae(finish);
        shl(rbx, 4);
        mov(rcx, ptr(rbx + at::ACTIONS));
        mov(rdx, ptr(rbx + (at::ACTIONS + 8)));
    );
    dispatch(&mut a, finish)?;
    a.set_label(&mut finish)?;
    restore(&mut a)?;
    a.jmp(at::FINISH)?;
    a.assemble(at::HANDLER)
}

fn record_registers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut no_dr6 = a.create_label();
    asm!(a;
        mov(rax, cr2);
        mov(ptr(rdi + field::CR2), rax);
        lea(rax, ptr(r8 + 8));
        mov(ptr(rdi + field::FRAME), rax);
        cmp(qword_ptr(r8), 1);
        jne(no_dr6);
        mov(rax, dr6);
        mov(ptr(rdi + field::DR6), rax);
        set_label(&mut no_dr6);
    );
    // Saved registers, as pushed: RAX is the farthest from RSP.
    let from_saved = [
        (field::RAX, 7),
        (field::RCX, 6),
        (field::RDX, 5),
        (field::RBX, 4),
        (field::RSI, 3),
        (field::RDI, 2),
    ];
    for (to, index) in from_saved {
        asm!(a; mov(rax, ptr(rsp + index * 8)); mov(ptr(rdi + to), rax););
    }
    Ok(())
}

/// RCX: kind, RDX: argument, R8: frame.
fn dispatch(a: &mut CodeAssembler, finish: CodeLabel) -> Result<(), IcedError> {
    let [mut skip, mut go, mut land, mut call, mut resume] = [(); 5].map(|()| a.create_label());
    asm!(a;
        cmp(rcx, Action::RESUME as i32); je(resume);
        cmp(rcx, Action::SKIP as i32); je(skip);
        cmp(rcx, Action::GOTO as i32); je(go);
        cmp(rcx, Action::LAND as i32); je(land);
        cmp(rcx, Action::CALL as i32); je(call);
        jmp(finish);
        set_label(&mut skip);
        add(ptr(r8 + 16), rdx);
        jmp(resume);
        set_label(&mut go);
        mov(ptr(r8 + 16), rdx);
        jmp(resume);
        set_label(&mut call);
        call(rdx);
        set_label(&mut resume);
    );
    restore(a)?;
    asm!(a; lea(rsp, ptr(rsp + 16)); iretq(););
    // Abandons the interrupted program: CPL 0, fresh stack, same registers.
    asm!(a; set_label(&mut land); mov(qword_ptr(at::EVENT_COUNT + 8), rdx););
    restore(a)?;
    asm!(a; mov(rsp, at::KERNEL_STACK); jmp(qword_ptr(at::EVENT_COUNT + 8)););
    Ok(())
}

fn restore(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for register in SAVED.into_iter().rev() {
        a.pop(register)?;
    }
    Ok(())
}

/// Stores every register the guest can read and ends the case.
pub(super) fn finish() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let general = [
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ];
    for (index, register) in general.into_iter().enumerate() {
        a.mov(
            qword_ptr(at::FINAL + last::GPR + index as u64 * 8),
            register,
        )?;
    }
    asm!(a;
        mov(rsp, at::FINISH_STACK);
        pushfq();
        pop(qword_ptr(at::FINAL + last::RFLAGS));
    );
    for (index, register) in [cr0, cr2, cr3, cr4, cr8].into_iter().enumerate() {
        asm!(a; mov(rax, register); mov(qword_ptr(at::FINAL + last::CR + index as u64 * 8), rax););
    }
    for (index, register) in [dr0, dr1, dr2, dr3, dr6, dr7].into_iter().enumerate() {
        asm!(a; mov(rax, register); mov(qword_ptr(at::FINAL + last::DR + index as u64 * 8), rax););
    }
    for (index, register) in [es, cs, ss, ds, fs, gs].into_iter().enumerate() {
        asm!(a; mov(eax, register); mov(qword_ptr(at::FINAL + last::SEGS + index as u64 * 8), rax););
    }
    for (index, msr) in [0xc000_0100u32, 0xc000_0101, 0xc000_0102]
        .into_iter()
        .enumerate()
    {
        let slot = at::FINAL + last::BASES + index as u64 * 8;
        asm!(a; mov(ecx, msr); rdmsr(); mov(dword_ptr(slot), eax); mov(dword_ptr(slot + 4), edx););
    }
    asm!(a;
        mov(qword_ptr(at::FINAL + last::VALID), 1);
        mov(rax, cr0);
        and(rax, !0xci32);
        mov(cr0, rax);
        fxsave64(ptr(at::FINAL + last::FXSAVE));
        mov(eax, u32::from(at::EXIT_VALUE));
        out(i32::from(at::EXIT_PORT), al);
    );
    let mut here = a.create_label();
    asm!(a; set_label(&mut here); jmp(here););
    a.assemble(at::FINISH)
}
