//! The ground that the differential fuzzer stands on: the host CPU agrees with itself.

use simuboost_tests::differential::case::Case;
use simuboost_tests::differential::engine;
use simuboost_tests::differential::forms::is_undefined;
use simuboost_tests::differential::fuzzer::{BATCH, Fuzzer, Tally};
use simuboost_tests::differential::image::Images;
use simuboost_tests::differential::layout::CODE;
use simuboost_tests::differential::native::NativeCpu;

#[test]
fn two_native_runs_of_a_sequence_end_alike() {
    let images = Images::default();
    let first = NativeCpu::new(BATCH, images.constant()).unwrap();
    let second = NativeCpu::new(BATCH, images.constant()).unwrap();
    let mut tally = Tally::default();
    let mut findings = Vec::new();
    Fuzzer::new(images, first, second)
        .run(0..3000, &mut tally, |finding| {
            findings.push(finding.to_string())
        })
        .unwrap();
    assert_eq!(tally.sequences, 3000);
    // A generator whose sequences all fault at once would prove little.
    assert!(tally.completed > 900, "{tally}");
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// A bug: #UD came before the page fault and the #GP that an undefined instruction's length brings.
#[test]
fn undefined_instructions_at_the_end_of_a_page_end_alike() {
    let images = Images::default();
    let native = NativeCpu::new(BATCH, images.constant()).unwrap();
    let engine = engine(&images, false, native.cpu_number()).unwrap();
    let mut fuzzer = Fuzzer::new(images, native, engine);
    let cases: Vec<Case> = undefined().into_iter().flat_map(at_page_end).collect();
    assert!(cases.len() > 5_000, "{}", cases.len());
    let differences = fuzzer.check_all(&cases).unwrap();
    let text: Vec<String> = differences
        .into_iter()
        .map(|(case, difference)| format!("# {difference}\n{case}"))
        .collect();
    assert!(
        text.is_empty(),
        "{}\n{}",
        text.len(),
        text[..text.len().min(20)].join("\n")
    );
}

/// Undefined instructions of every opcode map but those of VEX and EVEX, which the host has and the
/// model lacks, padded to the most bytes there are.
fn undefined() -> Vec<[u8; 15]> {
    let mut found = Vec::new();
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let prefixes: [&[u8]; 3] = [
        &[],
        &[0xf0, 0x66],
        &[0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x66, 0x67],
    ];
    for opcode in 0..=255u8 {
        for map in maps {
            for prefix in prefixes {
                for modrm in [0x00, 0x05, 0x44, 0x84, 0xf8] {
                    let mut bytes = [0x25; 15];
                    let parts = [prefix, map, &[opcode, modrm]].concat();
                    bytes[..parts.len()].copy_from_slice(&parts);
                    let vector = map.is_empty() && matches!(opcode, 0x62 | 0xc4 | 0xc5);
                    if !vector && is_undefined(&bytes) {
                        found.push(bytes);
                    }
                }
            }
        }
    }
    found.dedup();
    found
}

/// With its first bytes last on the page, and whole.
fn at_page_end(bytes: [u8; 15]) -> Vec<Case> {
    (1..=15)
        .map(|count| {
            let mut case: Case = "code-at 0x10000000\ncode 90".parse().expect("a case");
            case.code_at = CODE.end() - count as u64;
            case.start.rip = case.code_at;
            case.code = bytes[..count].to_vec();
            case.start.gpr[4] = 0x3000_1000;
            case
        })
        .collect()
}
