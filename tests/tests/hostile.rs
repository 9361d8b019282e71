//! Guests that mean harm, for about a second each; for hours with
//! `cargo run --release -p simuboost-tests --example hostile`.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use simuboost_tests::hostile::case::{self, Kind};
use simuboost_tests::hostile::state::{Answer, load_damaged};
use simuboost_tests::hostile::{random, watchdog::Watchdog};
use std::time::{Duration, Instant};

/// How long each test looks for trouble.
const WHILE: Duration = Duration::from_secs(1);

#[test]
fn random_code_is_deterministic_and_contained() {
    let watchdog = Watchdog::new();
    let started = Instant::now();
    let (mut count, mut far) = (0u64, 0u64);
    for seed in 0.. {
        let summary = case::run(&random::input(seed), &mut |vcpu| watchdog.watch(seed, vcpu))
            .unwrap_or_else(|finding| panic!("seed {seed}: {finding}"));
        count += 1;
        far += u64::from(summary.kind == Kind::Steps && summary.steps >= 200);
        if started.elapsed() > WHILE && count >= 40 {
            break;
        }
    }
    // Guests that all end at once would prove little.
    assert!(far * 4 > count, "{far} of {count} ran long");
}

#[test]
fn damaged_states_are_refused_or_run() {
    let watchdog = Watchdog::new();
    let started = Instant::now();
    let (mut refused, mut ran) = (0u64, 0u64);
    for seed in 0.. {
        match load_damaged(seed, &mut |vcpu| watchdog.watch(seed, vcpu)) {
            Ok(Answer::Refused) => refused += 1,
            Ok(Answer::Ran) => ran += 1,
            Err(what) => panic!("seed {seed}: {what}"),
        }
        if started.elapsed() > WHILE && refused > 20 && ran > 20 {
            break;
        }
        assert!(seed < 1_000_000, "{refused} refused, {ran} ran");
    }
}
