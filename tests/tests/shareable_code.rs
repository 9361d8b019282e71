//! Invariant E5 at length: what translated code depends on. Two engines that translate the same blocks in
//! the same order must have emitted the same bytes, wherever RAM, state block, code memory and counters
//! lie in the process (all are mapped or allocated anew for each engine), and wherever the guest has
//! mapped the code.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use iced_x86::code_asm::*;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{Position, Steps};
use machine::vcpu::Vcpu;
use simuboost_tests::guest::{End, Guest, Size, asm, layout as at, pte};
use simuboost_tests::hostile::trial;
use simuboost_tests::oracle::vcpu;
use simuboost_tests::recording::programs::Program;
use simuboost_tests::suite::{exceptions, smc, strings};
use std::num::NonZeroU64;
use std::sync::Arc;
use tcg_sim::instrument::Instruments;
use tcg_sim::selfcheck::bare::{self, Inputs};
use tcg_sim::{Engine, EngineOptions};

fn new_engine(ram: &Arc<Ram>, instrumented: bool) -> Engine {
    let options = EngineOptions {
        code_bytes: 8 << 20,
        one_instruction_blocks: false,
    };
    let mut engine = Engine::new(ram.clone(), trial::cpuid(), options).unwrap();
    if instrumented {
        let counts = Instruments::none().with_counts();
        engine.set_instruments(counts.with_memory_trace(Box::new(())));
    }
    engine
}

/// Code that two engines made of one guest, each with RAM of its own, both alive.
fn twice(what: &str, load: impl Fn(&Ram) -> CpuState, instrumented: bool) -> usize {
    let run = |_| {
        let ram = Arc::new(Ram::new(at::RAM_BYTES).unwrap());
        let state = load(&ram);
        let mut engine = new_engine(&ram, instrumented);
        engine.load(&state, Position::default()).unwrap();
        let every = NonZeroU64::MAX;
        let point = &mut |_: &mut Engine| Ok(());
        let end = bare::run(&mut engine, &Inputs::default(), Steps(20_000), every, point).unwrap();
        (end, engine)
    };
    let [(end, first), (other_end, second)] = [0, 1].map(run);
    assert_eq!(end, other_end, "{what}");
    let (first, second) = (first.translated_code(), second.translated_code());
    assert_eq!(first.len(), second.len(), "{what}");
    let differs = first.iter().zip(second).position(|(a, b)| a != b);
    assert_eq!(
        differs, None,
        "{what}: an address of the run lies in the code"
    );
    first.len()
}

#[test]
fn translations_hold_no_address_of_a_run() {
    let mut emitted = 0;
    for instrumented in [false, true] {
        for seed in 0..20 {
            let program = Program::random(seed);
            emitted += twice(
                &format!("seed {seed}"),
                |ram| program.load(ram),
                instrumented,
            );
        }
        for suite in [smc::suite(), strings::suite(), exceptions::suite()] {
            for case in suite.cases.iter().step_by(25) {
                let guest = case.guest();
                let load = |ram: &Ram| {
                    ram.write(machine::units::GuestPhys(0), guest.ram())
                        .unwrap();
                    guest.state.clone()
                };
                emitted += twice(&case.name, load, instrumented);
            }
        }
    }
    assert!(emitted > 1 << 20, "{emitted} bytes of code were compared");
}

const FRAME: u64 = 0x40_0000;
const DATA: u64 = FRAME + 0x2000;

/// A routine in two pages with what depends on where it runs: calls, indirect and conditional branches
/// within a page and across, operands relative to RIP, an x87 instruction whose address is stored, an
/// instruction that Rust executes.
fn routine(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut again, mut function, mut over, mut far, mut back) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    asm!(a;
        mov(rdi, DATA); mov(ecx, 20); xor(eax, eax);
        set_label(&mut again);
        call(function); lea(rdx, ptr(over)); jmp(rdx); int3(); set_label(&mut over);
        add(rax, qword_ptr(function)); push(rax); pop(r9); add(ptr(rdi), rcx);
        fld1(); fnstenv(ptr(rdi + 64)); mov(r8, rcx); cpuid(); mov(rcx, r8); xor(ebx, ebx); xor(edx, edx);
        test(ecx, 1); je(far); set_label(&mut back);
        lock().inc(dword_ptr(rdi + 8)); dec(ecx); jne(again); ret();
        set_label(&mut function); shl(rax, cl); ret();
    );
    // The rest lies in the next page.
    for _ in 0..4000 {
        a.nop()?;
    }
    asm!(a; set_label(&mut far); movups(xmm1, ptr(rdi)); movups(ptr(rdi + 16), xmm1); inc(rbp); jmp(back););
    Ok(())
}

/// The routine at one of several linear addresses, called from a caller that is the same for all.
#[test]
fn translations_hold_no_linear_address() {
    let places = [
        0x90_0000_0000u64,
        0x7f12_3456_7000,
        0xffff_8000_0000_0000,
        0x5000_0000,
    ];
    let run = |place: u64| {
        let mut guest = Guest::new();
        for page in [0, 0x1000] {
            guest.map(place + page, FRAME + page, pte::P | pte::RW, Size::Kib4);
        }
        guest.code_at(place, FRAME, routine).unwrap();
        // Where to call is data, or the caller would hold it.
        guest.poke_u64(at::DATA, place);
        guest
            .code(|a| {
                asm!(a; mov(rbx, at::DATA); xor(ebp, ebp); mov(rbx, ptr(rbx)); call(rbx););
                Ok(())
            })
            .unwrap();
        let ram = vcpu::ram_of(&guest);
        let mut engine = new_engine(&ram, false);
        let outcome = vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
        assert_eq!(outcome.end, End::Finished);
        assert_eq!(
            outcome.last.unwrap().gpr[5],
            10,
            "every second round went far"
        );
        let mut pointer = [0; 4];
        ram.read(machine::units::GuestPhys(DATA + 64 + 12), &mut pointer)
            .unwrap();
        (engine, u32::from_le_bytes(pointer))
    };
    let runs = places.map(run);
    let code = runs[0].0.translated_code();
    assert!(code.len() > 1000);
    for ((engine, pointer), place) in runs.iter().zip(places) {
        assert!(engine.translated_code() == code, "{place:#x}");
        // What depends on the address is right all the same.
        assert_eq!(pointer & !0xfff, place as u32, "{place:#x}");
    }
}

/// One cache holds what was translated for other levels and instruments: it is found again, and not
/// taken for the other.
#[test]
fn modes_and_instruments_are_part_of_the_key() {
    let mut guest = Guest::new();
    guest
        .code(|a| {
            let mut again = a.create_label();
            asm!(a; mov(rbx, at::DATA); set_label(&mut again); inc(qword_ptr(rbx)); jmp(again););
            Ok(())
        })
        .unwrap();
    let ram = vcpu::ram_of(&guest);
    let mut engine = new_engine(&ram, false);
    engine.load(&guest.state, Position::default()).unwrap();
    let mut translated = Vec::new();
    let sets = [false, true, false, true];
    for (index, counted) in sets.into_iter().enumerate() {
        engine.set_instruments(match counted {
            true => Instruments::none().with_counts(),
            false => Instruments::none(),
        });
        engine
            .run(Some(Position::at(1 + 1000 * (index as u64 + 1))))
            .unwrap();
        let instructions = engine.counts().all_instructions();
        assert_eq!(
            instructions,
            if counted { 1000 } else { 0 },
            "round {index}"
        );
        translated.push(engine.counters().translated);
    }
    assert!(translated[1] > translated[0], "counting code is other code");
    assert_eq!(
        translated[2], translated[1],
        "the code of the first round is still there"
    );
    assert_eq!(translated[3], translated[1]);
}
