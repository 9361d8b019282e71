//! Recording and simulating, end to end, through the program.

mod common;

use common::{Lab, words};
use serde_json::{Value, json};

#[test]
fn a_recording_verifies_and_parallel_equals_serial() {
    let lab = Lab::new();
    let summary = lab.record("guest", &[]);
    assert_eq!(summary["end"], "powered-off");
    let intervals = summary["intervals"].as_u64().unwrap();
    assert!(intervals >= 6, "{summary:#}");
    assert!(summary["interrupts"].as_u64().unwrap() >= 40, "{summary:#}");
    assert!(summary["reads"].as_u64().unwrap() > 100, "{summary:#}");
    let mut merged = Vec::new();
    for workers in ["1", "2", "5", "64"] {
        let out = lab.path(&format!("out-{workers}"));
        let instruments = ["--instrument", "count", "--instrument", "mem"];
        let arguments = ["simulate", "guest", "--parallel", workers, "--out"];
        let out_name = [out.to_str().unwrap()];
        let report = lab.json(&[&arguments[..], &out_name, &instruments].concat());
        assert_eq!(report["verified"], intervals);
        assert_eq!(report["simulated"], intervals);
        assert_eq!(report["evidence"], json!(["same engine"]));
        assert_eq!(report["instructions"], summary["instructions"]);
        // A step is a retired instruction or a delivery.
        let counts = &report["counts"];
        let levels = counts["instructions"].as_array().unwrap().iter();
        let retired: u64 = levels.map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(counts["interrupts"], summary["interrupts"]);
        let delivered =
            counts["interrupts"].as_u64().unwrap() + counts["exceptions"].as_u64().unwrap();
        assert_eq!(Some(retired + delivered), summary["instructions"].as_u64());
        assert!(report["traced_accesses"].as_u64() > counts["data"]["writes"].as_u64());
        let mut traces = common::files(&out);
        traces.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "trace")
        });
        assert_eq!(traces.len() as u64, intervals);
        let traces: Vec<u8> = traces
            .iter()
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect();
        merged.push((lab.merged(&out), traces));
    }
    assert!(merged.iter().all(|result| *result == merged[0]));
}

#[test]
fn both_clocks_and_both_kinds_of_positions_verify() {
    let lab = Lab::with_guest(15);
    for (name, options) in [
        ("insn-landmark", &["--positions", "landmark"][..]),
        ("host-count", &["--clock", "host"]),
        ("by-time", &["--clock", "insn"]),
    ] {
        lab.record(name, options);
        assert!(lab.verify(name) >= 1);
    }
    let report = lab.json(&["verify", "by-time", "--paranoid"]);
    assert_eq!(report["verified"], report["intervals"]);
    let evidence = json!(["same engine", "one-instruction blocks"]);
    assert_eq!(report["evidence"], evidence);
}

#[test]
fn what_is_done_is_not_done_again() {
    let lab = Lab::new();
    let intervals = lab.record("guest", &[])["intervals"].as_u64().unwrap();
    let first = lab.json(&["simulate", "guest", "--intervals", "1..3"]);
    assert_eq!(
        (&first["intervals"], &first["simulated"]),
        (&2.into(), &2.into())
    );
    let second = lab.json(&["simulate", "guest"]);
    assert_eq!(second["verified"], intervals);
    assert_eq!(second["simulated"], intervals - 2);
    let third = lab.json(&["simulate", "guest"]);
    assert_eq!(
        (&third["verified"], &third["simulated"]),
        (&intervals.into(), &0.into())
    );
    let forced = lab.json(&["simulate", "guest", "--force"]);
    assert_eq!(forced["simulated"], intervals);
}

#[test]
fn shards_together_are_the_whole() {
    let lab = Lab::new();
    let intervals = lab.record("guest", &[])["intervals"].as_u64().unwrap();
    let whole = lab.path("whole");
    lab.json(&["simulate", "guest", "--out", whole.to_str().unwrap()]);
    let mut sum = 0;
    for shard in ["1/3", "2/3", "3/3"] {
        let out = lab.path(&format!("shard-{}", &shard[..1]));
        let arguments = ["simulate", "guest", "--shard", shard, "--out"];
        let report = lab.json(&[&arguments[..], &[out.to_str().unwrap()]].concat());
        assert_eq!(report["verified"], report["intervals"]);
        sum += report["intervals"].as_u64().unwrap();
    }
    assert_eq!(sum, intervals);
    // A batch system may start more jobs than there are intervals.
    let idle = lab.json(&["simulate", "guest", "--shard", "64/64"]);
    assert_eq!(
        (&idle["intervals"], &idle["simulated"]),
        (&0.into(), &0.into())
    );
    let joined = lab.path("joined");
    let from = [1, 2, 3].map(|n| lab.path(&format!("shard-{n}")));
    let mut arguments = vec!["merge", "guest", "--out", joined.to_str().unwrap()];
    arguments.extend(from[..2].iter().map(|path| path.to_str().unwrap()));
    let report = lab.json_with_code(&arguments, 3);
    assert!(!report["missing"].as_array().unwrap().is_empty());
    arguments.push(from[2].to_str().unwrap());
    let report = lab.json(&arguments);
    assert_eq!(report["verified"], intervals);
    assert_eq!(lab.merged(&joined), lab.merged(&whole));
}

#[test]
fn following_a_recording_equals_simulating_it_afterwards() {
    let lab = Lab::with_guest(400);
    let arguments = lab.record_arguments("guest");
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.push(common::USUAL_INTERVAL);
    let mut recorder = lab.start(&arguments);
    let follow = lab.path("follow");
    let follower = [
        "simulate",
        "guest",
        "--follow",
        "--out",
        follow.to_str().unwrap(),
    ];
    let report = loop {
        let output = lab.sbctl(&follower).arg("--json").output().unwrap();
        // Until the recorder has begun there is nothing to follow.
        if output.status.success() {
            break common::json(&output);
        }
        assert!(recorder.try_wait().unwrap().is_none(), "{}", words(&output));
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(recorder.wait().unwrap().success());
    let after = lab.path("after");
    let whole = lab.json(&["simulate", "guest", "--out", after.to_str().unwrap()]);
    assert_eq!(report["verified"], whole["verified"]);
    assert!(whole["verified"].as_u64().unwrap() > 50);
    assert_eq!(lab.merged(&follow), lab.merged(&after));
}

#[test]
fn recordings_can_be_looked_into() {
    let lab = Lab::new();
    let summary = lab.record("guest", &[]);
    let shown = lab.json(&["show", "guest"]);
    assert_eq!(shown["state"], "finished");
    let intervals = shown["intervals"].as_array().unwrap();
    assert_eq!(
        intervals.len() as u64,
        summary["intervals"].as_u64().unwrap()
    );
    let instructions = intervals
        .iter()
        .map(|interval| interval["instructions"].as_u64().unwrap());
    assert_eq!(
        instructions.sum::<u64>(),
        summary["instructions"].as_u64().unwrap()
    );
    let log = lab.json(&["log", "guest", "--interval", "2"]);
    let kinds: Vec<&Value> = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["kind"])
        .collect();
    assert!(kinds.contains(&&"interrupt".into()) && kinds.contains(&&"port-read".into()));
    let totals = lab.json(&["log", "guest"]);
    let reads = totals["intervals"].as_array().unwrap().iter();
    let reads: u64 = reads
        .map(|interval| interval["reads"].as_u64().unwrap())
        .sum();
    assert_eq!(reads, summary["reads"].as_u64().unwrap());
    let same = lab.json(&["diff", "guest", "1", "1"]);
    assert_eq!(
        (&same["registers"], &same["pages"]),
        (&json!([]), &json!([]))
    );
    let other = lab.json(&["diff", "guest", "1", "3"]);
    assert!(other["changed_bytes"].as_u64().unwrap() > 1000);
    assert!(!other["registers"].as_array().unwrap().is_empty());
}

#[test]
fn mistakes_are_named_and_have_their_exit_codes() {
    let lab = Lab::new();
    let rows: [(&[&str], i32, &str); 9] = [
        (&["simulate", "nothing"], 1, "is not a repository"),
        (&["frobnicate"], 2, "unrecognized subcommand"),
        (
            &["record", "--name", "a/b", "--kernel", "x"],
            2,
            "is no recording name",
        ),
        (
            &["record", "--name", "a", "--kernel", "/nowhere"],
            1,
            "cannot read the kernel",
        ),
        (
            &["record", "--name", "a", "--kernel", "x", "--json"],
            2,
            "use --json=FILE",
        ),
        (
            &["record", "--name", "a", "--kernel", "x", "--interval", "0s"],
            2,
            "longer than 0",
        ),
        (
            &["simulate", "a", "--intervals", "5..5"],
            2,
            "the range is empty",
        ),
        (&["simulate", "a", "--parallel", "0"], 2, "at least 1"),
        (&["verify", "a", "--parallel", "5000"], 2, "at most 4096"),
    ];
    for (arguments, code, text) in rows {
        let output = lab.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            words(&output)
        );
        assert!(
            words(&output).contains(text),
            "{arguments:?}: {}",
            words(&output)
        );
    }
    lab.record("guest", &[]);
    let again = lab.record_arguments("guest");
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    let output = lab.run(&again);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words(&output).contains("exists already"),
        "{}",
        words(&output)
    );
    let output = lab.run(&["simulate", "guest", "--intervals", "1000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words(&output).contains("none of the intervals"),
        "{}",
        words(&output)
    );
}
