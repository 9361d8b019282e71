//! Gates: every way in which one can be bad, through exceptions and through INT n.

use super::super::case;
use super::{Case, Code, at_level, level};
use crate::guest::{Guest, asm, layout as at, layout::sel, tables};

/// The software interrupt of this suite.
const VECTOR: u8 = 0x21;
const UD: u8 = 6;

/// How the gate is bad.
type Spoil = fn(&mut Guest, u8);

fn stub(vector: u8) -> u64 {
    at::STUBS + u64::from(vector) * at::STUB_BYTES
}

fn gate_to(g: &mut Guest, vector: u8, selector: u16) {
    g.set_raw_gate(vector, tables::gate(stub(vector), selector, 0xee, 0));
}

/// A descriptor in the first free slot, and the gate to it.
fn gate_to_descriptor(g: &mut Guest, vector: u8, access: u8, flags: u8) {
    g.set_descriptor(sel::FREE, tables::descriptor(0, 0xf_ffff, access, flags));
    gate_to(g, vector, sel::FREE);
}

const GATES: &[(&str, Spoil)] = &[
    ("good", |g, v| g.set_gate(v, 0xee, 0)),
    ("trap_gate", |g, v| g.set_gate(v, 0xef, 0)),
    ("dpl_0", |g, v| g.set_gate(v, 0x8e, 0)),
    ("dpl_2", |g, v| g.set_gate(v, 0xce, 0)),
    ("not_present", |g, v| g.set_gate(v, 0x6e, 0)),
    ("type_task", |g, v| g.set_gate(v, 0xe5, 0)),
    ("type_286", |g, v| g.set_gate(v, 0xe6, 0)),
    ("type_call", |g, v| g.set_gate(v, 0xec, 0)),
    ("type_data", |g, v| g.set_gate(v, 0xf3, 0)),
    ("zero", |g, v| g.set_raw_gate(v, [0, 0])),
    ("null_selector", |g, v| gate_to(g, v, 0)),
    ("null_selector_rpl_3", |g, v| gate_to(g, v, 3)),
    ("selector_beyond_limit", |g, v| gate_to(g, v, 0x400)),
    ("data_selector", |g, v| gate_to(g, v, sel::DATA)),
    ("tss_selector", |g, v| gate_to(g, v, sel::TSS)),
    ("rpl_3_selector", |g, v| gate_to(g, v, sel::CODE | 3)),
    ("code_32", |g, v| gate_to(g, v, 8)),
    ("outer_code", |g, v| gate_to(g, v, sel::USER_CODE)),
    ("conforming", |g, v| gate_to_descriptor(g, v, 0x9e, 0xa)),
    ("conforming_dpl_3", |g, v| {
        gate_to_descriptor(g, v, 0xfe, 0xa)
    }),
    ("code_not_present", |g, v| {
        gate_to_descriptor(g, v, 0x1a, 0xa)
    }),
    ("code_long_and_32", |g, v| {
        gate_to_descriptor(g, v, 0x9a, 0xe)
    }),
    ("code_not_accessed", |g, v| {
        g.watch("descriptor", at::GDT + u64::from(sel::FREE), 8);
        gate_to_descriptor(g, v, 0x9a, 0xa);
    }),
    ("local_selector", |g, v| {
        g.poke_u64(at::LDT + 8, tables::descriptor(0, 0xf_ffff, 0x9a, 0xa));
        gate_to(g, v, 8 | 4);
    }),
    ("target_not_canonical", |g, v| {
        g.set_raw_gate(v, tables::gate(0x8000_0000_0000, sel::CODE, 0xee, 0));
    }),
    ("beyond_idt_limit", |g, v| {
        g.state.idtr.limit = u16::from(v) * 16 + 14
    }),
    ("at_idt_limit", |g, v| {
        g.state.idtr.limit = u16::from(v).max(14) * 16 + 15
    }),
];

const SOURCES: [(&str, u8, Code); 2] = [
    ("ud2", UD, |a| a.ud2()),
    ("int", VECTOR, |a| {
        asm!(a; nop(); int(i32::from(VECTOR)););
        Ok(())
    }),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (gate, spoil) in GATES {
        for (source, vector, code) in SOURCES {
            for user in [false, true] {
                let name = format!("gate_{gate}_{source}_{}", level(user));
                let one = case(name, move |g| {
                    spoil(g, vector);
                    g.state.rflags |= 0x200;
                    // #GP and #NP of the delivery have gates of their own on a known stack.
                    at_level(g, user, code)
                });
                let one = match source {
                    "int" => one.delivering_software(vector),
                    _ => one.delivering(vector),
                };
                cases.push(corrected(one, gate, source, user));
            }
        }
    }
    every_vector(cases);
}

/// What both oracles leave out.
fn corrected(one: Case, gate: &str, source: &str, user: bool) -> Case {
    match gate {
        "code_not_accessed" => one.correct(
            "m.descriptor",
            "0xaf9b000000ffff",
            "loading CS sets the accessed bit of its descriptor (SDM vol. 3, 3.4.5.1)",
        ),
        "target_not_canonical" => {
            let (rip, cs, rsp, ss) = match (source, user) {
                ("ud2", false) => ("0x40000", "0x10", "0x26000", "0x18"),
                ("ud2", true) => ("0x50000", "0x33", "0x5f000", "0x2b"),
                (_, false) => ("0x40001", "0x10", "0x26000", "0x18"),
                (_, true) => ("0x50001", "0x33", "0x5f000", "0x2b"),
            };
            let values = [
                ("e0.rip", rip),
                ("e0.cs", cs),
                ("e0.rfl", "0x10202"),
                ("e0.rsp", rsp),
                ("e0.ss", ss),
                ("e0.frame", "0x25fd0"),
                ("r.rsp", "0x25fc8"),
            ];
            let why =
                "#GP before the handler is entered (SDM vol. 2, INT n); QEMU faults at the target";
            one.corrects(&values, why)
        }
        _ => one,
    }
}

/// INT n for every vector: no error code is pushed, whatever the vector.
fn every_vector(cases: &mut Vec<Case>) {
    for vector in (0..=32u8).chain([0x7f, 0x80, 0xfe, 0xff]) {
        cases.push(
            case(format!("int_{vector:02x}_cpl3"), move |g| {
                // The stubs of vectors with an error code would take RIP for one.
                g.set_raw_gate(vector, tables::gate(stub(0x40), sel::CODE, 0xee, 0));
                g.start_in_user();
                g.user_code(|a| a.db(&[0xcd, vector]))
            })
            .software(&[0]),
        );
    }
}
