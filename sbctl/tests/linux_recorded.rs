//! The first part of a Linux boot, recorded and simulated through the program.

mod common;
mod guest;

use common::Lab;

#[test]
fn the_first_300_million_instructions_of_linux_verify() {
    let kernel = guest::images("minimal").join("vmlinuz-cloud");
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
