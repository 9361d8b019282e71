//! The program `tcg-sim` on guests of a few instructions.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use iced_x86::code_asm::*;
use std::path::Path;
use std::process::{Command, Output};

const CODE: u64 = 0x10_0000;

/// Adds up what it reads from a port, in a loop that a string copy of its own code follows; ends after
/// `rounds` rounds.
fn guest(rounds: u32) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.mov(ebx, rounds).unwrap();
    a.set_label(&mut again).unwrap();
    a.in_(al, 0x60).unwrap();
    a.add(r8, rax).unwrap();
    a.mov(qword_ptr(0x20_0000), r8).unwrap();
    a.mov(esi, CODE as u32).unwrap();
    a.mov(edi, 0x20_1000).unwrap();
    a.mov(ecx, 50).unwrap();
    a.rep().movsb().unwrap();
    a.dec(ebx).unwrap();
    a.jne(again).unwrap();
    a.cli().unwrap();
    a.hlt().unwrap();
    a.assemble(CODE).unwrap()
}

fn tcg_sim(file: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcg-sim"))
        .arg("selfcheck")
        .arg(file)
        .args(options)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn a_whole_run_is_compared_and_its_hashes_depend_on_what_was_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("guest.bin");
    std::fs::write(&file, guest(200)).unwrap();
    let run = |seed: &str| {
        let options = ["--raw", "0x100000", "--memory", "4", "--every", "700"];
        let output = tcg_sim(
            &file,
            &[&options[..], &["--hashes", "--seed", seed]].concat(),
        );
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = run("1");
    // MOV, nine instructions a round, CLI and HLT.
    let steps = 1 + 9 * 200 + 2;
    let end = format!("{steps} steps in 3 windows were compared, without a difference");
    assert!(first.contains(&end), "{first}");
    assert!(first.contains("halted"), "{first}");
    assert_eq!(
        first.lines().filter(|l| l.starts_with("step")).count(),
        2,
        "{first}"
    );
    assert_eq!(run("1"), first);
    assert_ne!(run("2"), first);
}

#[test]
fn interrupts_come_where_they_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("guest.bin");
    // No IDT: the first interrupt that is taken is a triple fault.
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.sti().unwrap();
    a.set_label(&mut again).unwrap();
    a.jmp(again).unwrap();
    std::fs::write(&file, a.assemble(CODE).unwrap()).unwrap();
    let options = ["--raw", "0x100000", "--memory", "4", "--every", "100"];
    let output = tcg_sim(
        &file,
        &[&options[..], &["--interrupt", "0x20:250"]].concat(),
    );
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("triple fault"), "{}", text(&output));
    assert!(text(&output).contains("251 steps"), "{}", text(&output));
    let output = tcg_sim(&file, &[&options[..], &["--steps", "1k"]].concat());
    assert!(
        text(&output).contains("the step asked for"),
        "{}",
        text(&output)
    );
}

#[test]
fn what_is_no_guest_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("guest.bin");
    std::fs::write(&file, guest(1)).unwrap();
    assert_eq!(tcg_sim(&file, &[]).status.code(), Some(1));
    assert_eq!(tcg_sim(&file, &["--raw", "0x1000"]).status.code(), Some(1));
    assert_eq!(tcg_sim(&file, &["--steps", "many"]).status.code(), Some(2));
    assert_eq!(
        tcg_sim(&file, &["--raw", "0x100000", "--every", "0"])
            .status
            .code(),
        Some(1)
    );
}
