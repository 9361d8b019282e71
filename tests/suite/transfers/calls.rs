//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS.

use super::super::case;
use super::{Case, LANDING, NOT_CANONICAL, USER_LANDING, landings};
use crate::guest::{Guest, asm, layout as at};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::state::{efer, rflags};

/// SYSCALL allowed, entering at [`LANDING`].
fn enabled(g: &mut Guest) -> Result<(), IcedError> {
    landings(g)?;
    g.state.msrs.efer |= efer::SCE;
    g.state.msrs.lstar = LANDING;
    Ok(())
}

/// Every flag that a program can have without ill effect.
const FLAGS: u64 = 2 | rflags::OSZAPC | rflags::IF | rflags::DF | rflags::AC | rflags::ID;

pub(super) fn cases(cases: &mut Vec<Case>) {
    entries(cases);
    exits(cases);
    legacy(cases);
    cases.push(case("swapgs", |g| {
        g.state.msrs.kernel_gs_base = 0x1234_5678_9abc;
        g.state.segs[5].base = 0x4321;
        g.code(|a| a.swapgs())
    }));
    cases.push(case("swapgs_cpl3", |g| {
        g.start_in_user();
        g.user_code(|a| a.swapgs())
    }));
}

fn entries(cases: &mut Vec<Case>) {
    for (name, mask) in [
        ("none", 0u64),
        ("all", 0xffff_ffff),
        ("if_df", rflags::IF | rflags::DF),
        ("fixed", 2),
        ("ac", rflags::AC),
    ] {
        cases.push(case(format!("syscall_mask_{name}"), move |g| {
            enabled(g)?;
            g.state.msrs.sfmask = mask;
            g.state.rflags = FLAGS;
            // SYSCALL changes no stack: the landing's pushes go to the user's.
            g.start_in_user();
            g.user_code(|a| {
                asm!(a; mov(r11d, 0x55); syscall(););
                Ok(())
            })
        }));
    }
    cases.push(case("syscall_cpl0", |g| {
        enabled(g)?;
        g.code(|a| a.syscall())
    }));
    for user in [false, true] {
        cases.push(case(format!("syscall_disabled_user{user}"), move |g| {
            landings(g)?;
            g.state.msrs.efer &= !efer::SCE;
            if user {
                g.start_in_user();
                g.user_code(|a| a.syscall())
            } else {
                g.code(|a| a.syscall())
            }
        }));
    }
    // The selectors come from STAR, whatever the GDT says of them.
    cases.push(case("syscall_odd_selectors", |g| {
        enabled(g)?;
        g.state.msrs.star = 0x13 << 32 | 0x23 << 48;
        g.start_in_user();
        g.user_code(|a| a.syscall())
    }));
}

fn exits(cases: &mut Vec<Case>) {
    for (name, flags) in [
        ("plain", 2u64),
        ("all", FLAGS),
        ("rf_vm", FLAGS | rflags::RF | rflags::VM),
        ("iopl_nt", 2 | rflags::IOPL | rflags::NT),
    ] {
        cases.push(case(format!("sysretq_{name}"), move |g| {
            enabled(g)?;
            g.code(|a| {
                asm!(a;
                    mov(rcx, USER_LANDING); mov(r11, flags); mov(rsp, at::USER_STACK); sysretq();
                );
                Ok(())
            })
        }));
    }
    for intel in [false, true] {
        let name = if intel { "intel" } else { "amd" };
        let one = case(format!("sysretq_not_canonical_{name}"), |g| {
            enabled(g)?;
            g.code(|a| {
                asm!(a; mov(rcx, NOT_CANONICAL); mov(r11d, 2); sysretq(););
                Ok(())
            })
        });
        cases.push(if intel { one.intel() } else { one.amd() });
    }
    cases.push(case("sysretq_cpl3", |g| {
        enabled(g)?;
        g.start_in_user();
        g.user_code(|a| a.sysretq())
    }));
    cases.push(case("sysretq_disabled", |g| {
        g.state.msrs.efer &= !efer::SCE;
        g.code(|a| a.sysretq())
    }));
    cases.push(case("syscall_and_back", |g| {
        enabled(g)?;
        g.code_at(LANDING, LANDING, |a| {
            asm!(a; mov(eax, cs); mov(ebx, ss); sysretq(););
            Ok(())
        })?;
        g.start_in_user();
        g.user_code(|a| {
            asm!(a; syscall(); mov(edx, cs); mov(esi, ss); syscall(); inc(edi););
            Ok(())
        })
    }));
}

/// #UD in long mode on AMD.
fn legacy(cases: &mut Vec<Case>) {
    for user in [false, true] {
        for (name, exit) in [("sysenter", false), ("sysexit", true), ("sysexitq", true)] {
            let wide = name == "sysexitq";
            cases.push(
                case(format!("{name}_user{user}"), move |g| {
                    landings(g)?;
                    g.state.msrs.sysenter_eip = LANDING;
                    g.state.msrs.sysenter_esp = at::KERNEL_STACK;
                    let emit = move |a: &mut CodeAssembler| {
                        asm!(a; mov(rcx, at::USER_STACK); mov(rdx, USER_LANDING););
                        match (exit, wide) {
                            (false, _) => a.sysenter(),
                            (true, false) => a.sysexit(),
                            (true, true) => a.sysexitq(),
                        }
                    };
                    if user {
                        g.start_in_user();
                        g.user_code(emit)
                    } else {
                        g.code(emit)
                    }
                })
                .amd(),
            );
        }
    }
}
