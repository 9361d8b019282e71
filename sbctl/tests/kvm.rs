//! Guests that KVM cannot run: what is said of them, and that the engine takes over. Without /dev/kvm the
//! tests say so and pass; with `SB_REQUIRE_KVM=1` they fail.

mod guest;

use guest::{elf, sbctl, stderr};
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;

fn has_kvm() -> bool {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    match opened {
        Ok(_) => true,
        Err(error) if std::env::var_os("SB_REQUIRE_KVM").is_none() => {
            eprintln!("not tested: {error}");
            false
        }
        Err(error) => panic!("SB_REQUIRE_KVM is set: {error}"),
    }
}

fn record(directory: &Path, accel: &str, code: &[u8]) -> Output {
    let kernel = directory.join("kernel");
    std::fs::write(&kernel, elf(62, code, 0x1000)).expect("a file can be written");
    let repository = directory.join("repository");
    let arguments = [
        "record",
        "--name=guest",
        "--memory=32M",
        "--console=none",
        "--check-live=no",
        "--stop-after=2s",
    ];
    sbctl(arguments)
        .arg(format!("--accel={accel}"))
        .arg("--kernel")
        .arg(&kernel)
        .env("SBCTL_REPO", &repository)
        .output()
        .expect("sbctl starts")
}

fn verified(directory: &Path) -> bool {
    let verified = sbctl(["verify", "guest"])
        .env("SBCTL_REPO", directory.join("repository"))
        .output()
        .expect("sbctl starts");
    eprintln!("{}", stderr(&verified));
    verified.status.success()
}

/// UD2: without interrupt tables, a triple fault.
const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];
/// LOCK CMPXCHG16B [RSI], where boot parameters are; CLI; HLT: off.
const WIDE_EXCHANGE: [u8; 7] = [0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0xfa, 0xf4];

#[test]
fn what_kvm_cannot_run_is_named_by_rip_and_bytes() {
    if !has_kvm() {
        return;
    }
    let directory = TempDir::new().expect("a directory can be made");
    let output = record(directory.path(), "kvm", &TRIPLE_FAULT);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["triple fault", "RIP 0x1000000", "[0f, 0b"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn the_engine_takes_over_and_says_why() {
    if !has_kvm() {
        return;
    }
    // A processor runs the second one on KVM; a KVM that emulates kernel code does not know the instruction.
    for (code, why) in [(&TRIPLE_FAULT[..], "triple fault"), (&WIDE_EXCHANGE, "how")] {
        let directory = TempDir::new().expect("a directory can be made");
        let output = record(directory.path(), "kvm-or-engine", code);
        let said = stderr(&output);
        eprintln!("{said}");
        assert!(output.status.success(), "{said}");
        let took_over = said.contains("the guest runs on the engine");
        assert!(took_over || code == WIDE_EXCHANGE, "{said}");
        if took_over {
            assert!(
                said.contains(why) && said.contains("RIP 0x1000000"),
                "{said}"
            );
        }
        assert!(verified(directory.path()), "{said}");
    }
}
