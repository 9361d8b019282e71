//! One case for each way to raise each vector.

use super::super::case;
use super::{Case, Code, at_level, level};
use crate::guest::{asm, layout as at};
use iced_x86::code_asm::*;
use machine::state::{cr0, cr4, rflags};

/// The first address above the lower half.
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

/// Raised by plain instructions, at both levels.
const PLAIN: &[(&str, Code)] = &[
    ("de_div_by_zero", |a| {
        asm!(a; mov(eax, 7); cdq(); div(ecx););
        Ok(())
    }),
    ("de_div_overflow", |a| {
        asm!(a; mov(edx, 7); mov(ecx, 7); div(ecx););
        Ok(())
    }),
    ("de_idiv_overflow", |a| {
        asm!(a; mov(rax, i64::MIN as u64); cqo(); mov(rcx, u64::MAX); idiv(rcx););
        Ok(())
    }),
    ("de_div_memory", |a| {
        asm!(a; mov(eax, 7); mov(rbx, at::USER_DATA); div(byte_ptr(rbx)););
        Ok(())
    }),
    ("db_int1", |a| {
        asm!(a; nop(); int1(););
        Ok(())
    }),
    ("bp_int3", |a| {
        asm!(a; nop(); int3(););
        Ok(())
    }),
    ("bp_int_3", |a| {
        asm!(a; nop(););
        a.db(&[0xcd, 3])
    }),
    ("of_int_4", |a| {
        asm!(a; nop(); int(4););
        Ok(())
    }),
    ("ud_ud2", |a| a.ud2()),
    ("ud_ud1", |a| a.db(&[0x0f, 0xb9, 0xc0])),
    ("ud_ud0", |a| a.db(&[0x0f, 0xff, 0xc0])),
    ("ud_into", |a| a.db(&[0xce])),
    ("ud_push_es", |a| a.db(&[0x06])),
    ("ud_pop_ss", |a| a.db(&[0x17])),
    ("ud_daa", |a| a.db(&[0x27])),
    ("ud_aam", |a| a.db(&[0xd4, 10])),
    ("ud_bound", |a| a.db(&[0x62, 0x03])),
    ("ud_pusha", |a| a.db(&[0x60])),
    ("ud_far_call_direct", |a| a.db(&[0x9a, 0, 0, 0, 0, 0x10, 0])),
    ("ud_far_jump_direct", |a| a.db(&[0xea, 0, 0, 0, 0, 0x10, 0])),
    ("ud_group1_alias", |a| a.db(&[0x82, 0xc0, 1])),
    ("ud_salc", |a| a.db(&[0xd6])),
    ("ud_lock_register", |a| a.db(&[0xf0, 0x48, 0x01, 0xc0])),
    ("ud_lock_mov", |a| a.db(&[0xf0, 0x48, 0x89, 0x03])),
    ("ud_lock_nop", |a| a.db(&[0xf0, 0x90])),
    ("ud_lock_cmp", |a| a.db(&[0xf0, 0x48, 0x39, 0x03])),
    ("ud_lea_register", |a| a.db(&[0x8d, 0xc0])),
    ("ud_mov_to_cs", |a| a.db(&[0x8e, 0xc8])),
    ("ud_mov_segment_6", |a| a.db(&[0x8e, 0xf0])),
    ("ud_group5_7", |a| a.db(&[0xff, 0xf8])),
    ("ud_pop_group_1", |a| a.db(&[0x8f, 0xc8])),
    ("ud_cmpxchg8b_register", |a| a.db(&[0x0f, 0xc7, 0xc8])),
    ("ud_vex_without_avx", |a| a.db(&[0xc5, 0xf8, 0x77])),
    ("ud_lddqu_register", |a| a.db(&[0xf2, 0x0f, 0xf0, 0xc0])),
    ("longest", |a| {
        a.db(&[0x66; 14])?;
        a.db(&[0x90])
    }),
    ("gp_read_not_canonical", |a| {
        asm!(a; mov(rbx, NOT_CANONICAL); mov(rax, ptr(rbx)););
        Ok(())
    }),
    ("gp_write_not_canonical", |a| {
        asm!(a; mov(rbx, NOT_CANONICAL); mov(ptr(rbx), rax););
        Ok(())
    }),
    ("gp_sse_misaligned", |a| {
        asm!(a; mov(rbx, at::USER_DATA + 8); movaps(xmm0, ptr(rbx)););
        Ok(())
    }),
    ("gp_fxsave_misaligned", |a| {
        asm!(a; mov(rbx, at::USER_DATA + 8); fxsave(ptr(rbx)););
        Ok(())
    }),
    ("gp_mxcsr_reserved", |a| {
        asm!(a; mov(rbx, at::USER_DATA); mov(dword_ptr(rbx), 0x0100_0000); ldmxcsr(ptr(rbx)););
        Ok(())
    }),
    ("gp_jump_not_canonical", |a| {
        asm!(a; mov(rbx, NOT_CANONICAL); jmp(rbx););
        Ok(())
    }),
    ("gp_return_not_canonical", |a| {
        asm!(a; mov(rbx, NOT_CANONICAL); push(rbx); ret(););
        Ok(())
    }),
    ("ss_based_not_canonical", |a| {
        asm!(a; mov(rbp, NOT_CANONICAL); mov(rax, ptr(rbp)););
        Ok(())
    }),
    ("ss_by_rbp_despite_ds_override", |a| {
        asm!(a; mov(rbp, NOT_CANONICAL););
        a.db(&[0x3e, 0x48, 0x8b, 0x45, 0])
    }),
    ("gp_despite_ss_override", |a| {
        asm!(a; mov(rbx, NOT_CANONICAL); mov(rax, ptr(rbx).ss()););
        Ok(())
    }),
    ("mf_fwait", |a| {
        pending_x87(a)?;
        a.wait()
    }),
    ("mf_next_x87", |a| {
        pending_x87(a)?;
        a.fld1()
    }),
    ("mf_mmx", |a| {
        pending_x87(a)?;
        a.pxor(mm0, mm0)
    }),
    ("mf_not_for_fnstsw", |a| {
        pending_x87(a)?;
        asm!(a; fnstsw(ax); fnclex(); fld1(););
        Ok(())
    }),
    ("xm_divide", |a| {
        sse_unmasked(a)?;
        asm!(a; mov(eax, 1); cvtsi2ss(xmm0, eax); xorps(xmm1, xmm1); divss(xmm0, xmm1););
        Ok(())
    }),
    ("xm_invalid_packed", |a| {
        sse_unmasked(a)?;
        asm!(a; xorps(xmm1, xmm1); divps(xmm1, xmm1););
        Ok(())
    }),
];

/// An unmasked division by zero waits.
fn pending_x87(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    asm!(a;
        mov(rbx, at::USER_DATA); mov(word_ptr(rbx), 0x37b); fldcw(ptr(rbx));
        fld1(); fldz(); fdivp(st1, st0);
        nop();
    );
    Ok(())
}

/// Unmasks every SSE exception.
fn sse_unmasked(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    asm!(a; mov(rbx, at::USER_DATA); mov(dword_ptr(rbx), 0); ldmxcsr(ptr(rbx)););
    Ok(())
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, code) in PLAIN {
        for user in [false, true] {
            // At CPL 3 the host CPU is the oracle; /dev/kvm emulates none of these at CPL 0, and QEMU
            // has no such exceptions.
            let only_native = matches!(&name[..3], "mf_" | "xm_")
                || matches!(*name, "ud_pop_group_1" | "gp_mxcsr_reserved");
            if only_native && !user {
                continue;
            }
            let fpu = name.starts_with("mf") || name.starts_with("xm");
            let mut one = case(format!("{name}_{}", level(user)), move |g| {
                at_level(g, user, *code)
            });
            one.fpu = fpu;
            if matches!(&name[..3], "db_" | "bp_" | "of_") {
                one = one.software(&[0]);
            }
            cases.push(match (*name, user) {
                ("db_int1", false) => one.corrects(
                    &[
                        ("e0.vec", "0x1"),
                        ("e0.rip", "0x40002"),
                        ("e0.dr6", "0xffff0ff0"),
                    ],
                    "INT1 is a trap to vector 1 (SDM vol. 3, 6.4.4; /dev/kvm at CPL 3)",
                ),
                ("gp_mxcsr_reserved", _) => one.correct(
                    "e0.rip",
                    "0x50010",
                    "reserved bits of MXCSR are #GP (SDM vol. 2, LDMXCSR; a program on the host)",
                ),
                _ => one,
            });
        }
    }
    alignment(cases);
    without_os_support(cases);
}

/// #AC wants CPL 3, CR0.AM and RFLAGS.AC.
fn alignment(cases: &mut Vec<Case>) {
    let accesses: &[(&str, Code)] = &[
        ("word", |a| a.mov(ax, ptr(rbx + 1))),
        ("dword", |a| a.mov(eax, ptr(rbx + 2))),
        ("qword", |a| a.mov(rax, ptr(rbx + 4))),
        ("store", |a| a.mov(ptr(rbx + 4), rax)),
        ("push", |a| {
            asm!(a; lea(rsp, ptr(rbx + 0x104)); push(rax););
            Ok(())
        }),
        ("aligned", |a| a.mov(rax, ptr(rbx + 8))),
        ("byte", |a| a.mov(al, ptr(rbx + 3))),
        ("string", |a| {
            asm!(a; lea(rdi, ptr(rbx + 1)); mov(ecx, 3); rep().stosw(););
            Ok(())
        }),
        ("fld_qword", |a| a.fld(qword_ptr(rbx + 4))),
        ("page_crossing", |a| a.mov(rax, ptr(rbx + 0xffc))),
        ("sse_unaligned_form", |a| a.movups(xmm0, ptr(rbx + 4))),
    ];
    for (name, access) in accesses {
        for (what, am, ac, user) in [
            ("on", true, true, true),
            ("no_am", false, true, true),
            ("no_ac", true, false, true),
            ("cpl0", true, true, false),
        ] {
            if what != "on" && *name != "qword" {
                continue;
            }
            let silent = matches!(*name, "aligned" | "byte" | "sse_unaligned_form");
            let one = case(format!("ac_{name}_{what}"), move |g| {
                g.state.cr0 &= !cr0::AM;
                g.state.cr0 |= if am { cr0::AM } else { 0 };
                g.state.rflags |= if ac { rflags::AC } else { 0 };
                g.state.gpr[3] = at::USER_DATA;
                at_level(g, user, *access)
            });
            cases.push(if what == "on" && !silent {
                let kept = "interrupt gates leave AC alone (SDM vol. 3, 6.12.1.3)";
                one.correct("r.rfl", "0x40093", kept)
            } else {
                one
            });
        }
    }
}

/// What CR4 turns off.
fn without_os_support(cases: &mut Vec<Case>) {
    let xm = case("xm_without_osxmmexcpt_cpl3", |g| {
        g.state.cr4 &= !cr4::OSXMMEXCPT;
        at_level(g, true, |a| {
            sse_unmasked(a)?;
            asm!(a; xorps(xmm1, xmm1); divps(xmm1, xmm1););
            Ok(())
        })
    });
    cases.push(xm.corrects(
        &[("e0.vec", "0x6"), ("e0.rip", "0x50016")],
        "without CR4.OSXMMEXCPT an SSE exception is #UD (SDM vol. 3, 2.5); QEMU raises none",
    ));
}
