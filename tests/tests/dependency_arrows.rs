//! The direction of dependencies between our crates is an architecture invariant (ARCHITECTURE.md).

use std::collections::{BTreeMap, BTreeSet};

/// Normal and build dependencies each crate may have on crates of this workspace.
const ALLOWED: &[(&str, &[&str])] = &[
    ("machine", &[]),
    ("checkpoint-dedup", &[]),
    ("replay-log", &["machine"]),
    ("kvm-recorder", &["machine", "replay-log"]),
    ("tcg-sim", &["machine", "replay-log"]),
    (
        "sbctl",
        &[
            "machine",
            "replay-log",
            "checkpoint-dedup",
            "kvm-recorder",
            "tcg-sim",
        ],
    ),
    (
        "simuboost-tests",
        &["machine", "replay-log", "kvm-recorder", "tcg-sim"],
    ),
    ("simuboost-benches", &[]),
];

#[test]
fn workspace_crates_depend_only_along_the_arrows() {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata runs in the workspace");
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ALLOWED
        .iter()
        .map(|(name, deps)| (*name, deps.iter().copied().collect()))
        .collect();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        members,
        allowed.keys().copied().collect(),
        "every workspace member needs a row in ALLOWED and the other way round"
    );
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            let ours = members.contains(dependency.name.as_str());
            let normal = dependency.kind != cargo_metadata::DependencyKind::Development;
            assert!(
                !(ours && normal)
                    || allowed[package.name.as_str()].contains(dependency.name.as_str()),
                "{} must not depend on {}",
                package.name,
                dependency.name
            );
        }
    }
}
