//! What the tests of `sbctl run` share: the program, tiny kernels, and Linux images.

#![allow(dead_code, reason = "each test program uses a part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

/// `sbctl` with arguments and without a terminal.
pub(crate) fn sbctl<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sbctl"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Where [`elf`] puts code.
const LOAD_ADDRESS: u64 = 0x100_0000;

/// An ELF executable for `machine` (62 is x86-64) whose one segment is `code`, `memory_bytes` long.
pub(crate) fn elf(machine: u16, code: &[u8], memory_bytes: u64) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let offset = 64 + 56;
    for half in [2, machine] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for word in [LOAD_ADDRESS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One loadable segment, readable, writable, executable.
    for word in [1_u32, 7] {
        file.extend(word.to_le_bytes());
    }
    for word in [
        offset,
        LOAD_ADDRESS,
        LOAD_ADDRESS,
        code.len() as u64,
        memory_bytes,
        0x1000,
    ] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// The repository's folder of guest images.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guest-images")
}

/// The folder with kernels and the image `kind`, built if need be.
///
/// # Panics
/// If they cannot be had.
pub(crate) fn images(kind: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    // A panic of another test says nothing about the images.
    let _guard = BUILDING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let under = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || under("XDG_CACHE_HOME").or_else(|| Some(under("HOME")?.join(".cache")));
    let folder = under("SB_GUEST_IMAGES")
        .or_else(|| Some(cache()?.join("simuboost/guest-images")))
        .expect("HOME is set");
    let parts = [
        format!("{kind}.cpio"),
        format!("root-{kind}"),
        "vmlinuz-cloud".into(),
    ];
    if !parts.iter().all(|part| folder.join(part).exists()) {
        let status = Command::new("bash")
            .arg(scripts().join("build.sh"))
            .arg(kind)
            .stdout(Stdio::null())
            .status()
            .expect("bash starts");
        assert!(
            status.success(),
            "tests/guest-images/build.sh {kind} failed"
        );
    }
    folder
}

/// Compares the console output in `log` with what the same programs print natively.
pub(crate) fn assert_as_natively(log: &Path, kind: &str) {
    let output = Command::new("bash")
        .arg(scripts().join("check.sh"))
        .arg(log)
        .arg(kind)
        .output()
        .expect("bash starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert!(output.status.success(), "{out}{err}");
}
