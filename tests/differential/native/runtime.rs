//! The code that runs in the executing process. It is copied to a fixed place where it is all that
//! stays mapped, besides the arena and the memory of sequences, so that a sequence can neither read
//! nor damage anything of the test program. It uses no library and no thread-local storage, because
//! a sequence may leave any FS base behind.
//!
//! It takes batches from the arena, and for each slot makes memory what it shall be, loads all
//! registers, jumps to the sequence and waits for the signal that ends it. The handler stores the
//! signal's register image in the slot and goes on with the next one without returning.

use super::arena::{self, Slot};
use crate::differential::layout::{CODE, DATA, DATA_BYTES, STACK, WRAP};
use core::arch::global_asm;
use core::mem::offset_of;

/// Bytes of the runtime: a page of code, a page of variables, and a page of stack.
pub(super) const RUNTIME_BYTES: usize = 3 * 4096;

/// Signal number of the tick that ends sequences which do not end by themselves.
pub(super) const TICK_SIGNAL: i32 = libc::SIGVTALRM;
/// The same by the clock on the wall, for sequences that the kernel keeps waiting: it takes an #AC with
/// RFLAGS.AC clear for a locked access across cache lines and lets the instruction try again for ever.
pub(super) const SLOW_TICK_SIGNAL: i32 = libc::SIGALRM;

global_asm!(
    r#"
    .pushsection .text.simuboost_differential, "ax", @progbits
    .balign 4096
    .globl simuboost_runtime
    .hidden simuboost_runtime
    .globl simuboost_runtime_handler
    .hidden simuboost_runtime_handler
    .globl simuboost_runtime_restorer
    .hidden simuboost_runtime_restorer
    .globl simuboost_runtime_unmap
    .hidden simuboost_runtime_unmap
simuboost_runtime:
    lea rsp, [rip + simuboost_runtime + {RUNTIME_BYTES}]
    lea rbx, [rip + simuboost_runtime_unmap]
    // munmap each (address, length) of the table, which ends with length 0.
20: mov rdi, [rbx]
    mov rsi, [rbx + 8]
    test rsi, rsi
    jz 21f
    mov eax, 11
    syscall
    test rax, rax
    jnz 90f
    add rbx, 16
    jmp 20b

    // Wait until the request counter differs from the done counter.
21: mov r15, {ARENA}
22: mov eax, [r15 + {REQUEST}]
    cmp eax, [r15 + {DONE}]
    jne 23f
    lea rdi, [r15 + {REQUEST}]
    xor esi, esi
    mov edx, eax
    xor r10d, r10d
    mov eax, 202
    syscall
    jmp 22b
23: xor eax, eax
    mov [rip + 71f], rax

    // The next slot of the batch.
30: mov rax, [rip + 71f]
    mov r15, {ARENA}
    cmp rax, [r15 + {COUNT}]
    jae 50f
    imul rbx, rax, {SLOT_BYTES}
    lea rbx, [r15 + rbx + {SLOTS}]
    mov [rip + 72f], rbx
    inc qword ptr [rip + 73f]
    // Only code that differs is written: the processor drops what it has fetched from lines that are.
    lea rsi, [rbx + {CODE_IN}]
    mov edi, {CODE}
    mov ecx, 1024
31: mov rax, [rsi]
    cmp rax, [rdi]
    je 32f
    mov [rdi], rax
32: add rsi, 8
    add rdi, 8
    dec ecx
    jnz 31b
    imul rsi, [rbx + {IMAGE}], {DATA_BYTES}
    lea rsi, [r15 + rsi + {IMAGES}]
    mov edi, {DATA}
    mov ecx, 1024
    rep movsq
    mov edi, {STACK}
    mov ecx, 1024
    rep movsq
    mov edi, {WRAP}
    mov ecx, 1024
    rep movsq
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov rax, [rbx + {FS_BASE}]
    wrfsbase rax
    mov rax, [rbx + {GS_BASE}]
    wrgsbase rax
    mov rax, [rbx + {RIP}]
    mov [rip + 75f], rax
    fxrstor64 [rbx + {FPU}]
    push qword ptr [rbx + {RFLAGS}]
    popfq
    mov rax, [rbx]
    mov rcx, [rbx + 8]
    mov rdx, [rbx + 16]
    mov rsp, [rbx + 32]
    mov rbp, [rbx + 40]
    mov rsi, [rbx + 48]
    mov rdi, [rbx + 56]
    mov r8, [rbx + 64]
    mov r9, [rbx + 72]
    mov r10, [rbx + 80]
    mov r11, [rbx + 88]
    mov r12, [rbx + 96]
    mov r13, [rbx + 104]
    mov r14, [rbx + 112]
    mov r15, [rbx + 120]
    mov rbx, [rbx + 24]
    jmp qword ptr [rip + 75f]

    // The batch is done: tell who waits.
50: mov eax, [r15 + {REQUEST}]
    mov [r15 + {DONE}], eax
    lea rdi, [r15 + {DONE}]
    mov esi, 1
    mov edx, 1
    mov eax, 202
    syscall
    jmp 22b

    // Signal handler: EDI signal, RDX ucontext. Until AC is cleared every access is aligned.
simuboost_runtime_handler:
    mov rax, [rdx + 168]
    lea rcx, [rip + simuboost_runtime]
    sub rax, rcx
    cmp edi, {SLOW_TICK_SIGNAL}
    je 63f
    cmp edi, {TICK_SIGNAL}
    jne 61f
63:
    // A tick inside the runtime means nothing; one that sees the same sequence twice ends it.
    cmp rax, {RUNTIME_BYTES}
    jb 60f
    mov rax, [rip + 73f]
    cmp rax, [rip + 74f]
    je 62f
    mov [rip + 74f], rax
60: ret
    // Any other signal inside the runtime is an error of ours.
61: cmp rax, {RUNTIME_BYTES}
    jb 90f
62: push 2
    popfq
    mov rbx, [rip + 72f]
    mov [rbx + {OUT_SIGNAL}], rdi
    xor eax, eax
    mov eax, es
    mov [rbx + {OUT_ES}], rax
    mov eax, ds
    mov [rbx + {OUT_ES} + 8], rax
    mov eax, fs
    mov [rbx + {OUT_ES} + 16], rax
    mov eax, gs
    mov [rbx + {OUT_ES} + 24], rax
    rdfsbase rax
    mov [rbx + {OUT_ES} + 32], rax
    rdgsbase rax
    mov [rbx + {OUT_ES} + 40], rax
    lea rsi, [rdx + 40]
    lea rdi, [rbx + {OUT_CONTEXT}]
    mov ecx, 24
    rep movsq
    mov rsi, [rdx + 224]
    lea rdi, [rbx + {OUT_FPU}]
    mov ecx, 64
    rep movsq
    lea rdi, [rbx + {MEMORY_OUT}]
    mov esi, {CODE}
    mov ecx, 1024
    rep movsq
    mov esi, {DATA}
    mov ecx, 1024
    rep movsq
    mov esi, {STACK}
    mov ecx, 1024
    rep movsq
    mov esi, {WRAP}
    mov ecx, 1024
    rep movsq
    inc qword ptr [rip + 71f]
    lea rsp, [rip + simuboost_runtime + {RUNTIME_BYTES}]
    jmp 30b

simuboost_runtime_restorer:
    mov eax, 15
    syscall

90: mov edi, 99
    mov eax, 231
    syscall
    ud2

    .balign 4096
    // Index in the batch, slot, serial number of the sequence, serial at the last tick, target.
71: .quad 0
72: .quad 0
73: .quad 0
74: .quad 0
75: .quad 0
simuboost_runtime_unmap:
    .zero 512
    .balign 4096
    .zero 4096
    .popsection
    "#,
    RUNTIME_BYTES = const RUNTIME_BYTES,
    TICK_SIGNAL = const TICK_SIGNAL,
    SLOW_TICK_SIGNAL = const SLOW_TICK_SIGNAL,
    ARENA = const arena::BASE,
    REQUEST = const offset_of!(arena::Header, request),
    DONE = const offset_of!(arena::Header, done),
    COUNT = const offset_of!(arena::Header, count),
    SLOTS = const arena::SLOTS_OFFSET,
    SLOT_BYTES = const size_of::<Slot>(),
    IMAGES = const arena::IMAGES_OFFSET,
    DATA_BYTES = const DATA_BYTES,
    IMAGE = const offset_of!(Slot, image),
    CODE_IN = const offset_of!(Slot, code),
    MEMORY_OUT = const offset_of!(Slot, memory_out),
    RIP = const offset_of!(Slot, start.rip),
    RFLAGS = const offset_of!(Slot, start.rflags),
    FS_BASE = const offset_of!(Slot, start.fs_base),
    GS_BASE = const offset_of!(Slot, start.gs_base),
    FPU = const offset_of!(Slot, start.fpu),
    OUT_SIGNAL = const offset_of!(Slot, raw.signal),
    OUT_ES = const offset_of!(Slot, raw.segments),
    OUT_CONTEXT = const offset_of!(Slot, raw.context),
    OUT_FPU = const offset_of!(Slot, raw.fpu),
    CODE = const CODE.base,
    DATA = const DATA.base,
    STACK = const STACK.base,
    WRAP = const WRAP.base,
);

unsafe extern "C" {
    /// First byte of the runtime and its entry.
    pub(super) static simuboost_runtime: u8;
    /// The signal handler.
    pub(super) static simuboost_runtime_handler: u8;
    /// Where a handler returns to.
    pub(super) static simuboost_runtime_restorer: u8;
    /// Table of up to 31 (address, length) pairs that the runtime unmaps when it starts.
    pub(super) static simuboost_runtime_unmap: u8;
}
