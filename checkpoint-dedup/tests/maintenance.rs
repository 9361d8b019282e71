//! Removing, trimming and collecting, one after the other.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use checkpoint_dedup::*;
use common::*;

fn new() -> (tempfile::TempDir, Repository) {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::create(directory.path().join("r")).unwrap();
    (directory, repository)
}

fn stored_bytes(directory: &tempfile::TempDir) -> u64 {
    let all = files(directory.path());
    all.iter()
        .map(|file| directory.path().join(file).metadata().unwrap().len())
        .sum()
}

#[test]
fn what_nothing_names_any_more_goes_and_the_rest_reads_as_before() {
    let (directory, repository) = new();
    let a = record(&repository, "a", 120, 10, 1).unwrap();
    let b = record(&repository, "b", 120, 10, 2).unwrap();
    assert_eq!(collect(&repository).unwrap().deleted_packs, 0);
    let before = stored_bytes(&directory);
    repository.remove(&name("a")).unwrap();
    assert!(matches!(
        repository.recording(&name("a")).err(),
        Some(Error::NoRecording { .. })
    ));
    let plan = repository.gc(GcOptions::default(), &Silent).unwrap();
    assert!(plan.expected_bytes() > 0 && plan.dead_packs() > 0);
    let report = plan.run(&Silent).unwrap();
    assert!(report.freed_bytes > 0 && report.waiting_for.is_empty());
    assert!(stored_bytes(&directory) + report.freed_bytes <= before + report.written_bytes + 4096);
    assert_reads(&repository, "b", &b);
    assert_clean(&repository);
    // The name is free again, and what was removed does not come back.
    let again = record(&repository, "a", 120, 3, 1).unwrap();
    assert_reads(&repository, "a", &again);
    drop(a);
}

#[test]
fn a_trim_cuts_both_ends_and_frees_their_space() {
    let (directory, repository) = new();
    let mut history = record(&repository, "a", 120, 30, 3).unwrap();
    let range = TrimRange {
        from: Some(CheckpointNo(11)),
        to: Some(CheckpointNo(19)),
    };
    repository.trim(&name("a"), range).unwrap();
    history.checkpoints.retain(|n, _| (11..=19).contains(n));
    history.logs.retain(|n, _| (11..19).contains(n));
    assert_reads(&repository, "a", &history);
    assert_clean(&repository);
    let report = collect(&repository).unwrap();
    assert!(report.freed_bytes > 0);
    assert!(report.rebased_pages > 0, "{report:?}");
    let info = repository.recording_info(&name("a")).unwrap();
    assert_eq!(info.state, RecordingState::Finished);
    for repository in [
        &repository,
        &Repository::open(directory.path().join("r")).unwrap(),
    ] {
        assert_reads(repository, "a", &history);
        assert_clean(repository);
    }
    let range = TrimRange {
        from: Some(CheckpointNo(3)),
        to: None,
    };
    let error = repository.trim(&name("a"), range).unwrap_err();
    assert!(matches!(error, Error::NoCheckpoint { .. }), "{error}");
}

#[test]
fn a_reader_goes_on_after_its_recording_is_removed_and_collected() {
    let (directory, repository) = new();
    let a = record(&repository, "a", 80, 12, 5).unwrap();
    let b = record(&repository, "b", 80, 4, 6).unwrap();
    let reader = Repository::open(directory.path().join("r")).unwrap();
    let open = reader.recording(&name("a")).unwrap();
    assert!(moment(&open, 3).unwrap() == a.checkpoints[&3]);
    repository.remove(&name("a")).unwrap();
    collect(&repository).unwrap();
    for (&number, expected) in &a.checkpoints {
        assert!(moment(&open, number).unwrap() == *expected);
    }
    drop(open);
    let report = collect(&repository).unwrap();
    assert!(report.deleted_packs > 0);
    assert_reads(&repository, "b", &b);
    assert_clean(&repository);
}

#[test]
fn collection_beside_a_live_writer_spares_what_it_refers_to() {
    let (_directory, repository) = new();
    let mut removed = Vec::new();
    for i in 0..3 {
        let recording = format!("old-{i}");
        record(&repository, &recording, 80, 6, 40 + i).unwrap();
        removed.push(recording);
    }
    // The same guest as old-1: its writer finds all of its pages.
    let mut guest = Guest::start(&repository, "live", 80, 41).unwrap();
    guest.step().unwrap();
    for recording in removed {
        repository.remove(&name(&recording)).unwrap();
        guest.step().unwrap();
        let report = collect(&repository).unwrap();
        assert!(report.waiting_for.is_empty(), "{report:?}");
        assert!(report.freed_bytes > 0);
        guest.step().unwrap();
    }
    for _ in 0..6 {
        guest.step().unwrap();
    }
    let history = guest.finish().unwrap();
    assert_reads(&repository, "live", &history);
    assert_clean(&repository);
    collect(&repository).unwrap();
    assert_reads(&repository, "live", &history);
    assert_clean(&repository);
}

#[test]
fn many_small_packs_become_few() {
    let (_directory, repository) = new();
    let history = record(&repository, "a", 40, 70, 9).unwrap();
    let report = collect(&repository).unwrap();
    assert!(report.deleted_packs >= 64, "{report:?}");
    assert_reads(&repository, "a", &history);
    assert_clean(&repository);
    assert_eq!(collect(&repository).unwrap().deleted_packs, 0);
}

#[test]
fn retention_keeps_the_newest() {
    let (_directory, repository) = new();
    for recording in ["a", "b", "c"] {
        record(&repository, recording, 8, 1, 1).unwrap();
    }
    assert_eq!(repository.prunable(2).unwrap(), [name("a")]);
    assert_eq!(repository.prunable(5).unwrap(), []);
}

#[test]
fn a_copy_stores_only_what_the_target_lacks() {
    let (_here, repository) = new();
    let (_there, target) = new();
    let history = record(&repository, "a", 100, 9, 4).unwrap();
    let copy = |as_name| repository.copy_to(&name("a"), &target, &name(as_name), &Silent);
    let first = copy("a").unwrap();
    assert_eq!((first.checkpoints, first.logs), (9, 8));
    assert_reads(&target, "a", &history);
    let second = copy("b").unwrap();
    assert_eq!(second.new_pages, 0);
    assert_reads(&target, "b", &history);
    assert_clean(&target);
    assert!(matches!(copy("b"), Err(Error::RecordingExists { .. })));
    // Of a trimmed recording, what is there travels.
    let range = TrimRange {
        from: Some(CheckpointNo(2)),
        to: Some(CheckpointNo(5)),
    };
    repository.trim(&name("a"), range).unwrap();
    assert_eq!(copy("c").unwrap().checkpoints, 4);
    let c = target.recording(&name("c")).unwrap();
    assert!(moment(&c, 3).unwrap() == history.checkpoints[&5]);
}

#[test]
fn an_interrupted_copy_leaves_nothing_behind() {
    struct StopAfter(std::sync::atomic::AtomicU32);
    impl Progress for StopAfter {
        fn is_cancelled(&self) -> bool {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 4
        }
    }
    let (_here, repository) = new();
    let (_there, target) = new();
    record(&repository, "a", 100, 9, 4).unwrap();
    let stop = StopAfter(0.into());
    let error = repository.copy_to(&name("a"), &target, &name("a"), &stop);
    assert!(matches!(error, Err(Error::Interrupted)));
    assert_eq!(target.recordings().unwrap().len(), 0);
    repository
        .copy_to(&name("a"), &target, &name("a"), &Silent)
        .unwrap();
    assert_clean(&target);
}

#[test]
fn the_index_is_made_anew_from_the_packs() {
    let (directory, repository) = new();
    let history = record(&repository, "a", 60, 12, 8).unwrap();
    let before = repository.stats(None, &Silent).unwrap();
    assert!(directory.path().join("r/catalogue").exists());
    for derived in ["index", "catalogue"] {
        std::fs::remove_dir_all(directory.path().join("r").join(derived)).unwrap();
    }
    let report = repository.rebuild_index(&Silent).unwrap();
    assert!(report.items > 0 && report.packs >= 12 && report.unreadable.is_empty());
    let fresh = Repository::open(directory.path().join("r")).unwrap();
    assert_reads(&fresh, "a", &history);
    assert_clean(&fresh);
    let after = fresh.stats(None, &Silent).unwrap();
    assert_eq!(
        Stats {
            index_bytes: 0,
            ..after
        },
        Stats {
            index_bytes: 0,
            ..before
        }
    );
    // What is recorded again is found.
    let copied = fresh
        .copy_to(&name("a"), &fresh, &name("b"), &Silent)
        .unwrap();
    assert_eq!(copied.new_pages, 0);
}

#[test]
fn statistics_add_up() {
    let (directory, repository) = new();
    record(&repository, "a", 60, 12, 8).unwrap();
    record(&repository, "b", 60, 3, 8).unwrap();
    let stats = repository.stats(None, &Silent).unwrap();
    let packs: u64 = files(directory.path())
        .iter()
        .filter(|file| file.contains("/packs/"))
        .map(|file| directory.path().join(file).metadata().unwrap().len())
        .sum();
    assert_eq!(stats.pack_bytes, packs);
    let methods = [stats.whole, stats.deltas, stats.chunks];
    assert!(methods.iter().all(|m| m.items > 0 && m.stored_bytes > 0));
    let stored: u64 = methods.iter().map(|m| m.stored_bytes).sum();
    assert!(stored + stats.directory_bytes <= packs && stored * 2 > packs / 4);
    let [a, b] = &stats.recordings[..] else {
        panic!("two recordings")
    };
    assert_eq!((a.checkpoints, a.logs, b.checkpoints), (12, 11, 3));
    assert!(a.logical_bytes > 12 * 60 * 4096 && a.unique_bytes < a.logical_bytes);
    assert!(a.stored_bytes < a.unique_bytes && b.stored_bytes < a.stored_bytes);
    // The second time, from the catalogue: the same.
    assert_eq!(repository.stats(None, &Silent).unwrap(), stats);
    let one = repository.stats(Some(&name("b")), &Silent).unwrap();
    assert_eq!(one.recordings, stats.recordings[1..]);
    // While another holds the catalogue, everything works without.
    let held = sled::open(directory.path().join("r/catalogue")).unwrap();
    assert_eq!(repository.stats(None, &Silent).unwrap(), stats);
    drop(held);
}

#[test]
fn recompression_makes_it_smaller_and_changes_nothing_that_is_read() {
    let (directory, repository) = new();
    let a = record(&repository, "a", 200, 12, 5).unwrap();
    let b = record(&repository, "b", 200, 6, 9).unwrap();
    let before = stored_bytes(&directory);
    let options = GcOptions {
        recompress: true,
        ..GcOptions::default()
    };
    let plan = repository.gc(options, &Silent).unwrap();
    assert!(plan.recompresses() && plan.rewritten_packs() > 0);
    let report = plan.run(&Silent).unwrap();
    assert!(report.recompressed_pages > 0, "{report:?}");
    assert!(stored_bytes(&directory) < before, "{report:?}");
    for (name, history) in [("a", &a), ("b", &b)] {
        assert_reads(&repository, name, history);
    }
    assert_clean(&repository);
    // Readers with a new index, and a second run, which finds little to do.
    let fresh = Repository::open(directory.path().join("r")).unwrap();
    assert_reads(&fresh, "a", &a);
    let again = fresh.gc(options, &Silent).unwrap().run(&Silent).unwrap();
    assert!(again.recompressed_pages < report.recompressed_pages);
    assert_reads(&fresh, "b", &b);
    assert_clean(&fresh);
}

/// Cancels at a step.
struct CancelAt(std::sync::atomic::AtomicI64);

impl Progress for CancelAt {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) <= 0
    }
}

#[test]
fn recompression_can_be_interrupted_anywhere() {
    let (_directory, repository) = new();
    let a = record(&repository, "a", 60, 6, 1).unwrap();
    let options = GcOptions {
        recompress: true,
        ..GcOptions::default()
    };
    let (mut interrupted, mut step) = (0, 0);
    loop {
        let cancel = CancelAt(step.into());
        let done = repository
            .gc(options, &cancel)
            .and_then(|plan| plan.run(&cancel));
        assert_reads(&repository, "a", &a);
        match done {
            Err(Error::Interrupted) => interrupted += 1,
            Ok(_) => break,
            Err(error) => panic!("step {step}: {error}"),
        }
        step += 1;
    }
    assert!(interrupted > 5, "{interrupted}");
    assert_clean(&repository);
}
