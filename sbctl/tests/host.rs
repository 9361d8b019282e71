//! Recordings say which processor made them, and are not simulated on one that differs unless that is
//! asked for.

mod common;

use common::forge::{FAITHFUL, Forgery};
use common::{Lab, words};
use serde_json::{Value, json};

fn lab() -> Lab {
    let lab = Lab::with_guest(8);
    lab.record("guest", &[]);
    lab
}

/// A copy whose note is changed.
fn forge(lab: &Lab, to: &str, change: &dyn Fn(&mut Value)) {
    let forgery = Forgery {
        note: &|bytes| {
            let mut note: Value = serde_json::from_slice(bytes).expect("a note");
            change(&mut note);
            *bytes = serde_json::to_vec(&note).expect("plain data");
        },
        ..FAITHFUL
    };
    lab.forge("guest", to, &forgery);
}

/// What every command that simulates says.
fn refusal(lab: &Lab, name: &str) -> String {
    let commands: [&[&str]; 3] = [
        &["simulate", name],
        &["verify", name],
        &["bisect", name, "1"],
    ];
    let mut said = String::new();
    for command in commands {
        let output = lab.run(command);
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        said = words(&output);
        assert!(said.contains("--allow-host-mismatch"), "{said}");
        let allowed = [command, &["--allow-host-mismatch"]].concat();
        // The guest executes nothing that processors do differently.
        let output = lab.run(&allowed);
        assert_eq!(output.status.code(), Some(0), "{}", words(&output));
        assert!(words(&output).contains("another processor"), "{said}");
    }
    said
}

#[test]
fn a_recording_of_this_host_says_so() {
    let lab = lab();
    let shown = lab.json(&["show", "guest"]);
    assert_eq!(shown["host_match"]["verdict"], "same");
    assert_eq!(shown["host"]["version"], 1);
    assert_eq!(shown["host"]["results"].as_object().unwrap().len(), 16);
    let text = words(&lab.run(&["show", "guest"]));
    assert!(text.contains("this host gives the same results"), "{text}");
    let report = lab.json(&["verify", "guest"]);
    assert_eq!(report["host"]["verdict"], "same");
}

#[test]
fn what_differs_is_named_and_may_be_allowed() {
    let lab = lab();
    forge(&lab, "other", &|note| {
        note["host"]["vendor"] = "CentaurHauls".into();
        note["host"]["results"]["approximations"] = "0123456789abcdef".into();
    });
    let said = refusal(&lab, "other");
    assert!(said.contains("CentaurHauls recorded"), "{said}");
    assert!(said.contains("RSQRTPS"), "{said}");
    assert!(!said.contains("FSIN"), "{said}");
    let report = lab.json(&["verify", "other", "--allow-host-mismatch"]);
    assert_eq!(report["host"]["verdict"], "differs");
    assert_eq!(report["host"]["differs"].as_array().unwrap().len(), 2);
    let text = words(&lab.run(&["show", "other"]));
    assert!(text.contains("differs in"), "{text}");
}

#[test]
fn a_recording_that_does_not_say_is_simulated_with_a_word_of_warning() {
    let lab = lab();
    forge(&lab, "old", &|note| {
        note.as_object_mut().expect("an object").remove("host");
    });
    let output = lab.run(&["verify", "old"]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    assert!(
        words(&output).contains("did not note"),
        "{}",
        words(&output)
    );
}

#[test]
fn records_that_cannot_be_read_are_refused_briefly() {
    let lab = lab();
    let rows: [(&str, Value, &str); 4] = [
        ("newer", json!({"version": 2, "else": []}), "has version 2"),
        ("cut", json!({"version": 1, "vendor": "Gen"}), "malformed"),
        ("text", json!("x".repeat(1 << 20)), "malformed"),
        (
            "long",
            json!({"version": 1, "vendor": "\u{1b}[2J".repeat(1 << 18)}),
            "malformed",
        ),
    ];
    for (name, host, expected) in rows {
        forge(&lab, name, &|note| note["host"] = host.clone());
        let said = refusal(&lab, name);
        assert!(said.contains(expected), "{said}");
        assert!(said.len() < 1000, "{name}: {} bytes", said.len());
        let shown = lab.run(&["show", name]);
        assert_eq!(shown.status.code(), Some(0));
        assert!(words(&shown).len() < 4000, "{name}");
        assert!(!words(&shown).contains('\u{1b}'));
    }
    // A note that is cut short is no note.
    let forgery = Forgery {
        note: &|bytes| bytes.truncate(bytes.len() / 2),
        ..FAITHFUL
    };
    lab.forge("guest", "half", &forgery);
    let output = lab.run(&["verify", "half"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words(&output).contains("no recording of a guest"),
        "{}",
        words(&output)
    );
}
