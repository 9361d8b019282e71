//! What interrupts, exceptions, other modes and ports access, and how they count.

use iced_x86::code_asm::*;
use machine::state::{Gpr, rflags};
use machine::units::Position;
use simuboost_tests::guest::layout::{self, DATA, IO_BITMAP, USER_DATA, sel};
use simuboost_tests::guest::{Size, asm, tables};
use simuboost_tests::traced::{HANDLER, deliveries, expect, expect_in, guest};

const REP: [u8; 1] = [0xf3];

const GATE_80: [&str; 3] = ["R 8 2800 s", "R 8 2808 s", "R 8 1010 s"];
const FRAME: [&str; 5] = [
    "W 8 25ff8",
    "W 8 25ff0",
    "W 8 25fe8",
    "W 8 25fe0",
    "W 8 25fd8",
];
const UNFRAME: [&str; 5] = [
    "R 8 25fe8",
    "R 2 25fe0",
    "R 8 25fd8",
    "R 2 25ff8",
    "R 8 25ff0",
];

#[test]
fn interrupts_and_exceptions() {
    let there_and_back = [
        &GATE_80[..],
        &FRAME,
        &UNFRAME[..3],
        &["R 8 1010 s"],
        &UNFRAME[3..],
        &["R 8 1018 s"],
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
            "R 8 25fe8",
            "R 2 25fe0",
            "R 8 25fd8",
            "R 8 1030 s",
            "R 2 25ff8",
            "R 8 25ff0",
            "R 8 1028 s",
        ],
    );
}

#[test]
fn compatibility_mode() {
    let mut guest = guest(|a| {
        asm!(a;
            mov(dword_ptr(rdi), layout::CODE as i32 + 0x4000); mov(word_ptr(rdi + 4), 8);
            jmp(fword_ptr(rdi)));
        Ok(())
    });
    let code = || {
        let mut a = CodeAssembler::new(32)?;
        let (mut function, mut over) = (a.create_label(), a.create_label());
        asm!(a;
            push(eax); pop(ebx); mov(eax, dword_ptr(edi)); add(dword_ptr(edi + 4), eax);
            call(function); jmp(over); set_label(&mut function); ret(); set_label(&mut over);
            pushad(); movsb(); mov(ecx, 2); db(&REP); stosw(); hlt());
        a.assemble(layout::CODE + 0x4000)
    };
    guest.poke(layout::CODE + 0x4000, &code().expect("the case assembles"));
    expect_in(
        &guest,
        None,
        "32-bit code",
        &[
            "W 4 60000",
            "W 2 60004",
            "R 4 60000",
            "R 2 60004",
            "R 8 1008 s",
            "W 4 25ffc",
            "R 4 25ffc",
            "R 4 60000",
            "U 4 60004",
            "W 4 25ffc",
            "R 4 25ffc",
            "W 4 25ffc",
            "W 4 25ff8",
            "W 4 25ff4",
            "W 4 25ff0",
            "W 4 25fec",
            "W 4 25fe8",
            "W 4 25fe4",
            "W 4 25fe0",
            "R 1 61000",
            "W 1 60000",
            "W 2 60001",
            "W 2 60003",
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
