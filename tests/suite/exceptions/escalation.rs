//! Faults during delivery: in turn, as a double fault, or as shutdown (SDM vol. 3, tables 6-4, 6-5).

use super::super::case;
use super::{Case, Code, at_level};
use crate::guest::{Guest, Size, asm, layout as at, layout::sel, pte, tables};
use iced_x86::code_asm::*;

const MISSING: u64 = 0x90_0000_0000;

/// First events: name, vector, code.
const FIRST: [(&str, u8, Code); 8] = [
    ("de", 0, |a| {
        asm!(a; div(ecx););
        Ok(())
    }),
    ("ud", 6, |a| a.ud2()),
    ("bp", 3, |a| a.int3()),
    ("int", 0x21, |a| a.int(0x21)),
    ("np", 11, |a| {
        asm!(a; mov(eax, i32::from(sel::FREE)); mov(ds, eax););
        Ok(())
    }),
    ("ss", 12, |a| {
        asm!(a; mov(eax, i32::from(sel::FREE + 8)); mov(ss, eax););
        Ok(())
    }),
    ("gp", 13, |a| {
        asm!(a; mov(rbx, 1u64 << 63); mov(rax, ptr(rbx)););
        Ok(())
    }),
    ("pf", 14, |a| {
        asm!(a; mov(rbx, MISSING); mov(rax, ptr(rbx)););
        Ok(())
    }),
];

/// The #GP of [`FIRST`].
const GP: Code = FIRST[6].2;

/// What delivery of the first event meets.
type Spoil = fn(&mut Guest, u8);

const SECOND: [(&str, Spoil); 5] = [
    ("np", |g, vector| g.set_gate(vector, 0x6e, 0)),
    ("gp", |g, vector| g.set_raw_gate(vector, [0, 0])),
    ("ts", |g, vector| {
        let raw = tables::system_descriptor(at::TSS, 0x4a, 0x8b);
        g.set_descriptor(sel::TSS, raw[0]);
        g.set_descriptor(sel::TSS + 8, raw[1]);
        g.state.tr = g.segment(sel::TSS);
        g.set_gate(vector, 0xee, 7);
    }),
    ("pf", |g, vector| {
        // The gate's code descriptor lies in a page that is not there.
        g.set_raw_gate(vector, [0, 0]);
        g.poke_u64(at::TSS + 0x24, MISSING + 0x1800);
        g.set_gate(vector, 0xee, 1);
    }),
    ("pf_on_idt", |g, vector| {
        // The IDT straddles pages; the one with the first vector is not there.
        let frame = 0x40_0000;
        let idt = g.ram()[at::IDT as usize..][..0x1000].to_vec();
        g.poke(frame, &idt);
        g.map(MISSING + 0x1000, frame, pte::P | pte::RW, Size::Kib4);
        let below = (u64::from(vector) + 1) * 16;
        let image = g.ram()[at::IDT as usize..][below as usize..0x1000].to_vec();
        g.poke(frame, &image);
        g.state.idtr.base = MISSING + 0x1000 - below;
    }),
];

fn spoiled(g: &mut Guest) {
    g.set_descriptor(sel::FREE, tables::descriptor(0, 0xf_ffff, 0x12, 0xc));
    g.set_descriptor(sel::FREE + 8, tables::descriptor(0, 0xf_ffff, 0x12, 0xc));
    g.set_gate(8, 0x8e, 3);
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (first, vector, code) in FIRST {
        for (second, spoil) in SECOND {
            // The #PF and #DF handlers themselves must be reachable.
            if second == "pf_on_idt" && vector >= 8 {
                continue;
            }
            let one = case(format!("{first}_then_{second}"), move |g| {
                spoiled(g);
                spoil(g, vector);
                g.code(code)
            });
            let one = match first {
                "bp" | "int" => one.delivering_software(vector),
                _ => one.delivering(vector),
            };
            cases.push(one.on_interrupt_stack());
        }
    }
    double_faults(cases);
}

/// The double fault's own delivery fails: shutdown. Or it succeeds, from CPL 3.
fn double_faults(cases: &mut Vec<Case>) {
    for (name, spoil) in [
        ("not_present", (|g, _| g.set_gate(8, 0x6e, 0)) as Spoil),
        ("zero", |g, _| g.set_raw_gate(8, [0, 0])),
        ("stack_missing", |g, _| {
            g.poke_u64(at::TSS + 0x24, MISSING + 0x1800);
            g.set_gate(8, 0x8e, 1);
        }),
        ("selector_null", |g, _| {
            g.set_raw_gate(8, tables::gate(at::STUBS, 0, 0x8e, 0))
        }),
    ] {
        for user in [false, true] {
            cases.push(case(format!("triple_{name}_user{user}"), move |g| {
                g.set_gate(13, 0x6e, 0);
                spoil(g, 8);
                at_level(g, user, GP)
            }));
        }
    }
    cases.push(case("triple_no_idt", |g| {
        g.state.idtr.limit = 0;
        g.code(|a| a.ud2())
    }));
    cases.push(case("double_from_cpl3", |g| {
        g.set_gate(13, 0x6e, 0);
        at_level(g, true, GP)
    }));
    cases.push(
        case("double_on_interrupt_stack_from_cpl3", |g| {
            g.set_gate(13, 0x6e, 0);
            g.set_gate(8, 0x8e, 1);
            at_level(g, true, GP)
        })
        .on_interrupt_stack(),
    );
    // The kernel stack has run out: the page fault cannot push its frame.
    cases.push(
        case("stack_overflow_with_double_fault_stack", |g| {
            g.set_gate(8, 0x8e, 1);
            g.code(|a| {
                asm!(a; mov(rsp, MISSING + 0x2000); push(rax););
                Ok(())
            })
        })
        .on_interrupt_stack(),
    );
    cases.push(case("stack_overflow_without_one", |g| {
        g.code(|a| {
            asm!(a; mov(rsp, MISSING + 0x2000); push(rax););
            Ok(())
        })
    }));
}
