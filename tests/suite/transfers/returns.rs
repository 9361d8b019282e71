//! IRET in its three sizes: levels, flags, and every check of CS, SS and RIP.

use super::super::case;
use super::{Case, LANDING, NOT_CANONICAL, Row, USER_LANDING, free_descriptor, landings};
use crate::guest::{Guest, asm, layout as at, layout::sel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::rflags;

/// A frame for IRET.
#[derive(Clone, Copy)]
struct Frame {
    rip: u64,
    cs: u16,
    flags: u64,
    rsp: u64,
    ss: u16,
}

/// To CPL 0, nothing special.
const SAME: Frame = Frame {
    rip: LANDING,
    cs: sel::CODE,
    flags: 2,
    rsp: at::KERNEL_STACK - 0x100,
    ss: sel::DATA,
};

/// To CPL 3, nothing special.
const OUTER: Frame = Frame {
    rip: USER_LANDING,
    cs: sel::USER_CODE,
    flags: 2,
    rsp: at::USER_STACK,
    ss: sel::USER_DATA,
};

/// Operand size of the return.
#[derive(Clone, Copy)]
enum Width {
    Word,
    Dword,
    Qword,
}

/// Pushes the frame and returns through it.
fn iret(a: &mut CodeAssembler, frame: Frame, width: Width) -> Result<(), IcedError> {
    let slots = [
        u64::from(frame.ss),
        frame.rsp,
        frame.flags,
        u64::from(frame.cs),
        frame.rip,
    ];
    for slot in slots {
        asm!(a; mov(rax, slot););
        match width {
            Width::Word => a.push(ax)?,
            Width::Dword => {
                asm!(a; sub(rsp, 4); mov(ptr(rsp), eax););
            }
            Width::Qword => a.push(rax)?,
        }
    }
    match width {
        Width::Word => a.iret(),
        Width::Dword => a.iretd(),
        Width::Qword => a.iretq(),
    }
}

fn returning(
    name: impl Into<String>,
    frame: Frame,
    set: impl Fn(&mut Guest) + Send + Sync + 'static,
) -> Case {
    case(name, move |g| {
        landings(g)?;
        set(g);
        g.code(|a| iret(a, frame, Width::Qword))
    })
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    flags(cases);
    code_segments(cases);
    stack_segments(cases);
    widths(cases);
    from_user(cases);
}

/// Which flags a return changes, by level and IOPL.
fn flags(cases: &mut Vec<Case>) {
    let all = rflags::DEFINED & !rflags::VM & !rflags::TF & !rflags::NT;
    for (name, value) in [
        ("none", 2u64),
        ("all", all),
        ("rf", 2 | rflags::RF),
        ("reserved", !rflags::VM & !rflags::TF & !rflags::NT),
        ("nt", 2 | rflags::NT),
        ("vm", 2 | rflags::VM),
        ("vif_vip", 2 | rflags::VIF | rflags::VIP),
        ("iopl_if", 2 | rflags::IOPL | rflags::IF),
    ] {
        for (to, frame) in [("same", SAME), ("outer", OUTER)] {
            let frame = Frame {
                flags: value,
                ..frame
            };
            cases.push(returning(format!("iretq_flags_{name}_{to}"), frame, |_| {}).software(&[0]));
        }
    }
    cases.push(returning("iretq_with_nt_set", SAME, |g| {
        g.state.rflags |= rflags::NT
    }));
    cases.push(
        returning(
            "iretq_sets_tf",
            Frame {
                flags: 2 | rflags::TF,
                ..SAME
            },
            |_| {},
        )
        .software(&[0]),
    );
}

const CODES: [Row; 9] = [
    ("data", 0x93, 0xc),
    ("code_dpl_0", 0x9b, 0xa),
    ("code_dpl_3", 0xfb, 0xa),
    ("code_dpl_2", 0xdb, 0xa),
    ("conforming_dpl_0", 0x9f, 0xa),
    ("conforming_dpl_3", 0xff, 0xa),
    ("not_present", 0x1b, 0xa),
    ("not_accessed", 0xfa, 0xa),
    ("long_and_32", 0xfb, 0xe),
];

fn code_segments(cases: &mut Vec<Case>) {
    for (name, access, flags) in CODES {
        for rpl in [0u16, 3] {
            let frame = Frame {
                cs: sel::FREE | rpl,
                ..if rpl == 0 { SAME } else { OUTER }
            };
            cases.push(returning(
                format!("iretq_cs_{name}_rpl{rpl}"),
                frame,
                move |g| {
                    free_descriptor(g, access, flags);
                    g.watch("descriptor", at::GDT + u64::from(sel::FREE), 8);
                },
            ));
        }
    }
    for (name, code) in [
        ("null", 0u16),
        ("null_rpl_3", 3),
        ("beyond_limit", 0x408),
        ("tss", sel::TSS),
        ("local_missing", 0x7c),
        ("rpl_1", sel::CODE | 1),
    ] {
        cases.push(returning(
            format!("iretq_cs_{name}"),
            Frame { cs: code, ..SAME },
            |_| {},
        ));
    }
    for (name, frame) in [("same", SAME), ("outer", OUTER)] {
        let frame = Frame {
            rip: NOT_CANONICAL,
            ..frame
        };
        cases.push(returning(
            format!("iretq_rip_not_canonical_{name}"),
            frame,
            |_| {},
        ));
    }
    for (name, stack) in [
        ("not_canonical", NOT_CANONICAL),
        ("odd", at::USER_STACK - 1),
    ] {
        cases.push(returning(
            format!("iretq_rsp_{name}"),
            Frame {
                rsp: stack,
                ..OUTER
            },
            |_| {},
        ));
    }
}

fn stack_segments(cases: &mut Vec<Case>) {
    for (name, data, to) in [
        ("null_same", 0u16, SAME),
        ("null_rpl_3_same", 3, SAME),
        ("null_outer", 0, OUTER),
        ("null_rpl_3_outer", 3, OUTER),
        ("code_same", sel::CODE, SAME),
        ("user_data_same", sel::USER_DATA, SAME),
        ("kernel_data_outer", sel::DATA, OUTER),
        ("rpl_0_outer", sel::USER_DATA & !3, OUTER),
        ("beyond_limit", 0x408, SAME),
        ("tss", sel::TSS, SAME),
    ] {
        cases.push(returning(
            format!("iretq_ss_{name}"),
            Frame { ss: data, ..to },
            |_| {},
        ));
    }
    for (name, access) in [
        ("not_present", 0x73u8),
        ("read_only", 0xf1),
        ("expand_down", 0xf7),
        ("not_accessed", 0xf2),
    ] {
        let frame = Frame {
            ss: sel::FREE | 3,
            ..OUTER
        };
        cases.push(returning(format!("iretq_ss_{name}"), frame, move |g| {
            free_descriptor(g, access, 0xc);
            g.watch("descriptor", at::GDT + u64::from(sel::FREE), 8);
        }));
    }
    // Segments that the outer level may not use become null.
    for (name, access) in [
        ("data_dpl_0", 0x93u8),
        ("data_dpl_3", 0xf3),
        ("code_dpl_0", 0x9b),
        ("conforming_dpl_0", 0x9f),
    ] {
        cases.push(case(format!("iretq_outer_keeps_{name}"), move |g| {
            landings(g)?;
            free_descriptor(g, access, 0xa);
            g.code(|a| {
                asm!(a;
                    mov(eax, i32::from(sel::FREE)); mov(ds, eax); mov(es, eax);
                    mov(fs, eax); mov(gs, eax);
                );
                iret(a, OUTER, Width::Qword)
            })
        }));
    }
}

fn widths(cases: &mut Vec<Case>) {
    for (name, width, rip) in [
        ("iretd", Width::Dword, LANDING),
        ("iretw", Width::Word, 0x9800),
    ] {
        for (to, base) in [("same", SAME), ("outer", OUTER)] {
            for (what, flags) in [
                ("plain", 2u64),
                ("all", rflags::DEFINED & !0x3_4100 & !rflags::VM),
            ] {
                cases.push(case(format!("{name}_{to}_{what}"), move |g| {
                    landings(g)?;
                    // A 16-bit frame reaches the first 64 KiB only: a free stub slot there.
                    let frame = match width {
                        Width::Word => Frame {
                            rip,
                            rsp: 0xe000,
                            ..base
                        },
                        _ => base,
                    };
                    g.poke(0x9800, &[0xcc]);
                    if to == "outer" {
                        user_page(g, 0x9000);
                        user_page(g, 0xd000);
                    }
                    g.code(|a| iret(a, Frame { flags, ..frame }, width))
                }));
            }
        }
    }
}

fn user_page(g: &mut Guest, page: u64) {
    use crate::guest::{Size, pte};
    g.map(page, page, pte::ALL, Size::Kib4);
}

/// At CPL 3: to the same level, and the ways up that do not exist.
fn from_user(cases: &mut Vec<Case>) {
    for (name, frame, iopl) in [
        ("same", OUTER, 0u64),
        (
            "flags",
            Frame {
                flags: rflags::DEFINED & !rflags::VM & !rflags::TF & !rflags::NT,
                ..OUTER
            },
            0,
        ),
        (
            "flags_iopl3",
            Frame {
                flags: 2 | rflags::IF,
                ..OUTER
            },
            3,
        ),
        (
            "inner_code",
            Frame {
                cs: sel::CODE,
                ..OUTER
            },
            0,
        ),
        (
            "inner_code_rpl3",
            Frame {
                cs: sel::CODE | 3,
                ..OUTER
            },
            0,
        ),
        (
            "inner_stack",
            Frame {
                ss: sel::DATA,
                ..OUTER
            },
            0,
        ),
        ("null_stack", Frame { ss: 0, ..OUTER }, 0),
        (
            "kernel_rip",
            Frame {
                rip: LANDING,
                ..OUTER
            },
            0,
        ),
    ] {
        cases.push(case(format!("iretq_user_{name}"), move |g| {
            landings(g)?;
            g.start_in_user();
            g.state.rflags |= iopl << 12;
            g.user_code(|a| iret(a, frame, Width::Qword))
        }));
    }
}
