//! A guest whose code is overwritten in every round.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, ecx, ptr, r9, r12, rax, rbx, rcx, rdi, rdx, rsi};
use simuboost_tests::guest::{Guest, asm};

/// Where the code runs, and where its original lies.
const CODE: u64 = 0x31_0000;
const ORIGINAL: u64 = 0x32_0000;
/// Groups of instructions.
const GROUPS: usize = 300;

/// Copies the code, runs it once, and so on.
pub(crate) fn guest(rounds: u64) -> Guest {
    let mut guest = Guest::new();
    let mut code = CodeAssembler::new(64).expect("64 is a bitness");
    work(&mut code).expect("the code assembles");
    let code = code.assemble(CODE).expect("the code assembles");
    guest.poke(ORIGINAL, &code);
    guest
        .code(|a| {
            let mut top = a.create_label();
            asm!(a;
                mov(r9, rounds);
                set_label(&mut top);
                mov(rsi, ORIGINAL); mov(rdi, CODE); mov(ecx, code.len() as u32);
            );
            a.rep().movsb()?;
            asm!(a; mov(rax, CODE); mov(rbx, 0x33_0000u64); call(rax); dec(r9); jne(top););
            Ok(())
        })
        .expect("the loop assembles");
    guest
}

/// Straight code with the mixture of ordinary programs.
fn work(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for group in 0..GROUPS as i32 {
        let mut over = a.create_label();
        asm!(a;
            mov(rdx, ptr(rbx + 8 * (group % 64)));
            add(rdx, group);
            lea(rcx, ptr(rdx + 4 * rax));
            push(rcx);
            test(rdx, rdx);
            je(over);
            mov(ptr(rbx + 8), rdx);
            set_label(&mut over);
            pop(r12);
            xor(r12, rdx);
        );
    }
    a.ret()
}
