//! What memory accesses, transfers and translation cost: the same bare-metal loops natively, on the
//! engine and on QEMU TCG (where it is installed).
//!
//! `cargo bench -p simuboost-benches --bench engine`
//!
//! Each figure is the CPU time that more rounds of a loop take beyond fewer rounds, least of several
//! runs, divided by the units in the added rounds. Cycles are those of a chain of dependent additions,
//! one cycle each on every x86-64 CPU, timed natively beside each loop: so the clock's frequency and
//! what else runs on the core matter less.

mod loops;
mod native;
mod translation;

use loops::{LOOPS, Loop};
use machine::cpuid::CpuidTable;
use machine::units::Position;
use machine::vcpu::{Exit, Vcpu};
use native::{Arena, children_seconds, thread_seconds};
use simuboost_tests::guest::{End, Guest};
use simuboost_tests::oracle::qemu::Qemu;
use simuboost_tests::oracle::vcpu::ram_of;
use std::time::Duration;
use tcg_sim::{Engine, EngineOptions};

/// Runs of which the fastest counts.
const RUNS: usize = 5;

/// Seconds of CPU time that `rounds` rounds take.
type Timer<'a> = dyn FnMut(u64) -> f64 + 'a;

/// Seconds per unit, from the difference between few and many rounds.
fn seconds_per_unit(timer: &mut Timer, units: u64, rounds: u64) -> f64 {
    let mut least = |rounds| {
        (0..RUNS)
            .map(|_| timer(rounds))
            .fold(f64::INFINITY, f64::min)
    };
    let (few, many) = (least(rounds / 4), least(rounds));
    (many - few) / (units * (rounds - rounds / 4)) as f64
}

/// CPU seconds of a guest on a new engine, and how many instructions it translated.
fn run_on_engine(guest: &Guest) -> (f64, u64) {
    let ram = ram_of(guest);
    let cpuid = CpuidTable::x86_64_v2();
    let mut engine =
        Engine::new(ram, cpuid, EngineOptions::default()).expect("the host has BMI2 and memory");
    engine
        .load(&guest.state, Position::default())
        .expect("the builder makes valid states");
    let start = thread_seconds();
    let exit = engine.run(None).expect("the loops stay within the limits");
    let seconds = thread_seconds() - start;
    assert!(matches!(exit, Exit::PortWrite { .. }), "{exit:?}");
    (seconds, engine.counters().translated)
}

/// CPU seconds of a guest on QEMU, its start included.
fn run_on_qemu(qemu: &Qemu, guest: &Guest) -> f64 {
    let plain = simuboost_tests::suite::case("loop", |_| Ok(()));
    let start = children_seconds();
    let outcome = qemu.run(guest, &plain).expect("QEMU runs");
    assert_eq!(outcome.end, End::Finished);
    children_seconds() - start
}

fn qemu() -> Option<Qemu> {
    let mut qemu = Qemu::new().ok()?;
    qemu.timeout = Duration::from_secs(600);
    Some(qemu)
}

fn time_loop(what: &Loop, qemu: Option<&Qemu>) -> [f64; 4] {
    let mut arena = Arena::new();
    let adds = &LOOPS[0];
    let cycle = seconds_per_unit(&mut |n| arena.run(adds, n), adds.units, adds.rounds);
    let native = seconds_per_unit(&mut |n| arena.run(what, n), what.units, what.rounds);
    let engine = seconds_per_unit(
        &mut |n| run_on_engine(&what.guest(n)).0,
        what.units,
        what.rounds,
    );
    let on_qemu = qemu.map_or(f64::NAN, |qemu| {
        seconds_per_unit(
            &mut |n| run_on_qemu(qemu, &what.guest(n)),
            what.units,
            what.rounds,
        )
    });
    [cycle, native, engine, on_qemu]
}

fn main() {
    // `cargo test --benches` only wants to know that this builds.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |name: &str| filter.as_ref().is_none_or(|f| name.contains(f.as_str()));
    let qemu = qemu();
    println!("cycles per unit        native    engine      QEMU   engine/native   engine/QEMU");
    for what in LOOPS.iter().filter(|what| wanted(what.name)) {
        let [cycle, native, engine, on_qemu] = time_loop(what, qemu.as_ref());
        println!(
            "{:20} {:8.2}  {:8.2}  {:8.2}        {:8.2}      {:8.2}",
            what.name,
            native / cycle,
            engine / cycle,
            on_qemu / cycle,
            engine / native,
            engine / on_qemu,
        );
    }
    if wanted("translation") {
        translate(qemu.as_ref());
    }
}

/// Instructions translated per second: code that is overwritten, and so translated, in every round.
fn translate(qemu: Option<&Qemu>) {
    const ROUNDS: u64 = 400;
    let (_, few) = run_on_engine(&translation::guest(ROUNDS / 4));
    let (_, many) = run_on_engine(&translation::guest(ROUNDS));
    let per_round = (many - few) as f64 / (ROUNDS - ROUNDS / 4) as f64;
    let engine = seconds_per_unit(&mut |n| run_on_engine(&translation::guest(n)).0, 1, ROUNDS);
    println!(
        "translation: engine {:.2} M instructions per second ({per_round:.0} a round)",
        per_round / engine / 1e6
    );
    if let Some(qemu) = qemu {
        let seconds = seconds_per_unit(
            &mut |n| run_on_qemu(qemu, &translation::guest(n)),
            1,
            ROUNDS,
        );
        println!(
            "translation: QEMU   {:.2} M instructions per second, if it translates as many",
            per_round / seconds / 1e6
        );
    }
}
