//! What each kind of instruction accesses, as docs/instruments.md says, in normal blocks and in blocks
//! of one instruction.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::state::{Gpr, rflags};
use machine::units::{GuestPhys, Position, Vector};
use machine::vcpu::{Exit, Vcpu};
use simuboost_tests::guest::layout::{self, sel};
use simuboost_tests::guest::layout::{DATA, GDT, IDT, IO_BITMAP, KERNEL_STACK, TSS, USER_DATA};
use simuboost_tests::guest::{Guest, Size, asm, pte, tables};
use std::sync::{Arc, Mutex};
use tcg_sim::instrument::{Counts, Direction, Instruments};
use tcg_sim::trace::{Access, Chunk, Delivered, Item};
use tcg_sim::{Engine, EngineOptions};

const HANDLER: u64 = layout::CODE + 0x8000;
const REP: [u8; 1] = [0xf3];
const REPNE: [u8; 1] = [0xf2];
const LOCK: [u8; 1] = [0xf0];
/// The frame that a second page of data is mapped to.
const ELSEWHERE: u64 = 0x6d000;

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// `R 8 60000`: direction, bytes, linear address; then what is out of the ordinary: `s` for the
/// processor's own, `=` and a physical address that is another, `+` and that of the second page, `@`
/// and a privilege level that is not 0.
fn text(access: &Access) -> String {
    let direction = match access.direction {
        Direction::Read => 'R',
        Direction::Write => 'W',
        Direction::Update => 'U',
    };
    let mut text = format!("{direction} {} {:x}", access.bytes, access.linear);
    if access.system {
        text += " s";
    }
    if access.physical.0 != access.linear {
        text += &format!(" ={:x}", access.physical.0);
    }
    if let Some(second) = access.second {
        text += &format!(" +{:x}", second.0);
    }
    if access.cpl != 0 {
        text += &format!(" @{}", access.cpl);
    }
    text
}

/// Runs a guest to its HLT; the value of each port read is 0x5a.
fn run(guest: &Guest, one_instruction_blocks: bool, interrupt: Option<u64>) -> Vec<Chunk> {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("RAM is small"));
    ram.write(GuestPhys(0), guest.ram())
        .expect("the image fits");
    let options = EngineOptions {
        one_instruction_blocks,
        ..EngineOptions::default()
    };
    let cpuid = CpuidTable::x86_64_v2();
    let mut engine = Engine::new(ram, cpuid, options).expect("this host runs the engine");
    let start = Position::at(1_000);
    engine.load(&guest.state, start).expect("a valid state");
    let chunks = Arc::new(Mutex::new(Vec::new()));
    engine.set_instruments(Instruments::none().with_memory_trace(Box::new(chunks.clone())));
    if let Some(steps) = interrupt {
        let at = Position::at(1_000 + steps);
        assert_eq!(engine.run(Some(at)).expect("no limits"), Exit::Reached);
        engine.inject_interrupt(Vector(0x40)).expect("IF is set");
    }
    loop {
        match engine.run(Some(Position::at(5_000))).expect("no limits") {
            Exit::Halt => break,
            Exit::PortRead { .. } => engine.complete_read(0x5a).expect("a read waits"),
            Exit::PortWrite { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    engine.finish_trace().expect("memory does not fail");
    std::mem::take(&mut *chunks.lock().expect("no panic under the lock"))
}

/// The guest with `emit` at CPL 0 and handlers that halt; RDI is the data, RSI a page further.
fn guest(emit: Emit) -> Guest {
    let mut guest = Guest::new();
    let code = |a: &mut CodeAssembler| {
        emit(a)?;
        a.hlt()
    };
    guest
        .code_at(layout::CODE, layout::CODE, code)
        .expect("the case assembles");
    for vector in [13u8, 14, 0x40] {
        let gate = tables::gate(HANDLER, sel::CODE, 0x8e, 0);
        guest.set_raw_gate(vector, gate);
    }
    let halt = |a: &mut CodeAssembler| a.hlt();
    guest
        .code_at(HANDLER, HANDLER, halt)
        .expect("HLT assembles");
    let resume = |a: &mut CodeAssembler| a.iretq();
    guest
        .code_at(HANDLER + 16, HANDLER + 16, resume)
        .expect("IRET assembles");
    guest.set_raw_gate(0x80, tables::gate(HANDLER + 16, sel::CODE, 0xee, 0));
    guest.state.gpr[Gpr::Rdi as usize] = DATA;
    guest.state.gpr[Gpr::Rsi as usize] = DATA + 0x1000;
    guest.state.gpr[Gpr::Rbp as usize] = DATA + 0x800;
    guest
}

fn expect_in(guest: &Guest, interrupt: Option<u64>, what: &str, expected: &[&str]) {
    for one in [false, true] {
        let chunks = run(guest, one, interrupt);
        let items = chunks.iter().flat_map(Chunk::items);
        let found: Vec<String> = items
            .filter_map(|item| match item {
                Item::Access(access) => Some(text(&access)),
                _ => None,
            })
            .collect();
        assert_eq!(found, expected, "{what}, one-instruction blocks: {one}");
    }
}

fn expect(what: &str, emit: Emit, expected: &[&str]) {
    expect_in(&guest(emit), None, what, expected);
}

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
            "R 8 607f8",
            "W 8 25ff8",
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
            "R 1 61005",
            "R 1 6000b",
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
            "R 8 25ff8",
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
            "R 6 60020",
            "R 8 1018 s",
            "W 4 60030",
            "W 2 60034",
            "R 6 60030",
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

const GATE_80: [&str; 3] = ["R 8 2800 s", "R 8 2808 s", "R 8 1010 s"];
const FRAME: [&str; 5] = [
    "W 8 25ff8",
    "W 8 25ff0",
    "W 8 25fe8",
    "W 8 25fe0",
    "W 8 25fd8",
];
const UNFRAME: [&str; 5] = [
    "R 8 25fd8",
    "R 8 25fe0",
    "R 8 25fe8",
    "R 8 25ff0",
    "R 8 25ff8",
];

#[test]
fn interrupts_and_exceptions() {
    let there_and_back = [
        &GATE_80[..],
        &FRAME,
        &UNFRAME,
        &["R 8 1010 s", "R 8 1018 s"],
    ]
    .concat();
    expect(
        "INT 0x80 and IRET",
        |a| {
            asm!(a; int(0x80));
            Ok(())
        },
        &there_and_back,
    );
    let gate_40 = ["R 8 2400 s", "R 8 2408 s", "R 8 1010 s"];
    let mut guest = guest(|a| {
        asm!(a; nop(); nop(); mov(al, byte_ptr(rdi)));
        Ok(())
    });
    guest.state.rflags |= rflags::IF;
    let taken = [&gate_40[..], &FRAME].concat();
    expect_in(&guest, Some(2), "an external interrupt", &taken);
}

#[test]
fn what_faults_leaves_nothing() {
    let gate_14 = ["R 8 20e0 s", "R 8 20e8 s", "R 8 1010 s"];
    let error_frame = [&FRAME[..], &["W 8 25fd0"]].concat();
    let fault = [&gate_14[..], &error_frame].concat();
    expect(
        "a read of an unmapped page",
        |a| {
            asm!(a; mov(rax, 0x4000_0000u64); mov(rbx, qword_ptr(rdi)); add(qword_ptr(rax), rbx));
            Ok(())
        },
        &[&["R 8 60000"][..], &fault].concat(),
    );
    expect(
        "the second access faults",
        |a| {
            asm!(a; mov(rbx, 0x4000_0000u64); nop(); push(qword_ptr(rdi)); pop(qword_ptr(rbx)));
            Ok(())
        },
        &[
            &[
                "R 8 60000",
                "W 8 25ff8",
                "R 8 20e0 s",
                "R 8 20e8 s",
                "R 8 1010 s",
            ][..],
            &[
                "W 8 25fe8",
                "W 8 25fe0",
                "W 8 25fd8",
                "W 8 25fd0",
                "W 8 25fc8",
                "W 8 25fc0",
            ],
        ]
        .concat(),
    );
    let mut strings = guest(|a| {
        asm!(a; mov(edi, DATA as u32 + 0xffe); mov(ecx, 5); db(&REP); movsb());
        Ok(())
    });
    let slot = strings.leaf_slot(DATA + 0x1000, Size::Kib4);
    strings.poke_u64(slot, 0);
    strings.state.gpr[Gpr::Rsi as usize] = DATA + 0x10;
    let done = ["R 1 60010", "W 1 60ffe", "R 1 60011", "W 1 60fff"];
    let all = [&done[..], &fault].concat();
    expect_in(&strings, None, "iterations before a fault", &all);
}

#[test]
fn user_mode() {
    assert_eq!(
        (USER_DATA, IO_BITMAP),
        (0x70000, 0x3068),
        "the texts below say so"
    );
    let mut guest = guest(|a| {
        asm!(a; mov(rcx, layout::USER_CODE); mov(r11d, 2); sysretq());
        Ok(())
    });
    guest
        .user_code(|a| {
            asm!(a;
                mov(rax, qword_ptr(rdi)); push(rax); int(0x80); syscall());
            Ok(())
        })
        .expect("the case assembles");
    guest
        .code_at(HANDLER + 32, HANDLER + 32, |a| a.hlt())
        .expect("HLT assembles");
    guest.state.gpr[Gpr::Rdi as usize] = USER_DATA;
    guest.state.gpr[Gpr::Rsp as usize] = layout::USER_STACK;
    guest.state.msrs.efer |= machine::state::efer::SCE;
    guest.state.msrs.lstar = HANDLER + 32;
    expect_in(
        &guest,
        None,
        "system calls",
        &[
            "R 8 70000 @3",
            "W 8 5eff8 @3",
            // INT 0x80 to the stack of the TSS, and IRET at level 0.
            "R 8 2800 s @3",
            "R 8 2808 s @3",
            "R 8 1010 s @3",
            "R 8 3004 s @3",
            "W 8 25ff8 @3",
            "W 8 25ff0 @3",
            "W 8 25fe8 @3",
            "W 8 25fe0 @3",
            "W 8 25fd8 @3",
            "R 8 25fd8",
            "R 8 25fe0",
            "R 8 25fe8",
            "R 8 25ff0",
            "R 8 25ff8",
            "R 8 1030 s",
            "R 8 1028 s",
        ],
    );
}

#[test]
fn ports() {
    expect(
        "at level 0",
        |a| {
            asm!(a;
                mov(edx, 0x500); in_(al, dx); out(dx, al); insb(); outsd();
                mov(ecx, 2); db(&REP); insw(); mov(ecx, 2); db(&REP); outsb());
            Ok(())
        },
        &[
            "W 1 60000",
            "R 4 61000",
            "W 2 60001",
            "W 2 60003",
            "R 1 61004",
            "R 1 61005",
        ],
    );
    let mut guest = guest(|_| Ok(()));
    guest.start_in_user();
    guest
        .user_code(|a| {
            asm!(a; in_(al, 0x21));
            Ok(())
        })
        .expect("the case assembles");
    guest.poke(IO_BITMAP, &[0; 16]);
    expect_in(
        &guest,
        None,
        "permission, and the #GP of HLT",
        &[
            "R 2 3066 s @3",
            "R 2 306c s @3",
            "R 8 20d0 s @3",
            "R 8 20d8 s @3",
            "R 8 1010 s @3",
            "R 8 3004 s @3",
            "W 8 25ff8 @3",
            "W 8 25ff0 @3",
            "W 8 25fe8 @3",
            "W 8 25fe0 @3",
            "W 8 25fd8 @3",
            "W 8 25fd0 @3",
        ],
    );
}

/// What was delivered, and the counts, in normal blocks and in blocks of one instruction.
fn deliveries(guest: &Guest, interrupt: Option<u64>) -> (Vec<Delivered>, Counts) {
    let [one, normal] = [true, false].map(|one| {
        let chunks = run(guest, one, interrupt);
        let (mut counts, mut delivered) = (Counts::default(), Vec::new());
        for item in chunks.iter().flat_map(Chunk::items) {
            item.count(&mut counts);
            if let Item::Delivery(delivery) = item {
                delivered.push(delivery);
            }
        }
        (delivered, counts)
    });
    assert_eq!(one, normal);
    one
}

#[test]
fn a_delivery_that_fails_counts_as_what_takes_its_place() {
    // Vector 0x41 has no present gate: #NP, whose gate is absent as well: double fault.
    let mut guest = guest(|a| {
        asm!(a; nop(); int(0x41));
        Ok(())
    });
    guest.set_raw_gate(0x41, [0, 0]);
    guest.set_raw_gate(13, [0, 0]);
    guest.set_raw_gate(8, tables::gate(HANDLER, sel::CODE, 0x8e, 0));
    let (delivered, counts) = deliveries(&guest, None);
    let [double] = delivered[..] else {
        panic!("{delivered:?}")
    };
    assert_eq!((double.vector, double.exception), (8, true));
    assert_eq!(
        (double.pc, double.at),
        (layout::CODE + 1, Position::at(1_001))
    );
    assert_eq!((counts.exceptions, counts.all_instructions()), (1, 2));
    // The gate, the code segment, and a frame with an error code; nothing of the attempts before.
    assert_eq!((counts.system.reads, counts.data.writes), (3, 6));
}

#[test]
fn a_debug_trap_shares_the_step_of_its_instruction() {
    let mut guest = guest(|a| {
        asm!(a; mov(rax, qword_ptr(rdi)));
        Ok(())
    });
    guest.set_raw_gate(1, tables::gate(HANDLER, sel::CODE, 0x8e, 0));
    guest.state.rflags |= rflags::TF;
    let (delivered, counts) = deliveries(&guest, None);
    let [trap] = delivered[..] else {
        panic!("{delivered:?}")
    };
    assert_eq!((trap.vector, trap.at), (1, Position::at(1_000)));
    assert_eq!((counts.exceptions, counts.data.reads), (1, 1));
}

#[test]
fn branches_and_levels() {
    let guest = guest(|a| {
        let (mut next, mut back, mut out) = (a.create_label(), a.create_label(), a.create_label());
        asm!(a;
            // Taken to the next instruction; not taken; a loop taken twice; an empty RCX.
            xor(eax, eax); je(next); set_label(&mut next); jne(next);
            mov(ecx, 3); set_label(&mut back); nop(); loop_(back);
            jrcxz(out); ud2(); set_label(&mut out);
            // A jump, and INT with its IRET.
            nop(); int(0x80));
        Ok(())
    });
    let (_, counts) = deliveries(&guest, None);
    // JE, JNE, LOOP three times, JRCXZ, INT, IRET.
    assert_eq!((counts.branches, counts.branches_taken), (8, 6));
    assert_eq!(counts.instructions, [15, 0, 0, 0]);
}
