//! Recordings and results that others made are read, but not trusted.

mod common;

use common::forge::{FAITHFUL, Forgery};
use common::{Lab, words};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn lab() -> Lab {
    let lab = Lab::with_guest(8);
    lab.record("guest", &[]);
    lab
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// The file of that name below a folder.
fn find(root: &Path, name: &str) -> PathBuf {
    let found = common::files(root);
    let found = found.into_iter().find(|path| path.ends_with(name));
    found.unwrap_or_else(|| panic!("no {name} in {}", root.display()))
}

#[test]
fn merging_does_not_copy_what_a_result_names() {
    let lab = lab();
    let (part, joined) = (lab.path("part"), lab.path("joined"));
    let mem = ["--instrument", "mem", "--out"];
    let simulate = [&["simulate", "guest"], &mem[..], &[text(&part)]].concat();
    lab.json(&simulate);
    let merge = [&["merge", "guest"], &mem[..], &[text(&joined), text(&part)]].concat();
    std::fs::write(part.join("secret"), "secret").unwrap();
    let result = find(&part, "00000000.json");
    let honest = std::fs::read_to_string(&result).unwrap();
    let mut forged: Value = serde_json::from_str(&honest).unwrap();
    forged["trace"]["file"] = "../secret".into();
    std::fs::write(&result, forged.to_string()).unwrap();
    let output = lab.run(&merge);
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(words(&output).contains("names another trace"));
    assert!(!joined.join("secret").exists());
    std::fs::write(&result, honest).unwrap();
    let report = lab.json(&merge);
    assert_eq!(report["verified"], report["intervals"]);
}

#[test]
fn a_trace_that_is_gone_is_made_again() {
    let lab = lab();
    let simulate = ["simulate", "guest", "--instrument", "mem"];
    let intervals = lab.json(&simulate)["simulated"].as_u64().unwrap();
    assert!(intervals > 1);
    let trace = find(&lab.path("repository-results"), "00000001.trace");
    let bytes = std::fs::read(&trace).unwrap();
    std::fs::remove_file(&trace).unwrap();
    assert_eq!(lab.json(&simulate)["simulated"], 1);
    assert_eq!(std::fs::read(&trace).unwrap(), bytes);
    std::fs::write(&trace, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(lab.json(&simulate)["simulated"], 1);
    assert_eq!(std::fs::read(&trace).unwrap(), bytes);
}

#[test]
fn nothing_is_written_among_results_of_another_recording() {
    let lab = lab();
    lab.record("other", &[]);
    let out = lab.path("out");
    lab.json(&["simulate", "guest", "--out", text(&out)]);
    let before = common::files(&out);
    for more in [&["--force"][..], &["--instrument", "none"]] {
        let arguments = [&["simulate", "other", "--out", text(&out)], more].concat();
        let output = lab.run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        assert!(words(&output).contains("results of another recording, guest"));
    }
    assert_eq!(common::files(&out), before);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
}

#[test]
fn a_terminal_obeys_no_recording() {
    let lab = lab();
    let forgery = Forgery {
        note: &|bytes| {
            let mut note: Value = serde_json::from_slice(bytes).expect("a note");
            note["kernel"] = "vmlinuz\u{1b}]0;owned\u{7}\r\u{9b}2J".into();
            *bytes = serde_json::to_vec(&note).expect("plain data");
        },
        ..FAITHFUL
    };
    lab.forge("guest", "hostile", &forgery);
    let output = lab.run(&["show", "hostile"]);
    assert!(output.status.success(), "{}", words(&output));
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(
        said.contains(r"vmlinuz\u{1b}]0;owned\u{7}\r\u{9b}2J"),
        "{said}"
    );
    assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said}");
}
