//! Accesses and fetches over a page boundary.

use super::super::case;
use super::{Case, PAGE, Touch, touch};
use crate::guest::{Size, pte};

/// The page behind the boundary.
const SECOND: u64 = PAGE + 0x1000;

pub(super) fn cases(cases: &mut Vec<Case>) {
    accesses(cases);
    fetches(cases);
}

fn accesses(cases: &mut Vec<Case>) {
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
                        g.map(SECOND, 0x40_3000, second_bits.unwrap_or(0), Size::Kib4);
                        g.poke(0x40_5ff0, &[0x5a; 16]);
                        g.poke(0x40_3000, &[0xa5; 16]);
                        g.watch("first", 0x40_5ff8, 8);
                        g.watch("second", 0x40_3000, 8);
                        let slots = [
                            g.leaf_slot(PAGE, Size::Kib4),
                            g.leaf_slot(SECOND, Size::Kib4),
                        ];
                        g.watch("pte1", slots[0], 8);
                        g.watch("pte2", slots[1], 8);
                        let va = SECOND - back;
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
}

fn fetches(cases: &mut Vec<Case>) {
    for (what, second_bits) in [
        ("ok", pte::ALL),
        ("np", 0),
        ("nx", pte::ALL | pte::NX),
        ("s", pte::P),
    ] {
        for back in 1..=4u64 {
            cases.push(case(format!("cross_fetch_{what}_{back}"), move |g| {
                g.map(PAGE, 0x40_5000, pte::ALL, Size::Kib4);
                g.map(SECOND, 0x40_3000, second_bits, Size::Kib4);
                // MOV EAX, 0x44332211; JMP $ would loop: HLT ends it at CPL 3.
                let code = [0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4];
                let (head, tail) = code.split_at(back as usize);
                g.poke(0x40_6000 - back, head);
                g.poke(0x40_3000, tail);
                let slot = g.leaf_slot(SECOND, Size::Kib4);
                g.watch("pte2", slot, 8);
                g.start_in_user();
                g.state.rip = SECOND - back;
                Ok(())
            }));
        }
    }
}
