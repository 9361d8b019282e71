//! A data breakpoint that MOV SS hits is held back by its shadow. What comes of it is what an Intel
//! processor (family 6 model 207) showed under ptrace for NOP, for a load that hits the breakpoint again and
//! for single steps; INT n, after which only the kernel could see it, follows SDM vol. 3, 6.8.3, and a fault
//! drops it.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::saved::Blob as _;
use machine::saved::cpu::SavedCpu;
use machine::state::{CpuState, Shadow, rflags};
use machine::units::Position;
use machine::vcpu::{Exit, Vcpu};
use simuboost_tests::guest::{Guest, asm, layout as at, layout::sel};
use simuboost_tests::oracle::vcpu;

const DATA: u64 = at::DATA + 0x100;
/// MOV RBX, imm64 and MOV SS, [RBX] end here.
const NEXT: u64 = at::CODE + 10 + 2;
const B0: u64 = 0xffff_0ff1;
const B0_AND_STEP: u64 = 0xffff_4ff1;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

struct Case {
    name: &'static str,
    code: Code,
    traced: bool,
    /// Vector, RIP from [`NEXT`] (or an absolute one) and DR6 of the events, from MOV SS on.
    events: &'static [(u64, u64, u64)],
}

const CASES: &[Case] = &[
    Case {
        name: "nop",
        code: |a| a.nop(),
        traced: false,
        events: &[(1, NEXT + 1, B0)],
    },
    Case {
        name: "single step",
        code: |a| a.nop(),
        traced: true,
        events: &[(1, NEXT + 1, B0_AND_STEP)],
    },
    Case {
        name: "the same again",
        code: |a| a.mov(ax, word_ptr(rbx)),
        traced: false,
        events: &[(1, NEXT + 3, B0)],
    },
    Case {
        name: "a fault",
        code: |a| a.ud2(),
        traced: false,
        events: &[(6, NEXT, 0)],
    },
    Case {
        name: "a read of a port",
        code: |a| a.in_(al, 0x60),
        traced: false,
        events: &[(1, NEXT + 2, B0)],
    },
    Case {
        name: "a write to a port",
        code: |a| a.out(0x60, al),
        traced: false,
        events: &[(1, NEXT + 2, B0)],
    },
    Case {
        name: "an interrupt instruction",
        code: |a| a.int(0x80),
        traced: false,
        // At the first instruction of its handler.
        events: &[(1, at::STUBS + 0x80 * at::STUB_BYTES, B0)],
    },
];

fn guest(case: &Case) -> Guest {
    let mut guest = Guest::new();
    guest.poke_u64(DATA, sel::DATA.into());
    guest.state.dr[0] = DATA;
    // Reads and writes of two bytes.
    guest.state.dr7 |= 2 | 0b0111 << 16;
    guest
        .code(|a| {
            asm!(a; mov(rbx, DATA); mov(ss, word_ptr(rbx)););
            (case.code)(a)?;
            asm!(a; nop(); nop(););
            Ok(())
        })
        .unwrap();
    guest
}

/// The guest at the boundary behind MOV SS, through the saved form.
fn behind_mov_ss(case: &Case, one: bool) -> (Guest, CpuState) {
    let mut guest = guest(case);
    let (_, mut engine) = vcpu::engine_for(&guest, one);
    engine.load(&guest.state, Position::default()).unwrap();
    assert_eq!(engine.run(Some(Position::at(2))).unwrap(), Exit::Reached);
    let mut state = engine.save().unwrap();
    assert_eq!((state.shadow, state.held_breakpoints), (Shadow::MovSs, 1));
    assert_eq!(state.rip, NEXT, "{}", case.name);
    if case.traced {
        state.rflags |= rflags::TF;
    }
    let blob = state.save().to_blob();
    let loaded = CpuState::restore(&SavedCpu::from_blob(&blob).unwrap()).unwrap();
    assert_eq!(loaded, state);
    guest.state = loaded.clone();
    (guest, loaded)
}

#[test]
fn mov_ss_holds_a_data_breakpoint_back() {
    for case in CASES {
        for one in [false, true] {
            let (guest, state) = behind_mov_ss(case, one);
            assert_eq!(guest.state, state);
            let (ram, mut engine) = vcpu::engine_for(&guest, one);
            let outcome = vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
            let events: Vec<_> = outcome
                .events
                .iter()
                .map(|event| (event.vector, event.rip, event.dr6))
                .take(case.events.len())
                .collect();
            assert_eq!(events, case.events, "{}", case.name);
        }
    }
}

#[test]
fn states_that_hold_what_no_processor_holds_are_refused() {
    let mut state = guest(&CASES[0]).state;
    state.held_breakpoints = 1;
    assert!(state.validate().is_err(), "no shadow");
    state.shadow = Shadow::MovSs;
    state.validate().unwrap();
    state.held_breakpoints = 0x10;
    assert!(state.validate().is_err(), "not a breakpoint");
}
