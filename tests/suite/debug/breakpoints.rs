//! Breakpoints of DR0 to DR3: instructions, data, ports.

use super::super::{Case, case};
use crate::guest::{Action, Guest, Size, asm, layout as at, layout::sel, pte};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::{cr4, rflags};

const DATA: u64 = at::USER_DATA + 0x100;

/// DR7.R/W.
#[derive(Clone, Copy)]
enum Kind {
    Execute = 0,
    Write = 1,
    Port = 2,
    Access = 3,
}

/// Arms one breakpoint. `len` in bytes.
fn arm(g: &mut Guest, index: usize, address: u64, kind: Kind, len: u64) {
    let len_bits = [0, 0, 1, 0, 3, 0, 0, 0, 2][len as usize];
    g.state.dr[index] = address;
    g.state.dr7 |= 1 << (2 * index + 1) | (kind as u64 | len_bits << 2) << (16 + 4 * index);
}

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const TOUCHES: &[(&str, Code)] = &[
    ("load", |a| a.mov(rax, ptr(rbx))),
    ("store", |a| a.mov(ptr(rbx), rax)),
    ("modify", |a| a.inc(dword_ptr(rbx))),
    ("byte_below", |a| a.mov(al, ptr(rbx - 1))),
    ("byte_inside", |a| a.mov(ptr(rbx + 2), al)),
    ("byte_behind", |a| a.mov(ptr(rbx + 4), al)),
    ("straddles", |a| a.mov(ptr(rbx - 3), rax)),
    ("locked", |a| {
        asm!(a; lock().xadd(ptr(rbx), rax););
        Ok(())
    }),
    ("exchange_fails", |a| {
        asm!(a; mov(eax, 99); lock().cmpxchg(ptr(rbx), rcx););
        Ok(())
    }),
    ("sse_store", |a| a.movups(ptr(rbx), xmm0)),
    ("fld", |a| a.fld(dword_ptr(rbx))),
    ("push", |a| {
        asm!(a; mov(rcx, rsp); lea(rsp, ptr(rbx + 8)); push(rax); mov(rsp, rcx););
        Ok(())
    }),
    ("pop", |a| {
        asm!(a; mov(rcx, rsp); mov(rsp, rbx); pop(rax); mov(rsp, rcx););
        Ok(())
    }),
    ("stos", |a| {
        asm!(a; lea(rdi, ptr(rbx - 8)); mov(ecx, 6); rep().stosd(););
        Ok(())
    }),
    ("movs_source", |a| {
        asm!(a; lea(rsi, ptr(rbx - 2)); lea(rdi, ptr(rbx + 64)); mov(ecx, 8); rep().movsb(););
        Ok(())
    }),
    ("scas", |a| {
        asm!(a; lea(rdi, ptr(rbx - 2)); mov(ecx, 8); repe().scasb(););
        Ok(())
    }),
    ("prefetch", |a| a.prefetcht0(ptr(rbx))),
    ("clflush", |a| a.clflush(ptr(rbx))),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    data(cases);
    lengths(cases);
    data_specials(cases);
    instructions(cases);
    ports(cases);
}

fn run(g: &mut Guest, user: bool, code: Code) -> Result<(), IcedError> {
    g.actions(&[Action::Resume; 20]);
    g.finish_on(13);
    let with_end = |a: &mut CodeAssembler| {
        asm!(a; mov(rbx, DATA); mov(eax, 5););
        code(a)?;
        a.nop()
    };
    if user {
        g.start_in_user();
        g.user_code(with_end)
    } else {
        g.code(with_end)
    }
}

fn data(cases: &mut Vec<Case>) {
    for (name, code) in TOUCHES {
        for (kind_name, kind) in [("write", Kind::Write), ("access", Kind::Access)] {
            for user in [false, true] {
                cases.push(case(
                    format!("data_{kind_name}_{name}_user{user}"),
                    move |g| {
                        arm(g, 1, DATA, kind, 4);
                        run(g, user, *code)
                    },
                ));
            }
        }
    }
}

/// Lengths, at aligned addresses: others do not yield valid results (SDM vol. 3, 17.2.5).
fn lengths(cases: &mut Vec<Case>) {
    for len in [1u64, 2, 4, 8] {
        for address in [DATA, DATA + len] {
            for at_byte in 0..17u64 {
                if at_byte + 2 < address - DATA || at_byte > address - DATA + len {
                    continue;
                }
                let name = format!("length_{len}_at_{}_byte_{at_byte}", address - DATA);
                cases.push(case(name, move |g| {
                    arm(g, 0, address, Kind::Write, len);
                    g.state.gpr[6] = DATA + at_byte;
                    run(g, true, |a| a.mov(ptr(rsi), al))
                }));
            }
        }
    }
}

fn data_specials(cases: &mut Vec<Case>) {
    cases.push(case("data_two_at_once", |g| {
        arm(g, 0, DATA, Kind::Write, 4);
        arm(g, 3, DATA + 2, Kind::Access, 2);
        run(g, false, |a| {
            asm!(a; mov(ptr(rbx), eax); nop(););
            Ok(())
        })
    }));
    cases.push(case("data_across_pages", |g| {
        g.map(0x90_0000_0000, 0x40_0000, pte::ALL, Size::Kib4);
        g.map(0x90_0000_1000, 0x40_5000, pte::ALL, Size::Kib4);
        arm(g, 2, 0x90_0000_1000, Kind::Write, 1);
        g.actions(&[Action::Resume]);
        g.code(|a| {
            asm!(a; mov(rbx, 0x90_0000_0ffcu64); mov(ptr(rbx), rax););
            Ok(())
        })
    }));
    cases.push(case("disabled_does_nothing", |g| {
        arm(g, 0, DATA, Kind::Write, 4);
        g.state.dr7 &= !0xff;
        run(g, true, |a| a.mov(ptr(rbx), eax))
    }));
    for (name, bits) in [("local", 1u64), ("both", 3)] {
        cases.push(case(format!("enabled_{name}"), move |g| {
            arm(g, 0, DATA, Kind::Write, 4);
            g.state.dr7 = g.state.dr7 & !0xff | bits;
            run(g, true, |a| a.mov(ptr(rbx), eax))
        }));
    }
}

fn instructions(cases: &mut Vec<Case>) {
    for user in [false, true] {
        let base = if user { at::USER_CODE } else { at::CODE };
        let level = format!("user{user}");
        cases.push(case(format!("execute_once_{level}"), move |g| {
            arm(g, 0, base + 1, Kind::Execute, 1);
            g.actions(&[Action::Finish]);
            plain(g, user, |a| {
                asm!(a; nop(); inc(eax); nop(););
                Ok(())
            })
        }));
        cases.push(case(
            format!("execute_first_instruction_{level}"),
            move |g| {
                arm(g, 0, base, Kind::Execute, 1);
                plain(g, user, |a| a.inc(eax))
            },
        ));
        cases.push(case(format!("execute_with_rf_{level}"), move |g| {
            arm(g, 0, base, Kind::Execute, 1);
            g.state.rflags |= rflags::RF;
            plain(g, user, |a| a.inc(eax))
        }));
        cases.push(case(
            format!("execute_middle_of_instruction_{level}"),
            move |g| {
                arm(g, 0, base + 1, Kind::Execute, 1);
                plain(g, user, |a| {
                    asm!(a; mov(eax, 5); nop(););
                    Ok(())
                })
            },
        ));
        cases.push(case(format!("execute_two_at_once_{level}"), move |g| {
            arm(g, 0, base, Kind::Execute, 1);
            arm(g, 2, base, Kind::Execute, 1);
            plain(g, user, |a| a.inc(eax))
        }));
        cases.push(case(format!("execute_before_fault_{level}"), move |g| {
            arm(g, 0, base, Kind::Execute, 1);
            plain(g, user, |a| a.ud2())
        }));
    }
    returning_with_rf(cases);
}

fn plain(g: &mut Guest, user: bool, code: Code) -> Result<(), IcedError> {
    if user {
        g.start_in_user();
        g.user_code(code)
    } else {
        g.code(code)
    }
}

/// The handler sets RF in the frame, or does not: then the breakpoint hits again.
fn returning_with_rf(cases: &mut Vec<Case>) {
    for (name, set) in [("set", true), ("left", false)] {
        cases.push(case(format!("execute_rf_{name}_by_handler"), move |g| {
            arm(g, 0, at::CODE + 1, Kind::Execute, 1);
            let fix = at::CODE + 0x800;
            g.code_at(fix, fix, |a| {
                if set {
                    // R8: vector, error code, RIP, CS, RFLAGS.
                    a.or(dword_ptr(r8 + 32), 0x1_0000)?;
                }
                a.ret()
            })?;
            g.actions(&[Action::Call(fix), Action::Call(fix), Action::Call(fix)]);
            g.code(|a| {
                asm!(a; nop(); inc(eax); inc(ecx););
                Ok(())
            })
        }));
    }
    cases.push(
        case("execute_after_mov_ss", |g| {
            arm(g, 0, at::CODE + 7, Kind::Execute, 1);
            g.code(|a| {
                asm!(a; mov(eax, i32::from(sel::DATA)); mov(ss, eax); nop(); nop(););
                Ok(())
            })
        })
        .amd(),
    );
    cases.push(case("execute_and_single_step", |g| {
        arm(g, 0, at::CODE + 1, Kind::Execute, 1);
        g.state.rflags |= rflags::TF;
        g.actions(&[Action::Finish]);
        g.code(|a| {
            asm!(a; nop(); nop(););
            Ok(())
        })
    }));
    cases.push(case("rf_survives_a_fault", |g| {
        // RF in the frame of the page fault lets the instruction run when it is returned to.
        g.map(0x90_0000_0000, 0x40_0000, 0, Size::Kib4);
        let slot = g.leaf_slot(0x90_0000_0000, Size::Kib4);
        arm(g, 0, at::CODE + 10, Kind::Execute, 1);
        g.state.rflags |= rflags::RF;
        let fix = at::CODE + 0x800;
        g.code_at(fix, fix, |a| {
            asm!(a;
                or(dword_ptr(r8 + 32), 0x1_0000); mov(rax, 0x40_0000 | pte::P);
                mov(ptr(slot), rax); ret();
            );
            Ok(())
        })?;
        g.actions(&[Action::Call(fix), Action::Call(fix), Action::Finish]);
        g.code(|a| {
            asm!(a; mov(rbx, 0x90_0000_0000u64); mov(rax, ptr(rbx)););
            Ok(())
        })
    }));
}

fn ports(cases: &mut Vec<Case>) {
    let touches: &[(&str, Code)] = &[
        ("out_byte", |a| a.out(0x80, al)),
        ("in_byte", |a| {
            asm!(a; in_(al, 0x80); mov(eax, 0););
            Ok(())
        }),
        ("out_dword_below", |a| a.out(0x7e, eax)),
        ("out_other", |a| a.out(0x84, al)),
    ];
    for (name, code) in touches {
        {
            cases.push(case(format!("port_{name}"), move |g| {
                g.actions(&[Action::Resume; 4]);
                g.state.cr4 |= cr4::DE;
                arm(g, 0, 0x80, Kind::Port, 2);
                g.code(*code)
            }));
        }
    }
}
