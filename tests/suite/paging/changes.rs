//! Tables that change under the guest's feet: data.

use super::super::case;
use super::{Case, PAGE, frame};
use crate::guest::{Action, Size, asm, layout as at, pte};
use iced_x86::code_asm::*;
use machine::state::cr4;

pub(super) fn cases(cases: &mut Vec<Case>) {
    remap(cases);
    large_pages(cases);
    upgrades(cases);
    spaces(cases);
}

fn remap(cases: &mut Vec<Case>) {
    // A loop over read, so that translations are warm, then a change, then another read.
    for (what, invlpg) in [("invlpg", true), ("coherent", false)] {
        for size in [Size::Kib4, Size::Mib2] {
            cases.push(case(format!("remap_{}_{what}", size.name()), move |g| {
                let other = match size {
                    Size::Kib4 => 0x40_9000,
                    _ => 0x60_0000,
                };
                g.map(PAGE, frame(size), pte::ALL, size);
                g.poke_u64(frame(size), 0xaaaa);
                g.poke_u64(other, 0xbbbb);
                let slot = g.leaf_slot(PAGE, size);
                let large = if size == Size::Kib4 { 0 } else { pte::PS };
                g.watch("leaf", slot, 8);
                g.code(|a| {
                    let mut again = a.create_label();
                    asm!(a;
                        mov(rbx, PAGE); mov(ecx, 100); set_label(&mut again);
                        mov(rax, ptr(rbx)); dec(ecx); jne(again);
                        mov(rdx, other | pte::ALL | large); mov(ptr(slot), rdx);
                    );
                    if invlpg {
                        a.invlpg(ptr(rbx))?;
                    } else {
                        asm!(a; mov(rsi, cr3); mov(cr3, rsi););
                    }
                    asm!(a; mov(rsi, ptr(rbx)); mov(qword_ptr(rbx), 0x55););
                    Ok(())
                })?;
                g.watch("old", frame(size), 8);
                g.watch("new", other, 8);
                Ok(())
            }));
        }
    }
}

fn large_pages(cases: &mut Vec<Case>) {
    for access in ["read", "write"] {
        cases.push(case(format!("invlpg_inside_2m_{access}"), move |g| {
            g.map(PAGE, 0x40_0000, pte::ALL, Size::Mib2);
            let slot = g.leaf_slot(PAGE, Size::Mib2);
            // INVLPG of one address voids the whole large page.
            g.code(|a| {
                asm!(a;
                    mov(rbx, PAGE); mov(rax, ptr(rbx + 0x5000)); mov(rax, ptr(rbx + 0x9000));
                    mov(rdx, 0u64); mov(ptr(slot), rdx);
                    invlpg(ptr(rbx + 0x1000));
                );
                if access == "read" {
                    a.mov(rax, ptr(rbx + 0x9000))
                } else {
                    a.mov(ptr(rbx + 0x9000), rax)
                }
            })
        }));
    }
    cases.push(case("large_to_small", |g| {
        g.map(PAGE, 0x40_0000, pte::ALL, Size::Mib2);
        g.poke_u64(0x40_3000, 0x1111);
        g.poke_u64(0x60_7000, 0x2222);
        let slot = g.leaf_slot(PAGE, Size::Mib2);
        let table = g.table_frame();
        for index in 0..512 {
            g.poke_u64(table + index * 8, (0x60_4000 + index * 0x1000) | pte::ALL);
        }
        g.code(|a| {
            asm!(a;
                mov(rbx, PAGE + 0x3000); mov(rax, ptr(rbx));
                mov(rdx, table | pte::ALL); mov(ptr(slot), rdx);
                invlpg(ptr(rbx));
                mov(rsi, ptr(rbx));
            );
            Ok(())
        })
    }));
}

/// More rights than before need no INVLPG.
fn upgrades(cases: &mut Vec<Case>) {
    cases.push(case("permission_upgrade_without_flush", |g| {
        g.map(PAGE, 0x40_0000, pte::P, Size::Kib4);
        let slot = g.leaf_slot(PAGE, Size::Kib4);
        g.watch("leaf", slot, 8);
        g.code(|a| {
            asm!(a;
                mov(rbx, PAGE); mov(rax, ptr(rbx));
                mov(rdx, 0x40_0000 | pte::P | pte::RW); mov(ptr(slot), rdx);
                mov(qword_ptr(rbx), 0x77); mov(rsi, ptr(rbx));
            );
            Ok(())
        })
    }));
    cases.push(case("not_present_to_present_without_flush", |g| {
        g.map(PAGE, 0x40_0000, 0, Size::Kib4);
        let slot = g.leaf_slot(PAGE, Size::Kib4);
        g.actions(&[Action::Resume]);
        g.poke_u64(0x40_0000, 0x4321);
        // The handler maps the page and the access is done again.
        g.code_at(at::CODE + 0x8000, at::CODE + 0x8000, |a| {
            asm!(a; mov(rax, 0x40_0000 | pte::P); mov(ptr(slot), rax); ret(););
            Ok(())
        })?;
        g.actions(&[Action::Call(at::CODE + 0x8000)]);
        g.code(|a| {
            asm!(a; mov(rbx, PAGE); mov(rsi, ptr(rbx)););
            Ok(())
        })
    }));
}

/// CR3 and CR4.PGE.
fn spaces(cases: &mut Vec<Case>) {
    for global in [false, true] {
        cases.push(case(format!("cr3_switch_global_{global}"), move |g| {
            g.state.cr4 |= cr4::PGE;
            let bits = pte::ALL | if global { pte::G } else { 0 };
            g.map(PAGE, 0x40_0000, bits, Size::Kib4);
            let other = g.clone_root();
            // The second space has its own table chain for the page.
            g.poke_u64(other + (PAGE >> 39 & 0x1ff) * 8, 0);
            g.map_in(other, PAGE, 0x40_1000, bits & !pte::G, Size::Kib4);
            g.poke_u64(0x40_0000, 0xaaaa);
            g.poke_u64(0x40_1000, 0xbbbb);
            g.code(|a| {
                asm!(a;
                    mov(rbx, PAGE); mov(rax, ptr(rbx));
                    mov(rcx, other); mov(cr3, rcx);
                );
                if global {
                    // A global entry may survive the switch (SDM vol. 3, 4.10.2.4); INVLPG drops it.
                    a.invlpg(ptr(rbx))?;
                }
                asm!(a;
                    mov(rsi, ptr(rbx));
                    mov(rcx, at::PML4); mov(cr3, rcx);
                );
                if global {
                    a.invlpg(ptr(rbx))?;
                }
                asm!(a; mov(rdi, ptr(rbx)););
                Ok(())
            })
        }));
    }
    cases.push(case("cr4_pge_toggle_flushes_globals", |g| {
        g.state.cr4 |= cr4::PGE;
        g.map(PAGE, 0x40_0000, pte::ALL | pte::G, Size::Kib4);
        g.poke_u64(0x40_0000, 0xaaaa);
        g.poke_u64(0x40_1000, 0xbbbb);
        let slot = g.leaf_slot(PAGE, Size::Kib4);
        g.code(|a| {
            asm!(a;
                mov(rbx, PAGE); mov(rax, ptr(rbx));
                mov(rdx, 0x40_1000 | pte::ALL | pte::G); mov(ptr(slot), rdx);
                mov(rcx, cr4); xor(rcx, 0x80); mov(cr4, rcx);
                mov(rsi, ptr(rbx)); xor(rcx, 0x80); mov(cr4, rcx);
            );
            Ok(())
        })
    }));
}
