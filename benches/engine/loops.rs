//! The loops. Registers at the start: RSI points at memory whose first quadword points at itself, RCX
//! holds the rounds, RSP is a stack.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, ptr, r8, r9, rax, rcx, rdx, rsi, rsp};
use simuboost_tests::guest::{Guest, asm};

/// Where the memory of the loops lies in a guest.
const DATA: u64 = 0x30_0000;

/// Emits one round. Labels are its own business.
type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A loop.
pub(crate) struct Loop {
    pub(crate) name: &'static str,
    /// What is counted, per round.
    pub(crate) units: u64,
    /// Rounds of the longer run.
    pub(crate) rounds: u64,
    body: Body,
}

/// All loops. The first is the yardstick.
pub(crate) const LOOPS: &[Loop] = &[
    Loop::new("dependent add", 16, additions),
    Loop::new("load", 16, loads),
    Loop::new("dependent load", 16, chase),
    Loop::new("store", 16, stores),
    Loop::new("stack access", 16, stack),
    Loop::new("read-modify-write", 16, updates),
    Loop::new("direct jump", 16, jumps),
    Loop::new("indirect jump", 16, indirect),
    Loop::new("call and return", 8, calls),
    Loop {
        rounds: 200_000,
        ..Loop::new("rep movsb of 1 KiB", 1, moves)
    },
];

impl Loop {
    const fn new(name: &'static str, units: u64, body: Body) -> Self {
        Self {
            name,
            units,
            rounds: 4_000_000,
            body,
        }
    }

    /// Emits `rcx` rounds.
    pub(crate) fn emit(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut top = a.create_label();
        asm!(a; mov(rax, rsi); mov(r9, rcx); set_label(&mut top););
        (self.body)(a)?;
        asm!(a; dec(r9); jne(top););
        Ok(())
    }

    /// A guest that does so many rounds.
    pub(crate) fn guest(&self, rounds: u64) -> Guest {
        let mut guest = Guest::new();
        guest.poke_u64(DATA, DATA);
        guest
            .code(|a| {
                asm!(a; mov(rsi, DATA); mov(rcx, rounds););
                self.emit(a)
            })
            .expect("the loops assemble");
        guest
    }
}

fn additions(a: &mut CodeAssembler) -> Result<(), IcedError> {
    (0..16).try_for_each(|_| a.add(rdx, 1))
}

fn loads(a: &mut CodeAssembler) -> Result<(), IcedError> {
    (0..16).try_for_each(|i| a.mov(rdx, ptr(rsi + 8 * i)))
}

fn chase(a: &mut CodeAssembler) -> Result<(), IcedError> {
    (0..16).try_for_each(|_| a.mov(rax, ptr(rax)))
}

fn stores(a: &mut CodeAssembler) -> Result<(), IcedError> {
    (1..17).try_for_each(|i| a.mov(ptr(rsi + 8 * i), rdx))
}

fn updates(a: &mut CodeAssembler) -> Result<(), IcedError> {
    (1..17).try_for_each(|i| a.add(ptr(rsi + 8 * i), rdx))
}

fn stack(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..4 {
        asm!(a; push(rdx); mov(r8, ptr(rsp)); mov(ptr(rsp), rdx); pop(r8););
    }
    Ok(())
}

fn jumps(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..16 {
        let mut next = a.create_label();
        asm!(a; jmp(next); int3(); set_label(&mut next); nop(););
    }
    Ok(())
}

fn indirect(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..16 {
        let mut next = a.create_label();
        asm!(a; lea(rdx, ptr(next)); jmp(rdx); int3(); set_label(&mut next); nop(););
    }
    Ok(())
}

fn calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut over) = (a.create_label(), a.create_label());
    for _ in 0..8 {
        a.call(function)?;
    }
    asm!(a; jmp(over); set_label(&mut function); ret(); set_label(&mut over); nop(););
    Ok(())
}

fn moves(a: &mut CodeAssembler) -> Result<(), IcedError> {
    use iced_x86::code_asm::{ecx, rdi};
    asm!(a; mov(r8, rsi); lea(rdi, ptr(rsi + 0x800)); mov(ecx, 1024););
    a.rep().movsb()?;
    a.mov(rsi, r8)
}
