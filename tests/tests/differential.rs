//! The ground that the differential fuzzer stands on: the host CPU agrees with itself.

use simuboost_tests::differential::fuzzer::{BATCH, Fuzzer, Tally};
use simuboost_tests::differential::image::Images;
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
