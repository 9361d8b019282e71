//! A recording that an earlier build made is still read, and still verifies.
//!
//! `fixtures/recording-v1` is a repository with the recording `fixture` of the built-in bare-metal
//! guest: 8 timer interrupts, five intervals, the last of them short. It is never made anew; a new version of a format adds its own.

mod common;

use common::{Lab, files};
use std::path::Path;

#[test]
fn a_recording_of_version_1_verifies() {
    let lab = Lab::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recording-v1");
    for file in files(&from) {
        let to = lab.repository().join(file.strip_prefix(&from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&file, to).unwrap();
    }
    let shown = lab.json(&["show", "fixture"]);
    assert_eq!(shown["state"], "finished");
    assert_eq!(shown["intervals"].as_array().unwrap().len(), 5);
    // It does not say on which processor it was made.
    assert_eq!(shown["host"], serde_json::Value::Null);
    assert_eq!(shown["host_match"]["verdict"], "unknown");
    assert_eq!(lab.verify("fixture"), 5);
    let report = lab.json(&["verify", "fixture", "--paranoid"]);
    assert_eq!(report["verified"], 5);
    // And a new recording fits beside it.
    lab.record("new", &["--stop-after-insns", "1M"]);
    assert_eq!(lab.verify("new"), 2);
}
