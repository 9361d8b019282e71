//! The first part of a Linux boot, recorded and simulated through the program.

mod common;

use common::Lab;
use std::path::PathBuf;

/// Where `tests/guest-images/build.sh` puts kernels.
fn kernel() -> Option<PathBuf> {
    let under = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = under("XDG_CACHE_HOME").or_else(|| Some(under("HOME")?.join(".cache")));
    let images =
        under("SB_GUEST_IMAGES").or_else(|| Some(cache?.join("simuboost/guest-images")))?;
    let kernel = images.join("vmlinuz-cloud");
    kernel.exists().then_some(kernel)
}

/// Needs the kernel that `tests/guest-images/build.sh` fetches; without it there is nothing to test.
#[test]
fn the_first_300_million_instructions_of_linux_verify() {
    let Some(kernel) = kernel() else {
        assert!(
            std::env::var_os("SB_REQUIRE_LINUX").is_none(),
            "no kernel: run tests/guest-images/build.sh"
        );
        eprintln!("no kernel: run tests/guest-images/build.sh");
        return;
    };
    let lab = Lab::new();
    let kernel = kernel.display().to_string();
    let fixed = [
        "record",
        "--kernel",
        &kernel,
        "--console",
        "none",
        "--accel",
        "engine",
    ];
    for (name, positions) in [("count", "count"), ("landmark", "landmark")] {
        let more = [
            "--name",
            name,
            "--positions",
            positions,
            "--memory",
            "256M",
            "--interval",
            "50ms",
            "--stop-after",
            "300ms",
        ];
        let summary = lab.json(&[&fixed[..], &more].concat());
        assert_eq!(summary["end"], "stopped");
        assert_eq!(summary["intervals"], 6);
        assert!(summary["dirty_pages"].as_u64() > Some(5_000), "{summary:#}");
        let report = lab.json(&["simulate", name, "--parallel", "2"]);
        assert_eq!(report["verified"], 6);
        assert_eq!(report["instructions"], summary["instructions"]);
    }
}
