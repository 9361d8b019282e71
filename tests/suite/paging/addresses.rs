//! Edges of the linear and the physical address space.

use super::super::case;
use super::{Case, PAGE, Touch, touch};
use crate::guest::{Size, asm, pte};
use iced_x86::code_asm::*;

pub(super) fn cases(cases: &mut Vec<Case>) {
    canonical(cases);
    cases.push(case("high_half_and_top_page", |g| {
        let top = 0xffff_ffff_ffff_f000;
        g.map(top, 0x40_0000, pte::P | pte::RW, Size::Kib4);
        g.poke_u64(0x40_0ff8, 0x1234);
        g.code(|a| {
            asm!(a; mov(rbx, top); mov(rax, ptr(rbx + 0xff8)); mov(ptr(rbx), rax););
            Ok(())
        })
    }));
    let absent = case("absent_physical_memory", |g| {
        g.map(PAGE, 0x20_0000_0000, pte::P | pte::RW, Size::Kib4);
        g.code(|a| {
            asm!(a; mov(rbx, PAGE); mov(qword_ptr(rbx), 5); mov(eax, dword_ptr(rbx)););
            Ok(())
        })
    });
    let all_ones = "space outside RAM reads as all ones on a PC, and on kvm without a device";
    cases.push(absent.correct("r.rax", "0xffffffff", all_ones));
}

/// The lower half ends, the upper one begins.
fn canonical(cases: &mut Vec<Case>) {
    for (name, va) in [
        ("low_edge", 0x0000_8000_0000_0000u64),
        ("last_low_byte", 0x0000_7fff_ffff_fffc),
        ("high_edge", 0xffff_7fff_ffff_fff8),
    ] {
        for (what, kind) in [("read", Touch::Read), ("write", Touch::Write)] {
            cases.push(case(format!("canonical_{name}_{what}"), move |g| {
                g.map(
                    0x0000_7fff_ffff_f000,
                    0x40_0000,
                    pte::P | pte::RW,
                    Size::Kib4,
                );
                g.code(|a| touch(a, kind, va))
            }));
        }
        let stack = case(format!("canonical_{name}_stack"), move |g| {
            g.map(
                0x0000_7fff_ffff_f000,
                0x40_0000,
                pte::P | pte::RW,
                Size::Kib4,
            );
            g.code(|a| {
                asm!(a; mov(rsp, va); pop(rax); mov(edx, 1););
                Ok(())
            })?;
            g.set_gate(12, 0x8e, 1);
            g.set_gate(13, 0x8e, 1);
            g.set_gate(14, 0x8e, 1);
            Ok(())
        });
        let stack_fault = "#SS(0), not #GP(0), for the stack (SDM vol. 2, POP; kvm)";
        let same_level = "SS becomes null only when the CPL changes (SDM vol. 3, 6.14.2; kvm)";
        cases.push(
            stack
                .correct("e0.vec", "0xc", stack_fault)
                .absent("r.ss", same_level),
        );
    }
}
