//! What is looked at of the host beside KVM.

use super::check::{Check, Group};
use crate::cores::{cores, cpus};
use crate::quantity::Bytes;
use crate::simulate::available_bytes;
use machine::conformance::Results;
use machine::cpuid::{Identity, vendor_of_host};
use rustix::fs::{Access, access, statvfs};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::path::Path;

const HOST: Group = Group::Host;
/// The default guest, the store's caches, and one simulator.
const MEMORY_BYTES: [u64; 2] = [768 << 20, 2 << 30];
/// A few short recordings, and some hours.
const DISK_BYTES: [u64; 2] = [1 << 30, 20 << 30];
/// Guest, store, and checking live.
const CORES: usize = 3;

/// Looks at everything. `repository` is where recordings go.
pub(super) fn examine(repository: &Path) -> Vec<Check> {
    vec![
        processor(),
        alike(),
        core_count(),
        memory(available_bytes()),
        disk(repository),
    ]
}

fn processor() -> Check {
    const ID: &str = "processor";
    let identity = Identity::of_host();
    let name = format!(
        "{} family {} model {} stepping {}",
        String::from_utf8_lossy(&vendor_of_host()),
        identity.family(),
        identity.model(),
        identity.stepping()
    );
    let features = [
        ("bmi2", std::arch::is_x86_feature_detected!("bmi2")),
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("popcnt", std::arch::is_x86_feature_detected!("popcnt")),
        (
            "cmpxchg16b",
            std::arch::is_x86_feature_detected!("cmpxchg16b"),
        ),
    ];
    let missing: Vec<&str> = features
        .into_iter()
        .filter_map(|(name, there)| (!there).then_some(name))
        .collect();
    let check = match missing.is_empty() {
        true => Check::ok(HOST, ID, format!("{name} has what the engine needs")),
        false => Check::no(
            HOST,
            ID,
            format!("{name} lacks what the engine needs: {}", missing.join(", ")),
        )
        .advise("Intel since Haswell (2013), AMD since Zen (2017)"),
    };
    check.measured("missing", missing)
}

/// Whether all processors of this host give the same results: a recording may be verified on any.
fn alike() -> Check {
    const ID: &str = "same-cores";
    // A thread of its own, whose affinity nobody misses.
    let others = std::thread::spawn(results_of_all).join();
    match others.expect("measuring does not panic") {
        Ok(Alike { tried, odd }) if odd.is_empty() => Check::ok(
            HOST,
            ID,
            format!("all {tried} processors give the same results"),
        ),
        Ok(Alike { tried, odd }) => {
            let finding = format!(
                "{} of {tried} processors give other results than the first: {}",
                odd.len(),
                odd[0].1
            );
            let numbers: Vec<usize> = odd.iter().map(|(cpu, _)| *cpu).collect();
            Check::limited(HOST, ID, finding)
                .advise("record and simulate on cores of one kind: `taskset -c LIST sbctl ...`")
                .measured("other_cpus", numbers)
        }
        Err(why) => Check::limited(HOST, ID, why),
    }
}

struct Alike {
    tried: usize,
    /// Processors with other results, and in what.
    odd: Vec<(usize, &'static str)>,
}

fn results_of_all() -> Result<Alike, String> {
    /// Each takes milliseconds.
    const MOST: usize = 256;
    let all = sched_getaffinity(None).map_err(|error| format!("no affinity: {error}"))?;
    let mine = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
    let mut first: Option<Results> = None;
    let mut alike = Alike {
        tried: 0,
        odd: Vec::new(),
    };
    for cpu in mine.take(MOST) {
        let mut only = CpuSet::new();
        only.set(cpu);
        if sched_setaffinity(None, &only).is_err() {
            // It went offline.
            continue;
        }
        let here = Results::of_host().map_err(|unsteady| unsteady.to_string())?;
        alike.tried += 1;
        match &first {
            None => first = Some(here),
            Some(first) => {
                let differs = first.differing(&here).next();
                alike.odd.extend(differs.map(|kind| (cpu, kind.what)));
            }
        }
    }
    Ok(alike)
}

fn core_count() -> Check {
    const ID: &str = "cores";
    let (cores, cpus) = (cores(), cpus());
    let check = match cores {
        1 => Check::limited(HOST, ID, "one core: the store takes time from the guest"),
        ..CORES => Check::limited(
            HOST,
            ID,
            format!("{cores} cores: guest and store; none to check intervals while recording"),
        ),
        _ => Check::ok(
            HOST,
            ID,
            format!("{cores} cores ({cpus} CPUs): guest, store, and checks while recording"),
        ),
    };
    check.measured("cores", cores).measured("cpus", cpus)
}

fn memory(free: u64) -> Check {
    const ID: &str = "memory";
    let text = match free {
        u64::MAX => "free memory is not known".to_owned(),
        free => format!("{} are free", Bytes(free)),
    };
    let [least, good] = MEMORY_BYTES;
    let check = if free < least {
        Check::no(
            HOST,
            ID,
            format!("{text}: too little for the usual guest of 512 MiB"),
        )
        .advise("stop something, or record with --memory 128M")
    } else if free < good {
        Check::limited(
            HOST,
            ID,
            format!("{text}: enough for one guest, few simulators"),
        )
    } else {
        Check::ok(HOST, ID, text)
    };
    check.measured("free_bytes", free)
}

fn disk(repository: &Path) -> Check {
    const ID: &str = "disk";
    let mut place = repository;
    while !place.exists() {
        match place.parent() {
            Some(parent) if parent != Path::new("") => place = parent,
            _ => place = Path::new("."),
        }
    }
    let path = repository.display();
    if let Err(error) = access(place, Access::WRITE_OK | Access::EXEC_OK) {
        return Check::no(
            HOST,
            ID,
            format!("the repository {path} cannot be written: {error}"),
        )
        .advise("another place: --repo DIR, or SBCTL_REPO");
    }
    let free = match statvfs(place) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => return Check::no(HOST, ID, format!("{path}: {error}")),
    };
    let text = format!("{} are free where the repository is ({path})", Bytes(free));
    let [least, good] = DISK_BYTES;
    let check = if free < least {
        Check::no(HOST, ID, text).advise("`sbctl rm` and `sbctl gc`, or another place: --repo DIR")
    } else if free < good {
        Check::limited(HOST, ID, text)
    } else {
        Check::ok(HOST, ID, text)
    };
    check.measured("free_bytes", free)
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn thresholds_are_where_they_should_be() {
        for (free, status) in [
            (0, Status::No),
            (768 << 20, Status::Limited),
            (8 << 30, Status::Ok),
            (u64::MAX, Status::Ok),
        ] {
            assert_eq!(memory(free).status, status, "{free}");
        }
    }

    #[test]
    fn a_repository_that_is_not_there_yet_is_looked_for_above() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b/c");
        assert_ne!(disk(&deep).status, Status::No);
        // A file is in the way.
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(disk(&file).status, Status::No);
    }

    #[test]
    fn every_processor_is_tried() {
        // Before the affinity of this thread is changed.
        let all = sched_getaffinity(None).unwrap().count() as usize;
        let alike = results_of_all().unwrap();
        assert_eq!(alike.tried, all);
    }
}
