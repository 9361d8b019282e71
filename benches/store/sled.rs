//! Why the page index is not in sled: 1 M entries of a 32-byte key and a 24-byte value, put in 500
//! durable commits of 2,000, in sled and as the store keeps them (one checksummed object per
//! commit, a table in memory). `cargo bench -p simuboost-benches --bench sled`.
//!
//! Each store runs in a process of its own, so that memory is its own.

use checkpoint_dedup::internals::Table;
use checkpoint_dedup::{Backend, Local};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const COMMITS: u64 = 500;
const ENTRIES: u64 = 2_000;
const VALUE: [u8; 24] = [7; 24];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("sled") => sled_store(Path::new(&arguments[2])),
        Some("own") => own_store(Path::new(&arguments[2])),
        // `cargo test` runs bench targets, too: only `cargo bench` says so.
        _ if arguments.iter().any(|a| a == "--bench") => compare(),
        _ => {}
    }
}

fn compare() {
    println!("store  commits/s  worst commit  bytes/entry  hit k/s  peak memory");
    for store in ["sled", "own"] {
        let directory = tempfile::tempdir().expect("a directory");
        let this = std::env::current_exe().expect("this program");
        let status = Command::new(this).arg(store).arg(directory.path()).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "{store} failed"
        );
    }
}

fn key(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// Times commits; how many a second, and the worst.
fn commits(mut commit: impl FnMut(u64)) -> (f64, Duration) {
    let (start, mut worst) = (Instant::now(), Duration::ZERO);
    for number in 0..COMMITS {
        let before = Instant::now();
        commit(number);
        worst = worst.max(before.elapsed());
    }
    (COMMITS as f64 / start.elapsed().as_secs_f64(), worst)
}

/// Thousands of lookups a second.
fn lookups(mut found: impl FnMut(u64) -> bool) -> f64 {
    let count = 200_000;
    let start = Instant::now();
    let hits = (0..count)
        .filter(|i| found(i * 7919 % (COMMITS * ENTRIES)))
        .count();
    assert_eq!(hits as u64, count);
    count as f64 / start.elapsed().as_secs_f64() / 1e3
}

fn report(store: &str, directory: &Path, (rate, worst): (f64, Duration), hits: f64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let bytes = bytes_below(directory) as f64 / (COMMITS * ENTRIES) as f64;
    println!(
        "{store:<6} {rate:>9.0} {:>10.1} ms {bytes:>12.0} {hits:>8.0} {:>12}",
        worst.as_secs_f64() * 1e3,
        peak.unwrap_or("unknown").trim()
    );
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn sled_store(directory: &Path) {
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(256 << 20);
    let db = config.open().expect("sled opens");
    let rate = commits(|number| {
        let mut batch = sled::Batch::default();
        for entry in 0..ENTRIES {
            batch.insert(&key(number * ENTRIES + entry), &VALUE);
        }
        db.apply_batch(batch).expect("sled takes a batch");
        db.flush().expect("sled flushes");
    });
    let hits = lookups(|number| db.get(key(number)).is_ok_and(|value| value.is_some()));
    report("sled", directory, rate, hits);
}

fn own_store(directory: &Path) {
    let backend = Local::new(directory);
    let mut table = Table::new(1 << 30);
    let print = |key: &[u8; 32]| u32::from_le_bytes([key[0], key[1], key[2], key[3]]);
    let rate = commits(|number| {
        let keys: Vec<[u8; 32]> = (0..ENTRIES).map(|e| key(number * ENTRIES + e)).collect();
        // As a pack and its index segment hold an entry: id, fingerprint, and the value.
        let mut object = Vec::new();
        for key in &keys {
            object.extend_from_slice(&key[..12]);
            object.extend_from_slice(&VALUE);
        }
        object.extend_from_slice(blake3::hash(&object).as_bytes());
        let put = backend.put_if_absent(&format!("index/{number}"), &object);
        assert!(put.expect("the object is stored"));
        let prints: Vec<u32> = keys.iter().map(print).collect();
        table.add(number as u32, &prints);
    });
    let hits = lookups(|number| table.candidates(print(&key(number))) > 0);
    report("own", directory, rate, hits);
}
