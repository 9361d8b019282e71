//! Storage that fails or stops being durable at any moment.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;
mod sim;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use checkpoint_dedup::*;
use common::*;
use sim::{Fault, SimFiles};

const ROOT: &str = "/repository";
const FRAMES: usize = 12;

/// What a run of the scenario did, and at which operation of the file system.
#[derive(Default)]
struct Journal {
    /// When it was acknowledged, recording, number, content.
    published: Vec<(u64, String, u32, Moment)>,
    /// When the removal of checkpoints below a number began.
    removing: Vec<(u64, String, u32)>,
}

impl Journal {
    fn removed(&self, of: &str, number: u32, before: u64) -> bool {
        self.removing
            .iter()
            .any(|(at, name, below)| *at < before && name == of && number < *below)
    }
}

fn repository(files: &SimFiles) -> Result<Repository, Error> {
    let backend = || Arc::new(Local::with_files(PathBuf::from(ROOT), files.clone()));
    match Repository::create_on(backend(), OpenOptions::default()) {
        Err(Error::RepositoryExists { .. }) => {
            Repository::open_on(backend(), OpenOptions::default())
        }
        done => done,
    }
}

/// Takes the locks away, as the death of the process would.
fn die(files: &SimFiles) {
    files.remove_below(&PathBuf::from(ROOT).join("locks"));
}

fn ingest(
    files: &SimFiles,
    repository: &Repository,
    of: &str,
    count: u32,
    seed: u64,
    journal: &mut Journal,
) -> Result<(), Error> {
    die(files);
    let mut guest = Guest::start(repository, of, FRAMES, seed)?;
    for number in 0..count {
        guest.step()?;
        let moment = guest.history.checkpoints[&number].clone();
        journal
            .published
            .push((files.operations(), of.to_owned(), number, moment));
    }
    guest.finish()?;
    Ok(())
}

fn gc(files: &SimFiles, repository: &Repository, recompress: bool) -> Result<GcReport, Error> {
    die(files);
    let options = GcOptions {
        patience: Patience::default(),
        writers: Duration::ZERO,
        recompress,
    };
    repository.gc(options, &Silent)?.run(&Silent)
}

/// Ingest, remove, collect, ingest again, trim, collect and recompress.
fn scenario(files: &SimFiles, journal: &mut Journal) -> Result<(), Error> {
    let repository = repository(files)?;
    ingest(files, &repository, "old", 2, 1, journal)?;
    ingest(files, &repository, "a", 4, 1, journal)?;
    journal.removing.push((files.operations(), "old".into(), 9));
    repository.remove(&name("old"))?;
    gc(files, &repository, false)?;
    ingest(files, &repository, "b", 2, 1, journal)?;
    die(files);
    journal.removing.push((files.operations(), "a".into(), 2));
    let range = TrimRange {
        from: Some(CheckpointNo(2)),
        to: None,
    };
    repository.trim(&name("a"), range)?;
    gc(files, &repository, true)?;
    Ok(())
}

/// Everything acknowledged before an operation is there, everything there is right, and nothing
/// is damaged. Then work goes on.
fn verify(files: &SimFiles, journal: &Journal, before: u64, contents: &Journal, what: &str) {
    let repository = match repository(files) {
        Ok(repository) => repository,
        Err(error) => panic!("{what}: {error}"),
    };
    let mut readable: BTreeMap<(String, u32), Moment> = BTreeMap::new();
    for info in repository.recordings().unwrap() {
        let recording = repository.recording(&info.name).unwrap();
        for number in recording.checkpoints().unwrap() {
            let found = moment(&recording, number.0);
            let found =
                found.unwrap_or_else(|error| panic!("{what}: {} {number}: {error}", info.name));
            readable.insert((info.name.to_string(), number.0), found);
        }
    }
    for ((of, number), found) in &readable {
        let known = contents
            .published
            .iter()
            .find(|p| p.1 == *of && p.2 == *number);
        assert!(
            known.is_some_and(|known| known.3 == *found),
            "{what}: {of} {number} is wrong"
        );
    }
    for (at, of, number, _) in &journal.published {
        let there = readable.contains_key(&(of.clone(), *number));
        let must = *at < before && !journal.removed(of, *number, u64::MAX);
        assert!(there || !must, "{what}: {of} {number} is lost");
    }
    let report = repository
        .check(CheckOptions { read_data: true }, &Silent)
        .unwrap();
    assert!(report.is_clean(), "{what}: {:#?}", report.damages);
    let mut more = Journal::default();
    ingest(files, &repository, "more", 2, 1, &mut more).unwrap();
    gc(files, &repository, false).unwrap();
    let recording = repository.recording(&name("more")).unwrap();
    for (_, _, number, expected) in &more.published {
        assert!(moment(&recording, *number).unwrap() == *expected, "{what}");
    }
    let report = repository
        .check(CheckOptions { read_data: true }, &Silent)
        .unwrap();
    assert!(report.is_clean(), "{what}, later: {:#?}", report.damages);
}

/// The operations that a clean run takes, and what it publishes.
fn clean_run() -> (u64, Journal) {
    let files = SimFiles::new(Fault::None);
    let mut contents = Journal::default();
    scenario(&files, &mut contents).unwrap();
    (files.operations(), contents)
}

fn every_moment(fault: impl Fn(u64) -> Fault, crashes: bool) {
    let (operations, contents) = clean_run();
    assert!(operations > 100, "{operations}");
    for at in 1..=operations {
        let files = SimFiles::new(fault(at));
        let mut journal = Journal::default();
        let result = scenario(&files, &mut journal);
        let what = format!("{:?} of {operations} ({result:?})", fault(at));
        files.heal();
        if crashes {
            // Storage that only pretends keeps nothing of what came later.
            let pretends = matches!(fault(at), Fault::NotDurableFrom(_));
            files.crash((!pretends).then_some(at));
        }
        die(&files);
        verify(&files, &journal, at.max(1), &contents, &what);
    }
}

#[test]
fn one_operation_fails() {
    every_moment(Fault::FailOnce, false);
}

#[test]
fn one_operation_fails_and_the_machine_stops() {
    every_moment(Fault::FailOnce, true);
}

#[test]
fn the_machine_stops() {
    every_moment(Fault::FailFrom, true);
}

#[test]
fn storage_stops_being_durable() {
    every_moment(Fault::NotDurableFrom, true);
}

#[test]
fn a_full_disk_and_lost_permissions_are_named_and_lose_nothing() {
    for (kind, text) in [
        (ErrorKind::StorageFull, "no storage space"),
        (ErrorKind::PermissionDenied, "permission denied"),
        (ErrorKind::ReadOnlyFilesystem, "read-only filesystem"),
    ] {
        let files = SimFiles::new(Fault::None);
        let first = repository(&files).unwrap();
        let history = record(&first, "a", FRAMES, 3, 1).unwrap();
        let mut guest = Guest::start(&first, "b", FRAMES, 2).unwrap();
        guest.step().unwrap();
        files.refuse(kind);
        let error = guest.step().unwrap_err().to_string();
        assert!(error.contains(ROOT) && error.contains(text), "{error}");
        // The writer has stopped, and says why.
        let error = guest.step().unwrap_err().to_string();
        assert!(
            error.contains("earlier failure") && error.contains(text),
            "{error}"
        );
        let started = guest.history.clone();
        drop(guest);
        // Readers need nothing that writes.
        let second = repository_of(&files);
        assert_reads(&second, "a", &history);
        let b = second.recording(&name("b")).unwrap();
        assert!(moment(&b, 0).unwrap() == started.checkpoints[&0]);
        let error = second
            .gc(GcOptions::default(), &Silent)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(ROOT) && error.contains(text), "{error}");
        let report = second
            .check(CheckOptions { read_data: true }, &Silent)
            .unwrap();
        assert!(report.is_clean(), "{:#?}", report.damages);
        files.heal();
        die(&files);
        gc(&files, &second, false).unwrap();
        assert_reads(&second, "a", &history);
        assert_clean(&second);
    }
}

fn repository_of(files: &SimFiles) -> Repository {
    let backend = Arc::new(Local::with_files(PathBuf::from(ROOT), files.clone()));
    Repository::open_on(backend, OpenOptions::default()).unwrap()
}

#[test]
fn a_vanished_pack_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    let repository = Repository::create(&root).unwrap();
    record(&repository, "a", FRAMES, 1, 1).unwrap();
    let pack = files(&root)
        .into_iter()
        .find(|f| f.starts_with("packs/"))
        .unwrap();
    std::fs::remove_file(root.join(&pack)).unwrap();
    let fresh = Repository::open(&root).unwrap();
    let recording = fresh.recording(&name("a")).unwrap();
    let error = moment(&recording, 0).err().unwrap().to_string();
    assert!(error.contains(pack.rsplit('/').next().unwrap()), "{error}");
    // Nothing is deleted while something is missing.
    let error = fresh.gc(GcOptions::default(), &Silent).err();
    assert!(matches!(error, Some(Error::Missing { .. })), "{error:?}");
}
