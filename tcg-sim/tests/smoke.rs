//! The engine on small programs, with results worked out by hand.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use iced_x86::code_asm::*;
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::state::{CpuState, rflags};
use machine::units::{GuestPhys, Position};
use machine::vcpu::{Exit, Vcpu};
use std::sync::Arc;
use tcg_sim::{Engine, EngineOptions};

const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x2_0000;
const TABLES: u64 = 0x1000;

/// RAM with the first GiB mapped to itself in 2 MiB pages, and `code` at [`CODE`].
fn guest(code: &[u8]) -> Arc<Ram> {
    let ram = Ram::new(8 << 20).unwrap();
    ram.write(GuestPhys(TABLES), &((TABLES + 0x1000) | 7).to_le_bytes())
        .unwrap();
    ram.write(
        GuestPhys(TABLES + 0x1000),
        &((TABLES + 0x2000) | 7).to_le_bytes(),
    )
    .unwrap();
    for index in 0..512u64 {
        let entry = (index << 21) | 0x87;
        ram.write(GuestPhys(TABLES + 0x2000 + 8 * index), &entry.to_le_bytes())
            .unwrap();
    }
    ram.write(GuestPhys(CODE), code).unwrap();
    Arc::new(ram)
}

fn run(one: bool, steps: u64, build: impl FnOnce(&mut CodeAssembler)) -> (CpuState, Arc<Ram>) {
    let mut asm = CodeAssembler::new(64).unwrap();
    build(&mut asm);
    let ram = guest(&asm.assemble(CODE).unwrap());
    let options = EngineOptions {
        one_instruction_blocks: one,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(ram.clone(), CpuidTable::x86_64_v2(), options).unwrap();
    engine
        .load(
            &CpuState::long_mode(CODE, STACK, TABLES),
            Position::default(),
        )
        .unwrap();
    assert_eq!(
        engine.run(Some(Position::at(steps))).unwrap(),
        Exit::Reached
    );
    assert_eq!(engine.position(), Some(Position::at(steps)));
    (engine.save().unwrap(), ram)
}

#[test]
fn loops_calls_and_memory_give_the_same_state_in_both_modes_at_every_step() {
    let program = |a: &mut CodeAssembler| {
        let (mut again, mut function) = (a.create_label(), a.create_label());
        a.mov(rcx, 5u64).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(r10, 0x3_0000u64).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(rax, rcx).unwrap();
        a.mov(qword_ptr(r10 + rcx * 8 - 4), rax).unwrap();
        a.push(r14).unwrap();
        a.call(function).unwrap();
        a.pop(r14).unwrap();
        a.dec(rcx).unwrap();
        a.jne(again).unwrap();
        a.mov(rdi, r10).unwrap();
        a.mov(ch, byte_ptr(rdi + 12)).unwrap();
        a.movzx(esp, ch).unwrap();
        a.jmp(again).unwrap();
        a.set_label(&mut function).unwrap();
        a.lea(r14, qword_ptr(r14 + rax)).unwrap();
        a.xchg(r14, r11).unwrap();
        a.ret().unwrap();
    };
    for steps in 0..60 {
        let (fast, fast_ram) = run(false, steps, program);
        let (slow, slow_ram) = run(true, steps, program);
        assert_eq!(fast, slow, "after {steps} steps");
        for gfn in 0..fast_ram.frames() {
            let gfn = machine::units::Gfn(gfn);
            assert!(
                fast_ram.page(gfn) == slow_ram.page(gfn),
                "{gfn} after {steps} steps"
            );
        }
    }
    let (state, _) = run(false, 3 + 5 * 10, program);
    assert_eq!(
        (state.gpr[0], state.gpr[1], state.rip > CODE),
        (15, 0, true)
    );
}

/// Regression: the translator once asked a coarser question than the table of the manuals and
/// stopped with an engine limit where nothing forbids the instruction.
#[test]
fn without_osfxsr_what_is_not_sse_still_runs() {
    for one_instruction_blocks in [false, true] {
        let mut asm = CodeAssembler::new(64).unwrap();
        asm.fld1().unwrap();
        asm.fistp(dword_ptr(STACK)).unwrap();
        asm.wait().unwrap();
        asm.mov(rdi, STACK + 8).unwrap();
        asm.mov(eax, 7u32).unwrap();
        asm.movnti(dword_ptr(rdi), eax).unwrap();
        asm.popcnt(ecx, eax).unwrap();
        let ram = guest(&asm.assemble(CODE).unwrap());
        let options = EngineOptions {
            one_instruction_blocks,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(ram.clone(), CpuidTable::x86_64_v2(), options).unwrap();
        let mut state = CpuState::long_mode(CODE, STACK, TABLES);
        state.cr4 &= !machine::state::cr4::OSFXSR;
        engine.load(&state, Position::default()).unwrap();
        assert_eq!(engine.run(Some(Position::at(7))).unwrap(), Exit::Reached);
        let mut stored = [0; 12];
        ram.read(GuestPhys(STACK), &mut stored).unwrap();
        assert_eq!((stored[0], stored[8]), (1, 7));
        assert_eq!(engine.save().unwrap().gpr[1], 3);
    }
}

/// Regression: the error once named address 0 whatever page could not be had.
#[test]
fn a_page_that_cannot_be_loaded_is_named() {
    struct Missing(Arc<Ram>);
    impl machine::ram::PageSource for Missing {
        fn load(
            &self,
            gfn: machine::units::Gfn,
            page: &mut machine::ram::PageBytes,
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            if gfn.0 == 0x30 {
                return Err("lost".into());
            }
            *page = self.0.page(gfn);
            Ok(())
        }
    }
    let mut asm = CodeAssembler::new(64).unwrap();
    asm.mov(rdi, 0x3_0010u64).unwrap();
    asm.mov(rax, qword_ptr(rdi)).unwrap();
    let whole = guest(&asm.assemble(CODE).unwrap());
    let ram = Arc::new(Ram::lazy(whole.bytes(), Arc::new(Missing(whole.clone()))).unwrap());
    let options = EngineOptions::default();
    let mut engine = Engine::new(ram, CpuidTable::x86_64_v2(), options).unwrap();
    let state = CpuState::long_mode(CODE, STACK, TABLES);
    engine.load(&state, Position::default()).unwrap();
    let error = engine.run(Some(Position::at(100))).unwrap_err();
    assert!(error.to_string().contains("0x30000"), "{error}");
}

/// Where a REP instruction goes on, RF is set, so that the registers alone tell: a recording without
/// counts of iterations lost it, and an interrupt there then pushed RF clear.
#[test]
fn between_iterations_the_saved_registers_say_so() {
    for one in [false, true] {
        let mut asm = CodeAssembler::new(64).unwrap();
        asm.mov(ecx, 5u32).unwrap();
        asm.mov(edi, 0x3_0000u32).unwrap();
        asm.rep().stosb().unwrap();
        asm.nop().unwrap();
        let ram = guest(&asm.assemble(CODE).unwrap());
        let options = EngineOptions {
            one_instruction_blocks: one,
            ..EngineOptions::default()
        };
        let start = CpuState::long_mode(CODE, STACK, TABLES);
        let mut engine = Engine::new(ram.clone(), CpuidTable::x86_64_v2(), options).unwrap();
        engine.load(&start, Position::default()).unwrap();
        for (position, inside) in [((2, 0), false), ((2, 3), true), ((3, 0), false)] {
            let (steps, rep_iterations) = position;
            let until = Position {
                rep_iterations,
                ..Position::at(steps)
            };
            assert_eq!(engine.run(Some(until)).unwrap(), Exit::Reached);
            let state = engine.save().unwrap();
            assert_eq!(state.rflags & rflags::RF != 0, inside, "{position:?}");
            // Wherever it is loaded, with or without a count.
            engine.load(&state, Position::at(steps)).unwrap();
            assert_eq!(engine.save().unwrap(), state);
            engine.load(&state, until).unwrap();
        }
    }
}
