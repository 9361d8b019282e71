//! Reserved and ignored bits of entries; accessed and dirty bits.

use super::super::case;
use super::{Case, PAGE, Touch, frame, touch_page, watch};
use crate::guest::{Size, asm, pte};
use iced_x86::code_asm::*;

pub(super) fn cases(cases: &mut Vec<Case>) {
    reserved(cases);
    accessed_and_dirty(cases);
}

/// Reserved bits of leaves.
fn reserved(cases: &mut Vec<Case>) {
    for (size, bit) in [
        (Size::Kib4, 40),
        (Size::Kib4, 51),
        (Size::Mib2, 13),
        (Size::Mib2, 20),
        (Size::Mib2, 40),
        (Size::Gib1, 13),
        (Size::Gib1, 29),
        (Size::Gib1, 51),
    ] {
        for (kind, user) in [
            (Touch::Read, false),
            (Touch::Write, true),
            (Touch::Fetch, true),
        ] {
            let name = format!("reserved_{}_bit{bit}_{kind:?}", size.name());
            cases.push(case(name.to_lowercase(), move |g| {
                touch_page(g, size, pte::ALL | 1 << bit, kind, user)
            }));
        }
    }
    cases.push(case("reserved_pml4_ps", |g| {
        touch_page(g, Size::Kib4, pte::ALL, Touch::Read, false)?;
        let slot = g.walk_slots(PAGE, Size::Kib4)[0];
        let entry = g.peek_u64(slot);
        g.poke_u64(slot, entry | pte::PS);
        Ok(())
    }));
    for (name, size) in [("pat_2m", Size::Mib2), ("pat_1g", Size::Gib1)] {
        cases.push(case(name, move |g| {
            touch_page(g, size, pte::ALL | 1 << 12, Touch::Modify, false)
        }));
    }
    cases.push(case("software_bits_ignored", |g| {
        let soft = 0x7f << 52 | 7 << 9;
        touch_page(g, Size::Kib4, pte::ALL | soft, Touch::Modify, true)
    }));
}

/// Accessed and dirty bits, again after software cleared them.
fn accessed_and_dirty(cases: &mut Vec<Case>) {
    for (name, clear) in [
        ("dirty", pte::D),
        ("accessed", pte::A),
        ("both", pte::A | pte::D),
    ] {
        for size in [Size::Kib4, Size::Mib2] {
            cases.push(case(format!("clear_{name}_{}", size.name()), move |g| {
                g.map(PAGE, frame(size), pte::P | pte::RW, size);
                let slot = g.leaf_slot(PAGE, size);
                watch(g, size);
                g.code(|a| {
                    asm!(a;
                        mov(rbx, PAGE); mov(qword_ptr(rbx), 1); mov(rax, ptr(slot));
                        mov(rcx, !clear); and(ptr(slot), rcx); invlpg(ptr(rbx));
                        mov(rdx, ptr(rbx)); mov(rsi, ptr(slot));
                        mov(qword_ptr(rbx), 2); mov(rdi, ptr(slot));
                    );
                    Ok(())
                })
            }));
        }
    }
}
