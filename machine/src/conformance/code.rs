//! The measuring program: position-independent machine code that executes one kind of instruction
//! after the other on many operands and folds every result into a number for each kind. It needs
//! nothing but a stack, so the same bytes run natively here and as a guest anywhere.
//!
//! Two hosts compare what this program gave them, so a change of what it does is a new
//! [`super::VERSION`].
#![expect(unsafe_code, reason = "executes the instructions that are measured")]

use super::KINDS;
use core::arch::global_asm;

global_asm!(
    r#"
    .pushsection .text.simuboost_conformance, "ax", @progbits

    // R14 is the number of the kind, R15 where it goes.
    .macro fold register
        xor r14, \register
        imul r14, r14, 0x5bd1e995
        ror r14, 23
    .endm

    .macro begin
        movabs r14, 0x9e3779b97f4a7c15
    .endm

    .macro finish
        mov [r15], r14
        add r15, 8
    .endm

    // `op` on all pairs of values in RAX and RCX (RDX and RBX hold the values behind them), with all
    // arithmetic flags clear and all set; `prelude` makes the operands fit.
    .macro sweep op, prelude
        lea r13, [rip + .Lsbc_values]
    22: lea r12, [rip + .Lsbc_values]
    23: mov ebp, 2
    24: mov rax, [r13]
        mov rcx, [r12]
        mov rdx, [r13 + 8]
        mov rbx, [r12 + 8]
        \prelude
        push rbp
        popfq
        \op
        pushfq
        fold rax
        fold rcx
        fold rdx
        fold rbx
        pop rax
        and eax, 0x8d5
        fold rax
        xor ebp, 0x8d5
        test ebp, 1
        jnz 24b
        add r12, 8
        lea rsi, [rip + .Lsbc_values_end]
        cmp r12, rsi
        jb 23b
        add r13, 8
        cmp r13, rsi
        jb 22b
    .endm

    .macro sweep_sizes op
        sweep "\op rax, rcx"
        sweep "\op eax, ecx"
        sweep "\op ax, cx"
        sweep "\op al, cl"
    .endm

    .macro sweep_shift op
        sweep "\op rax, cl"
        sweep "\op eax, cl"
        sweep "\op ax, cl"
        sweep "\op al, cl"
        sweep "\op rax, 1"
        sweep "\op ecx, 5"
    .endm

    .macro sweep_bit op
        sweep "\op rax, rcx"
        sweep "\op eax, ecx"
        sweep "\op ax, cx"
        sweep "\op rax, 7"
    .endm

    // The next random number in RDI.
    .macro random
        imul rdi, rdi, 0x5851f42d
        add rdi, 0x14057b7f
    .endm

    // A positive double between 2^-32 and 2^32 of the random bits in RAX to [RSP + 576].
    .macro double
        mov rdx, rax
        shr rdx, 7
        and edx, 63
        add edx, 0x3df
        shl rdx, 52
        shr rax, 12
        or rax, rdx
        mov [rsp + 576], rax
    .endm

    .macro fold_status
        fnstsw ax
        movzx eax, ax
        fold rax
    .endm

    // `op` with random ST(0) and ST(1).
    .macro functions op
        mov edi, 0x1234567
        mov r8d, 96
    26: fninit
        random
        mov rax, rdi
        bswap rax
        double
        fld qword ptr [rsp + 576]
        mov rax, rdi
        double
        fld qword ptr [rsp + 576]
        \op
        fold_status
        fstp tbyte ptr [rsp + 592]
        mov rax, [rsp + 592]
        fold rax
        movzx eax, word ptr [rsp + 600]
        fold rax
        dec r8d
        jnz 26b
    .endm

    // The condition codes after `op`, where `preset` left other ones before.
    .macro conditions_after op, preset
        lea r13, [rip + .Lsbc_doubles]
    27: fninit
        \preset
        fld qword ptr [r13 + 8]
        fld qword ptr [r13]
        \op
        fold_status
        add r13, 8
        lea rsi, [rip + .Lsbc_doubles_end]
        cmp r13, rsi
        jb 27b
    .endm

    .macro conditions op
        conditions_after "\op", "fldz; fxam; fstp st(0)"
        conditions_after "\op", "fld1; fxam; fstp st(0)"
        conditions_after "\op", "fxam"
    .endm

    .macro approximate
        movd xmm1, eax
        rcpss xmm0, xmm1
        movd eax, xmm0
        fold rax
        rsqrtss xmm0, xmm1
        movd eax, xmm0
        fold rax
    .endm

    // Whether the flags meet `condition`.
    .macro fold_condition condition
        set\condition al
        movzx eax, al
        fold rax
    .endm

    .balign 64
    .globl simuboost_conformance
    .hidden simuboost_conformance
    .globl simuboost_conformance_end
    .hidden simuboost_conformance_end
simuboost_conformance:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov r15, rdi
    mov rax, rsp
    sub rsp, 2048
    and rsp, -64
    // [RSP]: the caller's x87 and SSE state; [RSP + 512]: the caller's stack; [RSP + 576] and on:
    // room; [RSP + 1024]: room for another image of that state.
    mov [rsp + 512], rax
    fxsave64 [rsp]
    ldmxcsr [rip + .Lsbc_mxcsr]

    // Nothing here is undefined: the same on every processor.
    begin
    sweep_sizes add
    sweep_sizes sbb
    sweep "neg rax"
    sweep "inc cl"
    sweep "cmp eax, ecx"
    finish

    begin
    sweep "mul rcx"
    sweep "mul ecx"
    sweep "mul cx"
    sweep "mul cl"
    sweep "imul rcx"
    sweep "imul ecx"
    sweep "imul cx"
    sweep "imul cl"
    sweep "imul rax, rcx"
    sweep "imul eax, ecx"
    sweep "imul ax, cx"
    sweep "imul rax, rcx, 0x1234567"
    sweep "imul eax, ecx, -3"
    sweep "imul ax, cx, 77"
    finish

    // Every quotient fits.
    begin
    sweep "div rcx", "shr rcx, 1; or rcx, 1; mov rdx, rcx; shr rdx, 1"
    sweep "div ecx", "shr ecx, 1; or ecx, 1; mov edx, ecx; shr edx, 1"
    sweep "div cx", "movzx ecx, cx; shr ecx, 1; or ecx, 1; mov edx, ecx; shr edx, 1"
    sweep "div cl", "movzx eax, al; or cl, 1"
    sweep "idiv rcx", "shr rcx, 1; or rcx, 1; cqo"
    sweep "idiv ecx", "shr ecx, 1; or ecx, 1; cdq"
    sweep "idiv cx", "movzx ecx, cx; shr ecx, 1; or ecx, 1; cwd"
    sweep "idiv cl", "movsx eax, al; shr cl, 1; or cl, 1"
    finish

    begin
    sweep_shift shl
    sweep_shift shr
    sweep_shift sar
    sweep "shld rax, rdx, cl"
    sweep "shld eax, edx, cl"
    sweep "shld ax, dx, cl"
    sweep "shrd rax, rdx, cl"
    sweep "shrd eax, edx, cl"
    sweep "shrd ax, dx, cl"
    sweep "shrd rax, rdx, 9"
    finish

    begin
    sweep_shift rol
    sweep_shift ror
    sweep_shift rcl
    sweep_shift rcr
    finish

    begin
    sweep "bsf rdx, rcx"
    sweep "bsf edx, ecx"
    sweep "bsf dx, cx"
    sweep "bsr rdx, rcx"
    sweep "bsr edx, ecx"
    sweep "bsr dx, cx"
    finish

    begin
    sweep_bit bt
    sweep_bit bts
    sweep_bit btr
    sweep_bit btc
    finish

    begin
    sweep_sizes and
    sweep_sizes or
    sweep_sizes xor
    sweep_sizes test
    finish

    // TZCNT and LZCNT RDX, RCX, which are BSF and BSR where there are none.
    begin
    sweep ".byte 0xf3, 0x48, 0x0f, 0xbc, 0xd1"
    sweep ".byte 0xf3, 0x0f, 0xbc, 0xd1"
    sweep ".byte 0x66, 0xf3, 0x0f, 0xbc, 0xd1"
    sweep ".byte 0xf3, 0x48, 0x0f, 0xbd, 0xd1"
    sweep ".byte 0xf3, 0x0f, 0xbd, 0xd1"
    sweep ".byte 0x66, 0xf3, 0x0f, 0xbd, 0xd1"
    finish

    // BSWAP AX; upper halves after 32-bit comparisons that store or do not.
    begin
    sweep ".byte 0x66, 0x0f, 0xc8"
    sweep "cmpxchg ecx, ebx"
    sweep "cmpxchg ebx, ecx", "mov rbx, rax"
    sweep "cmpxchg cx, bx"
    sweep "cmovc edx, ecx"
    finish

    begin
    mov r8d, 2048
28: mov eax, r8d
    shl eax, 12
    or eax, 0x3f800000
    approximate
    mov eax, r8d
    shl eax, 12
    add eax, 0x40000000
    approximate
    dec r8d
    jnz 28b
    mov edi, 0x1234567
    mov r8d, 4096
29: random
    mov rax, rdi
    shr rax, 20
    mov eax, eax
    approximate
    dec r8d
    jnz 29b
    // Denormal operands and results as zero.
    ldmxcsr [rip + .Lsbc_mxcsr_flush]
    lea r13, [rip + .Lsbc_singles]
32: movups xmm1, [r13]
    rcpps xmm0, xmm1
    movups [rsp + 576], xmm0
    rsqrtps xmm0, xmm1
    movups [rsp + 592], xmm0
    .irp at, 576, 584, 592, 600
    mov rax, [rsp + \at]
    fold rax
    .endr
    add r13, 4
    lea rsi, [rip + .Lsbc_singles_end]
    cmp r13, rsi
    jb 32b
    ldmxcsr [rip + .Lsbc_mxcsr]
    finish

    // The order of additions, and which exceptions are noted.
    begin
    lea r13, [rip + .Lsbc_singles]
33: lea r12, [rip + .Lsbc_singles]
34: movups xmm1, [r12]
    movups xmm0, [r13]
    dpps xmm0, xmm1, 0xf7
    movups [rsp + 576], xmm0
    movups xmm0, [r13]
    dppd xmm0, xmm1, 0x33
    movups [rsp + 592], xmm0
    stmxcsr [rsp + 608]
    ldmxcsr [rip + .Lsbc_mxcsr]
    .irp at, 576, 584, 592, 600
    mov rax, [rsp + \at]
    fold rax
    .endr
    mov eax, [rsp + 608]
    fold rax
    add r12, 4
    lea rsi, [rip + .Lsbc_singles_end]
    cmp r12, rsi
    jb 34b
    add r13, 4
    cmp r13, rsi
    jb 33b
    finish

    begin
    functions fsin
    functions fcos
    functions fsincos
    functions "fsincos; fstp st(0)"
    functions "fptan; fstp st(0)"
    functions fpatan
    functions f2xm1
    functions fyl2x
    functions fyl2xp1
    functions "fchs; fsin"
    functions "fchs; f2xm1"
    finish

    begin
    conditions "fadd st(0), st(1)"
    conditions "fmul st(0), st(1)"
    conditions "fdiv st(0), st(1)"
    conditions fsqrt
    conditions fchs
    conditions fabs
    conditions frndint
    conditions fscale
    conditions fxtract
    conditions fprem
    conditions fprem1
    conditions "fxch st(1)"
    conditions "ffree st(1)"
    conditions fincstp
    conditions fldpi
    conditions "fst qword ptr [rsp + 576]"
    conditions "fistp dword ptr [rsp + 576]"
    conditions "fisttp qword ptr [rsp + 576]"
    conditions "fbstp tbyte ptr [rsp + 576]"
    conditions "fild dword ptr [r13]"
    conditions fxam
    conditions ftst
    conditions "fcom st(1)"
    conditions "fcomi st(0), st(1)"
    conditions "fcmovnb st(0), st(1)"
    conditions fptan
    conditions fpatan
    finish

    // Which bits of the pointers are kept: an image with an unmasked exception, which all processors
    // load and store whole.
    begin
    fninit
    fxsave64 [rsp + 1024]
    mov word ptr [rsp + 1024], 0x37e
    mov word ptr [rsp + 1026], 0x8081
    mov word ptr [rsp + 1030], 0x5a5
    movabs rax, 0x8123456789abcdef
    mov [rsp + 1032], rax
    movabs rax, 0xfedcba9876543210
    mov [rsp + 1040], rax
    fxrstor64 [rsp + 1024]
    fxsave64 [rsp + 1536]
    movzx eax, word ptr [rsp + 1542]
    fold rax
    mov rax, [rsp + 1544]
    fold rax
    mov rax, [rsp + 1552]
    fold rax
    // What an instruction without an exception leaves: opcode, data pointer, selectors.
    fninit
    mov qword ptr [rsp + 576], 0
    fld qword ptr [rsp + 576]
    fnstenv [rsp + 592]
    cmp word ptr [rsp + 608], 0
    fold_condition ne
    movzx eax, word ptr [rsp + 610]
    fold rax
    lea eax, [rsp + 576]
    cmp eax, [rsp + 612]
    fold_condition e
    cmp word ptr [rsp + 616], 0
    fold_condition ne
    // And one with an unmasked exception.
    fninit
    mov dword ptr [rsp + 576], 0x37b
    fldcw word ptr [rsp + 576]
    fld1
    fldz
    fdivp st(1), st(0)
    fnstenv [rsp + 592]
    movzx eax, word ptr [rsp + 610]
    fold rax
    fninit
    finish

    begin
    fxsave64 [rsp + 1024]
    mov eax, [rsp + 1052]
    fold rax
    finish

    fxrstor64 [rsp]
    mov rsp, [rsp + 512]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    cld
    ret

    .balign 8
.Lsbc_values:
    .quad 0, 1, 2, 5, 15, 17, 31, 40
    .quad 0x8000000000000000, 0xffffffffffffffff, 0x7fffffff80000010, 0x0123456789abcdef
.Lsbc_values_end:
    .quad 0xfedcba9876543210
    // 0, 1, -1.5, infinity, a signalling and a quiet NaN, a denormal, a large number.
.Lsbc_doubles:
    .quad 0, 0x3ff0000000000000, 0xbff8000000000000, 0x7ff0000000000000
    .quad 0x7ff4000000000001, 0xfff8000000000002, 0x000000000000ffff, 0x7e37e43c8800759c
.Lsbc_doubles_end:
    .quad 0x4008000000000000
.Lsbc_singles:
    .long 0, 0x3f800000, 0xbf800000, 0x7f800000, 0x7fa00001, 0xffc00002, 0x00000001, 0x007fffff
    .long 0x7f7fffff, 0xff7fffff, 0x00800000, 0x80000000, 0x33800000, 0x4b800001, 0xcb800000, 0x3eaaaaab
.Lsbc_singles_end:
    .long 0x3f800001, 0x40490fdb, 0xc0000000, 0x3f000000
.Lsbc_mxcsr:
    .long 0x1f80
.Lsbc_mxcsr_flush:
    .long 0x9fc0
simuboost_conformance_end:
    .purgem fold
    .purgem begin
    .purgem finish
    .purgem sweep
    .purgem sweep_sizes
    .purgem sweep_shift
    .purgem sweep_bit
    .purgem random
    .purgem double
    .purgem fold_status
    .purgem functions
    .purgem conditions_after
    .purgem conditions
    .purgem approximate
    .purgem fold_condition
    .popsection
    "#
);

unsafe extern "sysv64" {
    /// Stores one number for each kind of [`KINDS`] at `out`.
    fn simuboost_conformance(out: *mut u64);
    static simuboost_conformance_end: u8;
}

/// The program's bytes. A guest calls the first one with RDI pointing to room for [`KINDS`] numbers of
/// 64 bits, 4 KiB of stack, and x87 and SSE turned on; it returns with RET, and may run at any CPL.
pub fn program() -> &'static [u8] {
    let start = simuboost_conformance as *const () as *const u8;
    // SAFETY: both symbols are in one section, with nothing but the program between them; it is
    // mapped and readable for as long as this program runs.
    unsafe {
        let end = &raw const simuboost_conformance_end;
        std::slice::from_raw_parts(start, end.offset_from(start) as usize)
    }
}

/// Executes the program here, once.
pub(super) fn execute() -> [u64; KINDS.len()] {
    let mut out = [0; KINDS.len()];
    // SAFETY: the program keeps the calling convention: it preserves what a callee must (registers,
    // the direction flag, and x87 and SSE state whole), uses 3 KiB of stack, and stores KINDS.len()
    // numbers. It raises no exception: every quotient fits, and x87 and SSE exceptions are masked, or
    // cleared by FNINIT before the next instruction that would report them.
    unsafe { simuboost_conformance(out.as_mut_ptr()) };
    out
}
