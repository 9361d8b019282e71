//! PUSHF, POPF, CLI, STI, CLAC, STAC: by level, IOPL and size.

use super::super::case;
use super::{Case, Code, at_level};
use crate::guest::asm;
use iced_x86::code_asm::*;
use machine::state::rflags;

const CODES: &[(&str, Code)] = &[
    ("popf_ones", |a| {
        // Everything but TF and NT.
        asm!(a; push(0xff_beffu32 as i32); popfq(); pushfq(); pop(rsi); push(2); popfq(););
        Ok(())
    }),
    ("popf_nt", |a| {
        asm!(a; push(0x4002); popfq(); pushfq(); pop(rsi););
        Ok(())
    }),
    ("popf_high", |a| {
        asm!(a; mov(rax, 0x7fff_ffff_0000_0002u64); push(rax); popfq(); pushfq(); pop(rsi););
        Ok(())
    }),
    ("popf_16", |a| {
        asm!(a; push(0x3ef7));
        asm!(a; popf(); pushfq(); pop(rsi););
        Ok(())
    }),
    ("pushf_16", |a| {
        asm!(a; mov(rax, -1i64); push(rax); pushf(); pop(ax); mov(esi, eax););
        Ok(())
    }),
    ("cli", |a| {
        asm!(a; cli(); pushfq(); pop(rsi););
        Ok(())
    }),
    ("sti", |a| {
        asm!(a; sti(); pushfq(); pop(rsi););
        Ok(())
    }),
    ("stac", |a| {
        asm!(a; stac(); pushfq(); pop(rsi););
        Ok(())
    }),
    ("clac", |a| {
        asm!(a; clac(); pushfq(); pop(rsi););
        Ok(())
    }),
    ("lahf_sahf", |a| {
        asm!(a; mov(eax, 0xff00); sahf(); lahf(); pushfq(); pop(rsi););
        Ok(())
    }),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, code) in CODES {
        for (what, user, iopl, interrupts) in [
            ("cpl0", false, 0u64, false),
            ("cpl0_if", false, 0, true),
            ("cpl3", true, 0, false),
            ("cpl3_if", true, 0, true),
            ("cpl3_iopl2", true, 2, true),
            ("cpl3_iopl3", true, 3, false),
            ("cpl3_iopl3_if", true, 3, true),
        ] {
            cases.push(case(format!("{name}_{what}"), move |g| {
                g.state.rflags |= iopl << 12 | if interrupts { rflags::IF } else { 0 };
                at_level(g, user, *code)
            }));
        }
    }
}
