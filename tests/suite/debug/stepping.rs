//! RFLAGS.TF: one #DB after each instruction, and the instructions that make an exception of it.

use super::super::{Case, case};
use crate::guest::{Action, Guest, asm, layout as at, layout::sel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::{efer, rflags};

/// Code that is traced from its first instruction on, at CPL 0 or 3.
type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const TRACED: &[(&str, Code)] = &[
    ("plain", |a| {
        asm!(a; inc(eax); add(eax, 2); nop(););
        Ok(())
    }),
    ("branches", |a| {
        let [mut over, mut back] = [(); 2].map(|()| a.create_label());
        asm!(a;
            mov(ecx, 2); set_label(&mut back); dec(ecx); jne(back);
            jmp(over); nop(); set_label(&mut over); nop();
        );
        Ok(())
    }),
    ("call_return", |a| {
        let [mut over, mut function] = [(); 2].map(|()| a.create_label());
        asm!(a;
            call(function); jmp(over); set_label(&mut function); ret();
            set_label(&mut over); nop();
        );
        Ok(())
    }),
    ("rep_movs", |a| {
        asm!(a;
            mov(rsi, at::USER_DATA); mov(rdi, at::USER_DATA + 0x100); mov(ecx, 3);
            rep().movsb(); nop();
        );
        Ok(())
    }),
    ("rep_zero", |a| {
        asm!(a; xor(ecx, ecx); rep().movsb(); nop(););
        Ok(())
    }),
    ("repne_scas", |a| {
        asm!(a; mov(rdi, at::USER_DATA); mov(ecx, 5); mov(eax, 0); repne().scasb(); nop(););
        Ok(())
    }),
    ("pushf", |a| {
        asm!(a; pushfq(); pop(rax); nop(););
        Ok(())
    }),
    ("popf_clears", |a| {
        asm!(a; pushfq(); and(qword_ptr(rsp), !0x100); popfq(); nop(); nop(););
        Ok(())
    }),
    ("int_n", |a| {
        asm!(a; nop(); int(0x80); nop(););
        Ok(())
    }),
    ("int3", |a| {
        asm!(a; nop(); int3(); nop(););
        Ok(())
    }),
    ("ud2", |a| {
        asm!(a; nop(); ud2(););
        Ok(())
    }),
    ("page_fault", |a| {
        asm!(a; mov(rbx, 0x90_0000_0000u64); mov(rax, ptr(rbx)););
        Ok(())
    }),
    ("fpu", |a| {
        asm!(a; fld1(); fstp(st0); movaps(xmm0, xmm1););
        Ok(())
    }),
    ("memory", |a| {
        asm!(a; mov(rbx, at::USER_DATA); inc(dword_ptr(rbx)); push(rax); pop(rcx););
        Ok(())
    }),
    ("mov_segment", |a| {
        asm!(a; mov(eax, i32::from(sel::USER_DATA)); mov(ds, eax); mov(es, eax); nop(););
        Ok(())
    }),
];

/// Only at CPL 0.
const TRACED_CPL0: &[(&str, Code)] = &[
    ("mov_ss", |a| {
        asm!(a; mov(eax, i32::from(sel::DATA)); mov(ss, eax); nop(); nop(););
        Ok(())
    }),
    ("mov_ss_twice", |a| {
        asm!(a; mov(eax, i32::from(sel::DATA)); mov(ss, eax); mov(ss, eax); nop(); nop(););
        Ok(())
    }),
    ("mov_ss_then_int", |a| {
        asm!(a; mov(eax, i32::from(sel::DATA)); mov(ss, eax); int(0x80););
        Ok(())
    }),
    ("sti", |a| {
        asm!(a; cli(); sti(); nop(););
        Ok(())
    }),
    ("wrmsr", |a| {
        asm!(a; mov(ecx, 0xc000_0102u32); xor(eax, eax); xor(edx, edx); wrmsr(); nop(););
        Ok(())
    }),
    ("mov_cr3", |a| {
        asm!(a; mov(rax, cr3); mov(cr3, rax); nop(););
        Ok(())
    }),
    ("mov_cr0", |a| {
        asm!(a; mov(rax, cr0); mov(cr0, rax); nop(););
        Ok(())
    }),
    ("lidt", |a| {
        asm!(a; sub(rsp, 16); sidt(ptr(rsp)); lidt(ptr(rsp)); nop(););
        Ok(())
    }),
    ("out", |a| {
        asm!(a; out(0x80, al); nop(););
        Ok(())
    }),
    ("iret_keeps", |a| iret_with(a, 2 | rflags::TF)),
    ("iret_clears", |a| iret_with(a, 2)),
    ("iret_with_rf", |a| {
        iret_with(a, 2 | rflags::TF | rflags::RF)
    }),
];

fn iret_with(a: &mut CodeAssembler, flags: u64) -> Result<(), IcedError> {
    let mut to = a.create_label();
    asm!(a;
        mov(rcx, rsp); push(i32::from(sel::DATA)); push(rcx); push(flags as i32);
        push(i32::from(sel::CODE)); lea(rax, ptr(to)); push(rax); iretq();
        set_label(&mut to); nop(); nop();
    );
    Ok(())
}

fn resume_all(g: &mut Guest) {
    g.actions(&[Action::Resume; 40]);
    g.finish_on(13);
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, code) in TRACED {
        for user in [false, true] {
            cases.push(case(format!("tf_{name}_user{user}"), move |g| {
                g.state.rflags |= rflags::TF;
                traced(g, user, *code)?;
                if matches!(*name, "ud2" | "page_fault") {
                    g.actions(&[Action::Resume, Action::Finish]);
                }
                Ok(())
            }));
        }
    }
    for (name, code) in TRACED_CPL0 {
        cases.push(case(format!("tf_{name}"), move |g| {
            g.state.rflags |= rflags::TF;
            traced(g, false, *code)
        }));
    }
    setting(cases);
    system_calls(cases);
}

/// Runs the code with every event returned from.
fn traced(g: &mut Guest, user: bool, code: Code) -> Result<(), IcedError> {
    resume_all(g);
    let end = |a: &mut CodeAssembler| {
        code(a)?;
        // Untraced from here on.
        asm!(a; pushfq(); and(qword_ptr(rsp), !0x100); popfq(););
        Ok::<(), IcedError>(())
    };
    if user {
        g.start_in_user();
        g.user_code(end)
    } else {
        g.code(end)
    }
}

/// POPF and IRET that set TF: the first trap comes after the next instruction.
fn setting(cases: &mut Vec<Case>) {
    for user in [false, true] {
        cases.push(case(format!("popf_sets_tf_user{user}"), move |g| {
            traced(g, user, |a| {
                asm!(a; pushfq(); or(qword_ptr(rsp), 0x100); popfq(); nop(); inc(eax););
                Ok(())
            })
        }));
    }
    cases.push(case("popf_sets_tf_before_mov_ss", |g| {
        traced(g, false, |a| {
            asm!(a;
                mov(eax, i32::from(sel::DATA)); pushfq(); or(qword_ptr(rsp), 0x100); popfq();
                mov(ss, eax); nop(); nop();
            );
            Ok(())
        })
    }));
    cases.push(case("iret_to_user_sets_tf", |g| {
        resume_all(g);
        g.user_code(|a| {
            asm!(a; nop(); nop(); pushfq(); and(qword_ptr(rsp), !0x100); popfq(););
            Ok(())
        })?;
        g.code(|a| {
            asm!(a;
                push(i32::from(sel::USER_DATA)); mov(rax, at::USER_STACK); push(rax);
                push(0x102); push(i32::from(sel::USER_CODE)); mov(rax, at::USER_CODE); push(rax);
                iretq();
            );
            Ok(())
        })
    }));
}

/// SYSCALL and SYSRET: what SFMASK and R11 say of TF.
fn system_calls(cases: &mut Vec<Case>) {
    for masked in [false, true] {
        cases.push(case(format!("syscall_traced_masked_{masked}"), move |g| {
            resume_all(g);
            g.state.msrs.efer |= efer::SCE;
            g.state.msrs.lstar = at::CODE;
            g.state.msrs.sfmask = if masked { rflags::TF } else { 0 };
            g.code_at(at::CODE, at::CODE, |a| {
                asm!(a; nop(); nop(); sysretq(););
                Ok(())
            })?;
            g.start_in_user();
            g.state.rflags |= rflags::TF;
            g.user_code(|a| {
                asm!(a; nop(); syscall(); nop(); pushfq(); and(qword_ptr(rsp), !0x100); popfq(););
                Ok(())
            })
        }));
    }
}
