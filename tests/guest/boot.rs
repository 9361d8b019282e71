//! The way from reset to a guest's initial state, for machines that start at the reset vector.
//!
//! A 64 KiB ROM enters 32-bit protected mode and jumps to the trampoline page of RAM; the trampoline
//! turns on paging, loads every register of the state and ends with IRETQ.

use super::layout::{self as at, sel};
use super::{Guest, asm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::{CpuState, FpuState, Seg, cr0, cr4};

/// Bytes of the ROM.
pub const ROM_BYTES: usize = 0x10000;
const CODE_OFFSET: usize = 0xf000;
const GDT_OFFSET: usize = 0xf100;
const GDTR_OFFSET: usize = 0xf120;
const RESET_OFFSET: usize = 0xfff0;
const FXRSTOR: u64 = at::TRAMPOLINE + 0xc00;
const IRET_FRAME: u64 = at::TRAMPOLINE + 0xe00;
const SAVED_RAX: u64 = at::TRAMPOLINE + 0xe40;
const DESCRIPTOR_POINTERS: u64 = at::TRAMPOLINE + 0xe80;

/// A ROM for the top of the 4 GiB space: from the reset vector to [`at::TRAMPOLINE`] in 32-bit mode.
pub fn rom() -> Vec<u8> {
    let mut rom = vec![0; ROM_BYTES];
    // CLI; LGDT cs:[GDTR]; CR0.PE; far jump 8:TRAMPOLINE. Real mode, CS base 0xffff0000.
    let mut code = vec![0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16];
    code.extend((GDTR_OFFSET as u16).to_le_bytes());
    code.extend([0x66, 0xb8, 0x11, 0, 0, 0, 0x0f, 0x22, 0xc0, 0x66, 0xea]);
    code.extend((at::TRAMPOLINE as u32).to_le_bytes());
    code.extend([8, 0]);
    rom[CODE_OFFSET..][..code.len()].copy_from_slice(&code);
    let gdt = [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff];
    for (index, raw) in gdt.into_iter().enumerate() {
        rom[GDT_OFFSET + index * 8..][..8].copy_from_slice(&raw.to_le_bytes());
    }
    rom[GDTR_OFFSET..][..2].copy_from_slice(&23u16.to_le_bytes());
    let base = 0xffff_0000 + GDT_OFFSET as u32;
    rom[GDTR_OFFSET + 2..][..4].copy_from_slice(&base.to_le_bytes());
    let displacement = (CODE_OFFSET as u16).wrapping_sub(RESET_OFFSET as u16 + 3);
    rom[RESET_OFFSET] = 0xe9;
    rom[RESET_OFFSET + 1..][..2].copy_from_slice(&displacement.to_le_bytes());
    rom
}

/// RAM with the trampoline in it, for a machine that starts in [`rom`].
///
/// # Errors
/// What the assembler reports.
pub fn bootable(guest: &Guest) -> Result<Vec<u8>, IcedError> {
    let mut guest = guest.clone();
    let state = guest.state.clone();
    let entry32 = trampoline32(&state)?;
    let entry64 = at::TRAMPOLINE + 0x100;
    let code64 = trampoline64(&state, entry64)?;
    assert!(entry32.len() <= 0x100 && code64.len() <= 0xb00);
    guest.poke(at::TRAMPOLINE, &entry32);
    guest.poke(entry64, &code64);
    guest.poke(FXRSTOR, &fxsave_image(&state.fpu));
    let frame = [
        state.rip,
        u64::from(state.segs[Seg::Cs as usize].selector),
        state.rflags,
        state.gpr[4],
        u64::from(state.segs[Seg::Ss as usize].selector),
    ];
    for (index, value) in frame.into_iter().enumerate() {
        guest.poke_u64(IRET_FRAME + index as u64 * 8, value);
    }
    guest.poke_u64(SAVED_RAX, state.gpr[0]);
    for (index, table) in [state.gdtr, state.idtr].into_iter().enumerate() {
        let pointer = DESCRIPTOR_POINTERS + index as u64 * 16;
        guest.poke(pointer, &table.limit.to_le_bytes());
        guest.poke_u64(pointer + 2, table.base);
    }
    // LTR wants an available TSS and makes it busy.
    let tss = at::GDT + u64::from(sel::TSS) + 5;
    let access = guest.ram()[tss as usize];
    guest.poke(tss, &[access & !2]);
    Ok(guest.ram)
}

fn trampoline32(state: &CpuState) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    // FXRSTOR64 below wants its unit; what the state has is loaded after it.
    let control = state.cr4 as u32 | cr4::OSFXSR as u32;
    let protection = state.cr0 as u32 & !(cr0::TS | cr0::EM) as u32;
    // The 8259s of a machine without firmware pass the timer's line on: masked until the guest says.
    asm!(a;
        mov(al, 0xff); out(0x21, al); out(0xa1, al);
        mov(eax, 0x10); mov(ds, eax); mov(ss, eax); mov(es, eax);
        mov(eax, control); mov(cr4, eax);
        mov(eax, state.cr3 as u32); mov(cr3, eax);
        mov(ecx, 0xc000_0080u32); mov(eax, state.msrs.efer as u32 & !0x400); xor(edx, edx); wrmsr();
        lgdt(ptr(DESCRIPTOR_POINTERS));
        mov(eax, protection); mov(cr0, eax);
    );
    let mut code = a.assemble(at::TRAMPOLINE)?;
    // JMP FAR sel::CODE:TRAMPOLINE + 0x100.
    code.push(0xea);
    code.extend((at::TRAMPOLINE as u32 + 0x100).to_le_bytes());
    code.extend(sel::CODE.to_le_bytes());
    Ok(code)
}

fn trampoline64(state: &CpuState, entry: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    asm!(a;
        lgdt(ptr(DESCRIPTOR_POINTERS));
        mov(eax, u32::from(state.ldtr.selector)); lldt(ax);
        mov(eax, u32::from(state.tr.selector)); ltr(ax);
        mov(rsp, IRET_FRAME);
        fxrstor64(ptr(FXRSTOR));
        mov(rax, state.cr0); mov(cr0, rax);
        mov(rax, state.cr4); mov(cr4, rax);
        mov(rax, state.cr2); mov(cr2, rax);
        mov(rax, state.cr8); mov(cr8, rax);
    );
    for (register, seg) in [(ds, Seg::Ds), (es, Seg::Es), (fs, Seg::Fs), (gs, Seg::Gs)] {
        let selector = u32::from(state.segs[seg as usize].selector);
        asm!(a; mov(eax, selector); mov(register, eax););
    }
    let msrs = &state.msrs;
    let values = [
        (0xc000_0081u32, msrs.star),
        (0xc000_0082, msrs.lstar),
        (0xc000_0083, msrs.cstar),
        (0xc000_0084, msrs.sfmask),
        (0xc000_0100, state.segs[Seg::Fs as usize].base),
        (0xc000_0101, state.segs[Seg::Gs as usize].base),
        (0xc000_0102, msrs.kernel_gs_base),
        (0x174, msrs.sysenter_cs),
        (0x175, msrs.sysenter_esp),
        (0x176, msrs.sysenter_eip),
        (0x277, msrs.pat),
    ];
    for (msr, value) in values {
        asm!(a; mov(ecx, msr); mov(eax, value as u32); mov(edx, (value >> 32) as u32); wrmsr(););
    }
    let debug = [
        state.dr[0],
        state.dr[1],
        state.dr[2],
        state.dr[3],
        state.dr6,
    ];
    for (register, value) in [dr0, dr1, dr2, dr3, dr6].into_iter().zip(debug) {
        asm!(a; mov(rax, value); mov(register, rax););
    }
    asm!(a; lidt(ptr(DESCRIPTOR_POINTERS + 16)););
    let general = [
        None,
        Some(rcx),
        Some(rdx),
        Some(rbx),
        None,
        Some(rbp),
        Some(rsi),
        Some(rdi),
        Some(r8),
        Some(r9),
        Some(r10),
        Some(r11),
        Some(r12),
        Some(r13),
        Some(r14),
        Some(r15),
    ];
    for (register, value) in general.into_iter().zip(state.gpr) {
        if let Some(register) = register {
            a.mov(register, value)?;
        }
    }
    asm!(a;
        mov(rax, state.dr7); mov(dr7, rax);
        mov(rax, qword_ptr(SAVED_RAX));
        iretq();
    );
    a.assemble(entry)
}

/// The FXRSTOR64 image of an FPU state.
fn fxsave_image(fpu: &FpuState) -> Vec<u8> {
    let mut image = vec![0; 512];
    image[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    image[4] = fpu.ftw;
    image[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
    image[8..16].copy_from_slice(&fpu.fip.to_le_bytes());
    image[16..24].copy_from_slice(&fpu.fdp.to_le_bytes());
    image[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    for (index, value) in fpu.st.iter().enumerate() {
        image[32 + index * 16..][..10].copy_from_slice(&value.to_le_bytes()[..10]);
    }
    for (index, value) in fpu.xmm.iter().enumerate() {
        image[160 + index * 16..][..16].copy_from_slice(&value.to_le_bytes());
    }
    image
}
