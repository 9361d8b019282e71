//! Names the engine by the sources that decide what it does: results of another engine are not taken
//! for this one's.

use std::fs;
use std::path::{Path, PathBuf};

/// What a simulated interval depends on.
const SOURCES: [&str; 3] = ["../tcg-sim/src", "../machine/src", "../replay-log/src"];

/// FNV-1a, 64 bits: nothing here is an adversary.
struct Hash(u64);

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

fn files(directory: &Path, into: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).expect("the workspace's crates lie side by side");
    for entry in entries {
        let path = entry.expect("a directory that can be listed").path();
        match path.is_dir() {
            true => files(&path, into),
            false => into.push(path),
        }
    }
}

fn main() {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    for directory in SOURCES {
        println!("cargo::rerun-if-changed={directory}");
        let mut all = Vec::new();
        files(Path::new(directory), &mut all);
        all.sort();
        for path in all {
            hash.add(path.to_string_lossy().as_bytes());
            hash.add(&fs::read(&path).expect("a source file that can be read"));
        }
    }
    println!("cargo::rustc-env=SBCTL_ENGINE_SOURCES={:016x}", hash.0);
}
