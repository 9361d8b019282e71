//! Code whose mapping changes while it runs.

use super::super::case;
use super::{Case, PAGE};
use crate::guest::{Size, asm, pte};
use iced_x86::code_asm::*;

pub(super) fn cases(cases: &mut Vec<Case>) {
    cases.push(case("remap_code_under_loop", |g| {
        g.map(PAGE, 0x40_0000, pte::P | pte::RW, Size::Kib4);
        let slot = g.leaf_slot(PAGE, Size::Kib4);
        // Each frame holds a function that adds another number to RAX.
        for (frame, number) in [(0x40_0000u64, 1u8), (0x40_1000, 100)] {
            g.poke(frame, &[0x48, 0x83, 0xc0, number, 0xc3]);
        }
        g.code(|a| {
            let [mut again, mut go] = [(); 2].map(|()| a.create_label());
            asm!(a;
                mov(rbx, PAGE); mov(ecx, 20); xor(eax, eax);
                set_label(&mut again);
                call(rbx);
                cmp(ecx, 10); jne(go);
                mov(rdx, 0x40_1000 | pte::P); mov(ptr(slot), rdx); invlpg(ptr(rbx));
                set_label(&mut go);
                dec(ecx); jne(again);
            );
            Ok(())
        })
    }));
    cases.push(case("remap_next_code_page", |g| {
        // Straight-line code runs from one page into the next, whose frame changes.
        g.map(PAGE, 0x40_0000, pte::P, Size::Kib4);
        g.map(PAGE + 0x1000, 0x40_2000, pte::P, Size::Kib4);
        let slot = g.leaf_slot(PAGE + 0x1000, Size::Kib4);
        g.poke(0x40_0ffc, &[0x48, 0x83, 0xc0, 1]);
        g.poke(0x40_2000, &[0x48, 0x83, 0xc0, 16, 0xc3]);
        g.poke(0x40_3000, &[0x48, 0x83, 0xe8, 3, 0xc3]);
        g.code(|a| {
            let [mut again, mut go] = [(); 2].map(|()| a.create_label());
            asm!(a;
                mov(rbx, PAGE + 0xffc); mov(ecx, 30); xor(eax, eax);
                set_label(&mut again);
                call(rbx);
                cmp(ecx, 15); jne(go);
                mov(rdx, 0x40_3000 | pte::P); mov(ptr(slot), rdx); invlpg(ptr(rbx + 4));
                set_label(&mut go);
                dec(ecx); jne(again);
            );
            Ok(())
        })
    }));
    cases.push(case("code_page_unmapped_under_loop", |g| {
        g.map(PAGE, 0x40_0000, pte::P | pte::RW, Size::Kib4);
        let slot = g.leaf_slot(PAGE, Size::Kib4);
        g.poke(0x40_0000, &[0x48, 0xff, 0xc0, 0xc3]);
        g.code(|a| {
            let [mut again, mut go] = [(); 2].map(|()| a.create_label());
            asm!(a;
                mov(rbx, PAGE); mov(ecx, 20); xor(eax, eax);
                set_label(&mut again);
                call(rbx);
                cmp(ecx, 10); jne(go);
                mov(qword_ptr(slot), 0); invlpg(ptr(rbx));
                set_label(&mut go);
                dec(ecx); jne(again);
            );
            Ok(())
        })
    }));
}
