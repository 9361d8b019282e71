//! Damaged files: found, named, never read as something else, repaired as far as can be.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint_dedup::*;
use common::*;

/// Every file is damaged at this many random places, besides its start, version and end.
fn places() -> usize {
    let set = std::env::var("SB_DAMAGE_PLACES");
    set.ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

struct Scene {
    _directory: tempfile::TempDir,
    root: PathBuf,
    histories: BTreeMap<String, History>,
}

/// Two recordings that share pages, one of them trimmed, and packs that collection has rewritten.
fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    let repository = Repository::create(&root).unwrap();
    let mut a = record(&repository, "a", 40, 14, 1).unwrap();
    record(&repository, "gone", 40, 5, 3).unwrap();
    let b = record(&repository, "b", 40, 5, 1).unwrap();
    let range = TrimRange {
        from: Some(CheckpointNo(3)),
        to: None,
    };
    repository.trim(&name("a"), range).unwrap();
    repository.remove(&name("gone")).unwrap();
    collect(&repository).unwrap();
    a.checkpoints.retain(|n, _| *n >= 3);
    a.logs.retain(|n, _| *n >= 3);
    Scene {
        _directory: directory,
        root,
        histories: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
    }
}

fn check_at(root: &Path) -> CheckReport {
    let backend = Arc::new(Local::new(root));
    check(backend, CheckOptions { read_data: true }, &Silent).unwrap()
}

/// Reads everything; what comes out is right or an error. Returns what could not be read:
/// recording, number, whether it is a log segment.
fn unreadable(scene: &Scene) -> Vec<(String, u32, bool)> {
    let mut out = Vec::new();
    let repository = Repository::open(&scene.root);
    for (of, history) in &scene.histories {
        let recording = repository.as_ref().ok().map(|r| r.recording(&name(of)));
        let recording = recording.and_then(Result::ok);
        for (&number, expected) in &history.checkpoints {
            match recording.as_ref().map(|r| moment(r, number)) {
                Some(Ok(found)) => assert!(found == *expected, "{of} checkpoint {number}"),
                _ => out.push((of.clone(), number, false)),
            }
        }
        for (&number, (bytes, page)) in &history.logs {
            let read = |r: &Recording| {
                let log = r.log(CheckpointNo(number))?;
                let found = log.page(PageId::of(page))?;
                Ok::<_, Error>((log.bytes().to_vec(), *found))
            };
            match recording.as_ref().map(read) {
                Some(Ok(found)) => assert!(found == (bytes.clone(), *page), "{of} log {number}"),
                _ => out.push((of.clone(), number, true)),
            }
        }
    }
    out
}

fn is_named(report: &CheckReport, (of, number, logs): &(String, u32, bool)) -> bool {
    report.damages.iter().flat_map(|d| &d.affected).any(|a| {
        a.recording.as_str() == of && a.logs == *logs && (a.first.0..=a.last.0).contains(number)
    })
}

#[test]
fn a_flipped_byte_anywhere_is_found_and_named() {
    let scene = scene();
    assert!(check_at(&scene.root).is_clean());
    assert_eq!(unreadable(&scene), []);
    let mut dice = Dice::new(77);
    for file in files(&scene.root) {
        let path = scene.root.join(&file);
        let good = fs::read(&path).unwrap();
        let mut places: Vec<usize> = (0..places()).map(|_| dice.roll(good.len())).collect();
        places.extend([0, 8, good.len() - 1]);
        for at in places.into_iter().filter(|&at| at < good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 1 << dice.roll(8);
            fs::write(&path, &bad).unwrap();
            let what = format!("{file} byte {at} of {}", good.len());
            let result = catch_unwind(AssertUnwindSafe(|| check_or_version(&scene)));
            let report = result.unwrap_or_else(|_| panic!("check panicked: {what}"));
            let Some(report) = report else { continue };
            let named = report.damages.iter().any(|d| d.key == file);
            assert!(named, "{what}: {:#?}", report.damages);
            // Without its configuration, or in a version it does not know, nothing opens.
            let opens = !report.damages.iter().any(|d| d.kind == DamageKind::Config);
            let missing = catch_unwind(AssertUnwindSafe(|| unreadable(&scene)));
            let missing = missing.unwrap_or_else(|_| panic!("wrong bytes or a panic: {what}"));
            let other = |d: &Damage| d.kind == DamageKind::Start || d.what.contains("newer sbctl");
            if opens && !report.damages.iter().any(other) {
                for lost in missing {
                    assert!(is_named(&report, &lost), "{what}: {lost:?}");
                }
            }
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(check_at(&scene.root).is_clean());
}

/// `None` where a version byte was hit that makes the whole place one of a newer program.
fn check_or_version(scene: &Scene) -> Option<CheckReport> {
    let backend = Arc::new(Local::new(&scene.root));
    match check(backend, CheckOptions { read_data: true }, &Silent) {
        Ok(report) => Some(report),
        Err(error) => {
            assert!(error.to_string().contains("newer sbctl"), "{error}");
            None
        }
    }
}

#[test]
fn a_file_that_vanished_is_found_and_named() {
    let scene = scene();
    for file in files(&scene.root) {
        if file.starts_with("index/") {
            continue;
        }
        let path = scene.root.join(&file);
        let good = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let report = check_at(&scene.root);
        let missing = unreadable(&scene);
        // The last checkpoints of a recording without an end, and whole recordings, may vanish
        // without a trace; and what a base stands in for is not needed.
        let traceless = ["log-", "end-", "recordings/", "ckpt-0000000003"];
        if !traceless.iter().any(|part| file.contains(part)) {
            assert!(!report.is_clean(), "{file}");
        }
        if !file.starts_with("recordings/") && !file.contains("log-") && file != "config" {
            for lost in missing {
                assert!(
                    is_named(&report, &lost),
                    "{file}: {lost:?} {:#?}",
                    report.damages
                );
            }
        }
        fs::write(&path, &good).unwrap();
    }
}

#[test]
fn a_repair_keeps_all_that_can_be_read_and_leaves_nothing_damaged() {
    let scene = scene();
    let mut dice = Dice::new(5);
    let pristine: Vec<(String, Vec<u8>)> = files(&scene.root)
        .into_iter()
        .map(|file| (file.clone(), fs::read(scene.root.join(&file)).unwrap()))
        .collect();
    for (file, good) in &pristine {
        let mut bad = good.clone();
        let at = 20 + dice.roll(bad.len() - 20);
        bad[at] ^= 0x40;
        fs::write(scene.root.join(file), &bad).unwrap();
        let lost = unreadable(&scene);
        let lost_whole = lost.iter().any(|(of, _, _)| {
            scene.histories[of]
                .checkpoints
                .keys()
                .all(|n| lost.contains(&(of.clone(), *n, false)))
        });
        let plan = plan_repair(Arc::new(Local::new(&scene.root)), &Silent).unwrap();
        assert!(!plan.actions().is_empty(), "{file}");
        let shown: Vec<String> = plan.actions().iter().map(ToString::to_string).collect();
        let after = plan.run(&Silent).unwrap();
        assert!(after.is_clean(), "{file} {shown:?}: {:#?}", after.damages);
        // Whatever could be read before is read now, in the recording or in a part of it.
        let repository = Repository::open(&scene.root).unwrap();
        for (of, history) in &scene.histories {
            for (number, expected) in &history.checkpoints {
                let before = !lost.contains(&(of.clone(), *number, false));
                if before && !lost_whole {
                    assert!(
                        is_somewhere(&repository, of, expected),
                        "{file} {of} {number}"
                    );
                }
            }
        }
        fs::remove_dir_all(&scene.root).unwrap();
        for (file, good) in &pristine {
            let path = scene.root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, good).unwrap();
        }
    }
}

fn is_somewhere(repository: &Repository, of: &str, expected: &Moment) -> bool {
    let all = repository.recordings().unwrap();
    let parts = all.iter().filter(|info| info.name.as_str().starts_with(of));
    parts.into_iter().any(|info| {
        let recording = repository.recording(&info.name).unwrap();
        let numbers = recording.checkpoints().unwrap();
        numbers
            .iter()
            .any(|n| moment(&recording, n.0).unwrap() == *expected)
    })
}

/// The catalogue is derived: damage in it is noticed or harmless.
#[test]
fn a_flipped_byte_in_the_catalogue_changes_no_statistics() {
    let scene = scene();
    let open = || Repository::open(&scene.root).unwrap();
    let expected = open().stats(None, &Silent).unwrap();
    open().rebuild_index(&Silent).unwrap();
    let place = scene.root.join("catalogue");
    let pristine: Vec<(PathBuf, Vec<u8>)> = files(&place)
        .iter()
        .map(|file| (place.join(file), fs::read(place.join(file)).unwrap()))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    assert!(!pristine.is_empty());
    let mut dice = Dice::new(3);
    for (path, good) in &pristine {
        for round in 0..4 + places() {
            // Most of a file of sled is empty.
            let used = good.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
            let at = dice.roll(if round % 2 == 0 { used } else { good.len() });
            let mut bad = good.clone();
            bad[at] ^= 1 << dice.roll(8);
            fs::write(path, &bad).unwrap();
            let found = catch_unwind(AssertUnwindSafe(|| open().stats(None, &Silent)));
            let what = format!("{} byte {at}", path.display());
            let found = found.unwrap_or_else(|_| panic!("{what}")).unwrap();
            // The index is not part of what the catalogue knows.
            let same = Stats {
                index_bytes: expected.index_bytes,
                ..found
            };
            assert_eq!(same, expected, "{what}");
            fs::remove_dir_all(&place).unwrap();
            for (path, good) in &pristine {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, good).unwrap();
            }
        }
    }
}

/// A rebuild of an undamaged index publishes the very file that is there already, so the same packs
/// lead to the key of the damaged file: the damage must go all the same.
#[test]
fn a_damaged_index_is_replaced_under_its_own_name() {
    let scene = scene();
    let open = || Repository::open(&scene.root).unwrap();
    open().rebuild_index(&Silent).unwrap();
    let place = scene.root.join("index");
    let [file] = &files(&place)[..] else {
        panic!("a rebuilt index of few packs is one file");
    };
    let path = place.join(file);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&path, &bad).unwrap();
    assert!(!check_at(&scene.root).is_clean());
    open().rebuild_index(&Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), good);
    assert!(check_at(&scene.root).is_clean());
}
