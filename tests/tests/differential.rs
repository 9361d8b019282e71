//! The differential fuzzer for a few seconds, and what it has found before.

use simuboost_tests::differential::case::Case;
use simuboost_tests::differential::compare::Difference;
use simuboost_tests::differential::forms::{is_undefined, is_vector_encoding};
use simuboost_tests::differential::fuzzer::{BATCH, Fuzzer, Tally};
use simuboost_tests::differential::guest::GuestError;
use simuboost_tests::differential::image::Images;
use simuboost_tests::differential::layout::CODE;
use simuboost_tests::differential::native::NativeCpu;
use simuboost_tests::differential::side::{GuestSide, Side};
use simuboost_tests::differential::{engine, text};
use std::ops::Range;
use std::path::Path;
use tcg_sim::Engine;

fn native(images: &Images) -> NativeCpu {
    NativeCpu::new(BATCH, images).expect("sequences run natively")
}

fn native_engine() -> Fuzzer<NativeCpu, GuestSide<Engine>> {
    let images = Images::default();
    let native = native(&images);
    let engine = built(engine(&images, false, native.cpu_number()));
    Fuzzer::new(images, native, engine)
}

fn built(engine: Result<GuestSide<Engine>, GuestError>) -> GuestSide<Engine> {
    engine.expect("the engine starts")
}

/// Runs seeds; nothing may differ, and enough must have been seen for that to mean something.
fn assert_alike<A: Side, B: Side>(mut fuzzer: Fuzzer<A, B>, seeds: Range<u64>) {
    let count = seeds.end - seeds.start;
    let mut tally = Tally::default();
    let mut findings = Vec::new();
    fuzzer
        .run(seeds, &mut tally, |finding| {
            findings.push(finding.to_string())
        })
        .expect("sequences run");
    assert!(findings.is_empty(), "{tally}\n{}", findings.join("\n"));
    assert_eq!(tally.sequences, count);
    // A generator whose sequences all fault at once would prove little.
    assert!(tally.completed > count / 3, "{tally}");
    assert!(
        tally.undecided + tally.outside + tally.refused < count / 200,
        "{tally}"
    );
}

#[test]
fn the_engine_does_what_the_host_cpu_does() {
    assert_alike(native_engine(), 0..6_000);
}

#[test]
fn two_native_runs_of_a_sequence_end_alike() {
    let images = Images::default();
    let first = native(&images);
    let second =
        NativeCpu::on_cpu(first.cpu_number(), BATCH, &images).expect("sequences run natively");
    assert_alike(Fuzzer::new(images, first, second), 0..3_000);
}

#[test]
fn one_instruction_blocks_do_what_whole_blocks_do() {
    let images = Images::default();
    let sides = (
        built(engine(&images, false, 0)),
        built(engine(&images, true, 0)),
    );
    assert_alike(Fuzzer::new(images, sides.0, sides.1), 0..3_000);
}

fn assert_none(differences: Vec<(Case, Difference)>) {
    let text: Vec<String> = differences
        .iter()
        .map(|(case, difference)| format!("# {difference}\n{case}"))
        .collect();
    let shown = text.len().min(20);
    assert!(
        text.is_empty(),
        "{}\n{}",
        text.len(),
        text[..shown].join("\n")
    );
}

/// Every case that once differed, and its neighbours. Each file says which bugs its cases show.
#[test]
fn what_once_differed_ends_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("differential/regressions");
    let mut fuzzer = native_engine();
    let mut count = 0;
    for file in std::fs::read_dir(&folder).expect("the folder is there") {
        let path = file.expect("a file").path();
        let content = std::fs::read_to_string(&path).expect("a text");
        let cases =
            text::parse_all(&content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += cases.len();
        assert_none(fuzzer.check_all(&cases).expect("sequences run"));
    }
    assert!(count > 400, "{count}");
}

/// A bug: #UD came before the page fault and the #GP that an undefined instruction's length brings.
#[test]
fn undefined_instructions_at_the_end_of_a_page_end_alike() {
    for bitness in [64, 32] {
        let undefined = undefined(bitness).into_iter();
        let cases: Vec<Case> = undefined
            .flat_map(|bytes| at_page_end(bytes, bitness))
            .collect();
        assert!(cases.len() > 5_000, "{}", cases.len());
        assert_none(native_engine().check_all(&cases).expect("sequences run"));
    }
}

/// Undefined instructions of every opcode map but those of VEX and EVEX, which the host has and the
/// model lacks, padded to the most bytes there are.
fn undefined(bitness: u32) -> Vec<[u8; 15]> {
    let mut found = Vec::new();
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let prefixes: [&[u8]; 4] = [
        &[],
        &[0xf0, 0x66],
        &[0xf0, 0x67],
        &[0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x66, 0x67],
    ];
    for opcode in 0..=255u8 {
        for map in maps {
            for prefix in prefixes {
                for modrm in [0x00, 0x05, 0x06, 0x44, 0x84, 0xf8] {
                    let mut bytes = [0x25; 15];
                    let parts = [prefix, map, &[opcode, modrm]].concat();
                    bytes[..parts.len()].copy_from_slice(&parts);
                    if !is_vector_encoding(&bytes, bitness) && is_undefined(&bytes, bitness) {
                        found.push(bytes);
                    }
                }
            }
        }
    }
    found
}

/// With its first bytes last on the page, and whole; 32-bit code is entered by a far return.
fn at_page_end(bytes: [u8; 15], bitness: u32) -> Vec<Case> {
    (1..=15)
        .map(|count| {
            let mut case: Case = "code-at 0x10000000\ncode 90".parse().expect("a case");
            let at = CODE.end() - count as u64;
            if bitness == 32 {
                let target = (at as u32).to_le_bytes();
                let enter = [
                    &[0x68, 0x23, 0, 0, 0, 0x68],
                    &target[..],
                    &[0x48, 0xcb],
                    &bytes[..count],
                ];
                case.code = enter.concat();
            } else {
                case.code = bytes[..count].to_vec();
            }
            case.code_at = CODE.end() - case.code.len() as u64;
            case.start.rip = case.code_at;
            case.start.gpr[4] = 0x3000_1000;
            case
        })
        .collect()
}
