//! A recording is simulated in part while it is being made, and what goes wrong is told at once.

mod common;

use common::{Lab, USUAL_INTERVAL, words};
use serde_json::Value;
use std::process::Output;
use std::time::Duration;

/// Records with JSON on standard output.
fn record(lab: &Lab, name: &str, more: &[&str]) -> Output {
    let fixed = lab.record_arguments(name);
    let fixed = fixed.iter().map(String::as_str);
    let fixed = fixed.filter(|option| !option.starts_with("--check-live"));
    let all: Vec<&str> = fixed.chain(more.iter().copied()).collect();
    lab.run(&all)
}

#[test]
fn a_sample_of_a_sound_recording_is_verified_meanwhile() {
    let lab = Lab::with_guest(400);
    let options = [USUAL_INTERVAL, "--check-live=yes", "--json"];
    let output = record(&lab, "sound", &options);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let summary = common::json(&output);
    let live = &summary["live_check"];
    assert_eq!(live["on"], true);
    let checked = live["checked"].as_u64().unwrap();
    assert!(checked >= 1, "{live:#}");
    assert_eq!(live["failed"], 0);
    assert_eq!(live["why_not"], Value::Null, "{live:#}");
    // What was checked is not checked again.
    let report = lab.json(&["verify", "sound"]);
    assert_eq!(report["verified"], report["intervals"]);
    let before = report["intervals"].as_u64().unwrap() - report["simulated"].as_u64().unwrap();
    assert_eq!(before, checked);
}

#[test]
fn a_device_that_goes_behind_the_log_is_noticed_while_recording() {
    let lab = Lab::with_guest(4_000);
    // The device acts in every interval, whichever is the sample.
    let options = [
        "--interval=39ms",
        "--drill=5ms",
        "--check-live=yes",
        "--json",
    ];
    let output = record(&lab, "faulty", &options);
    assert_eq!(output.status.code(), Some(3), "{}", words(&output));
    let live = &common::json(&output)["live_check"];
    assert!(live["failed"].as_u64() >= Some(1), "{live:#}");
    let first = live["first_failed"].as_u64().expect("one failed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let warning = format!("WARNING: interval {first} of faulty does not verify: diverged after");
    assert!(said.contains(&warning), "{said}");
    assert!(said.contains(&format!("bisect faulty {first}")), "{said}");
    assert_eq!(said.matches("WARNING").count(), 1, "{said}");
    // The recording itself is whole.
    let shown = lab.json(&["show", "faulty"]);
    assert_eq!(shown["state"], "finished");
    let report = lab.json_with_code(&["verify", "faulty"], 3);
    assert_eq!(
        report["failures"][0]["pages"],
        serde_json::json!(["0xfff000"])
    );
}

#[test]
fn the_warning_comes_before_the_recording_ends() {
    use std::io::{BufRead, BufReader};
    let lab = Lab::with_guest(1_000_000);
    let fixed = lab.record_arguments("long");
    let fixed = fixed.iter().map(String::as_str);
    let fixed = fixed.filter(|option| !option.starts_with("--check-live"));
    let options = ["--interval=200ms", "--drill=100ms", "--check-live=yes"];
    let all: Vec<&str> = fixed.chain(options).collect();
    let mut recorder = lab.start(&all);
    let stderr = BufReader::new(recorder.stderr.take().expect("it is piped"));
    let lines = stderr.lines().map_while(Result::ok);
    let warning = lines.into_iter().find(|line| line.contains("WARNING"));
    assert!(recorder.try_wait().unwrap().is_none(), "it has ended");
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    assert!(warning.is_some());
}

#[test]
fn nothing_is_checked_unless_it_is_wanted() {
    let lab = Lab::with_guest(8);
    let options = [USUAL_INTERVAL, "--check-live=no", "--json"];
    let summary = common::json(&record(&lab, "no", &options));
    assert_eq!(summary["live_check"]["on"], false);
    assert_eq!(summary["live_check"]["checked"], 0);
    // Whatever this host has to spare, a short recording does not wait for checks.
    let start = std::time::Instant::now();
    let options = [USUAL_INTERVAL, "--json"];
    let output = record(&lab, "auto", &options);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(common::json(&output)["live_check"]["failed"], 0);
}
