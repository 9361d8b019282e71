//! x87, MMX and SSE with the unit turned off (SDM vol. 3, table 2-2). Left out: EMMS, conversions
//! between MMX and XMM, and exceptions that wait, for which neither oracle checks.

use super::super::case;
use super::{Case, Code, at_level};
use crate::guest::{asm, layout as at};
use iced_x86::code_asm::*;
use machine::state::{cr0, cr4};

/// One instruction of each class; RBX points at data.
const CLASSES: &[(&str, Code)] = &[
    ("x87", |a| a.fld1()),
    ("fnstsw", |a| a.fnstsw(ax)),
    ("fninit", |a| a.fninit()),
    ("fnop", |a| a.fnop()),
    ("wait", |a| a.wait()),
    ("fxsave", |a| a.fxsave(ptr(rbx))),
    ("fxrstor", |a| a.fxrstor(ptr(rbx + 0x200))),
    ("mmx", |a| a.pxor(mm0, mm1)),
    ("movntq", |a| a.movntq(ptr(rbx), mm0)),
    ("sse", |a| a.xorps(xmm0, xmm0)),
    ("sse2", |a| a.movq(xmm0, rax)),
    ("sse42_string", |a| a.pcmpistri(xmm0, xmm1, 0)),
    ("ldmxcsr", |a| a.ldmxcsr(ptr(rbx + 0x218))),
    ("stmxcsr", |a| a.stmxcsr(ptr(rbx))),
    ("maskmovq", |a| a.maskmovq(mm0, mm1)),
    ("movnti", |a| a.movnti(ptr(rbx), eax)),
    ("prefetch", |a| a.prefetchnta(ptr(rbx))),
    ("sfence", |a| a.sfence()),
    ("crc32", |a| a.crc32(eax, ebx)),
    ("popcnt", |a| a.popcnt(eax, ebx)),
    ("fisttp", |a| a.fisttp(dword_ptr(rbx))),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, code) in CLASSES {
        for (mode, set, clear) in [
            ("ts", cr0::TS, cr0::MP),
            ("ts_mp", cr0::TS | cr0::MP, 0),
            ("em", cr0::EM, 0),
            ("em_ts", cr0::EM | cr0::TS, 0),
            ("mp", cr0::MP, 0),
        ] {
            for user in [false, true] {
                if user && mode != "ts" {
                    continue;
                }
                cases.push(case(format!("{name}_{mode}_user{user}"), move |g| {
                    g.state.cr0 = g.state.cr0 & !clear | set;
                    prepare(g);
                    at_level(g, user, *code)
                }));
            }
        }
        cases.push(case(format!("{name}_without_osfxsr"), move |g| {
            g.state.cr4 &= !cr4::OSFXSR;
            prepare(g);
            at_level(g, true, *code)
        }));
    }
    cases.push(case("nm_then_clts_and_again", |g| {
        use crate::guest::Action;
        g.state.cr0 |= cr0::TS;
        let fix = at::CODE + 0x800;
        g.code_at(fix, fix, |a| {
            asm!(a; clts(); ret(););
            Ok(())
        })?;
        g.actions(&[Action::Call(fix), Action::Finish]);
        at_level(g, false, |a| {
            asm!(a; fld1(); fstp(st0); xorps(xmm0, xmm0););
            Ok(())
        })
    }));
}

fn prepare(g: &mut crate::guest::Guest) {
    g.state.gpr[3] = at::USER_DATA;
    g.state.gpr[7] = at::USER_DATA + 0x40;
    // An FXRSTOR image: FCW, and MXCSR.
    g.poke(at::USER_DATA + 0x200, &[0x7f, 3]);
    g.poke(at::USER_DATA + 0x218, &[0x80, 0x1f]);
}
