//! What `sbctl doctor` says, with and without KVM.

mod common;

use common::{Lab, words};
use serde_json::Value;

const KVM: [&str; 13] = [
    "present",
    "permissions",
    "api",
    "kernel-speed",
    "user-speed",
    "results",
    "cpuid",
    "window",
    "msr-exits",
    "dirty-pages",
    "userfaultfd",
    "tsc",
    "pmu",
];
const HOST: [&str; 5] = ["processor", "same-cores", "cores", "memory", "disk"];
const ROUNDS: [&str; 2] = ["engine", "kvm"];

fn ids(report: &Value, group: &str) -> Vec<String> {
    let checks = report["checks"].as_array().expect("a list").iter();
    let checks = checks.filter(|check| check["group"] == group);
    checks
        .map(|check| check["id"].as_str().expect("a name").to_owned())
        .collect()
}

fn check<'a>(report: &'a Value, group: &str, id: &str) -> &'a Value {
    let mut checks = report["checks"].as_array().expect("a list").iter();
    let found = checks.find(|check| check["group"] == group && check["id"] == id);
    found.unwrap_or_else(|| panic!("no {id} in {report:#}"))
}

fn assert_shape(report: &Value) {
    assert_eq!(report["version"], 1);
    assert_eq!(ids(report, "kvm"), KVM);
    assert_eq!(ids(report, "host"), HOST);
    assert_eq!(ids(report, "rounds"), ROUNDS);
    for check in report["checks"].as_array().expect("a list") {
        let status = check["status"].as_str().expect("text");
        assert!(
            ["ok", "limited", "no", "skipped"].contains(&status),
            "{check:#}"
        );
        assert!(!check["finding"].as_str().expect("text").is_empty());
        assert!(check["measured"].is_object());
    }
    if report["kvm_works"] == false {
        assert_eq!(report["accel"], "engine");
    }
}

#[test]
fn this_host_is_examined() {
    let lab = Lab::new();
    let report = lab.json(&["doctor"]);
    assert_shape(&report);
    assert_eq!(report["recording_works"], true);
    assert_eq!(check(&report, "rounds", "engine")["status"], "ok");
    // Where kernel code is emulated or CPUID is another one, KVM is not chosen.
    for id in ["kernel-speed", "results", "cpuid"] {
        if check(&report, "kvm", id)["status"] == "no" {
            assert_eq!(report["kvm_works"], false, "{report:#}");
        }
    }
    // Nothing was made.
    assert!(!lab.repository().exists());
}

#[test]
fn a_host_without_kvm_records_on_the_engine() {
    let lab = Lab::new();
    let report = lab.json(&["doctor", "--kvm-device", "/nowhere/kvm"]);
    assert_shape(&report);
    assert_eq!(report["accel"], "engine");
    assert_eq!(report["recording_works"], true);
    assert_eq!(check(&report, "kvm", "present")["status"], "no");
    for id in &KVM[1..] {
        assert_eq!(check(&report, "kvm", id)["status"], "skipped", "{id}");
    }
    assert_eq!(check(&report, "rounds", "kvm")["status"], "skipped");
    let output = lab.run(&["doctor", "--kvm-device", "/nowhere/kvm"]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "KVM");
    assert!(
        lines[1].starts_with("  NO       present          there is no /nowhere/kvm"),
        "{text}"
    );
    assert!(lines[2].trim_start().starts_with("-> "), "{text}");
    assert_eq!(
        lines[4],
        "  -        api              not tried without KVM"
    );
    assert!(text.contains("\nThis host\n"), "{text}");
    assert!(
        text.contains("\n`sbctl record` works here, on the engine (present: there is no"),
        "{text}"
    );
    assert!(text.contains("\nIt would be better with:\n"), "{text}");
}

#[test]
fn what_is_no_kvm_device_is_told_from_it() {
    let lab = Lab::new();
    let file = lab.path("guest.elf").display().to_string();
    let report = lab.json(&["doctor", "--kvm-device", &file]);
    assert_eq!(check(&report, "kvm", "present")["status"], "no");
    assert_eq!(check(&report, "kvm", "api")["status"], "no", "{report:#}");
    let report = lab.json(&["doctor", "--kvm-device", "/dev/null"]);
    assert_eq!(check(&report, "kvm", "api")["status"], "no", "{report:#}");
    // A directory can be there, but not be opened for writing.
    let directory = lab.directory.path().display().to_string();
    let report = lab.json(&["doctor", "--kvm-device", &directory]);
    assert_eq!(check(&report, "kvm", "permissions")["status"], "no");
    assert_eq!(report["accel"], "engine");
}

#[test]
fn a_host_that_cannot_record_exits_with_1() {
    let lab = Lab::new();
    // A file is where the repository should be.
    std::fs::write(lab.repository(), "").unwrap();
    let report = lab.json_with_code(&["doctor", "--kvm-device", "/nowhere/kvm"], 1);
    assert_eq!(report["recording_works"], false);
    assert_eq!(check(&report, "host", "disk")["status"], "no");
}
