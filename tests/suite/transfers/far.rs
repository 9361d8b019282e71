//! Far JMP, CALL and RET, directly and through call gates.

use super::super::case;
use super::{Case, LANDING, NOT_CANONICAL, Row, USER_LANDING, free_descriptor, landings};
use crate::guest::{Guest, asm, layout as at, layout::sel, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Far pointer operand.
const POINTER: u64 = at::USER_DATA + 0x100;
/// Selector of the call gate.
const GATE: u16 = sel::FREE + 0x20;

fn pointer(g: &mut Guest, offset: u32, selector: u16) {
    g.poke(POINTER, &offset.to_le_bytes());
    g.poke(POINTER + 4, &selector.to_le_bytes());
}

/// `call fword [POINTER]` or `jmp fword [POINTER]`.
fn transfer(a: &mut CodeAssembler, jump: bool) -> Result<(), IcedError> {
    a.mov(rbx, POINTER)?;
    a.db(&[0xff, if jump { 0x2b } else { 0x1b }])
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    direct(cases);
    gates(cases);
    through_gates(cases);
    returns(cases);
}

const CODES: [Row; 8] = [
    ("code_dpl_0", 0x9b, 0xa),
    ("code_dpl_3", 0xfb, 0xa),
    ("conforming_dpl_0", 0x9f, 0xa),
    ("conforming_dpl_3", 0xff, 0xa),
    ("data", 0x93, 0xc),
    ("not_present", 0x1b, 0xa),
    ("not_accessed", 0x9a, 0xa),
    ("long_and_32", 0x9b, 0xe),
];

fn direct(cases: &mut Vec<Case>) {
    for (kind, jump) in [("jmp", true), ("call", false)] {
        for (name, access, flags) in CODES {
            for user in [false, true] {
                let name = format!("far_{kind}_{name}_{}", if user { "cpl3" } else { "cpl0" });
                cases.push(case(name, move |g| {
                    landings(g)?;
                    free_descriptor(g, access, flags);
                    g.watch("descriptor", at::GDT + u64::from(sel::FREE), 8);
                    if user {
                        pointer(g, USER_LANDING as u32, sel::FREE | 3);
                        g.start_in_user();
                        g.user_code(|a| transfer(a, jump))
                    } else {
                        pointer(g, LANDING as u32, sel::FREE);
                        g.code(|a| transfer(a, jump))
                    }
                }));
            }
        }
        for (name, selector) in [
            ("null", 0u16),
            ("beyond_limit", 0x408),
            ("tss", sel::TSS),
            ("ldt", sel::LDT),
            ("rpl_3", sel::CODE | 3),
        ] {
            cases.push(case(format!("far_{kind}_{name}"), move |g| {
                landings(g)?;
                pointer(g, LANDING as u32, selector);
                g.code(|a| transfer(a, jump))
            }));
        }
    }
    cases.push(
        case("far_call_stack_missing", |g| {
            landings(g)?;
            pointer(g, LANDING as u32, sel::CODE);
            g.set_gate(14, 0x8e, 1);
            g.code(|a| {
                a.mov(rsp, 0x90_0000_0000u64)?;
                transfer(a, false)
            })
        })
        .on_interrupt_stack(),
    );
}

/// How a gate is bad, starting from one with DPL 3 to 64-bit code of DPL 0.
type Spoil = fn(&mut Guest);

fn set_gate(g: &mut Guest, raw: [u64; 2]) {
    g.set_descriptor(GATE, raw[0]);
    g.set_descriptor(GATE + 8, raw[1]);
}

fn gate_to(g: &mut Guest, selector: u16, access: u8) {
    set_gate(g, tables::gate(LANDING, selector, access, 0));
}

const GATES: &[(&str, Spoil)] = &[
    ("good", |_| {}),
    ("dpl_0", |g| gate_to(g, sel::CODE, 0x8c)),
    ("not_present", |g| gate_to(g, sel::CODE, 0x6c)),
    ("type_286", |g| gate_to(g, sel::CODE, 0xe4)),
    ("type_interrupt", |g| gate_to(g, sel::CODE, 0xee)),
    ("null_target", |g| gate_to(g, 0, 0xec)),
    ("target_beyond_limit", |g| gate_to(g, 0x408, 0xec)),
    ("data_target", |g| gate_to(g, sel::DATA, 0xec)),
    ("code_32_target", |g| gate_to(g, 8, 0xec)),
    ("outer_target", |g| gate_to(g, sel::USER_CODE, 0xec)),
    ("target_rpl_3", |g| gate_to(g, sel::CODE | 3, 0xec)),
    ("target_not_present", |g| {
        free_descriptor(g, 0x1b, 0xa);
        gate_to(g, sel::FREE, 0xec);
    }),
    ("conforming", |g| {
        free_descriptor(g, 0x9f, 0xa);
        gate_to(g, sel::FREE, 0xec);
    }),
    ("not_canonical", |g| {
        set_gate(g, tables::gate(NOT_CANONICAL, sel::CODE, 0xec, 0));
    }),
    ("upper_type", |g| {
        let raw = tables::gate(LANDING, sel::CODE, 0xec, 0);
        set_gate(g, [raw[0], raw[1] | 0xc << 40]);
    }),
    ("at_table_limit", |g| g.state.gdtr.limit = GATE + 7),
];

fn gates(cases: &mut Vec<Case>) {
    for (name, spoil) in GATES {
        for (kind, jump) in [("jmp", true), ("call", false)] {
            for user in [false, true] {
                let name = format!("gate_{name}_{kind}_{}", if user { "cpl3" } else { "cpl0" });
                cases.push(case(name, move |g| {
                    landings(g)?;
                    gate_to(g, sel::CODE, 0xec);
                    spoil(g);
                    // The offset in the pointer is ignored.
                    pointer(g, 0x1234, GATE | if user { 3 } else { 0 });
                    g.watch("frame", at::KERNEL_STACK - 32, 32);
                    if user {
                        // Conforming code runs at CPL 3: from a user page.
                        user_landing(g);
                        g.start_in_user();
                        g.user_code(|a| transfer(a, jump))
                    } else {
                        g.code(|a| transfer(a, jump))
                    }
                }));
            }
        }
    }
}

/// Makes the page of [`LANDING`] a user page (SMEP is off).
fn user_landing(g: &mut Guest) {
    use crate::guest::{Size, pte};
    g.map(at::CODE, at::CODE, pte::ALL, Size::Kib4);
}

/// There and back: the frame that the call left is the one that RETF pops.
fn through_gates(cases: &mut Vec<Case>) {
    for release in [None, Some(8u32), Some(0x40)] {
        let name = release.map_or("none".to_owned(), |bytes| format!("{bytes:#x}"));
        cases.push(case(format!("gate_call_and_return_{name}"), move |g| {
            gate_to(g, sel::CODE, 0xec);
            pointer(g, 0, GATE | 3);
            g.code_at(LANDING, LANDING, |a| {
                asm!(a; mov(esi, ss); mov(rdi, rsp););
                match release {
                    Some(bytes) => a.db(&[0x48, 0xca, bytes as u8, 0]),
                    None => a.db(&[0x48, 0xcb]),
                }
            })?;
            g.start_in_user();
            g.user_code(|a| {
                transfer(a, false)?;
                asm!(a; mov(eax, cs); mov(edx, ss); mov(rcx, rsp););
                Ok(())
            })
        }));
    }
    for (name, rsp0) in [
        ("missing", 0x90_0000_0000u64),
        ("not_canonical", 0x9000_0000_0000),
        ("unaligned", at::KERNEL_STACK - 5),
    ] {
        cases.push(case(format!("gate_call_rsp0_{name}"), move |g| {
            landings(g)?;
            gate_to(g, sel::CODE, 0xec);
            pointer(g, 0, GATE | 3);
            g.poke_u64(at::TSS + 4, rsp0);
            for vector in [3, 10, 12, 13, 14] {
                g.set_gate(vector, 0xee, 2);
            }
            g.start_in_user();
            g.user_code(|a| transfer(a, false))
        }));
    }
}

/// RETF in its sizes, to the same and to outer levels.
fn returns(cases: &mut Vec<Case>) {
    let frames: &[(&str, u64, u16, u64, u16)] = &[
        ("same", LANDING, sel::CODE, 0, 0),
        (
            "outer",
            USER_LANDING,
            sel::USER_CODE,
            at::USER_STACK,
            sel::USER_DATA,
        ),
        ("null", LANDING, 0, 0, 0),
        ("data", LANDING, sel::DATA, 0, 0),
        ("not_canonical", NOT_CANONICAL, sel::CODE, 0, 0),
        (
            "outer_not_canonical",
            NOT_CANONICAL,
            sel::USER_CODE,
            at::USER_STACK,
            sel::USER_DATA,
        ),
        (
            "outer_null_stack",
            USER_LANDING,
            sel::USER_CODE,
            at::USER_STACK,
            0,
        ),
        (
            "outer_kernel_stack",
            USER_LANDING,
            sel::USER_CODE,
            at::USER_STACK,
            sel::DATA,
        ),
    ];
    for &(name, target, code, stack, data) in frames {
        for (form, release) in [("", 0u16), ("_imm", 0x18)] {
            cases.push(case(format!("retfq{form}_{name}"), move |g| {
                landings(g)?;
                g.code(|a| {
                    asm!(a;
                        mov(rax, u64::from(data)); push(rax); mov(rax, stack); push(rax);
                        sub(rsp, i32::from(release));
                        mov(rax, u64::from(code)); push(rax); mov(rax, target); push(rax);
                    );
                    match release {
                        0 => a.db(&[0x48, 0xcb]),
                        bytes => a.db(&[0x48, 0xca, bytes as u8, 0]),
                    }
                })
            }));
        }
    }
    cases.push(case("retfd_same", |g| {
        landings(g)?;
        g.code(|a| {
            asm!(a;
                sub(rsp, 8); mov(dword_ptr(rsp), LANDING as i32);
                mov(dword_ptr(rsp + 4), i32::from(sel::CODE));
            );
            a.db(&[0xcb])
        })
    }));
    cases.push(case("retfq_inner_from_cpl3", |g| {
        landings(g)?;
        g.start_in_user();
        g.user_code(|a| {
            asm!(a; push(i32::from(sel::CODE)); mov(rax, LANDING); push(rax););
            a.db(&[0x48, 0xcb])
        })
    }));
}
