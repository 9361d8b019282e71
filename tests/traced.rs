//! Guests whose memory accesses are known, in normal blocks and in blocks of one instruction.

use crate::guest::layout::{self, DATA, sel};
use crate::guest::{Guest, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::state::Gpr;
use machine::units::{GuestPhys, Position, Vector};
use machine::vcpu::{Exit, Vcpu};
use std::sync::{Arc, Mutex};
use tcg_sim::instrument::{Counts, Direction, Instruments};
use tcg_sim::trace::{Access, Chunk, Delivered, Item};
use tcg_sim::{Engine, EngineOptions};

/// Where the handlers are: HLT, and 16 bytes further an IRET.
pub const HANDLER: u64 = layout::CODE + 0x8000;

/// Emits the code of a case.
pub type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// `R 8 60000`: direction, bytes, linear address; then what is out of the ordinary: `s` for the
/// processor's own, `=` and a physical address that is another, `+` and that of the second page, `@`
/// and a privilege level that is not 0.
pub fn text(access: &Access) -> String {
    let direction = match access.direction {
        Direction::Read => 'R',
        Direction::Write => 'W',
        Direction::Update => 'U',
    };
    let mut text = format!("{direction} {} {:x}", access.bytes, access.linear);
    if access.system {
        text += " s";
    }
    if access.physical.0 != access.linear {
        text += &format!(" ={:x}", access.physical.0);
    }
    if let Some(second) = access.second {
        text += &format!(" +{:x}", second.0);
    }
    if access.cpl != 0 {
        text += &format!(" @{}", access.cpl);
    }
    text
}

/// Runs a guest to its HLT; the value of each port read is 0x5a.
pub fn run(guest: &Guest, one_instruction_blocks: bool, interrupt: Option<u64>) -> Vec<Chunk> {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("RAM is small"));
    ram.write(GuestPhys(0), guest.ram())
        .expect("the image fits");
    let options = EngineOptions {
        one_instruction_blocks,
        ..EngineOptions::default()
    };
    let cpuid = CpuidTable::x86_64_v2();
    let mut engine = Engine::new(ram, cpuid, options).expect("this host runs the engine");
    let start = Position::at(1_000);
    engine.load(&guest.state, start).expect("a valid state");
    let chunks = Arc::new(Mutex::new(Vec::new()));
    engine.set_instruments(Instruments::none().with_memory_trace(Box::new(chunks.clone())));
    if let Some(steps) = interrupt {
        let at = Position::at(1_000 + steps);
        assert_eq!(engine.run(Some(at)).expect("no limits"), Exit::Reached);
        engine.inject_interrupt(Vector(0x40)).expect("IF is set");
    }
    loop {
        match engine.run(Some(Position::at(5_000))).expect("no limits") {
            Exit::Halt => break,
            Exit::PortRead { .. } => engine.complete_read(0x5a).expect("a read waits"),
            Exit::PortWrite { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    engine.finish_trace().expect("memory does not fail");
    std::mem::take(&mut *chunks.lock().expect("no panic under the lock"))
}

/// The guest with `emit` at CPL 0 and handlers that halt; RDI is the data, RSI a page further.
pub fn guest(emit: Emit) -> Guest {
    let mut guest = Guest::new();
    let code = |a: &mut CodeAssembler| {
        emit(a)?;
        a.hlt()
    };
    guest
        .code_at(layout::CODE, layout::CODE, code)
        .expect("the case assembles");
    for vector in [13u8, 14, 0x40] {
        let gate = tables::gate(HANDLER, sel::CODE, 0x8e, 0);
        guest.set_raw_gate(vector, gate);
    }
    let halt = |a: &mut CodeAssembler| a.hlt();
    guest
        .code_at(HANDLER, HANDLER, halt)
        .expect("HLT assembles");
    let resume = |a: &mut CodeAssembler| a.iretq();
    guest
        .code_at(HANDLER + 16, HANDLER + 16, resume)
        .expect("IRET assembles");
    guest.set_raw_gate(0x80, tables::gate(HANDLER + 16, sel::CODE, 0xee, 0));
    guest.state.gpr[Gpr::Rdi as usize] = DATA;
    guest.state.gpr[Gpr::Rsi as usize] = DATA + 0x1000;
    guest.state.gpr[Gpr::Rbp as usize] = DATA + 0x800;
    guest
}

/// Runs a guest in both ways and compares all accesses; an interrupt comes after so many steps.
pub fn expect_in(guest: &Guest, interrupt: Option<u64>, what: &str, expected: &[&str]) {
    for one in [false, true] {
        let chunks = run(guest, one, interrupt);
        let items = chunks.iter().flat_map(Chunk::items);
        let found: Vec<String> = items
            .filter_map(|item| match item {
                Item::Access(access) => Some(text(&access)),
                _ => None,
            })
            .collect();
        assert_eq!(found, expected, "{what}, one-instruction blocks: {one}");
    }
}

/// As [`expect_in`], for code at CPL 0.
pub fn expect(what: &str, emit: Emit, expected: &[&str]) {
    expect_in(&guest(emit), None, what, expected);
}

/// What was delivered, and the counts, in normal blocks and in blocks of one instruction.
pub fn deliveries(guest: &Guest, interrupt: Option<u64>) -> (Vec<Delivered>, Counts) {
    let [one, normal] = [true, false].map(|one| {
        let chunks = run(guest, one, interrupt);
        let (mut counts, mut delivered) = (Counts::default(), Vec::new());
        for item in chunks.iter().flat_map(Chunk::items) {
            item.count(&mut counts);
            if let Item::Delivery(delivery) = item {
                delivered.push(delivery);
            }
        }
        (delivered, counts)
    });
    assert_eq!(one, normal);
    one
}
