//! MOV to and from control registers, LMSW, SMSW, CLTS.

use super::super::case;
use super::{Case, Code, at_level};
use crate::guest::{asm, layout as at};
use iced_x86::code_asm::*;

const MOVES: &[(&str, Code)] = &[
    ("read_cr0", |a| a.mov(rax, cr0)),
    ("read_cr1", |a| a.db(&[0x0f, 0x20, 0xc8])),
    ("read_cr2", |a| a.mov(rax, cr2)),
    ("read_cr3", |a| a.mov(rax, cr3)),
    ("read_cr4", |a| a.mov(rax, cr4)),
    ("read_cr5", |a| a.db(&[0x0f, 0x20, 0xe8])),
    ("read_cr8", |a| a.mov(rax, cr8)),
    ("read_cr9", |a| a.db(&[0x44, 0x0f, 0x20, 0xc8])),
    ("write_cr1", |a| a.db(&[0x0f, 0x22, 0xc8])),
    ("write_cr6", |a| a.db(&[0x0f, 0x22, 0xf0])),
    ("write_cr2", |a| {
        asm!(a; mov(rax, u64::MAX); mov(cr2, rax); mov(rcx, cr2););
        Ok(())
    }),
    ("cr0_toggle_wp", |a| {
        asm!(a; mov(rax, cr0); xor(eax, 0x1_0000); mov(cr0, rax); mov(rcx, cr0););
        Ok(())
    }),
    ("cr0_toggle_ts_em_mp", |a| {
        asm!(a; mov(rax, cr0); xor(eax, 0xe); mov(cr0, rax); mov(rcx, cr0););
        Ok(())
    }),
    ("cr0_clear_et", |a| {
        asm!(a; mov(rax, cr0); and(eax, !0x10); mov(cr0, rax); mov(rcx, cr0););
        Ok(())
    }),
    ("cr0_clear_pe", |a| {
        asm!(a; mov(rax, cr0); and(eax, !1); mov(cr0, rax););
        Ok(())
    }),
    ("cr0_nw_without_cd", |a| {
        asm!(a; mov(rax, cr0); or(eax, 0x2000_0000); mov(cr0, rax););
        Ok(())
    }),
    ("cr0_nw_and_cd", |a| {
        asm!(a; mov(rax, cr0); or(eax, 0x6000_0000); mov(cr0, rax); mov(rcx, cr0););
        Ok(())
    }),
    ("cr0_high", |a| {
        asm!(a; mov(rax, cr0); mov(rcx, 1u64 << 32); or(rax, rcx); mov(cr0, rax););
        Ok(())
    }),
    ("cr0_undefined_low_bits", |a| {
        asm!(a; mov(rax, cr0); or(eax, 0x40); mov(cr0, rax); mov(rcx, cr0););
        Ok(())
    }),
    ("cr3_high", |a| {
        asm!(a; mov(rax, cr3); mov(rcx, 1u64 << 52); or(rax, rcx); mov(cr3, rax););
        Ok(())
    }),
    ("cr3_low_bits", |a| {
        asm!(a; mov(rax, cr3); or(eax, 0x18); mov(cr3, rax); mov(rcx, cr3););
        Ok(())
    }),
    ("cr3_ignored_low_bits", |a| {
        asm!(a; mov(rax, cr3); or(eax, 0x7); mov(cr3, rax); mov(rcx, cr3););
        Ok(())
    }),
    ("cr4_clear_pae", |a| {
        asm!(a; mov(rax, cr4); and(eax, !0x20); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_reserved", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x8000); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_high", |a| {
        asm!(a; mov(rax, cr4); mov(rcx, 1u64 << 32); or(rax, rcx); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_vmxe", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x2000); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_pcide", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x2_0000); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_osxsave", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x4_0000); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_fsgsbase", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x1_0000); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_la57", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x1000); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_umip", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x800); mov(cr4, rax););
        Ok(())
    }),
    ("cr4_smep_smap", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x30_0000); mov(cr4, rax); mov(rcx, cr4););
        Ok(())
    }),
    ("cr4_de_tsd_pge", |a| {
        asm!(a; mov(rax, cr4); or(eax, 0x8c); mov(cr4, rax); mov(rcx, cr4););
        Ok(())
    }),
    ("cr8_high", |a| {
        asm!(a; mov(eax, 0x10); mov(cr8, rax););
        Ok(())
    }),
    ("smsw_32", |a| {
        asm!(a; mov(rax, -1i64); smsw(eax););
        Ok(())
    }),
    ("smsw_64", |a| {
        asm!(a; mov(rax, -1i64); smsw(rax););
        Ok(())
    }),
    ("smsw_16", |a| {
        asm!(a; mov(rax, -1i64); smsw(ax););
        Ok(())
    }),
    ("smsw_memory", |a| {
        asm!(a; mov(rbx, at::USER_DATA); mov(qword_ptr(rbx), -1); smsw(ptr(rbx)); mov(rax, ptr(rbx)););
        Ok(())
    }),
    ("lmsw_sets", |a| {
        asm!(a; mov(eax, 0xffff); lmsw(ax); mov(rcx, cr0););
        Ok(())
    }),
    ("lmsw_clears", |a| {
        asm!(a; mov(eax, 0); lmsw(ax); mov(rcx, cr0););
        Ok(())
    }),
    ("lmsw_memory", |a| {
        asm!(a; mov(rbx, at::USER_DATA); mov(word_ptr(rbx), 8); lmsw(ptr(rbx)); mov(rcx, cr0););
        Ok(())
    }),
    ("clts", |a| {
        asm!(a; mov(rax, cr0); or(eax, 8); mov(cr0, rax); clts(); mov(rcx, cr0););
        Ok(())
    }),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, code) in MOVES {
        for user in [false, true] {
            cases.push(case(format!("{name}_user{user}"), move |g| {
                at_level(g, user, *code)
            }));
        }
    }
    wp(cases);
}

/// CR0.WP decides at once, without a flush.
fn wp(cases: &mut Vec<Case>) {
    use crate::guest::{Action, Size, pte};
    cases.push(case("wp_toggled_between_stores", |g| {
        g.map(0x90_0000_0000, 0x40_0000, pte::P, Size::Kib4);
        g.actions(&[Action::Skip(2), Action::Finish]);
        g.code(|a| {
            asm!(a;
                mov(rbx, 0x90_0000_0000u64); mov(rsi, cr0); mov(rdi, rsi); and(edi, !0x1_0000);
                mov(cr0, rdi); mov(ptr(rbx), ecx); mov(cr0, rsi); mov(ptr(rbx), eax);
                mov(cr0, rdi); mov(ptr(rbx), edx);
            );
            Ok(())
        })
    }));
}
