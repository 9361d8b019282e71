//! The invariants E1 to E7 of the engine, one or more tests each, by name. Other tests prove them at
//! length (`docs/verification.md` says which); these say what each means.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![expect(
    unsafe_code,
    reason = "E1 runs guest instructions natively from a page of its own"
)]

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::ram::Ram;
use machine::state::{CpuState, Gpr, rflags};
use machine::units::{GuestPhys, Position, Steps};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use simuboost_tests::guest::{Action, End, Guest, Size, asm, layout as at, pte};
use simuboost_tests::hostile::image::{Bytes, Image, build, load_code};
use simuboost_tests::hostile::trial::{self, Ending, Plan};
use simuboost_tests::hostile::{guards::Guards, random};
use simuboost_tests::oracle::vcpu;
use tcg_sim::{Engine, EngineOptions};

fn hostile_image(seed: u64) -> Image {
    let input = random::input(seed);
    let mut bytes = Bytes::new(&input[2..]);
    let mut image = build(&mut bytes);
    load_code(&mut image, bytes.rest());
    image
}

fn plan(one_instruction_blocks: bool) -> Plan {
    Plan {
        one_instruction_blocks,
        steps: 800,
        stops: Vec::new(),
        code_bytes: 1 << 20,
    }
}

/// Instructions on RAX and RCX whose flags are partly undefined.
const FLAG_MAKERS: &[(&str, &[u8])] = &[
    ("imul rax, rcx", &[0x48, 0x0f, 0xaf, 0xc1]),
    ("mul rcx", &[0x48, 0xf7, 0xe1]),
    ("mul cl", &[0xf6, 0xe1]),
    ("shl rax, 5", &[0x48, 0xc1, 0xe0, 5]),
    ("shr eax, cl", &[0xd3, 0xe8]),
    ("sar ax, 17", &[0x66, 0xc1, 0xf8, 17]),
    ("rcl rax, 3", &[0x48, 0xc1, 0xd0, 3]),
    ("rcr al, cl", &[0xd2, 0xd8]),
    ("rol rax, cl", &[0x48, 0xd3, 0xc0]),
    ("shld rax, rcx, 7", &[0x48, 0x0f, 0xa4, 0xc8, 7]),
    ("shrd ax, cx, 20", &[0x66, 0x0f, 0xac, 0xc8, 20]),
    ("and rax, rcx", &[0x48, 0x21, 0xc8]),
    ("bsf rax, rcx", &[0x48, 0x0f, 0xbc, 0xc1]),
    ("bsr eax, ecx", &[0x0f, 0xbd, 0xc1]),
    ("bt rax, rcx", &[0x48, 0x0f, 0xa3, 0xc8]),
    ("popcnt rax, rcx", &[0xf3, 0x48, 0x0f, 0xb8, 0xc1]),
    ("adc eax, ecx", &[0x11, 0xc8]),
    ("neg al", &[0xf6, 0xd8]),
    ("dec cx", &[0x66, 0xff, 0xc9]),
    ("cmpxchg rcx, rax", &[0x48, 0x0f, 0xb1, 0xc1]),
    ("xadd cl, al", &[0x0f, 0xc0, 0xc1]),
];

const OPERANDS: [(u64, u64); 5] = [
    (0, 0),
    (1, u64::MAX),
    (0x8000_0000_0000_0000, 33),
    (0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321),
    (0xff, 0x80),
];

/// RAX, RCX and RFLAGS after an instruction on the host CPU.
fn natively(code: &[u8], first: u64, second: u64, flags: u64) -> [u64; 3] {
    // push rdx; popfq; <code>; pushfq; pop rdx; mov [rdi], rax; mov [rdi+8], rcx; mov [rdi+16], rdx;
    // cld; ret. Called with RDI: result, RSI: RAX, RCX: the fourth argument, RDX: flags.
    let mut bytes = vec![0x48, 0x89, 0xf0, 0x52, 0x9d];
    bytes.extend(code);
    bytes.extend([0x9c, 0x5a, 0x48, 0x89, 0x07, 0x48, 0x89, 0x4f, 8]);
    bytes.extend([0x48, 0x89, 0x57, 16, 0xfc, 0xc3]);
    let mut result = [0u64; 3];
    // SAFETY: a fresh page holds the code, which keeps to the calling convention: it writes RAX, RCX,
    // RDX, flags and `result`, restores DF and returns with the stack as it was.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast(), bytes.len());
        assert_eq!(
            libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC),
            0
        );
        let call: extern "sysv64" fn(*mut u64, u64, u64, u64) = std::mem::transmute(page);
        call(result.as_mut_ptr(), first, flags, second);
        libc::munmap(page, 4096);
    }
    result
}

/// E1: a fault frame holds the registers and all arithmetic flags, undefined ones too, as the host CPU
/// leaves them, though nothing in the program reads them.
#[test]
fn e1_exact_state_in_fault_frames() {
    for (name, code) in FLAG_MAKERS {
        for (rax_before, rcx_before) in OPERANDS {
            for flags in [2u64, 2 | rflags::OSZAPC] {
                let mut guest = Guest::new();
                guest
                    .code(|a| {
                        a.db(code)?;
                        a.ud2()
                    })
                    .unwrap();
                (guest.state.gpr[0], guest.state.gpr[1]) = (rax_before, rcx_before);
                guest.state.rflags = flags;
                let [first, second, after] = natively(code, rax_before, rcx_before, flags);
                for one in [false, true] {
                    let (ram, mut engine) = vcpu::engine_for(&guest, one);
                    let outcome = vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
                    let event = outcome.events[0];
                    let seen = [
                        event.registers[0],
                        event.registers[1],
                        event.rflags & rflags::OSZAPC,
                    ];
                    let expected = [first, second, after & rflags::OSZAPC];
                    assert_eq!(seen, expected, "{name} on {rax_before:#x}, {rcx_before:#x}");
                }
            }
        }
    }
}

/// E2: translated code touches guest RAM and the engine's own block only. Inaccessible pages lie around
/// RAM; an access there would trap on the host, which is not a thing a run may report.
#[test]
fn e2_translated_code_stays_inside_guest_ram() {
    let ram = Ram::new(1 << 16).unwrap();
    let guards = Guards::around(&ram);
    assert!(
        guards.bytes() >= 4096,
        "nothing around RAM could be guarded"
    );
    drop(guards);
    for seed in 0..60 {
        let image = hostile_image(seed);
        trial::run(&image, &plan(false), &mut |_| {})
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    edges();
}

/// Every byte near both ends of RAM, and absent memory just behind it, in every size.
fn edges() {
    let absent = 0x90_0000_0000;
    let mut guest = Guest::new();
    guest.map(absent, at::RAM_BYTES - 0x1000, pte::ALL, Size::Kib4);
    guest.map(absent + 0x1000, at::RAM_BYTES, pte::ALL, Size::Kib4);
    guest
        .code(|a| {
            for offset in 0xff0..0x1010 {
                asm!(a; mov(rbx, absent + offset); mov(rax, ptr(rbx)); mov(ptr(rbx), rax););
                asm!(a; movups(xmm0, ptr(rbx)); movups(ptr(rbx), xmm0); lock().inc(byte_ptr(rbx)););
            }
            Ok(())
        })
        .unwrap();
    for one in [false, true] {
        let (ram, mut engine) = vcpu::engine_for(&guest, one);
        let guards = Guards::around(&ram);
        let outcome = vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
        assert_eq!(outcome.end, End::Finished);
        guards.check().unwrap();
    }
}

/// E2: the gate to Rust saves the guest's XMM, x87 and MXCSR.
#[test]
fn e2_the_gate_saves_the_guests_fpu() {
    let mut guest = Guest::new();
    guest.state.fpu.mxcsr = 0x5fa1;
    guest.state.fpu.fcw = 0x27f;
    for (index, xmm) in guest.state.fpu.xmm.iter_mut().enumerate() {
        *xmm = 0x0123_4567_89ab_cdef_u128 << index;
    }
    guest
        .code(|a| {
            let mut again = a.create_label();
            asm!(a;
                fld1(); mov(ecx, 50); set_label(&mut again);
                mov(rsi, cr3); mov(cr3, rsi); mov(rbx, at::FREE); mov(ptr(rbx), rcx);
                int3(); dec(ecx); jne(again);
            );
            Ok(())
        })
        .unwrap();
    guest.actions(&[Action::Resume; 50]);
    let (ram, mut engine) = vcpu::engine_for(&guest, false);
    vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
    let state = engine.save().unwrap();
    assert_eq!(state.fpu.xmm, guest.state.fpu.xmm);
    assert_eq!((state.fpu.mxcsr, state.fpu.fcw), (0x5fa1, 0x27f));
    assert_eq!((state.fpu.fsw >> 11 & 7, state.fpu.ftw), (7, 0x80));
}

/// A program with everything that positions must cope with: faults, traps, REP, user code.
fn eventful() -> Result<Guest, IcedError> {
    let mut guest = Guest::new();
    guest.actions(&[
        Action::Skip(2),
        Action::Resume,
        Action::Resume,
        Action::Finish,
    ]);
    guest.poke(at::USER_DATA, &[7; 64]);
    guest.code(|a| {
        let mut again = a.create_label();
        asm!(a;
            mov(ecx, 3); set_label(&mut again); add(rax, rcx); dec(ecx); jne(again);
            ud2(); int3();
            mov(rsi, at::USER_DATA); mov(rdi, at::USER_DATA + 0x100); mov(ecx, 20); rep().movsb();
            mov(rdi, at::USER_DATA); mov(ecx, 9); mov(eax, 7); repe().scasb();
            int(0x80); mov(rbx, 1u64 << 63); mov(rax, ptr(rbx));
        );
        Ok(())
    })?;
    Ok(guest)
}

/// Runs to a position; false when the guest ends before.
fn run_to(engine: &mut Engine, until: Position) -> bool {
    loop {
        match engine.run(Some(until)).unwrap() {
            Exit::Reached => return true,
            Exit::PortWrite { port, .. } if port.0 == at::EXIT_PORT => return false,
            Exit::PortWrite { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn snapshot(ram: &Ram, engine: &mut Engine) -> (CpuState, Vec<u8>) {
    let mut bytes = vec![0; at::RAM_BYTES as usize];
    ram.read(GuestPhys(0), &mut bytes).unwrap();
    (engine.save().unwrap(), bytes)
}

/// E3: the engine stops at every position exactly, REP iterations included, and what it finds there
/// does not depend on where it stopped before.
#[test]
fn e3_exact_position_at_every_step_and_iteration() {
    let guest = eventful().unwrap();
    let (ram, mut walker) = vcpu::engine_for(&guest, true);
    walker.load(&guest.state, Position::at(0)).unwrap();
    let mut inside_rep = 0;
    let mut position = Position::at(0);
    loop {
        let next = next_position(position);
        if !run_to(&mut walker, next) {
            break;
        }
        let here = walker.position().unwrap();
        assert!(here >= next, "{here} for {next}");
        position = here;
        inside_rep += u64::from(here.rep_iterations != 0);
        let stepped = snapshot(&ram, &mut walker);
        // Straight to the same position, in normal blocks.
        let (other_ram, mut straight) = vcpu::engine_for(&guest, false);
        straight.load(&guest.state, Position::at(0)).unwrap();
        assert!(run_to(&mut straight, here));
        assert_eq!(straight.position(), Some(here));
        assert!(snapshot(&other_ram, &mut straight) == stepped, "at {here}");
    }
    // 19 between the iterations of MOVS, 8 of SCAS.
    assert_eq!(inside_rep, 27);
}

/// One iteration further inside a REP string instruction; any other instruction ends there, too.
fn next_position(position: Position) -> Position {
    Position {
        rep_iterations: position.rep_iterations + 1,
        ..position
    }
}

/// E4: two runs in threads of their own, with different code memory, end alike.
#[test]
fn e4_nothing_of_the_host_enters() {
    for seed in 100..130 {
        let runs: Vec<_> = [1usize << 20, 3 << 20]
            .into_iter()
            .map(|code_bytes| {
                std::thread::spawn(move || {
                    let plan = Plan {
                        code_bytes,
                        ..plan(false)
                    };
                    trial::run(&hostile_image(seed), &plan, &mut |_| {}).unwrap()
                })
            })
            .collect();
        let mut ends = runs.into_iter().map(|run| run.join().unwrap());
        let first = ends.next().unwrap();
        assert!(ends.all(|other| other == first), "seed {seed}");
    }
}

/// E5: the same code at another linear address needs no translation of its own.
#[test]
fn e5_code_is_translated_once_for_all_addresses() {
    let frame = 0x40_0000u64;
    let places = [0x90_0000_0000u64, 0x7f12_3456_7000, 0xffff_8000_0000_0000];
    let mut guest = Guest::new();
    for place in places {
        guest.map(place, frame, pte::P | pte::RW, Size::Kib4);
    }
    guest
        .code_at(places[0], frame, |a| {
            let mut again = a.create_label();
            asm!(a;
                lea(rsi, ptr(again)); mov(ecx, 5); set_label(&mut again); add(rax, rcx);
                dec(ecx); jne(again); ret();
            );
            Ok(())
        })
        .unwrap();
    let translated = |calls: usize| {
        let mut guest = guest.clone();
        guest
            .code(|a| {
                // The caller is as long however many addresses it calls.
                for index in 0..places.len() {
                    let place = places[if index < calls { index } else { 0 }];
                    asm!(a; mov(rbx, place); call(rbx););
                }
                Ok(())
            })
            .unwrap();
        let (ram, mut engine) = vcpu::engine_for(&guest, false);
        let outcome = vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
        assert_eq!(outcome.last.unwrap().gpr[Gpr::Rax as usize], 45);
        engine.counters().translated
    };
    assert_eq!(translated(1), translated(3));
}

/// E6: what the CPU model hides is #UD, and a limit of the engine is an error that names the place.
#[test]
fn e6_guest_misbehaviour_is_a_value() {
    for bytes in [
        &[0x0f, 0x01, 0xd0][..],
        &[0x0f, 0xae, 0x23],
        &[0x0f, 0x01, 0xc8],
        &[0xc5, 0xf8, 0x77],
        &[0xff, 0xff],
        &[0x0f, 0x0b],
    ] {
        let mut guest = Guest::new();
        guest.code(|a| a.db(bytes)).unwrap();
        let (ram, mut engine) = vcpu::engine_for(&guest, false);
        let outcome = vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
        assert_eq!(outcome.events[0].vector, 6, "{bytes:02x?}");
    }
    limits();
}

/// Whatever random code does, the only errors are limits with RIP and position.
fn limits() {
    for seed in 200..260 {
        let image = hostile_image(seed);
        let (ram, _guards) = trial::guarded_ram(&image.ram);
        let mut engine = Engine::new(ram, trial::cpuid(), EngineOptions::default()).unwrap();
        engine.load(&image.state, Position::at(1000)).unwrap();
        loop {
            match engine.run(Some(Position::at(1500))) {
                Ok(Exit::PortRead { .. } | Exit::TimestampRead) => engine.complete_read(0).unwrap(),
                Ok(Exit::PortWrite { .. }) => {}
                Ok(_) => break,
                Err(VcpuError::Limit { what, position, .. }) => {
                    assert!(!what.contains("host trap"), "seed {seed}: {what}");
                    assert!((Steps(1000)..=Steps(1500)).contains(&position.steps));
                    break;
                }
                Err(other) => panic!("seed {seed}: {other}"),
            }
        }
    }
}

/// E7: stopping anywhere and forgetting everything that is cached changes nothing.
#[test]
fn e7_what_is_cached_cannot_be_seen() {
    for seed in 300..340 {
        let image = hostile_image(seed);
        let warm = trial::run(&image, &plan(false), &mut |_| {}).unwrap();
        let cold = Plan {
            stops: (1..800).step_by(37).collect(),
            ..plan(false)
        };
        let cold = trial::run(&image, &cold, &mut |_| {}).unwrap();
        assert!(warm.ending != Ending::Steps || warm.state.is_some());
        assert!(warm == cold, "seed {seed}");
    }
}

/// E7: looking ahead while decoding sets no accessed bit, and neither does an access that faults.
#[test]
fn e7_only_accesses_set_accessed_bits() {
    let page = 0x90_0000_0000u64;
    let mut guest = Guest::new();
    guest.map(page, 0x40_0000, pte::P | pte::RW, Size::Kib4);
    guest.map(page + 0x1000, 0x40_1000, pte::P | pte::RW, Size::Kib4);
    guest.map(page + 0x2000, 0x40_2000, pte::P, Size::Kib4);
    let slots = [0u64, 1, 2].map(|n| guest.leaf_slot(page + n * 0x1000, Size::Kib4));
    // RET is the last byte of the first page; a store to the third is refused.
    guest.poke(0x40_0fff, &[0xc3]);
    guest
        .code(|a| {
            asm!(a;
                mov(rbx, page + 0xfff); call(rbx); mov(rbx, page + 0x2000); mov(ptr(rbx), rax);
            );
            Ok(())
        })
        .unwrap();
    for one in [false, true] {
        let (ram, mut engine) = vcpu::engine_for(&guest, one);
        vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts);
        let accessed = slots.map(|slot| {
            let mut entry = [0; 8];
            ram.read(GuestPhys(slot), &mut entry).unwrap();
            u64::from_le_bytes(entry) & pte::A != 0
        });
        assert_eq!(accessed, [true, false, false]);
    }
}
