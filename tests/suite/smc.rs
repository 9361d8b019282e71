//! Self-modifying and cross-modifying code: through the same page, through an alias, the next
//! instruction, an instruction of another page.

use super::{Case, Suite, case};
use crate::guest::{Action, Guest, Size, asm, layout as at, pte};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Another linear address of the page at [`at::CODE`].
const ALIAS: u64 = 0x90_0000_0000;
/// Immediate operand that the stores put into `mov ecx, imm32`.
const NEW: i32 = 0x5a5a;

/// How the new bytes get there; RBX points at the immediate, EAX holds [`NEW`].
type Store = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const STORES: &[(&str, Store)] = &[
    ("mov", |a| a.mov(ptr(rbx), eax)),
    ("mov_byte", |a| a.mov(ptr(rbx), al)),
    ("mov_imm", |a| a.mov(dword_ptr(rbx), NEW)),
    ("add", |a| a.add(ptr(rbx), eax)),
    ("xchg", |a| a.xchg(ptr(rbx), eax)),
    ("lock_xadd", |a| {
        asm!(a; lock().xadd(ptr(rbx), eax););
        Ok(())
    }),
    ("cmpxchg", |a| {
        asm!(a; mov(edx, eax); xor(eax, eax); lock().cmpxchg(ptr(rbx), edx););
        Ok(())
    }),
    ("sse", |a| {
        asm!(a; movd(xmm0, eax); movss(ptr(rbx), xmm0););
        Ok(())
    }),
    ("fistp", |a| {
        asm!(a; push(rax); fild(dword_ptr(rsp)); fistp(dword_ptr(rbx)););
        Ok(())
    }),
    ("push", |a| {
        asm!(a; mov(rdx, rsp); lea(rsp, ptr(rbx + 4)););
        // PUSH imm32 of four bytes would write eight: shift the value into the upper half.
        asm!(a; shl(rax, 32); or(rax, ptr(rbx - 4)); push(rax); mov(rsp, rdx););
        Ok(())
    }),
    ("stos", |a| {
        asm!(a; mov(rdi, rbx); stosd(););
        Ok(())
    }),
    ("rep_movs", |a| {
        asm!(a; push(rax); mov(rsi, rsp); mov(rdi, rbx); mov(ecx, 4); rep().movsb(););
        Ok(())
    }),
    ("setcc", |a| {
        asm!(a; stc(); setc(ptr(rbx)););
        Ok(())
    }),
];

/// Emits the store, then `gap` NOPs, then `mov ecx, 0`, whose immediate is the target.
fn store_ahead(g: &mut Guest, store: Store, gap: usize, alias: bool) -> Result<(), IcedError> {
    g.map(ALIAS, at::CODE, pte::P | pte::RW, Size::Kib4);
    let shift = if alias { ALIAS - at::CODE } else { 0 };
    // Assembled twice: the second time the immediate's address is known.
    let emit = |a: &mut CodeAssembler, target: u64| -> Result<(), IcedError> {
        asm!(a; mov(rbx, target + shift + (1 << 40)); mov(rdx, 1u64 << 40); sub(rbx, rdx); mov(eax, NEW););
        store(a)?;
        for _ in 0..gap {
            a.nop()?;
        }
        asm!(a; mov(ecx, 0););
        Ok(())
    };
    let mut probe = CodeAssembler::new(64)?;
    emit(&mut probe, at::CODE)?;
    let target = at::CODE + probe.assemble(at::CODE)?.len() as u64 - 4;
    g.watch("code", target - 1, 5);
    g.code(|a| emit(a, target))
}

fn ahead(cases: &mut Vec<Case>) {
    for (name, store) in STORES {
        for gap in [0usize, 1, 40] {
            for alias in [false, true] {
                cases.push(case(
                    format!("ahead_{name}_gap{gap}_alias{alias}"),
                    move |g| store_ahead(g, *store, gap, alias),
                ));
            }
        }
    }
}

/// A loop that changes an instruction in front of or behind the store, each time round.
fn loops(cases: &mut Vec<Case>) {
    for alias in [false, true] {
        for user in [false, true] {
            cases.push(case(
                format!("counter_in_code_alias{alias}_user{user}"),
                move |g| {
                    let base = if user { at::USER_CODE } else { at::CODE };
                    let code = if alias { ALIAS } else { base };
                    g.map(ALIAS, base, pte::ALL, Size::Kib4);
                    let emit = |a: &mut CodeAssembler| -> Result<(), IcedError> {
                        let mut again = a.create_label();
                        asm!(a;
                            mov(rbx, code + 16); mov(esi, 50); nop(); nop(); nop();
                        );
                        // At offset 18: add eax, imm32 (05 id), its immediate at 19.
                        asm!(a;
                            set_label(&mut again);
                            add(eax, 0x100); inc(dword_ptr(rbx + 3)); dec(esi); jne(again);
                        );
                        Ok(())
                    };
                    g.watch("code", base + 16, 8);
                    if user {
                        g.start_in_user();
                        g.user_code(emit)
                    } else {
                        g.code(emit)
                    }
                },
            ));
        }
    }
    cases.push(case("patched_function_called", |g| {
        let function = at::CODE + 0x2000;
        g.poke(function, &[0xb8, 1, 0, 0, 0, 0xc3]);
        g.code(|a| {
            let mut again = a.create_label();
            asm!(a;
                mov(rbx, function); xor(ecx, ecx); mov(esi, 30); set_label(&mut again);
                call(rbx); add(ecx, eax); add(byte_ptr(rbx + 1), 3); dec(esi); jne(again);
            );
            Ok(())
        })
    }));
    cases.push(case("data_beside_code", |g| {
        // Stores to the page that runs, but not to what runs.
        g.code(|a| {
            let mut again = a.create_label();
            asm!(a;
                mov(rbx, at::CODE + 0xf00); mov(ecx, 200); set_label(&mut again);
                add(ptr(rbx), ecx); dec(ecx); jne(again); mov(eax, ptr(rbx));
            );
            Ok(())
        })
    }));
}

/// Code that another code page changes, and code that straddles pages.
fn pages(cases: &mut Vec<Case>) {
    for back in 1..=4u64 {
        cases.push(case(format!("straddling_tail_changed_{back}"), move |g| {
            let second = ALIAS + 0x1000;
            g.map(ALIAS, 0x40_0000, pte::P | pte::RW, Size::Kib4);
            g.map(second, 0x40_5000, pte::P | pte::RW, Size::Kib4);
            // MOV EAX, 0x04030201; RET over the boundary.
            let code = [0xb8u8, 1, 2, 3, 4, 0xc3];
            let (head, tail) = code.split_at(back as usize);
            g.poke(0x40_1000 - back, head);
            g.poke(0x40_5000, tail);
            g.code(|a| {
                let mut again = a.create_label();
                asm!(a;
                    mov(rbx, second - back); mov(rsi, second); xor(edx, edx); mov(ecx, 20);
                    set_label(&mut again);
                    call(rbx); add(rdx, rax); inc(byte_ptr(rsi)); dec(ecx); jne(again);
                );
                Ok(())
            })
        }));
    }
    cases.push(case("store_straddles_into_code", |g| {
        // The last bytes of an eight-byte store change the first instruction of the next page.
        g.map(ALIAS, 0x40_0000, pte::P | pte::RW, Size::Kib4);
        g.map(ALIAS + 0x1000, 0x40_3000, pte::P | pte::RW, Size::Kib4);
        g.poke(0x40_3000, &[0xb0, 1, 0xc3]);
        g.code(|a| {
            asm!(a;
                mov(rbx, ALIAS + 0x1000); call(rbx); mov(ecx, eax);
                mov(rax, 0xc377_b000_0000_0000u64); mov(ptr(rbx - 5), rax);
                call(rbx); mov(edx, eax);
            );
            Ok(())
        })
    }));
    cases.push(case("copied_and_run", |g| {
        let source = at::CODE + 0x3000;
        g.poke(
            source,
            &[0xb8, 0x11, 0, 0, 0, 0xc3, 0xb8, 0x22, 0, 0, 0, 0xc3],
        );
        g.code(|a| {
            asm!(a;
                mov(rbx, 0x40_0000u64); mov(rsi, source); mov(rdi, rbx); mov(ecx, 6); rep().movsb();
                call(rbx); mov(edx, eax);
                mov(rdi, rbx); mov(ecx, 6); rep().movsb(); call(rbx);
            );
            Ok(())
        })
    }));
    cases.push(case("stack_in_the_code_page", |g| {
        // The return address that CALL pushes overwrites an instruction that ran before.
        g.code(|a| {
            let [mut function, mut over] = [(); 2].map(|()| a.create_label());
            asm!(a;
                mov(rsp, at::CODE + 0x808); jmp(over); set_label(&mut function); ret();
                set_label(&mut over); call(function); mov(rax, at::CODE + 0x7f0); call(rax);
                mov(edx, 7);
            );
            Ok(())
        })?;
        g.poke(at::CODE + 0x7f0, &[0xb9, 9, 0, 0, 0, 0xc3]);
        Ok(())
    }));
    cases.push(case("fxsave_over_code", |g| {
        g.code(|a| {
            asm!(a; mov(rbx, at::CODE + 0x2000); call(rbx); fxsave64(ptr(rbx)); call(rbx););
            Ok(())
        })?;
        // The image starts with FCW = 0x37f: 7f 03 is JG +3.
        g.poke(at::CODE + 0x2000, &[0xc3]);
        g.set_gate(6, 0x8e, 0);
        Ok(())
    }));
    cases.push(case("handler_patches_the_faulting_instruction", |g| {
        let fix = at::CODE + 0x800;
        g.code_at(fix, fix, |a| {
            asm!(a; mov(rax, ptr(r8 + 16)); mov(word_ptr(rax), 0x9090u32 as i32); ret(););
            Ok(())
        })?;
        g.actions(&[Action::Call(fix), Action::Call(fix), Action::Call(fix)]);
        g.code(|a| {
            asm!(a; ud2(); inc(ecx); ud2(); inc(ecx); ud2(); inc(ecx););
            Ok(())
        })
    }));
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    ahead(&mut cases);
    loops(&mut cases);
    pages(&mut cases);
    Suite { name: "smc", cases }
}
