//! String instructions: sizes, directions, prefixes, faults in the middle, port strings.

use super::{Case, Suite, case};
use crate::guest::{Action, Guest, Size, asm, layout as at, pte};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::rflags;

/// A page of data, with nothing mapped on either side.
const PAGE: u64 = 0x90_0000_1000;
const FRAME: u64 = 0x40_0000;
/// A second such page.
const OTHER: u64 = 0x90_0001_1000;
const OTHER_FRAME: u64 = 0x40_8000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

const OPS: [(&str, Op); 5] = [
    ("movs", Op::Movs),
    ("stos", Op::Stos),
    ("lods", Op::Lods),
    ("scas", Op::Scas),
    ("cmps", Op::Cmps),
];

/// Machine code of `prefixes op`, of this element size.
fn encoded(op: Op, size: u64, prefixes: &[u8]) -> Vec<u8> {
    let mut code = prefixes.to_vec();
    match size {
        2 => code.insert(0, 0x66),
        8 => code.push(0x48),
        _ => {}
    }
    let base = match op {
        Op::Movs => 0xa4,
        Op::Cmps => 0xa6,
        Op::Stos => 0xaa,
        Op::Lods => 0xac,
        Op::Scas => 0xae,
    };
    code.push(base + u8::from(size > 1));
    code
}

/// Both pages, filled with a pattern.
fn pages(g: &mut Guest, source_bits: u64, destination_bits: u64) {
    let pattern: Vec<u8> = (0..4096u32).map(|i| (i * 7 + i / 256) as u8).collect();
    g.map(PAGE, FRAME, source_bits, Size::Kib4);
    g.map(OTHER, OTHER_FRAME, destination_bits, Size::Kib4);
    g.poke(FRAME, &pattern);
    g.poke(OTHER_FRAME, &pattern);
}

fn run(g: &mut Guest, user: bool, code: &[u8]) -> Result<(), IcedError> {
    if user {
        g.start_in_user();
        g.user_code(|a| a.db(code))
    } else {
        g.code(|a| a.db(code))
    }
}

fn registers(g: &mut Guest, source: u64, destination: u64, count: u64) {
    g.state.gpr[0] = 0x1122_3344_5566_7788;
    (g.state.gpr[1], g.state.gpr[6], g.state.gpr[7]) = (count, source, destination);
}

/// Every form, both directions, to completion.
fn plain(cases: &mut Vec<Case>) {
    for (name, op) in OPS {
        for size in [1u64, 2, 4, 8] {
            for (prefix, bytes) in [
                ("once", &[][..]),
                ("rep", &[0xf3][..]),
                ("repne", &[0xf2][..]),
                ("addr32", &[0x67, 0xf3][..]),
            ] {
                for down in [false, true] {
                    let case_name = format!("{name}_{size}_{prefix}_down{down}");
                    let code = encoded(op, size, bytes);
                    cases.push(case(case_name, move |g| {
                        pages(g, pte::ALL, pte::ALL);
                        registers(
                            g,
                            at::USER_DATA + 0x800,
                            at::USER_DATA + 0x900,
                            0xf_0000_0005,
                        );
                        if prefix != "addr32" {
                            g.state.gpr[1] = 5;
                        }
                        g.poke(at::USER_DATA + 0x7c0, &[0x88; 0x100]);
                        g.poke(at::USER_DATA + 0x8c0, &[0x88; 0x100]);
                        g.poke(
                            at::USER_DATA + 0x904,
                            &[0x88, 0x77, 0x66, 0x55, 1, 2, 3, 4, 9],
                        );
                        g.watch("below", at::USER_DATA + 0x8d8, 40);
                        g.watch("above", at::USER_DATA + 0x900, 40);
                        g.state.rflags |= if down { rflags::DF } else { 0 } | rflags::OSZAPC;
                        run(g, false, &code)
                    }));
                }
            }
        }
    }
}

/// The pointer runs out of its page after a few elements.
fn faults(cases: &mut Vec<Case>) {
    for (name, op) in OPS {
        for size in [1u64, 2, 8] {
            for down in [false, true] {
                for user in [false, true] {
                    for (what, off) in [("aligned", 0u64), ("straddling", 1)] {
                        if what == "straddling" && size == 1 {
                            continue;
                        }
                        let case_name = format!("fault_{name}_{size}_down{down}_user{user}_{what}");
                        let code = encoded(op, size, &[0xf3]);
                        cases.push(case(case_name, move |g| {
                            pages(g, pte::ALL, pte::ALL);
                            g.poke(FRAME, &[0x88; 4096]);
                            g.poke(OTHER_FRAME, &[0x88; 4096]);
                            // Three elements fit before the edge.
                            let edge = |page: u64, ahead: u64| {
                                if down {
                                    page + 2 * size - off
                                } else {
                                    page + 0x1000 - (3 + ahead) * size + off
                                }
                            };
                            registers(g, edge(PAGE, 1), edge(OTHER, 0), 20);
                            g.state.gpr[0] = 0x8888_8888_8888_8888;
                            g.state.rflags |= if down { rflags::DF } else { 0 };
                            g.watch("low", OTHER_FRAME, 32);
                            g.watch("high", OTHER_FRAME + 0xfe0, 32);
                            run(g, user, &code)
                        }));
                    }
                }
            }
        }
    }
}

/// The fault is repaired and the instruction goes on.
fn resumed(cases: &mut Vec<Case>) {
    for (name, op) in OPS {
        for what in ["source", "destination"] {
            cases.push(case(format!("resumed_{name}_{what}"), move |g| {
                pages(g, pte::ALL, pte::ALL);
                let page = if what == "source" { PAGE } else { OTHER };
                g.map(page + 0x1000, FRAME + 0x3000, 0, Size::Kib4);
                let slot = g.leaf_slot(page + 0x1000, Size::Kib4);
                g.poke(FRAME, &[0; 4096]);
                g.poke(OTHER_FRAME, &[0; 4096]);
                registers(g, PAGE + 0xffd, OTHER + 0xffe, 3);
                if what == "source" {
                    g.state.gpr[7] -= 0x400;
                } else {
                    g.state.gpr[6] -= 0x400;
                }
                g.state.gpr[0] = 0;
                g.state.gpr[1] = 6;
                let fix = at::CODE + 0x800;
                g.code_at(fix, fix, |a| {
                    asm!(a; mov(rax, (FRAME + 0x3000) | pte::ALL); mov(ptr(slot), rax); ret(););
                    Ok(())
                })?;
                g.actions(&[Action::Call(fix), Action::Finish]);
                g.watch("leaf", slot, 8);
                let code = encoded(op, 1, &[0xf3]);
                run(g, false, &code)
            }));
        }
    }
}

/// Rights, canonicality, counts of zero, overlap, large counts.
fn specials(cases: &mut Vec<Case>) {
    let bad = 0x8000_0000_0000u64;
    for (name, op) in OPS {
        cases.push(case(format!("zero_count_{name}"), move |g| {
            registers(g, bad, bad, 0);
            g.state.rflags |= rflags::OSZAPC;
            run(g, false, &encoded(op, 8, &[0xf3]))
        }));
        cases.push(case(format!("not_canonical_{name}"), move |g| {
            pages(g, pte::ALL, pte::ALL);
            registers(g, bad, bad, 2);
            run(g, false, &encoded(op, 4, &[0xf3]))
        }));
        cases.push(case(format!("read_only_{name}"), move |g| {
            pages(g, pte::P | pte::US, pte::P | pte::US);
            registers(g, PAGE + 0x100, OTHER + 0x100, 3);
            let slots = [
                g.leaf_slot(PAGE, Size::Kib4),
                g.leaf_slot(OTHER, Size::Kib4),
            ];
            g.watch("leaf1", slots[0], 8);
            g.watch("leaf2", slots[1], 8);
            run(g, true, &encoded(op, 1, &[0xf3]))
        }));
    }
    for (name, delta, down) in [
        ("ahead_1", 1u64, false),
        ("ahead_8", 8, false),
        ("behind_1", u64::MAX, false),
        ("ahead_1_down", 1, true),
        ("behind_3_down", 3u64.wrapping_neg(), true),
    ] {
        for size in [1u64, 8] {
            cases.push(case(format!("overlap_{name}_{size}"), move |g| {
                pages(g, pte::ALL, pte::ALL);
                let start = OTHER + 0x100 + if down { 0x40 } else { 0 };
                registers(g, start, start.wrapping_add(delta), 8);
                g.watch("around", OTHER_FRAME + 0xf0, 0x90);
                g.state.rflags |= if down { rflags::DF } else { 0 };
                run(g, false, &encoded(Op::Movs, size, &[0xf3]))
            }));
        }
    }
    cases.push(case("fs_override", |g| {
        pages(g, pte::ALL, pte::ALL);
        g.state.segs[4].base = PAGE;
        registers(g, 0x10, OTHER + 0x20, 4);
        g.watch("out", OTHER_FRAME + 0x20, 8);
        run(g, false, &[0x64, 0xf3, 0xa4])
    }));
    cases.push(case("long_fill", |g| {
        registers(g, 0, 0x40_0123, 0x1_0000);
        g.watch("first", 0x40_0120, 16);
        g.watch("last", 0x41_0118, 16);
        run(g, false, &encoded(Op::Stos, 1, &[0xf3]))
    }));
    cases.push(case("long_copy", |g| {
        pages(g, pte::ALL, pte::ALL);
        registers(g, FRAME + 3, 0x50_0005, 0x8000);
        g.watch("first", 0x50_0000, 16);
        g.watch("last", 0x50_7ff8, 16);
        run(g, false, &encoded(Op::Movs, 1, &[0xf3]))
    }));
    cases.push(case("wraps_at_4_gib", |g| {
        g.map(0xffff_f000, FRAME, pte::ALL, Size::Kib4);
        registers(g, 0, 0xffff_fffe, 4);
        g.watch("high", FRAME + 0xff8, 8);
        run(g, false, &[0x67, 0xf3, 0xaa])?;
        // Address 0 and 1 are the wrapped ones: the first page of RAM.
        g.watch("low", 0, 8);
        Ok(())
    }));
}

/// INS and OUTS: permission, faults.
fn port_strings(cases: &mut Vec<Case>) {
    for (name, code) in [
        ("insb", vec![0xf3u8, 0x6c]),
        ("insw", vec![0x66, 0xf3, 0x6d]),
        ("insd", vec![0xf3, 0x6d]),
        ("outsb", vec![0xf3, 0x6e]),
        ("outsw", vec![0x66, 0xf3, 0x6f]),
        ("outsd", vec![0xf3, 0x6f]),
    ] {
        for (what, user, iopl) in [
            ("cpl0", false, 0u64),
            ("cpl3", true, 0),
            ("cpl3_iopl3", true, 3),
        ] {
            for (place, offset) in [("inside", 0x100u64), ("at_edge", 0xffe)] {
                let code = code.clone();
                cases.push(case(format!("{name}_{what}_{place}"), move |g| {
                    pages(g, pte::ALL, pte::ALL);
                    registers(g, PAGE + offset, OTHER + offset, 3);
                    g.state.gpr[2] = 0x80;
                    g.watch("out", OTHER_FRAME + 0x100, 16);
                    run(g, user, &code)?;
                    g.state.rflags |= iopl << 12;
                    Ok(())
                }));
            }
        }
    }
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    plain(&mut cases);
    faults(&mut cases);
    resumed(&mut cases);
    specials(&mut cases);
    port_strings(&mut cases);
    Suite {
        name: "strings",
        cases,
    }
}
