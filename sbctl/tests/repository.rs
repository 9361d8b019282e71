//! The commands that manage a repository, as a user types them.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PAGES: usize = 512;

/// A directory with a repository and five memory dumps.
struct Scene {
    directory: tempfile::TempDir,
    dumps: Vec<PathBuf>,
}

fn dump(number: usize) -> Vec<u8> {
    let mut bytes = vec![0; PAGES * 4096];
    for page in 0..PAGES / 2 {
        let mut word = (page * 7919 + 1) as u64;
        for at in (0..4096).step_by(8) {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes[page * 4096 + at..][..4].copy_from_slice(&word.to_le_bytes()[4..]);
        }
    }
    for change in 0..number * 20 {
        bytes[change * 9973 % (PAGES * 4096)] ^= change as u8 | 1;
    }
    bytes
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dumps = (0..5)
            .map(|number| {
                let path = directory.path().join(format!("dump-{number}"));
                fs::write(&path, dump(number)).unwrap();
                path
            })
            .collect();
        Self { directory, dumps }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sbctl"));
        command.env("SBCTL_REPO", self.path("repository"));
        command.current_dir(self.directory.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Runs a command that must end with this exit code; its standard output.
    fn text(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let text = self.text(code, &[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    fn import(&self, name: &str) -> Value {
        let dumps: Vec<&str> = self.dumps.iter().map(|d| d.to_str().unwrap()).collect();
        self.json(0, &[&["import", name], &dumps[..]].concat())
    }

    fn names(&self) -> Vec<String> {
        let listing = self.json(0, &["ls"]);
        let rows = listing["recordings"].as_array().unwrap();
        rows.iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Some file of the repository below a directory.
    fn some_file(&self, below: &str) -> PathBuf {
        let mut path = self.path("repository").join(below);
        while path.is_dir() {
            path = fs::read_dir(&path).unwrap().next().unwrap().unwrap().path();
        }
        path
    }
}

/// Damages a file: a pack in its first group.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = 70.min(bytes.len() / 2);
    bytes[at] ^= 0x20;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_imported_is_exported() {
    let scene = Scene::new();
    scene.text(0, &["init"]);
    assert!(scene.text(1, &["init"]).is_empty());
    let imported = scene.import("guest");
    assert_eq!(imported["checkpoints"], 5);
    assert!(imported["written_bytes"].as_u64().unwrap() < 3 << 20);
    for number in 0..5 {
        let out = scene.path(&format!("out-{number}"));
        let k = number.to_string();
        scene.text(0, &["export", "guest", &k, out.to_str().unwrap()]);
        assert!(fs::read(&out).unwrap() == dump(number));
    }
    // An existing file is never overwritten, and a missing checkpoint makes no file.
    scene.text(1, &["export", "guest", "0", "out-1"]);
    scene.text(1, &["export", "guest", "9", "out-9"]);
    assert!(!scene.path("out-9").exists());
    let listing = scene.json(0, &["ls"]);
    assert_eq!(listing["recordings"][0]["state"], "finished");
    assert_eq!(listing["recordings"][0]["last_checkpoint"], 4);
    assert!(scene.text(0, &["ls"]).contains("0..4"));
    let stats = scene.json(0, &["stats", "guest"]);
    assert_eq!(stats["recordings"][0]["logical_bytes"], 5 * PAGES * 4096);
    assert!(stats["delta_pages"]["items"].as_u64().unwrap() > 0);
    assert!(scene.text(0, &["stats"]).contains("edits of pages"));
}

#[test]
fn files_that_are_no_dumps_are_refused() {
    let scene = Scene::new();
    fs::write(scene.path("short"), vec![1; 8192]).unwrap();
    fs::write(scene.path("odd"), vec![1; 1000]).unwrap();
    for files in [["dump-0", "short"], ["odd", "odd"]] {
        scene.text(2, &[&["import", "a"], &files[..]].concat());
    }
    scene.text(1, &["import", "a", "dump-0", "nothing"]);
    scene.text(2, &["import", "../a", "dump-0"]);
    scene.text(0, &["import", "a", "dump-0", "dump-1", "--dry-run"]);
    assert!(!scene.path("repository").exists());
    scene.text(0, &["import", "a", "dump-0"]);
    let output = scene.run(&["import", "a", "dump-0"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("exists already"));
    assert_eq!(scene.names(), ["a"]);
}

#[test]
fn what_is_removed_is_planned_shown_and_collected() {
    let scene = Scene::new();
    for name in ["a", "b", "c"] {
        scene.import(name);
    }
    scene.text(0, &["rm", "a", "--dry-run"]);
    assert_eq!(scene.names(), ["a", "b", "c"]);
    // All or none.
    scene.text(1, &["rm", "a", "nothing"]);
    assert_eq!(scene.names(), ["a", "b", "c"]);
    scene.text(0, &["rm", "a"]);
    let pruned = scene.json(0, &["prune", "--keep-last", "1", "--dry-run"]);
    assert_eq!(pruned["removed"][0], "b");
    scene.text(0, &["prune", "--keep-last", "1"]);
    assert_eq!(scene.names(), ["c"]);
    scene.text(2, &["trim", "c"]);
    scene.text(1, &["trim", "c", "--from", "7"]);
    scene.text(2, &["trim", "c", "--from", "3", "--to", "2"]);
    let trim = ["trim", "c", "--from", "2", "--to", "3"];
    let shown = scene.json(0, &[&trim[..], &["--dry-run"]].concat());
    assert_eq!(shown["removed_checkpoints"], 3);
    scene.text(0, &trim);
    scene.text(1, &["export", "c", "1", "gone"]);
    scene.text(0, &["export", "c", "2", "kept"]);
    assert!(fs::read(scene.path("kept")).unwrap() == dump(2));
    let planned = scene.json(0, &["gc", "--dry-run"]);
    assert!(planned["done"].is_null());
    let done = scene.json(0, &["gc"]);
    assert!(done["done"]["freed_bytes"].as_u64().unwrap() > 0);
    assert_eq!(done["done"]["pending_bytes"], 0);
    let planned = scene.json(0, &["gc", "--recompress", "--dry-run"]);
    assert!(planned["plan"]["rewritten_packs"].as_u64().unwrap() > 0);
    assert!(planned["plan"]["recompress"] == true && planned["done"].is_null());
    let done = scene.json(0, &["gc", "--recompress"]);
    assert!(done["done"]["written_bytes"].as_u64().unwrap() > 0);
    assert!(done["done"]["recompressed_pages"].is_u64());
    scene.text(0, &["check", "--read-data"]);
    scene.text(0, &["export", "c", "3", "still"]);
    assert!(fs::read(scene.path("still")).unwrap() == dump(3));
}

#[test]
fn damage_is_named_repaired_and_an_exit_code_of_its_own() {
    let scene = Scene::new();
    scene.import("a");
    let clean = scene.json(0, &["check", "--read-data"]);
    assert_eq!(
        (&clean["clean"], clean["checkpoints"].as_u64()),
        (&Value::Bool(true), Some(5))
    );
    flip(&scene.some_file("index"));
    let report = scene.json(3, &["check"]);
    assert_eq!(report["damages"][0]["kind"], "derived");
    assert!(scene.text(0, &["repair-index"]).contains("items/s"));
    scene.text(0, &["check"]);
    let pack = scene.some_file("packs");
    flip(&pack);
    scene.text(3, &["check", "--repair", "--dry-run"]);
    let report = scene.text(3, &["check", "--read-data"]);
    assert!(report.contains(pack.to_str().unwrap()) && report.contains("affects a checkpoint"));
    let repaired = scene.json(0, &["check", "--repair"]);
    assert!(!repaired["repair"].as_array().unwrap().is_empty());
    scene.text(0, &["check", "--read-data"]);
    flip(&scene.path("repository/config"));
    scene.text(3, &["ls"]);
    scene.text(3, &["check"]);
    scene.text(0, &["check", "--repair"]);
    scene.text(0, &["ls"]);
}

#[test]
fn recordings_travel_between_repositories() {
    let scene = Scene::new();
    scene.import("a");
    scene.import("b");
    let (here, there) = (scene.path("repository"), scene.path("there"));
    let (here, there) = (here.to_str().unwrap(), there.to_str().unwrap());
    scene.text(0, &["copy", here, there, "--dry-run"]);
    assert!(!scene.path("there").exists());
    let copied = scene.json(0, &["copy", here, there, "a"]);
    assert_eq!(copied["recordings"][0]["checkpoints"], 5);
    let rest = scene.json(0, &["copy", here, there]);
    assert_eq!(rest["recordings"][0]["name"], "b");
    assert_eq!(rest["recordings"][0]["new_pages"], 0);
    scene.text(2, &["copy", here, there, "a", "b", "--as", "c"]);
    scene.text(0, &["copy", here, there, "a", "--as", "c"]);
    scene.text(0, &["--repo", there, "export", "c", "4", "out"]);
    assert!(fs::read(scene.path("out")).unwrap() == dump(4));
    scene.text(0, &["--repo", there, "check", "--read-data"]);
}

#[test]
fn an_interrupted_import_leaves_no_recording() {
    let scene = Scene::new();
    scene.text(0, &["init"]);
    // Enough files that the import is still running when the signal comes.
    let many: Vec<&str> = (0..400).map(|i| ["dump-0", "dump-4"][i % 2]).collect();
    let mut child = scene
        .command()
        .args(["import", "a"])
        .args(&many)
        .spawn()
        .unwrap();
    let started = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        scene.path("repository/recordings/a").exists()
    });
    assert!(started);
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(scene.names(), [""; 0]);
    scene.text(0, &["gc"]);
    scene.text(0, &["check", "--read-data"]);
}

#[test]
fn without_a_repository_the_way_to_one_is_shown() {
    let scene = Scene::new();
    let output = scene.run(&["ls"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sbctl init"));
}
