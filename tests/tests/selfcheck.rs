//! The engine compared with itself on the guests of the system suites and on random guests, from the
//! first step to the last, in windows of a few steps: in blocks and in one-instruction blocks, warm and
//! started cold at each window, without and with instruments.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use machine::units::Steps;
use simuboost_tests::guest::{Guest, layout};
use simuboost_tests::hostile::trial;
use simuboost_tests::oracle::vcpu::{self, BoardPorts, NoPorts, Ports};
use simuboost_tests::recording::programs::Program;
use simuboost_tests::suite::{Devices, Suite, exceptions, interrupts, smc, strings, transfers};
use std::num::NonZeroU64;
use std::sync::Arc;
use tcg_sim::EngineOptions;
use tcg_sim::selfcheck::bare::{self, Inputs, Periodic};
use tcg_sim::selfcheck::{Plan, SelfChecked};

fn plan(every: u64) -> Plan {
    Plan {
        every,
        length: every,
        from: 0,
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        code_bytes: 4 << 20,
        one_instruction_blocks: false,
    }
}

/// Compares a guest as a suite runs it; returns the steps that were compared.
fn check(name: &str, guest: &Guest, ports: &mut dyn Ports) -> u64 {
    let ram = vcpu::ram_of(guest);
    let mut checked = SelfChecked::new(ram.clone(), trial::cpuid(), options(), plan(37)).unwrap();
    let progress = checked.progress();
    let outcome = vcpu::run(&mut checked, &ram, guest, ports);
    if let simuboost_tests::guest::End::Unsupported(what) = outcome.end {
        panic!("{name}: {what}");
    }
    drop(checked);
    let compared = progress.end().unwrap_or_else(|e| panic!("{name}: {e}"));
    compared.steps
}

/// Every so many cases of a suite; `SB_SELFCHECK_ALL=1` for all of them.
fn suite(suite: &Suite, every: usize) {
    let every = if std::env::var_os("SB_SELFCHECK_ALL").is_some() {
        1
    } else {
        every
    };
    let mut steps = 0;
    for case in suite.cases.iter().step_by(every) {
        let (mut board, mut none) = (BoardPorts::new(), NoPorts);
        let ports: &mut dyn Ports = match case.devices {
            Devices::Board => &mut board,
            Devices::None => &mut none,
        };
        steps += check(&case.name, &case.guest(), ports);
    }
    println!("{} steps", steps);
    assert!(steps > 0);
}

#[test]
fn suite_guests_are_the_same_in_every_way() {
    suite(&smc::suite(), 5);
    suite(&interrupts::suite(), 5);
    suite(&strings::suite(), 40);
    suite(&exceptions::suite(), 40);
    suite(&transfers::suite(), 40);
}

#[test]
fn random_guests_are_the_same_in_every_way() {
    for seed in 0..3 {
        let ram = Arc::new(machine::ram::Ram::new(layout::RAM_BYTES).unwrap());
        let state = Program::random(seed).load(&ram);
        let mut checked = SelfChecked::new(ram, trial::cpuid(), options(), plan(1009)).unwrap();
        machine::vcpu::Vcpu::load(&mut checked, &state, Default::default()).unwrap();
        let progress = checked.progress();
        let inputs = Inputs {
            seed,
            interrupt: Some(Periodic {
                vector: machine::units::Vector(0x20),
                every: NonZeroU64::new(211 + seed).unwrap(),
            }),
        };
        let every = NonZeroU64::new(100_000).unwrap();
        bare::run(&mut checked, &inputs, Steps(20_000), every, &mut |_| Ok(())).unwrap();
        drop(checked);
        let compared = progress.end().unwrap();
        assert!(compared.steps > 500, "{compared:?}");
    }
}
