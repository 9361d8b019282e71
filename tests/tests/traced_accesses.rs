//! What each kind of instruction accesses, as docs/instruments.md says, in normal blocks and in blocks
//! of one instruction.

use iced_x86::code_asm::*;
use machine::cpuid::Maker;
use simuboost_tests::guest::layout::{DATA, GDT, IDT, KERNEL_STACK, TSS, sel};
use simuboost_tests::guest::{Size, asm, pte, tables};
use simuboost_tests::traced::{expect, expect_in, guest};

const REP: [u8; 1] = [0xf3];
const REPNE: [u8; 1] = [0xf2];
const LOCK: [u8; 1] = [0xf0];
/// The frame that a second page of data is mapped to.
const ELSEWHERE: u64 = 0x6d000;

#[test]
fn stack_instructions() {
    const TOP: u64 = KERNEL_STACK;
    assert_eq!((TOP, DATA), (0x26000, 0x60000), "the texts below say so");
    expect(
        "push and pop",
        |a| {
            asm!(a;
                push(rax); push(7); push(ax); pop(ax);
                push(qword_ptr(rdi)); pop(qword_ptr(rdi + 8)); pop(rbx); pop(r10));
            Ok(())
        },
        &[
            "W 8 25ff8",
            "W 8 25ff0",
            "W 2 25fee",
            "R 2 25fee",
            "R 8 60000",
            "W 8 25fe8",
            "R 8 25fe8",
            "W 8 60008",
            "R 8 25ff0",
            "R 8 25ff8",
        ],
    );
    expect(
        "pushfq and popfq",
        |a| {
            asm!(a; pushfq(); popfq());
            Ok(())
        },
        &["W 8 25ff8", "R 8 25ff8"],
    );
    expect(
        "enter and leave",
        |a| {
            asm!(a; enter(16, 0); leave(); mov(rbp, DATA + 0x800); enter(0, 2));
            Ok(())
        },
        &[
            "W 8 25ff8",
            "R 8 25ff8",
            "W 8 25ff8",
            "R 8 607f8",
            "W 8 25ff0",
            "W 8 25fe8",
        ],
    );
}

#[test]
fn near_transfers() {
    expect(
        "call, ret and jmp through memory",
        |a| {
            let (mut over, mut function, mut last) =
                (a.create_label(), a.create_label(), a.create_label());
            asm!(a;
                jmp(over);
                set_label(&mut function); ret();
                set_label(&mut over);
                call(function);
                lea(rax, qword_ptr(function)); mov(qword_ptr(rdi), rax);
                call(qword_ptr(rdi)); call(rax);
                lea(rax, qword_ptr(last)); mov(qword_ptr(rdi + 8), rax);
                jmp(qword_ptr(rdi + 8));
                nop();
                set_label(&mut last); nop());
            Ok(())
        },
        &[
            "W 8 25ff8",
            "R 8 25ff8",
            "W 8 60000",
            "R 8 60000",
            "W 8 25ff8",
            "R 8 25ff8",
            "W 8 25ff8",
            "R 8 25ff8",
            "W 8 60008",
            "R 8 60008",
        ],
    );
}

#[test]
fn integer_operands() {
    expect(
        "reads and writes",
        |a| {
            asm!(a;
                mov(rax, qword_ptr(rdi)); mov(byte_ptr(rdi + 1), al); mov(word_ptr(rdi + 2), 5);
                movzx(eax, byte_ptr(rdi + 3)); movsxd(rax, dword_ptr(rdi + 4));
                cmp(word_ptr(rdi), 1); test(byte_ptr(rdi), al); cmove(ecx, dword_ptr(rdi));
                sete(byte_ptr(rdi + 9)); mov(r14, qword_ptr(rdi + 16)); lea(rax, qword_ptr(rdi));
                nop_1(dword_ptr(rdi)); prefetchnta(byte_ptr(rdi)); invlpg(byte_ptr(rdi));
                mov(rbx, rdi); mov(eax, 3); xlatb(); clflush(byte_ptr(rdi + 64)));
            Ok(())
        },
        &[
            "R 8 60000",
            "W 1 60001",
            "W 2 60002",
            "R 1 60003",
            "R 4 60004",
            "R 2 60000",
            "R 1 60000",
            "R 4 60000",
            "W 1 60009",
            "R 8 60010",
            "R 1 60003",
            "R 1 60040",
        ],
    );
    expect(
        "updates",
        |a| {
            asm!(a;
                add(qword_ptr(rdi), rax); inc(byte_ptr(rdi + 8)); xchg(byte_ptr(rdi + 9), al);
                db(&LOCK); xadd(dword_ptr(rdi + 12), eax);
                cmpxchg(dword_ptr(rdi + 16), ebx); cmpxchg8b(qword_ptr(rdi + 24));
                cmpxchg16b(xmmword_ptr(rdi + 32)); shl(word_ptr(rdi + 48), cl);
                neg(dword_ptr(rdi + 52)); btr(dword_ptr(rdi), 3);
                mov(eax, 200); bts(qword_ptr(rdi), rax); mov(eax, -1); bt(dword_ptr(rdi), eax));
            Ok(())
        },
        &[
            "U 8 60000",
            "U 1 60008",
            "U 1 60009",
            "U 4 6000c",
            "U 4 60010",
            "U 8 60018",
            "U 16 60020",
            "U 2 60030",
            "U 4 60034",
            "U 4 60000",
            "U 8 60018",
            "R 4 5fffc",
        ],
    );
}

#[test]
fn strings() {
    // The guest's processor is the host's, and Intel's reads ES:RDI first.
    let cmps = match Maker::of_host() {
        Maker::Intel => ["R 1 6000b", "R 1 61005"],
        Maker::Amd => ["R 1 61005", "R 1 6000b"],
    };
    expect(
        "single elements",
        |a| {
            asm!(a; movsb(); lodsd(); stosq(); scasw(); cmpsb());
            Ok(())
        },
        &[
            "R 1 61000",
            "W 1 60000",
            "R 4 61001",
            "W 8 60001",
            "R 2 60009",
            cmps[0],
            cmps[1],
        ],
    );
    expect(
        "repetitions",
        |a| {
            asm!(a;
                xor(ecx, ecx); db(&REP); movsb();
                mov(ecx, 3); db(&REP); movsb();
                mov(edi, DATA as u32 + 0x20); mov(ecx, 2); std(); db(&REP); stosd(); cld();
                mov(dword_ptr(rdi), 1); mov(edi, DATA as u32 + 0x30); xor(eax, eax);
                mov(byte_ptr(rdi + 2), 9); mov(ecx, 7); db(&REP); scasb();
                mov(edi, DATA as u32 + 0x40); mov(ecx, 9); db(&REPNE); cmpsb());
            Ok(())
        },
        &[
            "R 1 61000",
            "W 1 60000",
            "R 1 61001",
            "W 1 60001",
            "R 1 61002",
            "W 1 60002",
            "W 4 60020",
            "W 4 6001c",
            "W 4 60018",
            "W 1 60032",
            "R 1 60030",
            "R 1 60031",
            "R 1 60032",
            "R 1 61003",
            "R 1 60040",
        ],
    );
    expect(
        "elements over a page boundary",
        |a| {
            asm!(a; mov(edi, DATA as u32 + 0xffc); mov(ecx, 3); db(&REP); stosd();
                mov(edi, DATA as u32 + 0xff6); mov(ecx, 2); db(&REP); stosq());
            Ok(())
        },
        &[
            "W 4 60ffc",
            "W 4 61000",
            "W 4 61004",
            "W 8 60ff6",
            "W 8 60ffe +61000",
        ],
    );
}

#[test]
fn vector_and_floating_point_operands() {
    expect(
        "SSE",
        |a| {
            asm!(a;
                movdqu(xmm1, xmmword_ptr(rdi + 1)); movaps(xmmword_ptr(rdi + 16), xmm1);
                addps(xmm2, xmmword_ptr(rdi)); movss(xmm3, dword_ptr(rdi)); movq(qword_ptr(rdi), xmm3);
                movhps(xmm3, qword_ptr(rdi + 8)); movnti(dword_ptr(rdi), eax);
                ldmxcsr(dword_ptr(rdi + 0x80)); stmxcsr(dword_ptr(rdi + 4));
                pcmpistri(xmm1, xmmword_ptr(rdi + 3), 0); maskmovdqu(xmm1, xmm2);
                movq(mm1, qword_ptr(rdi)); maskmovq(mm1, mm1));
            Ok(())
        },
        &[
            "R 16 60001",
            "W 16 60010",
            "R 16 60000",
            "R 4 60000",
            "W 8 60000",
            "R 8 60008",
            "W 4 60000",
            "R 4 60080",
            "W 4 60004",
            "R 16 60003",
            "W 16 60000",
            "R 8 60000",
            "W 8 60000",
        ],
    );
    expect(
        "x87",
        |a| {
            asm!(a;
                fninit(); fld(qword_ptr(rdi)); fstp(tword_ptr(rdi + 16)); fild(word_ptr(rdi));
                fadd(dword_ptr(rdi)); fnstcw(word_ptr(rdi)); fldcw(word_ptr(rdi));
                fnstsw(word_ptr(rdi)); fnstenv(ptr(rdi)); fldenv(ptr(rdi));
                fnsave(ptr(rdi)); frstor(ptr(rdi)); fxsave(ptr(rdi)); fxrstor(ptr(rdi)));
            Ok(())
        },
        &[
            "R 8 60000",
            "W 10 60010",
            "R 2 60000",
            "R 4 60000",
            "W 2 60000",
            "R 2 60000",
            "W 2 60000",
            "W 28 60000",
            "R 28 60000",
            "W 108 60000",
            "R 108 60000",
            "W 416 60000",
            "R 512 60000",
        ],
    );
}

#[test]
fn pages_and_frames() {
    let mut guest = guest(|a| {
        asm!(a;
            mov(qword_ptr(rdi + 0xffc), rax); add(dword_ptr(rsi + 0x10), 1);
            mov(rsp, DATA + 0x1004); push(rax); mov(rax, qword_ptr(rsi - 8));
            movdqu(xmm0, xmmword_ptr(rdi + 0xff8)));
        Ok(())
    });
    let slot = guest.leaf_slot(DATA + 0x1000, Size::Kib4);
    guest.poke_u64(slot, ELSEWHERE | pte::P | pte::RW);
    expect_in(
        &guest,
        None,
        "a second page in another frame",
        &[
            "W 8 60ffc +6d000",
            "U 4 61010 =6d010",
            "W 8 60ffc +6d000",
            "R 8 60ff8",
            "R 16 60ff8 +6d000",
        ],
    );
}

#[test]
fn segments_and_tables() {
    assert_eq!(
        (GDT, IDT, TSS),
        (0x1000, 0x2000, 0x3000),
        "the texts below say so"
    );
    expect(
        "loads and tests of selectors",
        |a| {
            asm!(a;
                mov(eax, u32::from(sel::DATA)); mov(es, eax); mov(word_ptr(rdi), es);
                mov(ds, word_ptr(rdi)); push(fs); pop(gs); mov(ss, eax);
                lar(ecx, eax); verr(ax); mov(eax, u32::from(sel::LDT)); lldt(ax);
                str(word_ptr(rdi)); sldt(word_ptr(rdi)));
            Ok(())
        },
        &[
            "R 8 1018 s",
            "W 2 60000",
            "R 2 60000",
            "R 8 1018 s",
            "W 8 25ff8",
            "R 2 25ff8",
            "R 8 1018 s",
            "R 8 1018 s",
            "R 8 1018 s",
            "R 8 1018 s",
            "R 8 1050 s",
            "R 8 1058 s",
            "W 2 60000",
            "W 2 60000",
        ],
    );
    expect(
        "descriptor tables and far pointers",
        |a| {
            let mut target = a.create_label();
            asm!(a;
                sgdt(ptr(rdi)); sidt(ptr(rdi + 16)); lgdt(ptr(rdi)); lidt(ptr(rdi + 16));
                mov(dword_ptr(rdi + 32), 0); mov(word_ptr(rdi + 36), i32::from(sel::DATA));
                lfs(eax, fword_ptr(rdi + 32));
                lea(rax, qword_ptr(target)); mov(dword_ptr(rdi + 48), eax);
                mov(word_ptr(rdi + 52), i32::from(sel::CODE)); call(fword_ptr(rdi + 48));
                nop(); set_label(&mut target); nop());
            Ok(())
        },
        &[
            "W 10 60000",
            "W 10 60010",
            "R 2 60000",
            "R 8 60002",
            "R 2 60010",
            "R 8 60012",
            "W 4 60020",
            "W 2 60024",
            "R 4 60020",
            "R 2 60024",
            "R 8 1018 s",
            "W 4 60030",
            "W 2 60034",
            "R 4 60030",
            "R 2 60034",
            "R 8 1010 s",
            "W 4 25ffc",
            "W 4 25ff8",
        ],
    );
    let mut guest = guest(|a| {
        asm!(a; mov(eax, u32::from(sel::FREE)); mov(es, eax); mov(es, eax));
        Ok(())
    });
    guest.set_descriptor(sel::FREE, tables::descriptor(0, 0xf_ffff, 0x92, 0xc));
    expect_in(
        &guest,
        None,
        "the accessed bit",
        &["R 8 1080 s", "W 1 1085 s", "R 8 1080 s"],
    );
}
