//! The program that measures what processors do differently gives the same results natively and on
//! the engine, in the kernel and in user mode; on another processor they differ.

use machine::conformance::{KINDS, Results, program};
use machine::cpuid::CpuidTable;
use machine::units::{GuestPhys, Position};
use machine::vcpu::{Exit, Vcpu};
use simuboost_tests::guest::{End, Guest, layout};
use simuboost_tests::oracle::qemu::Qemu;
use simuboost_tests::oracle::vcpu::ram_of;
use simuboost_tests::suite::case;
use tcg_sim::{Engine, EngineOptions};

const RESULTS: u64 = layout::USER_DATA;

const BYTES: usize = KINDS.len() * 8;

/// The program in the kernel's code, or in that of user programs.
fn guest(user: bool) -> Guest {
    let mut guest = Guest::new();
    let (code, at) = match user {
        false => (layout::CODE, layout::FREE),
        true => (layout::USER_CODE, layout::USER_CODE + 0x1000),
    };
    assert!(program().len() < 0xf000, "{}", program().len());
    guest.poke(at, program());
    guest
        .code_at(code, code, |a| {
            a.mov(iced_x86::code_asm::rdi, RESULTS)?;
            a.call(at)?;
            match user {
                false => a.jmp(layout::FINISH),
                true => a.hlt(),
            }
        })
        .expect("the guest assembles");
    if user {
        guest.start_in_user();
    }
    guest.watch("results", RESULTS, BYTES);
    guest
}

fn results(bytes: &[u8]) -> Results {
    let mut numbers = [0; KINDS.len()];
    for (bytes, number) in bytes.as_chunks().0.iter().zip(&mut numbers) {
        *number = u64::from_le_bytes(*bytes);
    }
    Results { numbers }
}

fn on_engine(user: bool) -> Results {
    let guest = guest(user);
    let ram = ram_of(&guest);
    let options = EngineOptions::default();
    let mut engine = Engine::new(ram.clone(), CpuidTable::of_host(), options).expect("an engine");
    engine
        .load(&guest.state, Position::default())
        .expect("a good state");
    let limit = Position::at(20_000_000);
    match engine.run(Some(limit)) {
        Ok(Exit::PortWrite { port, .. }) if port.0 == layout::EXIT_PORT => {}
        other => panic!("{other:?} {:#x}", engine.rip().unwrap_or(0)),
    }
    let mut bytes = [0; BYTES];
    ram.read(GuestPhys(RESULTS), &mut bytes)
        .expect("it is in RAM");
    results(&bytes)
}

#[test]
fn the_engine_gives_the_results_of_the_host() {
    let native = Results::of_host().expect("a steady host");
    for user in [false, true] {
        let engine = on_engine(user);
        let differing: Vec<_> = native.differing(&engine).collect();
        assert!(differing.is_empty(), "user: {user}, {differing:?}");
    }
}

/// QEMU's emulator stands for a processor of another make: what is defined is the same there.
#[test]
fn another_processor_differs_and_is_found_out() {
    let native = Results::of_host().expect("a steady host");
    let mut qemu = Qemu::new().expect("QEMU is installed");
    qemu.timeout = std::time::Duration::from_secs(60);
    let outcome = qemu
        .run(&guest(false), &case("conformance", |_| Ok(())))
        .expect("QEMU runs");
    assert_eq!(outcome.end, End::Finished);
    let other = results(&outcome.memory[0].1);
    let differing: Vec<&str> = native.differing(&other).map(|kind| kind.name).collect();
    eprintln!("{differing:?}");
    assert!(!differing.contains(&"defined"), "{differing:?}");
    for kind in ["multiplication", "approximations", "x87-functions"] {
        assert!(differing.contains(&kind), "{differing:?}");
    }
}
