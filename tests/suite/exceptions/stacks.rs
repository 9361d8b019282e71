//! Stacks of handlers: RSP0 to RSP2, interrupt stacks, alignment, and stacks that fault.

use super::super::case;
use super::{Case, at_level, level};
use crate::guest::{Action, Guest, Size, asm, layout as at, layout::sel, pte, tables};
use iced_x86::code_asm::*;

/// A linear page for stacks, apart from everything else.
const STACK_PAGE: u64 = 0x90_0000_0000;
const UD: u8 = 6;
/// 32 bytes.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn tss_slot(index: u64) -> u64 {
    at::TSS + 4 + index * 8
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    interrupt_stacks(cases);
    alignment(cases);
    intermediate_levels(cases);
    nesting(cases);
    faulting_stacks(cases);
    task_state(cases);
}

fn interrupt_stacks(cases: &mut Vec<Case>) {
    for ist in 1..=7 {
        for user in [false, true] {
            cases.push(
                case(format!("ist{ist}_ud2_{}", level(user)), move |g| {
                    g.set_gate(UD, 0x8e, ist);
                    at_level(g, user, |a| a.ud2())
                })
                .on_interrupt_stack(),
            );
        }
    }
    for (name, vector) in [("gp", 13u8), ("pf", 14)] {
        cases.push(
            case(format!("ist3_{name}_with_error_code"), move |g| {
                g.set_gate(vector, 0x8e, 3);
                g.code(|a| {
                    let bad = if vector == 13 { 1u64 << 63 } else { STACK_PAGE };
                    asm!(a; mov(rbx, bad); mov(rax, ptr(rbx)););
                    Ok(())
                })
            })
            .on_interrupt_stack(),
        );
    }
}

/// The new RSP is aligned down to 16 bytes before the frame is pushed.
fn alignment(cases: &mut Vec<Case>) {
    for off in [1u64, 8, 15] {
        cases.push(case(format!("unaligned_same_stack_{off}"), move |g| {
            g.state.gpr[4] -= off;
            g.code(|a| a.ud2())
        }));
        cases.push(case(format!("unaligned_rsp0_{off}"), move |g| {
            g.poke_u64(tss_slot(0), at::KERNEL_STACK - off);
            at_level(g, true, |a| a.ud2())
        }));
        cases.push(
            case(format!("unaligned_ist_{off}"), move |g| {
                g.poke_u64(tss_slot(4), at::IST + at::IST_BYTES - off);
                g.set_gate(UD, 0x8e, 1);
                at_level(g, false, |a| a.ud2())
            })
            .on_interrupt_stack(),
        );
    }
}

/// A handler at CPL 1 or 2 runs on RSP1 or RSP2. It cannot use the recording handler (which reads
/// control registers): it leaves what it sees in memory and ends through INT 0x80.
fn intermediate_levels(cases: &mut Vec<Case>) {
    for dpl in [1u8, 2] {
        let one = case(format!("handler_at_cpl{dpl}"), move |g| {
            let code = sel::FREE | u16::from(dpl);
            g.set_descriptor(
                sel::FREE,
                tables::descriptor(0, 0xf_ffff, 0x9b | dpl << 5, 0xa),
            );
            g.poke_u64(tss_slot(u64::from(dpl)), at::DATA + 0x800 * u64::from(dpl));
            g.set_raw_gate(UD, tables::gate(at::CODE, code, 0x8e, 0));
            g.watch("frame", at::DATA + 0x800 * u64::from(dpl) - 40, 40);
            g.code(|a| {
                asm!(a; mov(eax, cs); mov(ebx, ss); mov(rcx, rsp); int(0x80););
                Ok(())
            })?;
            g.start_in_user();
            g.user_code(|a| a.ud2())
        });
        cases.push(one);
    }
}

/// A second event on the same interrupt stack overwrites the first frame; on another it does not.
fn nesting(cases: &mut Vec<Case>) {
    for (name, second) in [("same", 1u8), ("other", 2), ("none", 0)] {
        cases.push(
            case(format!("nested_on_{name}_stack"), move |g| {
                g.set_gate(UD, 0x8e, 1);
                g.set_gate(3, 0xee, second);
                g.code_at(at::CODE + 0x800, at::CODE + 0x800, |a| {
                    asm!(a; int3(); ret(););
                    Ok(())
                })?;
                g.actions(&[Action::Call(at::CODE + 0x800), Action::Finish]);
                g.code(|a| a.ud2())
            })
            .software(&[1])
            .on_interrupt_stack(),
        );
    }
}

/// The stack page of the handler is not what it should be. #PF and #SS run on an interrupt stack.
fn faulting_stacks(cases: &mut Vec<Case>) {
    let pages = [
        ("not_present", 0u64),
        ("read_only", pte::P),
        ("user", pte::ALL),
    ];
    for (page, bits) in pages {
        for (what, slot, ist, user) in [("rsp0", 0u64, 0u8, true), ("ist", 4, 1, false)] {
            let one = case(format!("stack_{page}_{what}"), move |g| {
                g.map(STACK_PAGE, 0x40_0000, bits, Size::Kib4);
                g.poke_u64(tss_slot(slot), STACK_PAGE + 0x800);
                g.set_gate(UD, 0x8e, ist);
                g.set_gate(14, 0x8e, 2);
                g.watch("frame", 0x40_0000 + 0x800 - 40, 40);
                at_level(g, user, |a| a.ud2())
            });
            cases.push(one.on_interrupt_stack());
        }
    }
    for below in [8u64, 16, 32] {
        cases.push(
            case(
                format!("stack_frame_crosses_into_missing_page_{below}"),
                move |g| {
                    // The frame's last quadwords lie in the page that is there.
                    g.map(STACK_PAGE + 0x1000, 0x40_0000, pte::P | pte::RW, Size::Kib4);
                    g.poke_u64(tss_slot(0), STACK_PAGE + 0x1000 + below);
                    g.set_gate(14, 0x8e, 2);
                    g.watch("present", 0x40_0000, 32);
                    at_level(g, true, |a| a.ud2())
                },
            )
            .correct(
                "m.present",
                NOTHING,
                "a frame is pushed whole or not at all: the engine's choice",
            )
            .on_interrupt_stack(),
        );
    }
    for (what, slot, ist, user) in [("rsp0", 0u64, 0u8, true), ("ist", 4, 1, false)] {
        cases.push(
            case(format!("stack_not_canonical_{what}"), move |g| {
                g.poke_u64(tss_slot(slot), 0x9000_0000_0000);
                g.set_gate(UD, 0x8e, ist);
                g.set_gate(12, 0x8e, 2);
                g.set_gate(13, 0x8e, 2);
                at_level(g, user, |a| a.ud2())
            })
            .delivering(UD)
            .correct(
                "e0.vec",
                "0xc",
                "#SS for the stack of a handler (SDM vol. 3, 6.15, interrupt 12)",
            )
            .on_interrupt_stack(),
        );
    }
}

fn shrink_tss(g: &mut Guest, limit: u32) {
    let raw = tables::system_descriptor(at::TSS, limit, 0x8b);
    g.set_descriptor(sel::TSS, raw[0]);
    g.set_descriptor(sel::TSS + 8, raw[1]);
    g.state.tr = g.segment(sel::TSS);
}

/// A TSS too short for the stack pointer asked for: #TS, which itself needs one.
fn task_state(cases: &mut Vec<Case>) {
    for (name, limit, ist, user) in [
        ("ist7_beyond_limit", 0x5au32, 7u8, false),
        ("ist7_at_limit", 0x5b, 7, false),
        ("ist1_beyond_limit", 0x2a, 1, false),
        ("rsp0_at_limit", 0x67, 0, true),
    ] {
        cases.push(
            case(format!("tss_{name}"), move |g| {
                shrink_tss(g, limit);
                g.set_gate(UD, 0x8e, ist);
                at_level(g, user, |a| a.ud2())
            })
            .delivering(UD)
            .on_interrupt_stack(),
        );
    }
    cases.push(case("tss_rsp0_beyond_limit_shuts_down", |g| {
        shrink_tss(g, 0xa);
        at_level(g, true, |a| a.ud2())
    }));
}
