//! Code at the end of the lower half of the address space: what leads out of it faults. The expected
//! values of direct JMP, Jcc and CALL are those that an Intel processor (family 6 model 207) showed a
//! process with code in the highest page that it may have; the rest follows from them.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use machine::state::Gpr;
use machine::vcpu::Vcpu;
use simuboost_tests::guest::{Guest, Size, asm, layout as at, pte};
use simuboost_tests::oracle::vcpu;
use tcg_sim::instrument::Instruments;

use iced_x86::code_asm::*;

/// The last page of the lower half, and its frame.
const PAGE: u64 = 0x7fff_ffff_f000;
const FRAME: u64 = 0x40_0000;
const STACK: u64 = at::KERNEL_STACK - 0x100;

struct Expected {
    name: &'static str,
    /// Where in the page the bytes lie and begin to run, behind a NOP.
    offset: u64,
    bytes: &'static [u8],
    /// RIP of the fault, from the start of `bytes`; the frame lies at the unchanged stack pointer.
    rip: u64,
    /// Whether the word below the stack pointer is a return address.
    pushed: bool,
    /// RCX; it is 5 at the start.
    counter: u64,
}

const fn branch(name: &'static str, offset: u64, bytes: &'static [u8]) -> Expected {
    Expected {
        name,
        offset,
        bytes,
        rip: 0,
        pushed: false,
        counter: 5,
    }
}

const CASES: &[Expected] = &[
    branch("jmp rel32", 0xf00, &[0xe9, 0, 1, 0, 0]),
    branch("jmp rel8", 0xff0, &[0xeb, 0x70]),
    branch("jz rel32", 0xf00, &[0x0f, 0x84, 0, 1, 0, 0]),
    branch("jz rel8 in the middle", 0xff0, &[0x74, 0x70, 0x90, 0x90]),
    branch("loop", 0xff0, &[0xe2, 0x70]),
    branch("loop with a 32-bit counter", 0xff0, &[0x67, 0xe2, 0x70]),
    Expected {
        pushed: true,
        ..branch("call rel32", 0xf00, &[0xe8, 0, 1, 0, 0])
    },
    Expected {
        rip: 1,
        ..branch("the end of the page", 0xfff, &[0x90])
    },
    Expected {
        rip: 2,
        counter: 6,
        ..branch("an instruction at the end", 0xffe, &[0xff, 0xc1])
    },
    Expected {
        rip: 2,
        ..branch("a branch not taken at the end", 0xffe, &[0x75, 0x70])
    },
];

fn guest(case: &Expected) -> Guest {
    let mut guest = Guest::new();
    guest.map(PAGE, FRAME, pte::P | pte::RW, Size::Kib4);
    let start = case.offset - 1;
    guest.poke(FRAME + start, &[0x90]);
    guest.poke(FRAME + case.offset, case.bytes);
    guest.poke_u64(STACK - 8, 0x5555);
    guest.watch("below the stack", STACK - 8, 8);
    // Frames go elsewhere, so that what a call pushed stays.
    guest.set_gate(13, 0x8e, 1);
    guest
        .code(|a| {
            asm!(a;
                mov(rsp, STACK); mov(rdx, PAGE + start); mov(ecx, 5); xor(eax, eax); jmp(rdx);
            );
            Ok(())
        })
        .unwrap();
    guest
}

#[test]
fn what_leads_out_of_the_lower_half_faults_as_on_hardware() {
    for case in CASES {
        let guest = guest(case);
        let counts = [false, true].map(|one_instruction_blocks| {
            let (ram, mut engine) = vcpu::engine_for(&guest, one_instruction_blocks);
            let instruments = Instruments::none().with_counts();
            engine.set_instruments(instruments.with_memory_trace(Box::new(())));
            let outcome = vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
            let event = outcome
                .events
                .first()
                .unwrap_or_else(|| panic!("{}", case.name));
            let at = PAGE + case.offset;
            assert_eq!((event.vector, event.error), (13, 0), "{}", case.name);
            assert_eq!(
                (event.rip, event.rsp),
                (at + case.rip, STACK),
                "{}",
                case.name
            );
            assert_eq!(
                event.registers[Gpr::Rcx as usize],
                case.counter,
                "{}",
                case.name
            );
            let below = if case.pushed {
                at + case.bytes.len() as u64
            } else {
                0x5555
            };
            assert_eq!(outcome.memory[0].1, below.to_le_bytes(), "{}", case.name);
            (engine.counts(), engine.position())
        });
        assert_eq!(counts[0], counts[1], "{}", case.name);
    }
}
