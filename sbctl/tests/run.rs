//! `sbctl run` from outside: how guests end, what is refused.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod guest;

use guest::{elf, sbctl, stderr};
use std::path::Path;
use std::process::Output;

const X86_64: u16 = 62;
const AARCH64: u16 = 183;

fn run(kernel: &Path, more: &[&str]) -> Output {
    let kernel = kernel.to_str().unwrap();
    let arguments = ["run", "--console", "none", "--kernel", kernel];
    sbctl(arguments.iter().chain(more)).output().unwrap()
}

/// Writes a kernel of these instructions and runs it.
fn run_code(code: &[u8], more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, elf(X86_64, code, 4096)).unwrap();
    run(&kernel, more)
}

#[test]
fn ends_of_guests_are_named_and_have_exit_codes() {
    let rows: [(&[u8], i32, &str); 3] = [
        // CLI; HLT.
        (&[0xfa, 0xf4], 0, "powered off"),
        // MOV AL, 0xfe; OUT 0x64, AL; JMP to itself.
        (
            &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe],
            1,
            "reset the machine",
        ),
        // UD2 without an IDT.
        (&[0x0f, 0x0b], 1, "triple fault"),
    ];
    for (code, expected, words) in rows {
        let output = run_code(code, &["--stop-after-insns", "1M"]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(expected), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_run_stops_exactly_after_the_instructions_asked_for() {
    // INC EAX; NOP; JMP back: blocks of three.
    let code = [0xff, 0xc0, 0x90, 0xeb, 0xfb];
    for count in ["1", "2", "1000", "1234567"] {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("json");
        let option = format!("--json={}", json.display());
        let output = run_code(&code, &["--stop-after-insns", count, &option]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let report = std::fs::read_to_string(&json).unwrap();
        let wanted = format!("\"instructions\": {count},");
        assert!(report.contains(&wanted), "{report}");
    }
}

#[test]
fn what_is_not_a_kernel_for_this_machine_is_refused_in_words() {
    let rows: [(Vec<u8>, &str); 5] = [
        (b"#!/bin/sh\n".repeat(200), "not a Linux kernel"),
        (Vec::new(), "not a Linux kernel"),
        (elf(AARCH64, &[0; 16], 4096), "this machine is x86-64"),
        (elf(X86_64, &[0xf4], 8 << 30), "the guest has"),
        (elf(X86_64, &[0xf4], 4096)[..70].to_vec(), "truncated"),
    ];
    for (file, words) in rows {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, file).unwrap();
        let output = run(&kernel, &[]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words) && said.contains("kernel"), "{said}");
    }
    let output = run(Path::new("/nowhere/vmlinuz"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere/vmlinuz"));
}

#[test]
fn the_engine_agrees_with_itself() {
    // Counts in memory and writes to a port, for ever.
    let code = [
        0xff, 0x05, 0x40, 0x00, 0x00, 0x00, // INC dword [RIP+0x40]
        0xe6, 0x80, // OUT 0x80, AL
        0x0f, 0xa2, // CPUID
        0xeb, 0xf4, // JMP back
    ];
    let plan = [
        "--stop-after-insns",
        "100k",
        "--every",
        "10k",
        "--length",
        "10k",
    ];
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, elf(X86_64, &code, 4096)).unwrap();
    let arguments = [
        "selfcheck",
        "--console",
        "none",
        "--memory",
        "64M",
        "--kernel",
    ];
    let mut command = sbctl(arguments);
    let output = command.arg(&kernel).args(plan).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("100,000 instructions in 10 windows"),
        "{said}"
    );
}
