//! Every decoder on mutations of real objects and on noise, for a moment each.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use checkpoint_dedup::internals::{TARGETS, body_of};
use checkpoint_dedup::*;
use common::*;

/// How long each target runs.
fn moment_each() -> Duration {
    let set = std::env::var("SB_FUZZ_MS").ok();
    let ms = set.and_then(|n| n.parse().ok()).unwrap_or(300);
    Duration::from_millis(ms)
}

/// Real objects and their bodies.
fn corpus() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    let repository = Repository::create(&root).unwrap();
    record(&repository, "a", 30, 9, 1).unwrap();
    let range = TrimRange {
        from: Some(CheckpointNo(2)),
        to: Some(CheckpointNo(8)),
    };
    repository.trim(&name("a"), range).unwrap();
    collect(&repository).unwrap();
    // An open writer, for its locks.
    let _guest = Guest::start(&repository, "b", 8, 1).unwrap();
    let mut out = Vec::new();
    for file in files(&root) {
        let bytes = std::fs::read(root.join(file)).unwrap();
        out.push(body_of(&bytes).to_vec());
        // The groups of a pack lie behind its header.
        out.push(bytes.get(32..).unwrap_or_default().to_vec());
        out.push(bytes);
    }
    out
}

fn mutated(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    if dice.roll(4) == 0 {
        return (0..dice.roll(200)).map(|_| dice.roll(256) as u8).collect();
    }
    let mut bytes = corpus[dice.roll(corpus.len())].clone();
    for _ in 0..dice.roll(4) {
        if bytes.is_empty() {
            break;
        }
        let at = dice.roll(bytes.len());
        match dice.roll(5) {
            0 => bytes[at] ^= 1 << dice.roll(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.roll(5)],
            2 => bytes.truncate(at),
            3 => drop(bytes.remove(at)),
            _ => bytes.insert(at, dice.roll(256) as u8),
        }
    }
    bytes
}

#[test]
fn no_decoder_panics() {
    let corpus = corpus();
    let mut dice = Dice::new(20_261_124);
    for (of, target) in TARGETS {
        let deadline = Instant::now() + moment_each();
        let mut runs = 0u64;
        while Instant::now() < deadline {
            let bytes = mutated(&corpus, &mut dice);
            let result = catch_unwind(|| target(&bytes));
            assert!(result.is_ok(), "{of} panics on {bytes:02x?}");
            runs += 1;
        }
        assert!(runs > 20, "{of}: {runs}");
    }
}
