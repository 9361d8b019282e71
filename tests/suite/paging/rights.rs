//! Rights of the page and of the levels above it, and the control bits that change them.

use super::super::case;
use super::{Case, PAGE, TOUCHES, Touch, touch_page};
use crate::guest::{Size, pte};
use machine::state::{cr0, cr4, efer};

pub(super) fn cases(cases: &mut Vec<Case>) {
    rights(cases);
    upper_levels(cases);
    modes(cases);
    without_nx(cases);
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
}

/// EFER.NXE off: the bit is reserved, and fetches have no bit of their own in the error code.
fn without_nx(cases: &mut Vec<Case>) {
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
