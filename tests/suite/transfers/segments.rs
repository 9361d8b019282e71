//! Loads of segment registers, of LDTR and of TR.

use super::super::case;
use super::{Case, Row, free_descriptor};
use crate::guest::{Guest, asm, layout as at, layout::sel, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const ROWS: [Row; 13] = [
    ("data_dpl_0", 0x93, 0xc),
    ("data_dpl_3", 0xf3, 0xc),
    ("data_read_only", 0xf1, 0xc),
    ("data_expand_down", 0xf7, 0xc),
    ("data_not_present", 0x73, 0xc),
    ("data_not_accessed", 0xf2, 0xc),
    ("code_readable", 0xfb, 0xa),
    ("code_execute_only", 0xf9, 0xa),
    ("conforming_dpl_0", 0x9f, 0xa),
    ("conforming_execute_only", 0x9d, 0xa),
    ("code_not_present", 0x7b, 0xa),
    ("system_tss", 0xe9, 0),
    ("zero", 0, 0),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Ds,
    Ss,
    Fs,
}

fn load(a: &mut CodeAssembler, target: Target, selector: u16) -> Result<(), IcedError> {
    asm!(a; mov(eax, i32::from(selector)););
    match target {
        Target::Ds => a.mov(ds, eax)?,
        Target::Ss => a.mov(ss, eax)?,
        Target::Fs => a.mov(fs, eax)?,
    }
    asm!(a; mov(edx, 1););
    Ok(())
}

fn loading(g: &mut Guest, user: bool, target: Target, selector: u16) -> Result<(), IcedError> {
    g.watch("descriptor", at::GDT + u64::from(sel::FREE), 8);
    if user {
        g.start_in_user();
        g.user_code(|a| load(a, target, selector))
    } else {
        g.code(|a| load(a, target, selector))
    }
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (register, target) in [("ds", Target::Ds), ("ss", Target::Ss), ("fs", Target::Fs)] {
        for (row, access, flags) in ROWS {
            // FS follows the rules of DS: two rows show that it does.
            if target == Target::Fs && !matches!(row, "data_dpl_3" | "data_not_present") {
                continue;
            }
            for (what, user, rpl) in [
                ("cpl0", false, 0u16),
                ("cpl0_rpl3", false, 3),
                ("cpl3", true, 3),
                ("cpl3_rpl0", true, 0),
            ] {
                cases.push(case(format!("load_{register}_{row}_{what}"), move |g| {
                    free_descriptor(g, access, flags);
                    loading(g, user, target, sel::FREE | rpl)
                }));
            }
        }
        for (what, selector) in [
            ("null", 0u16),
            ("null_rpl_3", 3),
            ("beyond_limit", 0x408),
            ("local_missing", 0x7c),
            ("ldt_beyond", 0x84),
        ] {
            for user in [false, true] {
                cases.push(case(
                    format!("load_{register}_{what}_user{user}"),
                    move |g| loading(g, user, target, selector),
                ));
            }
        }
    }
    other_forms(cases);
    bases(cases);
    system(cases);
}

fn other_forms(cases: &mut Vec<Case>) {
    type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let forms: &[(&str, Code)] = &[
        ("pop_fs", |a| {
            asm!(a; push(i32::from(sel::USER_DATA)); pop(fs); mov(eax, fs););
            Ok(())
        }),
        ("pop_gs_bad", |a| {
            asm!(a; push(0x408); pop(gs););
            Ok(())
        }),
        ("pop_fs_16", |a| {
            asm!(a; push(i32::from(sel::USER_DATA)););
            a.db(&[0x66, 0x0f, 0xa1])
        }),
        ("push_fs", |a| {
            asm!(a; mov(rax, u64::MAX); push(rax); pop(rcx); push(fs); pop(rcx););
            Ok(())
        }),
        ("mov_memory_16", |a| {
            asm!(a;
                mov(rbx, at::USER_DATA); mov(qword_ptr(rbx), -1); mov(word_ptr(rbx), ds);
                mov(rcx, ptr(rbx)); mov(rdx, -1i64); mov(dx, ds); mov(rsi, -1i64); mov(esi, ds);
            );
            Ok(())
        }),
        ("mov_from_memory", |a| {
            asm!(a; mov(rbx, at::USER_DATA); mov(dword_ptr(rbx), 0x7fff_002b); mov(es, word_ptr(rbx)););
            Ok(())
        }),
        ("lfs", |a| far_pointer(a, &[0x0f, 0xb4, 0x03])),
        ("lgs_bad", |a| {
            asm!(a; mov(rbx, at::USER_DATA); mov(dword_ptr(rbx + 4), 0x408););
            a.db(&[0x0f, 0xb5, 0x03])
        }),
        ("lss_null", |a| {
            asm!(a; mov(rbx, at::USER_DATA); mov(dword_ptr(rbx + 4), 0););
            a.db(&[0x0f, 0xb2, 0x0b])
        }),
    ];
    for (name, code) in forms {
        for user in [false, true] {
            cases.push(case(format!("form_{name}_user{user}"), move |g| {
                if user {
                    g.start_in_user();
                    g.user_code(*code)
                } else {
                    g.code(*code)
                }
            }));
        }
    }
}

/// Loads a far pointer with [`sel::USER_DATA`] into EAX and the register that `op` names.
fn far_pointer(a: &mut CodeAssembler, op: &[u8]) -> Result<(), IcedError> {
    asm!(a;
        mov(rbx, at::USER_DATA); mov(dword_ptr(rbx), 0x1234_5678);
        mov(dword_ptr(rbx + 4), i32::from(sel::USER_DATA)); mov(rax, -1i64);
    );
    a.db(op)
}

/// Bases: of descriptors, and what null selectors leave of the bases that WRMSR gave.
fn bases(cases: &mut Vec<Case>) {
    for (name, selector) in [("descriptor", sel::FREE), ("null", 0)] {
        cases.push(
            case(format!("fs_base_after_{name}"), move |g| {
                let raw = tables::descriptor(at::DATA as u32 | 0x8000_0000, 0xf_ffff, 0xf3, 0xc);
                g.set_descriptor(sel::FREE, raw);
                g.state.segs[4].base = 0x7777_0000_1234;
                g.code(|a| {
                    asm!(a; mov(eax, i32::from(selector)); mov(fs, eax););
                    Ok(())
                })
            })
            .amd(),
        );
    }
    cases.push(case("ds_base_ignored", |g| {
        g.set_descriptor(sel::FREE, tables::descriptor(0x1000, 0, 0x93, 0x4));
        g.poke_u64(at::DATA, 0x4242);
        g.code(|a| {
            asm!(a;
                mov(eax, i32::from(sel::FREE)); mov(ds, eax); mov(es, eax);
                mov(rbx, at::DATA); mov(rcx, ptr(rbx));
            );
            Ok(())
        })
    }));
}

/// LLDT and LTR.
fn system(cases: &mut Vec<Case>) {
    let rows: [Row; 6] = [
        ("ldt", 0x82, 0),
        ("ldt_not_present", 0x02, 0),
        ("tss", 0x89, 0),
        ("tss_busy", 0x8b, 0),
        ("tss_not_present", 0x09, 0),
        ("data", 0x93, 0xc),
    ];
    for (kind, task) in [("lldt", false), ("ltr", true)] {
        for (row, access, flags) in rows {
            cases.push(case(format!("{kind}_{row}"), move |g| {
                g.set_descriptor(
                    sel::FREE,
                    tables::descriptor(at::TSS as u32, 0x2068, access, flags),
                );
                g.watch("descriptor", at::GDT + u64::from(sel::FREE), 8);
                g.code(|a| load_system(a, task, sel::FREE))
            }));
        }
        for (what, selector) in [
            ("null", 0u16),
            ("null_rpl_3", 3),
            ("beyond_limit", 0x408),
            ("local", 0xc),
            ("at_table_end", 0x3f8),
        ] {
            cases.push(case(format!("{kind}_{what}"), move |g| {
                g.set_descriptor(
                    0x3f8,
                    tables::descriptor(at::TSS as u32, 0x67, if task { 0x89 } else { 0x82 }, 0),
                );
                g.code(|a| load_system(a, task, selector))
            }));
        }
        cases.push(case(format!("{kind}_cpl3"), move |g| {
            g.start_in_user();
            g.user_code(|a| load_system(a, task, sel::FREE))
        }));
        cases.push(case(format!("{kind}_base_not_canonical"), move |g| {
            let access = if task { 0x89 } else { 0x82 };
            let raw = tables::system_descriptor(NOT_CANONICAL_BASE, 0x67, access);
            g.set_descriptor(sel::FREE, raw[0]);
            g.set_descriptor(sel::FREE + 8, raw[1]);
            g.code(|a| load_system(a, task, sel::FREE))
        }));
    }
}

const NOT_CANONICAL_BASE: u64 = 0x8000_0000_0000;

fn load_system(a: &mut CodeAssembler, task: bool, selector: u16) -> Result<(), IcedError> {
    asm!(a; mov(eax, i32::from(selector)););
    if task {
        asm!(a; ltr(ax); str(ecx););
    } else {
        asm!(a; lldt(ax); sldt(ecx););
    }
    asm!(a; mov(edx, 1););
    Ok(())
}
