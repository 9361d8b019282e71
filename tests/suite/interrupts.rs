//! External interrupts: windows, the shadows of STI and MOV SS, HLT, frames.
//!
//! The interrupt is that of the 16550A's empty transmitter, which a store to its interrupt enable
//! register raises at once: so its arrival does not depend on time.

use super::{Case, Suite, case};
use crate::guest::{Action, Guest, asm, layout as at, layout::sel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::rflags;

/// Vector of the first line of the first 8259.
const BASE: u8 = 0x20;

/// Programs both 8259s, leaving only the UART's line open, and raises it. Clobbers AL and DX.
fn raise(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let writes: [(u16, u8); 10] = [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, BASE),
        (0xa1, BASE + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xef),
        (0xa1, 0xff),
    ];
    for (port, value) in writes {
        asm!(a; mov(al, i32::from(value)); out(i32::from(port), al););
    }
    // OUT2 connects the line; then the transmitter's interrupt is enabled.
    asm!(a;
        mov(edx, 0x3fc); mov(al, 8); out(dx, al);
        mov(edx, 0x3f9); mov(al, 2); out(dx, al);
        xor(edx, edx); xor(eax, eax);
    );
    Ok(())
}

/// After the interrupt is raised with IF clear; INC ECX counts how far the program gets.
type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn count(a: &mut CodeAssembler, n: usize) -> Result<(), IcedError> {
    for _ in 0..n {
        a.inc(ecx)?;
    }
    Ok(())
}

const WINDOWS: &[(&str, Code)] = &[
    ("closed", |a| count(a, 3)),
    ("sti", |a| {
        a.sti()?;
        count(a, 3)
    }),
    ("sti_sti", |a| {
        asm!(a; sti(); sti(););
        count(a, 3)
    }),
    ("sti_cli", |a| {
        asm!(a; sti(); cli(););
        count(a, 3)
    }),
    ("sti_inc_cli", |a| {
        asm!(a; sti(); inc(ecx); cli(););
        count(a, 3)
    }),
    ("sti_mov_ss", |a| {
        asm!(a; mov(ebx, i32::from(sel::DATA)); sti(); mov(ss, ebx););
        count(a, 3)
    }),
    ("sti_jump", |a| {
        let mut to = a.create_label();
        asm!(a; sti(); jmp(to); nop(); set_label(&mut to););
        count(a, 3)
    }),
    ("sti_ud2", |a| {
        asm!(a; sti(); ud2(););
        Ok(())
    }),
    ("sti_pushf", |a| {
        asm!(a; sti(); pushfq(); pop(rsi););
        count(a, 2)
    }),
    ("sti_rep", |a| {
        asm!(a; mov(rdi, at::DATA); mov(ecx, 5); sti(); rep().stosb(););
        count(a, 2)
    }),
    ("sti_rep_zero", |a| {
        asm!(a; xor(ecx, ecx); sti(); rep().stosb(););
        count(a, 2)
    }),
    ("sti_in", |a| {
        asm!(a; sti(); in_(al, 0x80); xor(eax, eax););
        count(a, 2)
    }),
    ("sti_out", |a| {
        asm!(a; sti(); out(0x80, al););
        count(a, 2)
    }),
    ("sti_hlt", |a| {
        asm!(a; sti(); hlt(););
        count(a, 2)
    }),
    ("popf", |a| {
        asm!(a; pushfq(); or(qword_ptr(rsp), 0x200); popfq(););
        count(a, 3)
    }),
    ("popf_mov_ss", |a| {
        asm!(a; mov(ebx, i32::from(sel::DATA)); pushfq(); or(qword_ptr(rsp), 0x200); popfq(); mov(ss, ebx););
        count(a, 3)
    }),
    ("iret", |a| {
        let mut to = a.create_label();
        asm!(a;
            mov(rsi, rsp); push(i32::from(sel::DATA)); push(rsi); push(0x202);
            push(i32::from(sel::CODE)); lea(rbx, ptr(to)); push(rbx); iretq(); set_label(&mut to);
        );
        count(a, 3)
    }),
    ("sti_int", |a| {
        asm!(a; sti(); int(0x80););
        count(a, 2)
    }),
    ("sti_syscall_free_loop", |a| {
        let mut again = a.create_label();
        asm!(a; sti(); set_label(&mut again); inc(ecx); cmp(ecx, 1000); jb(again););
        Ok(())
    }),
];

fn windows(cases: &mut Vec<Case>) {
    for (name, code) in WINDOWS {
        cases.push(
            case(format!("window_{name}"), move |g| {
                // The line stays up: the second time it is seen the case ends.
                g.actions(&[Action::Finish]);
                g.code(|a| {
                    raise(a)?;
                    code(a)
                })
            })
            .with_board(),
        );
    }
}

/// IF is set already when the line goes up: the OUT that raises it is the last instruction before.
fn raised_while_open(cases: &mut Vec<Case>) {
    for user in [false, true] {
        cases.push(
            case(format!("raised_while_open_user{user}"), move |g| {
                g.state.rflags |= rflags::IF | rflags::IOPL;
                let emit = |a: &mut CodeAssembler| {
                    raise(a)?;
                    count(a, 3)
                };
                if user {
                    g.start_in_user();
                    g.user_code(emit)
                } else {
                    g.code(emit)
                }
            })
            .with_board(),
        );
    }
    cases.push(
        case("interrupt_stack", |g| {
            g.set_gate(BASE + 4, 0x8e, 3);
            g.code(|a| {
                raise(a)?;
                a.sti()?;
                count(a, 3)
            })
        })
        .with_board()
        .on_interrupt_stack(),
    );
    cases.push(
        case("trap_gate_keeps_if", |g| {
            g.set_gate(BASE + 4, 0x8f, 0);
            g.code(|a| {
                raise(a)?;
                a.sti()?;
                count(a, 3)
            })
        })
        .with_board(),
    );
    cases.push(
        case("dpl_is_not_checked", |g| {
            g.state.rflags |= rflags::IF | rflags::IOPL;
            g.set_gate(BASE + 4, 0x8e, 0);
            g.start_in_user();
            g.user_code(|a| {
                raise(a)?;
                count(a, 3)
            })
        })
        .with_board(),
    );
    cases.push(
        case("gate_missing", |g| {
            g.set_gate(BASE + 4, 0x0e, 0);
            g.code(|a| {
                raise(a)?;
                a.sti()?;
                count(a, 3)
            })
        })
        .with_board()
        .delivering(BASE + 4),
    );
}

/// The handler acknowledges, quiets the UART and returns; the program runs on to its end.
fn served(cases: &mut Vec<Case>) {
    type Wait = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let waits: &[(&str, Wait)] = &[
        ("sti", |a| {
            a.sti()?;
            count(a, 5)
        }),
        ("sti_hlt", |a| {
            asm!(a; sti(); hlt(););
            count(a, 5)
        }),
        ("rep", |a| {
            asm!(a; mov(rdi, at::DATA); mov(ecx, 1000); sti(); rep().stosb(););
            Ok(())
        }),
        ("traced", |a| {
            asm!(a; pushfq(); or(qword_ptr(rsp), 0x300); popfq(); inc(ecx); inc(ecx);
                pushfq(); and(qword_ptr(rsp), !0x100); popfq(););
            Ok(())
        }),
    ];
    for (name, wait) in waits {
        cases.push(
            case(format!("served_{name}"), move |g| {
                let serve = at::CODE + 0x2000;
                quiet(g, serve)?;
                g.actions(&[Action::Call(serve); 12]);
                g.code(|a| {
                    raise(a)?;
                    wait(a)
                })
            })
            .with_board(),
        );
    }
    cases.push(
        case("masked_by_the_controller", |g| {
            g.code(|a| {
                raise(a)?;
                asm!(a; mov(al, 0xff); out(0x21, al); sti(););
                count(a, 5)
            })
        })
        .with_board(),
    );
    cases.push(
        case("not_again_without_end_of_interrupt", |g| {
            g.actions(&[Action::Resume, Action::Finish]);
            g.code(|a| {
                raise(a)?;
                a.sti()?;
                count(a, 5)
            })
        })
        .with_board(),
    );
}

/// Disables the UART's interrupt and ends the interrupt at the 8259; harmless for other events.
fn quiet(g: &mut Guest, address: u64) -> Result<(), IcedError> {
    g.code_at(address, address, |a| {
        asm!(a;
            mov(edx, 0x3f9); mov(al, 0); out(dx, al); mov(al, 0x20); out(0x20, al); ret();
        );
        Ok(())
    })
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    windows(&mut cases);
    raised_while_open(&mut cases);
    served(&mut cases);
    Suite {
        name: "interrupts",
        cases,
    }
}
