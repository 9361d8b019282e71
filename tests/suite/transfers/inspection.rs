//! LAR, LSL, VERR and VERW, for every kind of descriptor and both levels.

use super::super::case;
use super::{Case, Row, free_descriptor};
use crate::guest::{asm, layout::sel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const ROWS: [Row; 16] = [
    ("data_dpl_0", 0x93, 0xc),
    ("data_dpl_3", 0xf3, 0xc),
    ("data_read_only", 0xf1, 0xc),
    ("data_not_present", 0x73, 0xc),
    ("code_readable", 0xfb, 0xa),
    ("code_execute_only", 0xf9, 0xa),
    ("conforming_dpl_0", 0x9f, 0xa),
    ("conforming_execute_only", 0x9d, 0xa),
    ("ldt", 0xe2, 0),
    ("tss_available", 0xe9, 0),
    ("tss_busy", 0xeb, 0),
    ("tss_286", 0xe1, 0),
    ("call_gate", 0xec, 0),
    ("call_gate_286", 0xe4, 0),
    ("interrupt_gate", 0xee, 0),
    ("zero", 0, 0),
];

/// All four on one selector; RAX, RCX, RDX: LAR, LSL and the 16-bit LAR; SIL, DIL, R8B, R9B: ZF.
fn inspect(a: &mut CodeAssembler, selector: u16) -> Result<(), IcedError> {
    asm!(a;
        mov(ebx, i32::from(selector)); mov(rax, -1i64); mov(rcx, -1i64); mov(rdx, -1i64);
        lar(eax, ebx); sete(sil);
        lsl(rcx, rbx); setne(dil);
        lar(dx, bx);
        verr(bx); setne(r8b);
        verw(bx); setne(r9b);
    );
    Ok(())
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (row, access, flags) in ROWS {
        for (what, user, rpl) in [
            ("cpl0", false, 0u16),
            ("cpl0_rpl3", false, 3),
            ("cpl3", true, 3),
        ] {
            cases.push(case(format!("inspect_{row}_{what}"), move |g| {
                free_descriptor(g, access, flags);
                if user {
                    g.start_in_user();
                    g.user_code(|a| inspect(a, sel::FREE | rpl))
                } else {
                    g.code(|a| inspect(a, sel::FREE | rpl))
                }
            }));
        }
    }
    for (what, selector) in [
        ("null", 0u16),
        ("null_rpl_3", 3),
        ("beyond_limit", 0x408),
        ("local_missing", 0x7c),
    ] {
        cases.push(case(format!("inspect_{what}"), move |g| {
            g.code(|a| inspect(a, selector))
        }));
    }
}
