//! The rest of the privileged instructions, and those that only look privileged.

use super::super::case;
use super::{Case, Code, at_level};
use crate::guest::{asm, layout as at};
use iced_x86::code_asm::*;
use machine::state::cr4;

const CODES: &[(&str, Code)] = &[
    ("invlpg", |a| {
        asm!(a; mov(rbx, at::USER_DATA); invlpg(ptr(rbx)););
        Ok(())
    }),
    ("invlpg_not_canonical", |a| {
        asm!(a; mov(rbx, 1u64 << 63); invlpg(ptr(rbx)););
        Ok(())
    }),
    ("invlpg_not_mapped", |a| {
        asm!(a; mov(rbx, 0x90_0000_0000u64); invlpg(ptr(rbx)););
        Ok(())
    }),
    ("wbinvd", |a| a.wbinvd()),
    ("invd", |a| a.invd()),
    ("clflush", |a| {
        asm!(a; mov(rbx, at::USER_DATA); clflush(ptr(rbx)););
        Ok(())
    }),
    ("clflush_not_mapped", |a| {
        asm!(a; mov(rbx, 0x90_0000_0000u64); clflush(ptr(rbx)););
        Ok(())
    }),
    ("rdpmc", |a| {
        asm!(a; mov(ecx, 0x3f); rdpmc(););
        Ok(())
    }),
    ("sgdt", |a| {
        asm!(a; mov(rbx, at::USER_DATA); sgdt(ptr(rbx)); mov(rcx, ptr(rbx)); mov(rdx, ptr(rbx + 2)););
        Ok(())
    }),
    ("sidt", |a| {
        asm!(a; mov(rbx, at::USER_DATA); sidt(ptr(rbx)); mov(rcx, ptr(rbx)); mov(rdx, ptr(rbx + 2)););
        Ok(())
    }),
    ("lgdt", |a| {
        asm!(a;
            mov(rbx, at::USER_DATA); mov(word_ptr(rbx), 0x1ff); mov(rax, at::GDT);
            mov(ptr(rbx + 2), rax); lgdt(ptr(rbx)); sgdt(ptr(rbx)); mov(cx, ptr(rbx));
        );
        Ok(())
    }),
    ("lgdt_not_canonical", |a| {
        asm!(a;
            mov(rbx, at::USER_DATA); mov(rax, 1u64 << 63); mov(ptr(rbx + 2), rax); lgdt(ptr(rbx));
        );
        Ok(())
    }),
    ("lidt_not_canonical", |a| {
        asm!(a;
            mov(rbx, at::USER_DATA); mov(rax, 1u64 << 63); mov(ptr(rbx + 2), rax); lidt(ptr(rbx));
        );
        Ok(())
    }),
    ("lidt_register", |a| a.db(&[0x0f, 0x01, 0xd8 | 0x20])),
    ("sldt_str", |a| {
        asm!(a; mov(rax, -1i64); mov(rcx, rax); mov(rdx, rax); sldt(eax); str(cx); str(rdx););
        Ok(())
    }),
    ("sldt_memory", |a| {
        asm!(a; mov(rbx, at::USER_DATA); mov(qword_ptr(rbx), -1); sldt(ptr(rbx)); mov(rax, ptr(rbx)););
        Ok(())
    }),
    ("hlt_is_privileged", |a| {
        asm!(a; nop(););
        Ok(())
    }),
    ("ltr_memory", |a| {
        asm!(a; mov(rbx, at::USER_DATA); mov(word_ptr(rbx), 0x7f8); ltr(ptr(rbx)););
        Ok(())
    }),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, code) in CODES {
        for user in [false, true] {
            cases.push(case(format!("{name}_user{user}"), move |g| {
                at_level(g, user, *code)
            }));
        }
    }
    for (what, tsd, user) in [
        ("plain", false, true),
        ("tsd", true, true),
        ("tsd_cpl0", true, false),
    ] {
        cases.push(case(format!("rdtsc_{what}"), move |g| {
            g.state.cr4 |= if tsd { cr4::TSD } else { 0 };
            at_level(g, user, |a| {
                asm!(a; rdtsc(); xor(eax, eax); xor(edx, edx););
                Ok(())
            })
        }));
    }
}
