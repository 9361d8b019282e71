//! Whatever is wrong in a recording is found, where it is, and exits with 3.

mod common;

use common::forge::{FAITHFUL, Forgery};
use common::{Lab, files, words};
use serde_json::Value;
use std::path::PathBuf;

/// The interval that ends in the changed checkpoint or has the changed log.
const GUILTY: u64 = 2;
const CHANGED: u32 = 3;

fn lab() -> Lab {
    let lab = Lab::with_guest(25);
    lab.record("guest", &[]);
    lab
}

/// Verifies and gives the failure of the guilty interval.
fn failure(lab: &Lab, name: &str) -> Value {
    let report = lab.json_with_code(&["verify", name], 3);
    let failures = report["failures"].as_array().expect("a list");
    let guilty = failures
        .iter()
        .find(|failure| failure["interval"] == GUILTY);
    let guilty = guilty
        .unwrap_or_else(|| panic!("not found: {report:#}"))
        .clone();
    // Those that have nothing to do with it are verified.
    let distant = failures
        .iter()
        .filter(|failure| failure["interval"].as_u64() > Some(GUILTY + 1));
    assert_eq!(distant.count(), 0, "{report:#}");
    guilty
}

#[test]
fn a_faithful_copy_verifies() {
    let lab = lab();
    lab.forge("guest", "copy", &FAITHFUL);
    assert_eq!(lab.verify("copy"), lab.verify("guest"));
}

#[test]
fn a_changed_register_is_named() {
    let lab = lab();
    let forgery = Forgery {
        blob: &|number, name, blob| {
            if (number, name) == (CHANGED, "cpu") {
                // Headers take 36 bytes, then come RAX, RCX, ...
                blob[36 + 8 * 14] ^= 1;
            }
        },
        ..FAITHFUL
    };
    lab.forge("guest", "register", &forgery);
    let failure = failure(&lab, "register");
    assert_eq!(failure["verdict"], "diverged");
    let registers = failure["registers"].as_array().unwrap();
    assert_eq!(registers.len(), 1);
    assert_eq!(registers[0]["name"], "R14");
    assert_eq!(failure["after_instructions"], 500_000);
    assert!(
        failure["rip"].as_str().unwrap().starts_with("0x10"),
        "{failure:#}"
    );
}

#[test]
fn a_changed_byte_of_a_page_is_found_and_bisected_to_its_writer() {
    let lab = lab();
    // In the table that the guest changes, at 4 MiB: a word that the interval changed.
    let page = |number: u64| lab.page("guest", u32::try_from(number).unwrap(), 0x400);
    let (before, after) = (page(GUILTY), page(GUILTY + 1));
    let offset = before
        .iter()
        .zip(&after)
        .position(|(before, after)| before != after);
    let word = offset.unwrap() / 8 * 8;
    let forgery = Forgery {
        page: &|number, frame, page| {
            if (number, frame.0) == (CHANGED, 0x400) {
                page[word + 3] ^= 0x40;
            }
        },
        ..FAITHFUL
    };
    lab.forge("guest", "page", &forgery);
    let failure = failure(&lab, "page");
    assert_eq!(failure["verdict"], "diverged");
    assert_eq!(failure["pages"], serde_json::json!(["0x400000"]));
    let address = format!("{:#x}", 0x40_0000 + word);
    assert!(
        failure["expected"]
            .as_str()
            .unwrap()
            .ends_with(&format!("at {address}")),
        "{failure:#}"
    );
    let report = lab.json_with_code(&["bisect", "page", "2"], 3);
    assert_eq!(report["modes_differ"], Value::Null);
    let memory = &report["recording_differs"]["memory"][0];
    assert_eq!(memory["address"], address);
    let writer = memory["written_by"]["text"].as_str().unwrap();
    assert!(writer.starts_with("add [rax*8+400000h],rbx"), "{report:#}");
}

#[test]
fn an_interval_without_fault_bisects_to_nothing() {
    let lab = lab();
    let report = lab.json(&["bisect", "guest", "1"]);
    assert_eq!(report["finding"]["verdict"], "verified");
    assert_eq!(report["modes_differ"], Value::Null);
}

#[test]
fn a_changed_byte_of_a_log_cuts_it() {
    let lab = lab();
    let forgery = Forgery {
        log: &|interval, bytes| {
            if u64::from(interval) == GUILTY {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
        },
        ..FAITHFUL
    };
    lab.forge("guest", "log", &forgery);
    let failure = failure(&lab, "log");
    assert_eq!(failure["expected"], "the end of a cut log");
    let output = lab.run(&["log", "log", "--interval", "2"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(words(&output).contains("cut at byte"), "{}", words(&output));
}

/// One flipped bit in the middle of a file of the repository.
fn flip(path: &PathBuf) {
    let mut bytes = std::fs::read(path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    replace(path, &bytes);
}

/// Published files cannot be written to.
fn replace(path: &PathBuf, bytes: &[u8]) {
    std::fs::remove_file(path).expect("it is there");
    std::fs::write(path, bytes).expect("it is written");
}

#[test]
fn a_flipped_bit_of_a_file_is_damage_and_the_file_is_named() {
    let lab = lab();
    let all = files(&lab.repository());
    let pack = all
        .iter()
        .filter(|path| path.to_string_lossy().contains("/packs/"));
    let pack = pack
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let named = |name: &str| {
        let path = all
            .iter()
            .find(|path| path.to_string_lossy().ends_with(name));
        path.unwrap_or_else(|| panic!("{name} in {all:?}")).clone()
    };
    for path in [
        named("/log-0000000002"),
        named("/ckpt-0000000003"),
        pack.clone(),
    ] {
        let before = std::fs::read(&path).unwrap();
        flip(&path);
        let output = lab.run(&["verify", "guest", "--force"]);
        assert_eq!(
            output.status.code(),
            Some(3),
            "{path:?}: {}",
            words(&output)
        );
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            words(&output).contains(name),
            "{path:?}: {}",
            words(&output)
        );
        replace(&path, &before);
        lab.verify("guest");
    }
}
