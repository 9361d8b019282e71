//! Paging: every page size, right and reserved bit, at both privilege levels, and what happens when
//! tables change.

use super::{Case, Suite, case};
use crate::guest::{Action, Guest, Size, asm, layout as at, pte};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::{cr0, cr4, efer};

/// Where the page under test is mapped: aligned for every size, and the root's entry is its own.
const PAGE: u64 = 0x80_0000_0000;
/// Offset of the access inside the page.
const OFFSET: u64 = 0x1238;
/// Frame behind the page for each size; the data lies at frame + OFFSET.
fn frame(size: Size) -> u64 {
    match size {
        Size::Kib4 | Size::Mib2 => 0x40_0000,
        Size::Gib1 => 0,
    }
}
/// Linear address that reaches guest-physical 0x401238 through the page.
fn target(size: Size) -> u64 {
    match size {
        Size::Kib4 => PAGE + 0x238,
        Size::Mib2 => PAGE + OFFSET,
        Size::Gib1 => PAGE + 0x40_0000 + OFFSET,
    }
}
fn physical(size: Size) -> u64 {
    match size {
        Size::Kib4 => 0x40_0238,
        _ => 0x40_0000 + OFFSET,
    }
}

/// How the page is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touch {
    Read,
    Write,
    Modify,
    Fetch,
}

const TOUCHES: [Touch; 4] = [Touch::Read, Touch::Write, Touch::Modify, Touch::Fetch];

/// Touches `va` with the register-visible result in RAX; after the touch RDX is 1.
fn touch(a: &mut CodeAssembler, kind: Touch, va: u64) -> Result<(), IcedError> {
    asm!(a; mov(rbx, va); mov(rax, 0x1111u64););
    match kind {
        Touch::Read => {
            asm!(a; mov(rax, ptr(rbx)););
        }
        Touch::Write => {
            asm!(a; mov(ptr(rbx), rax););
        }
        Touch::Modify => {
            asm!(a; add(ptr(rbx), rax););
        }
        Touch::Fetch => {
            asm!(a; call(rbx););
        }
    }
    asm!(a; mov(edx, 1););
    Ok(())
}

/// The content of the page under test: MOV EAX, 0x77; RET, also read as data.
fn fill(g: &mut Guest, size: Size) {
    g.poke(physical(size), &[0xb8, 0x77, 0, 0, 0, 0xc3, 0x90, 0x90]);
}

/// Shows the entries that map the page and the data.
fn watch(g: &mut Guest, size: Size) {
    for (level, slot) in g.walk_slots(PAGE, size).into_iter().enumerate() {
        g.watch(&format!("l{}", 4 - level), slot, 8);
    }
    g.watch("data", physical(size), 8);
}

/// Runs `touch` at CPL 0 or 3 on a page whose leaf has `bits`.
fn touch_page(
    g: &mut Guest,
    size: Size,
    bits: u64,
    kind: Touch,
    user: bool,
) -> Result<(), IcedError> {
    g.map(PAGE, frame(size), bits, size);
    fill(g, size);
    watch(g, size);
    if user {
        g.start_in_user();
        g.user_code(|a| touch(a, kind, target(size)))
    } else {
        g.code(|a| touch(a, kind, target(size)))
    }
}

/// Size x leaf rights x access x privilege, WP on, SMEP and SMAP off.
fn rights(cases: &mut Vec<Case>) {
    let leaves = [
        ("np", pte::RW | pte::US),
        ("ro_s", pte::P),
        ("rw_s", pte::P | pte::RW),
        ("ro_u", pte::P | pte::US),
        ("rw_u", pte::ALL),
        ("rw_u_nx", pte::ALL | pte::NX),
        ("rw_s_nx", pte::P | pte::RW | pte::NX),
    ];
    for size in Size::ALL {
        for (leaf, bits) in leaves {
            for kind in TOUCHES {
                for user in [false, true] {
                    let name = format!(
                        "{}_{leaf}_{kind:?}_cpl{}",
                        size.name(),
                        if user { 3 } else { 0 }
                    );
                    cases.push(case(name.to_lowercase(), move |g| {
                        touch_page(g, size, bits, kind, user)
                    }));
                }
            }
        }
    }
}

/// The same right missing at an upper level only.
fn upper_levels(cases: &mut Vec<Case>) {
    for (what, clear, set) in [
        ("ro", pte::RW, 0),
        ("s", pte::US, 0),
        ("nx", 0, pte::NX),
        ("np", pte::P, 0),
        ("rsvd", 0, 1 << 45),
    ] {
        for level in 0..3usize {
            for (kind, user) in [
                (Touch::Write, true),
                (Touch::Fetch, true),
                (Touch::Read, true),
                (Touch::Write, false),
            ] {
                let name = format!("upper_{what}_l{}_{kind:?}_user{user}", 4 - level);
                cases.push(case(name.to_lowercase(), move |g| {
                    touch_page(g, Size::Kib4, pte::ALL, kind, user)?;
                    let slot = g.walk_slots(PAGE, Size::Kib4)[level];
                    let entry = g.peek_u64(slot);
                    g.poke_u64(slot, entry & !clear | set);
                    Ok(())
                }));
            }
        }
    }
}

/// Control-register bits that change what is allowed.
fn modes(cases: &mut Vec<Case>) {
    for (mode, cr0_clear, cr4_set, ac) in [
        ("nowp", cr0::WP, 0, false),
        ("smep", 0, cr4::SMEP, false),
        ("smap", 0, cr4::SMAP, false),
        ("smap_ac", 0, cr4::SMAP, true),
        ("smap_smep_nowp", cr0::WP, cr4::SMAP | cr4::SMEP, false),
        ("smap_nowp_ac", cr0::WP, cr4::SMAP, true),
    ] {
        for (leaf, bits) in [
            ("ro_s", pte::P),
            ("ro_u", pte::P | pte::US),
            ("rw_u", pte::ALL),
            ("rw_s", pte::P | pte::RW),
        ] {
            for kind in TOUCHES {
                for user in [false, true] {
                    let name = format!("{mode}_{leaf}_{kind:?}_user{user}");
                    cases.push(case(name.to_lowercase(), move |g| {
                        g.state.cr0 &= !cr0_clear;
                        g.state.cr4 |= cr4_set;
                        if ac {
                            g.state.rflags |= 1 << 18;
                        }
                        touch_page(g, Size::Kib4, bits, kind, user)
                    }));
                }
            }
        }
    }
    for kind in [Touch::Read, Touch::Fetch] {
        for (what, bits) in [("plain", pte::P), ("nx_reserved", pte::ALL | pte::NX)] {
            cases.push(case(
                format!("nxe_off_{what}_{kind:?}").to_lowercase(),
                move |g| {
                    g.state.msrs.efer &= !efer::NXE;
                    touch_page(g, Size::Kib4, bits, kind, true)
                },
            ));
        }
    }
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

/// Accesses and fetches over a page boundary.
fn crossing(cases: &mut Vec<Case>) {
    let second = PAGE + 0x1000;
    for (what, first_bits, second_bits) in [
        ("both", pte::ALL, Some(pte::ALL)),
        ("first_np", pte::RW | pte::US, Some(pte::ALL)),
        ("second_np", pte::ALL, Some(0)),
        ("second_ro", pte::ALL, Some(pte::P | pte::US)),
        ("second_s", pte::ALL, Some(pte::P | pte::RW)),
        ("both_ro", pte::P | pte::US, Some(pte::P | pte::US)),
    ] {
        for user in [false, true] {
            for kind in [Touch::Read, Touch::Write, Touch::Modify] {
                for back in [1u64, 4, 7] {
                    let name = format!("cross_{what}_{kind:?}_user{user}_{back}");
                    cases.push(case(name.to_lowercase(), move |g| {
                        // The two pages lie apart and in the wrong order.
                        g.map(PAGE, 0x40_5000, first_bits, Size::Kib4);
                        g.map(second, 0x40_3000, second_bits.unwrap_or(0), Size::Kib4);
                        g.poke(0x40_5ff0, &[0x5a; 16]);
                        g.poke(0x40_3000, &[0xa5; 16]);
                        g.watch("first", 0x40_5ff8, 8);
                        g.watch("second", 0x40_3000, 8);
                        let slots = [
                            g.leaf_slot(PAGE, Size::Kib4),
                            g.leaf_slot(second, Size::Kib4),
                        ];
                        g.watch("pte1", slots[0], 8);
                        g.watch("pte2", slots[1], 8);
                        let va = second - back;
                        if user {
                            g.start_in_user();
                            g.user_code(|a| touch(a, kind, va))
                        } else {
                            g.code(|a| touch(a, kind, va))
                        }
                    }));
                }
            }
        }
    }
    for (what, second_bits) in [
        ("ok", pte::ALL),
        ("np", 0),
        ("nx", pte::ALL | pte::NX),
        ("s", pte::P),
    ] {
        for back in 1..=4u64 {
            cases.push(case(format!("cross_fetch_{what}_{back}"), move |g| {
                g.map(PAGE, 0x40_5000, pte::ALL, Size::Kib4);
                g.map(second, 0x40_3000, second_bits, Size::Kib4);
                // MOV EAX, 0x44332211; JMP $ would loop: HLT ends it at CPL 3.
                let code = [0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4];
                let (head, tail) = code.split_at(back as usize);
                g.poke(0x40_6000 - back, head);
                g.poke(0x40_3000, tail);
                let slot = g.leaf_slot(second, Size::Kib4);
                g.watch("pte2", slot, 8);
                g.start_in_user();
                g.state.rip = second - back;
                Ok(())
            }));
        }
    }
}

/// Tables that change under the guest's feet.
fn changes(cases: &mut Vec<Case>) {
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
    // Code that is remapped while it loops.
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
    accessed_and_dirty(cases);
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
    cases.push(case("high_half_and_top_page", |g| {
        let top = 0xffff_ffff_ffff_f000;
        g.map(top, 0x40_0000, pte::P | pte::RW, Size::Kib4);
        g.poke_u64(0x40_0ff8, 0x1234);
        g.code(|a| {
            asm!(a; mov(rbx, top); mov(rax, ptr(rbx + 0xff8)); mov(ptr(rbx), rax););
            Ok(())
        })
    }));
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

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    rights(&mut cases);
    upper_levels(&mut cases);
    modes(&mut cases);
    reserved(&mut cases);
    crossing(&mut cases);
    changes(&mut cases);
    Suite {
        name: "paging",
        cases,
    }
}
