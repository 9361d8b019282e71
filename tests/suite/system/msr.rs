//! RDMSR and WRMSR.

use super::super::case;
use super::{Case, at_level};
use crate::guest::{Guest, asm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Writes, then reads back into RSI.
fn write(g: &mut Guest, user: bool, index: u32, value: u64) -> Result<(), IcedError> {
    let emit = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        asm!(a;
            mov(ecx, index); mov(eax, value as u32); mov(edx, (value >> 32) as u32); wrmsr();
            mov(rax, -1i64); mov(rdx, -1i64); rdmsr(); shl(rdx, 32); mov(rsi, rdx); or(rsi, rax);
        );
        Ok(())
    };
    if user {
        g.start_in_user();
        g.user_code(emit)
    } else {
        g.code(emit)
    }
}

const LOW: u64 = 0x1234_5678_9abc;
const HIGH: u64 = 0xffff_8765_4321_0123;
const BAD: u64 = 0x8000_0000_0000;

const WRITES: &[(&str, u32, &[u64])] = &[
    ("star", 0xc000_0081, &[u64::MAX]),
    ("lstar", 0xc000_0082, &[LOW, HIGH, BAD]),
    ("cstar", 0xc000_0083, &[LOW, BAD]),
    ("sfmask", 0xc000_0084, &[0x4_7700]),
    ("fs_base", 0xc000_0100, &[LOW, HIGH, BAD]),
    ("gs_base", 0xc000_0101, &[LOW, HIGH, BAD]),
    ("kernel_gs_base", 0xc000_0102, &[LOW, HIGH, BAD]),
    ("sysenter_cs", 0x174, &[0x10]),
    ("sysenter_esp", 0x175, &[0x1234_5678]),
    ("sysenter_eip", 0x176, &[0x1234_5678]),
    (
        "pat",
        0x277,
        &[0x0007_0406_0007_0406, 0x0001_0406_0507_0406, 0x2, 0x8],
    ),
    ("efer_toggle_sce", 0xc000_0080, &[0xd00]),
    ("efer_clear_lme", 0xc000_0080, &[0xc00]),
    ("efer_clear_lma", 0xc000_0080, &[0x901]),
    ("efer_reserved", 0xc000_0080, &[0xd02, 0xd01 | 1 << 63]),
    ("efer_svme", 0xc000_0080, &[0x1d01]),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, index, values) in WRITES {
        for (n, value) in values.iter().enumerate() {
            for user in [false, true] {
                cases.push(case(format!("wrmsr_{name}_{n}_user{user}"), move |g| {
                    write(g, user, *index, *value)
                }));
            }
        }
    }
    for (name, index) in [("unknown", 0x1234_5678u32), ("unknown_amd", 0xc000_1fff)] {
        cases.push(case(format!("rdmsr_{name}"), move |g| {
            g.code(|a| {
                asm!(a; mov(ecx, index); rdmsr(););
                Ok(())
            })
        }));
    }
    // The upper half of RCX is ignored, the upper halves of RAX and RDX are cleared.
    cases.push(case("rdmsr_register_halves", |g| {
        at_level(g, false, |a| {
            asm!(a; mov(rcx, 0xffff_ffff_c000_0081u64); mov(rax, -1i64); mov(rdx, -1i64); rdmsr(););
            Ok(())
        })
    }));
}
