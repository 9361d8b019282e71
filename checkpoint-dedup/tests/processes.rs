//! Real processes: killed at any moment, and many at once.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use checkpoint_dedup::*;
use common::*;

/// The helper binary. Cargo builds examples along with tests only if all tests are asked for.
fn churn() -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--example", "churn"]);
        cargo.args((!cfg!(debug_assertions)).then_some("--release"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().unwrap().success());
    });
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().unwrap().parent().unwrap();
    profile.join("examples/churn")
}

fn spawn(directory: &Path, seed: u64, mode: &str) -> Child {
    Command::new(churn())
        .arg(directory)
        .arg(seed.to_string())
        .arg(mode)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn number(variable: &str, default: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Follows what a process acknowledged.
#[derive(Default)]
struct Acknowledged {
    published: BTreeSet<(String, u32)>,
    removing: BTreeSet<String>,
}

impl Acknowledged {
    fn read(&mut self, output: ChildStdout) {
        for line in BufReader::new(output).lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["published", name, number] => {
                    self.published
                        .insert((name.into(), number.parse().unwrap()));
                }
                ["removing", name] => {
                    self.removing.insert(name.into());
                }
                _ => {}
            }
        }
    }

    /// Everything acknowledged that nobody set out to remove is there and right.
    fn verify(&self, directory: &Path) {
        let repository = Repository::open(directory).unwrap();
        for (of, number) in &self.published {
            if !self.removing.contains(of) {
                let recording = repository.recording(&name(of)).unwrap();
                read_hashed(&recording, *number);
            }
        }
        for info in repository.recordings().unwrap() {
            let recording = repository.recording(&info.name).unwrap();
            for number in recording.checkpoints().unwrap() {
                read_hashed(&recording, number.0);
            }
            assert_ne!(info.state, RecordingState::Running, "{}", info.name);
        }
        assert_clean(&repository);
    }
}

fn read_hashed(recording: &Recording, number: u32) {
    let checkpoint = recording.checkpoint(CheckpointNo(number)).unwrap();
    let space = checkpoint.space("ram").unwrap();
    let mut memory = vec![0; space.frames() as usize * PAGE_BYTES];
    space.restore(&mut memory).unwrap();
    let hash = blake3::hash(&memory);
    assert!(checkpoint.blob("hash").unwrap() == hash.as_bytes());
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    let rounds = number("SB_KILL_ROUNDS", 12);
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    let mut dice = Dice::new(number("SB_KILL_SEED", 1));
    let mut acknowledged = Acknowledged::default();
    for round in 0..rounds {
        let mut child = spawn(&root, 1000 + round, "all");
        std::thread::sleep(Duration::from_millis(dice.roll(700) as u64));
        child.kill().unwrap();
        acknowledged.read(child.stdout.take().unwrap());
        child.wait().unwrap();
        if root.join("config").exists() {
            acknowledged.verify(&root);
        } else {
            assert!(acknowledged.published.is_empty());
        }
    }
    let repository = Repository::open(&root).unwrap();
    collect(&repository).unwrap();
    acknowledged.verify(&root);
    let left = files(&root);
    let waste = left
        .iter()
        .filter(|f| f.starts_with("tmp/") || f.starts_with("condemned/"));
    assert_eq!(waste.count(), 0);
}

#[test]
fn writers_readers_and_collectors_work_side_by_side() {
    let seconds = number("SB_STRESS_SECONDS", 6);
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    Repository::create(&root).unwrap();
    let modes = ["write", "write", "collect", "collect", "read", "read"];
    let mut children: Vec<Child> = modes
        .iter()
        .zip(1..)
        .map(|(mode, seed)| spawn(&root, seed, mode))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let readers: Vec<std::thread::JoinHandle<Acknowledged>> = children
        .iter_mut()
        .map(|child| {
            let output = child.stdout.take().unwrap();
            std::thread::spawn(move || {
                let mut acknowledged = Acknowledged::default();
                acknowledged.read(output);
                acknowledged
            })
        })
        .collect();
    while Instant::now() < deadline {
        for (child, mode) in children.iter_mut().zip(modes) {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{mode} ended: {ended:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut all = Acknowledged::default();
    for reader in readers {
        let one = reader.join().unwrap();
        all.published.extend(one.published);
        all.removing.extend(one.removing);
    }
    assert!(!all.published.is_empty());
    all.verify(&root);
    collect(&Repository::open(&root).unwrap()).unwrap();
    all.verify(&root);
}

#[test]
fn a_second_writer_is_told_who_holds_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    let repository = Repository::create(&root).unwrap();
    let mut child = spawn(&root, 1, "write");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let told = (0..1000).find_map(|_| match repository.write(&name("mine"), options(4)) {
        Err(error @ Error::Locked { .. }) => Some(error.to_string()),
        _ => None,
    });
    let told = told.unwrap();
    assert!(
        told.contains(&child.id().to_string()) && told.contains("writing w1-"),
        "{told}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    // Its lock is stale now.
    let _ = repository.remove(&name("mine"));
    record(&repository, "mine", 4, 1, 1).unwrap();
    assert_clean(&repository);
}

/// A small file system that is there while this lives; needs root.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(bytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]);
        mount.arg(directory.path()).stderr(Stdio::null());
        mount
            .status()
            .is_ok_and(|done| done.success())
            .then(|| Self(directory))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Runs a writer until it cannot write any more; says what it said, and checks what it left.
fn until_it_fails(root: &Path, mut command: Command) -> String {
    command.args([root.to_str().unwrap(), "7", "write"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.read(child.stdout.take().unwrap());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!acknowledged.published.is_empty());
    acknowledged.verify(root);
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_disk_that_is_really_full_is_named_and_loses_nothing() {
    // Without root there is no small disk; the next test needs none.
    let Some(disk) = Mounted::new(3 << 20) else {
        return;
    };
    let root = disk.0.path().join("r");
    let said = until_it_fails(&root, Command::new(churn()));
    assert!(
        said.contains("No space left") && said.contains(root.to_str().unwrap()),
        "{said}"
    );
    // Space that comes free is used again.
    let repository = Repository::open(&root).unwrap();
    let first = repository.recordings().unwrap().remove(0);
    repository.remove(&first.name).unwrap();
    collect(&repository).unwrap();
    record(&repository, "after", 20, 2, 1).unwrap();
    assert_clean(&repository);
}

#[test]
fn a_file_that_may_not_grow_is_named_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    // The limit is in blocks of 512 bytes; a first checkpoint is larger than what it allows.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
    shell.arg(churn());
    let said = until_it_fails(&root, shell);
    assert!(
        said.contains("File too large") && said.contains(root.to_str().unwrap()),
        "{said}"
    );
}
