//! Running the program on small guests.

#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../../src/builtin.rs"]
mod builtin;

pub(crate) mod forge;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A folder with a repository and a guest, gone when dropped.
pub(crate) struct Lab {
    pub(crate) directory: TempDir,
}

/// Timer interrupts of the usual guest, 100 us of guest time apart: 100,000 instructions.
pub(crate) const TICKS: u32 = 40;

/// Option for the usual interval.
pub(crate) const USUAL_INTERVAL: &str = "--interval-insns=500K";

impl Lab {
    /// A lab with the usual guest: about 4 million instructions.
    pub(crate) fn new() -> Self {
        Self::with_guest(TICKS)
    }

    /// A lab with a guest of this many timer interrupts.
    pub(crate) fn with_guest(ticks: u32) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let lab = Self { directory };
        let kernel = builtin::kernel(ticks, 100_000).expect("the guest assembles");
        std::fs::write(lab.path("guest.elf"), kernel).expect("the guest is written");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    /// The program on the lab's repository.
    pub(crate) fn sbctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sbctl"));
        command
            .env_remove("SBCTL_REPO")
            .arg("--repo")
            .arg(self.repository())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Arguments that record the guest under a name.
    pub(crate) fn record_arguments(&self, name: &str) -> Vec<String> {
        let kernel = self.path("guest.elf").display().to_string();
        let fixed = [
            "record",
            "--name",
            name,
            "--kernel",
            &kernel,
            "--memory",
            "16M",
            "--console",
            "none",
            "--accel=engine",
            // Else it would depend on the host what is simulated later.
            "--check-live=no",
        ];
        fixed.map(str::to_owned).to_vec()
    }

    /// Records the guest and gives the summary.
    pub(crate) fn record(&self, name: &str, more: &[&str]) -> Value {
        let arguments = self.record_arguments(name);
        let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if !more.iter().any(|option| option.starts_with("--interval")) {
            all.push(USUAL_INTERVAL);
        }
        all.extend(more);
        all.push("--json");
        json(&succeed(self.sbctl(&all)))
    }

    /// Runs to the end, whatever that is.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.sbctl(arguments).output().expect("the program starts")
    }

    /// Runs with --json and expects success.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut command = self.sbctl(arguments);
        command.arg("--json");
        json(&succeed(command))
    }

    /// Runs with --json and expects an exit code.
    pub(crate) fn json_with_code(&self, arguments: &[&str], code: i32) -> Value {
        let mut command = self.sbctl(arguments);
        let output = command.arg("--json").output().expect("the program starts");
        assert_eq!(output.status.code(), Some(code), "{}", words(&output));
        json(&output)
    }

    /// Starts without waiting.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.sbctl(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    }

    /// Verifies all intervals of a recording and gives how many there are.
    pub(crate) fn verify(&self, name: &str) -> u64 {
        let report = self.json(&["verify", name]);
        assert_eq!(report["verified"], report["intervals"], "{report:#}");
        report["verified"].as_u64().expect("a number")
    }

    /// The content of the one merged result of a recording below a folder.
    pub(crate) fn merged(&self, root: &Path) -> Vec<u8> {
        let mut found = files(root);
        found.retain(|path| path.file_name().is_some_and(|name| name == "merged.json"));
        assert_eq!(found.len(), 1, "{found:?}");
        std::fs::read(&found[0]).expect("the merged result")
    }
}

/// All files below a folder.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(root).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => all.push(path),
        }
    }
    all.sort();
    all
}

/// What a run said.
pub(crate) fn words(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn succeed(mut command: Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", words(&output));
    output
}

/// The JSON on standard output.
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", words(output)))
}
