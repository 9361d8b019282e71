//! The engine against the golden files of the system suites.
//!
//! `SB_BLESS=1` makes the golden files anew from QEMU TCG (and, for the notes, /dev/kvm);
//! `SB_CASE=text` runs only the cases whose name contains the text.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use machine::cpuid::{CpuidTable, Identity, leaf7};
use simuboost_tests::guest::End;
use simuboost_tests::oracle::vcpu;
use simuboost_tests::suite::{
    Case, Devices, Report, Suite, bless, debug, exceptions, golden, interrupts, paging, smc,
    strings, system, transfers,
};
use std::fmt::Write as _;
use tcg_sim::{Engine, EngineOptions};

fn wanted(name: &str) -> bool {
    std::env::var("SB_CASE").map_or(true, |text| name.contains(&text))
}

/// The engine in one of its two ways to work.
fn options(one_instruction_blocks: bool) -> EngineOptions {
    EngineOptions {
        code_bytes: 4 << 20,
        one_instruction_blocks,
    }
}

/// The CPU model of the suites. Where vendors differ the table says which rules hold, and the host's
/// own otherwise.
fn cpuid(case: &Case) -> CpuidTable {
    let mut table = CpuidTable::x86_64_v2();
    if let Some(maker) = case.vendor {
        table = table.with_identity(Identity {
            maker,
            ..Identity::of_host()
        });
    }
    for entry in table.entries.iter_mut().filter(|entry| entry.leaf == 7) {
        entry.registers[1] |= leaf7::EBX_SMEP | leaf7::EBX_SMAP;
    }
    table
}

fn run_case(case: &Case, one_instruction_blocks: bool) -> Report {
    let guest = case.guest();
    let ram = vcpu::ram_of(&guest);
    let mut engine =
        Engine::new(ram.clone(), cpuid(case), options(one_instruction_blocks)).unwrap();
    let outcome = match case.devices {
        Devices::None => vcpu::run(&mut engine, &ram, &guest, &mut vcpu::NoPorts),
        Devices::Board => vcpu::run(&mut engine, &ram, &guest, &mut vcpu::BoardPorts::new()),
    };
    if let End::Unsupported(what) = &outcome.end {
        println!("{}: {what}", case.name);
    }
    case.report(&outcome)
}

fn check(suite: &Suite) {
    let path = golden::path(suite);
    if std::env::var_os("SB_BLESS").is_some() {
        let blessed = bless::golden(suite).unwrap();
        std::fs::write(&path, blessed.text).unwrap();
        println!("{}", blessed.unexplained);
        assert!(blessed.unexplained.is_empty(), "the oracles disagree");
    }
    let expected = golden::parse(&std::fs::read_to_string(&path).unwrap());
    let mut names: Vec<&str> = suite.cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        expected.keys().map(String::as_str).collect::<Vec<_>>(),
        "the golden file is of other cases: SB_BLESS=1"
    );
    let mut failures = String::new();
    let mut failed = 0;
    for case in suite.cases.iter().filter(|case| wanted(&case.name)) {
        for one in [false, true] {
            let differing = golden::differences(&expected[&case.name], &run_case(case, one));
            if differing.is_empty() {
                continue;
            }
            failed += 1;
            let _ = writeln!(failures, "[{}] one_instruction_blocks={one}", case.name);
            for (key, expected, actual) in differing {
                let _ = writeln!(failures, "    {key}: expected {expected}, got {actual}");
            }
        }
    }
    assert!(failed == 0, "{failed} failures\n{failures}");
}

#[test]
fn paging_matches_the_oracles() {
    check(&paging::suite());
}

#[test]
fn exceptions_match_the_oracles() {
    check(&exceptions::suite());
}

#[test]
fn transfers_match_the_oracles() {
    check(&transfers::suite());
}

#[test]
fn debug_matches_the_oracles() {
    check(&debug::suite());
}

#[test]
fn interrupts_match_the_oracles() {
    check(&interrupts::suite());
}

#[test]
fn smc_matches_the_oracles() {
    check(&smc::suite());
}

#[test]
fn strings_match_the_oracles() {
    check(&strings::suite());
}

#[test]
fn system_matches_the_oracles() {
    check(&system::suite());
}
