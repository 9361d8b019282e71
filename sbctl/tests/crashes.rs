//! Whatever dies, what was finished stays and the rest can go on.

mod common;

use common::{Lab, USUAL_INTERVAL, words};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A number below `below` that is another each time.
fn random(below: u64) -> u64 {
    RandomState::new().hash_one(0) % below
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Checkpoints in the repository, whatever recording they belong to.
fn checkpoints(lab: &Lab) -> usize {
    let series = std::fs::read_dir(lab.repository().join("series"));
    let recordings = series.into_iter().flatten().flatten();
    let files = recordings.flat_map(|recording| std::fs::read_dir(recording.path()));
    let names = files.flatten().flatten().map(|file| file.file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("ckpt-"))
        .count()
}

fn arguments<'a>(all: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    all.iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect()
}

#[test]
fn a_recorder_killed_anywhere_leaves_what_it_published() {
    let lab = Lab::with_guest(2000);
    for round in 0..6 {
        let name = format!("killed-{round}");
        let all = lab.record_arguments(&name);
        let before = checkpoints(&lab);
        let mut recorder = lab.start(&arguments(&all, &[USUAL_INTERVAL]));
        let published = 1 + random(12) as usize;
        wait_until("it publishes", || checkpoints(&lab) >= before + published);
        std::thread::sleep(Duration::from_micros(random(30_000)));
        assert!(
            recorder.try_wait().unwrap().is_none(),
            "too late to kill it"
        );
        recorder.kill().unwrap();
        recorder.wait().unwrap();
        let shown = lab.json(&["show", &name]);
        assert_eq!(shown["state"], "dead");
        let intervals = shown["intervals"].as_array().unwrap().len();
        assert!(intervals + 1 >= published, "{intervals} of {published}");
        if intervals > 0 {
            assert_eq!(lab.verify(&name), intervals as u64);
            let said = words(&lab.run(&["verify", &name]));
            assert!(said.contains("its recorder died"), "{said}");
        }
    }
    let next = lab.record("next", &["--stop-after-insns", "2M"]);
    assert_eq!(next["end"], "stopped");
    assert_eq!(lab.verify("next"), 4);
}

#[test]
fn ctrl_c_closes_a_recording_in_order() {
    let lab = Lab::with_guest(1_000_000);
    let all = lab.record_arguments("stopped");
    let recorder = lab.start(&arguments(&all, &[USUAL_INTERVAL, "--json"]));
    wait_until("it publishes", || checkpoints(&lab) >= 3);
    signal("INT", recorder.id());
    let output = recorder.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", words(&output));
    let summary = common::json(&output);
    assert_eq!(summary["end"], "stopped");
    let shown = lab.json(&["show", "stopped"]);
    assert_eq!(shown["state"], "finished");
    let intervals = shown["intervals"].as_array().unwrap();
    assert_eq!(
        intervals.len() as u64,
        summary["intervals"].as_u64().unwrap()
    );
    // The last interval is short, and has its closing checkpoint.
    let last = intervals.last().unwrap()["instructions"].as_u64().unwrap();
    assert!(last <= 500_000);
    let selection = format!("{}..", intervals.len() - 2);
    let report = lab.json(&["verify", "stopped", "--intervals", &selection]);
    assert_eq!(report["verified"], 2);
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(status.expect("kill is there").success());
}

/// Worker processes of a supervisor that have been at it for a moment.
fn workers_of(supervisor: &Child) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", supervisor.id());
    let mut all = Vec::new();
    // Children belong to the thread that started them.
    if let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", supervisor.id())) {
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    assert!(Path::new(&path).exists() || all.is_empty());
    all
}

#[test]
fn after_a_crash_what_was_under_way_runs_again_alone() {
    let lab = Lab::with_guest(4000);
    let intervals = lab.record("guest", &["--interval-insns=20M"])["intervals"].as_u64();
    let mut supervisor = lab.start(&["verify", "guest", "--parallel", "2", "--json"]);
    wait_until("a worker process", || !workers_of(&supervisor).is_empty());
    std::thread::sleep(Duration::from_millis(80));
    assert!(
        supervisor.try_wait().unwrap().is_none(),
        "too late to kill its worker"
    );
    for worker in workers_of(&supervisor) {
        signal("KILL", worker);
    }
    let output = supervisor.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let report = common::json(&output);
    assert_eq!(report["verified"].as_u64(), intervals);
    assert_eq!(report["crashes"], 1);
}

#[test]
fn only_the_interval_that_crashes_its_own_process_fails() {
    // Intervals that take a good part of a second: a kill is to come while one is under way.
    let lab = Lab::with_guest(16_000);
    let intervals = lab.record("guest", &["--interval-insns=400M"])["intervals"].as_u64();
    let mut supervisor = lab.start(&["verify", "guest", "--parallel", "1", "--json"]);
    let mut killed = Vec::new();
    // Twice: the process of all, and the process of the one that was under way.
    while killed.len() < 2 {
        assert!(
            supervisor.try_wait().unwrap().is_none(),
            "too late to kill its worker"
        );
        for worker in workers_of(&supervisor) {
            if !killed.contains(&worker) {
                std::thread::sleep(Duration::from_millis(150));
                signal("KILL", worker);
                killed.push(worker);
            }
        }
    }
    let output = supervisor.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", words(&output));
    let report = common::json(&output);
    assert_eq!(
        report["verified"].as_u64().map(|n| n + 1),
        intervals,
        "{report:#}"
    );
    let failure = &report["failures"][0];
    assert_eq!(failure["verdict"], "failed");
    assert!(
        failure["message"].as_str().unwrap().contains("SIGKILL"),
        "{report:#}"
    );
    // It was not its fault: the next run finishes the job.
    assert_eq!(Some(lab.verify("guest")), intervals);
}

#[test]
fn ctrl_c_keeps_finished_intervals() {
    let lab = Lab::with_guest(4000);
    let intervals = lab.record("guest", &["--interval-insns=20M"])["intervals"].as_u64();
    let supervisor = lab.start(&["verify", "guest", "--parallel", "1", "--json"]);
    let results = lab.path("repository-results");
    let finished = || match results.exists() {
        true => common::files(&results)
            .iter()
            .filter(|path| path.ends_with("00000001.json"))
            .count(),
        false => 0,
    };
    wait_until("an interval is done", || finished() > 0);
    signal("INT", supervisor.id());
    let output = supervisor.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", words(&output));
    let report = lab.json(&["verify", "guest"]);
    assert_eq!(report["verified"].as_u64(), intervals);
    // Some were done, and what had not been begun was left.
    let simulated = report["simulated"].as_u64().unwrap();
    assert!(
        0 < simulated && simulated < intervals.unwrap(),
        "{report:#}"
    );
}

/// Runs a shell line in which `$SBCTL` is the program on the lab's repository.
fn shell(lab: &Lab, line: &str) -> std::process::Output {
    let program = format!(
        "{} --repo {}",
        env!("CARGO_BIN_EXE_sbctl"),
        lab.repository().display()
    );
    let output = Command::new("sh")
        .args(["-c", line])
        .env("SBCTL", program)
        .output();
    output.expect("a shell")
}

#[test]
fn a_disk_that_is_full_ends_a_recording_and_harms_nothing_else() {
    let lab = Lab::with_guest(5000);
    lab.record("before", &["--stop-after-insns", "2M"]);
    let record = lab.record_arguments("full").join(" ") + " " + USUAL_INTERVAL;
    let program = env!("CARGO_BIN_EXE_sbctl");
    let line = format!(
        "trap '' XFSZ; exec {program} --repo {} {record}",
        lab.repository().display()
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &line])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let before = checkpoints(&lab);
    let recorder = command.spawn().unwrap();
    wait_until("it publishes", || checkpoints(&lab) >= before + 2);
    // From here on no file can be written to.
    let pid = recorder.id().to_string();
    let limited = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=0"])
        .status();
    assert!(limited.expect("prlimit is there").success());
    let output = recorder.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(
        words(&output).contains("File too large"),
        "{}",
        words(&output)
    );
    assert!(
        words(&output).contains("recording full ended early"),
        "{}",
        words(&output)
    );
    let shown = lab.json(&["show", "full"]);
    assert_eq!(shown["state"], "dead");
    let published = shown["intervals"].as_array().unwrap().len() as u64;
    assert!(published >= 1);
    assert_eq!(lab.verify("full"), published);
    assert_eq!(lab.verify("before"), 4);
    lab.record("after", &["--stop-after-insns", "2M"]);
    assert_eq!(lab.verify("after"), 4);
}

/// Needs a user namespace to mount a small file system in; where there is none, the test above does.
#[test]
fn a_small_file_system_that_fills_up_keeps_what_was_published() {
    let lab = Lab::with_guest(50_000);
    std::fs::create_dir(lab.repository()).unwrap();
    let in_namespace = |line: &str| {
        let quoted = line.replace('\'', r"'\''");
        shell(
            &lab,
            &format!("unshare --user --map-root-user --mount sh -c '{quoted}'"),
        )
    };
    if !in_namespace("mount -t tmpfs none /mnt").status.success() {
        eprintln!("no user namespaces here");
        return;
    }
    let repository = lab.repository();
    let at = repository.display();
    let record = lab.record_arguments("full").join(" ") + " " + USUAL_INTERVAL;
    let line = format!(
        "mount -t tmpfs -o size=3m none {at} && $SBCTL {record}; echo code $?; \
         $SBCTL verify full --out {out} && $SBCTL show full",
        out = lab.path("out").display()
    );
    let output = in_namespace(&line);
    let text = words(&output);
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("code 1"), "{text}");
    assert!(text.contains("recording full (dead)"), "{text}");
    assert!(output.status.success(), "{text}");
}
