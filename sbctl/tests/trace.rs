//! `sbctl trace` on a trace of a program whose accesses are known.

use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{GuestPhys, Position};
use machine::vcpu::{Exit, Vcpu};
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use tcg_sim::instrument::Instruments;
use tcg_sim::trace::TraceWriter;
use tcg_sim::{Engine, EngineOptions};

const CODE: u64 = 0x1_0000;
const TABLES: u64 = 0x1000;

/// `mov rax, [rdi]; add [rdi + 8], eax; push rax; jmp` to the start, at steps 100 to 109, as the trace
/// of interval 7.
fn trace(file: &Path) {
    let ram = Arc::new(Ram::new(4 << 20).expect("RAM is small"));
    for (at, entry) in [
        (TABLES, TABLES + 0x1003),
        (TABLES + 0x1000, TABLES + 0x2003),
        (TABLES + 0x2000, 0x83),
    ] {
        let entry: u64 = entry;
        ram.write(GuestPhys(at), &entry.to_le_bytes())
            .expect("inside RAM");
    }
    let code = [0x48, 0x8b, 0x07, 0x01, 0x47, 0x08, 0x50, 0xeb, 0xf7];
    ram.write(GuestPhys(CODE), &code).expect("inside RAM");
    let cpuid = CpuidTable::x86_64_v2();
    let mut engine = Engine::new(ram, cpuid, EngineOptions::default()).expect("BMI2");
    let mut state = CpuState::long_mode(CODE, 0x2_0000, TABLES);
    state.gpr[7] = 0x3_0000;
    engine.load(&state, Position::at(100)).expect("valid");
    let file = File::create(file).expect("the directory is there");
    let writer = TraceWriter::new(file, 7).expect("room");
    engine.set_instruments(Instruments::none().with_memory_trace(Box::new(writer)));
    let exit = engine.run(Some(Position::at(110))).expect("no limits");
    assert_eq!(exit, Exit::Reached);
    engine.finish_trace().expect("room");
}

fn sbctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sbctl"))
        .arg("trace")
        .args(arguments)
        .output()
        .expect("sbctl starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is text")
}

#[test]
fn totals_ranges_and_damage() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("interval-7.trace");
    trace(&path);
    let name = path.to_str().expect("temporary names are text");

    let totals = sbctl(&[name, "--json"]);
    assert_eq!(totals.status.code(), Some(0), "{totals:?}");
    let totals: Value = serde_json::from_slice(&totals.stdout).expect("JSON");
    let interval = &totals["intervals"][0];
    let numbers = ["interval", "first_step", "steps", "chunks", "accesses"];
    let found = numbers.map(|name| interval[name].as_u64());
    assert_eq!(found, [7, 100, 10, 1, 8].map(Some));
    assert_eq!(interval["counts"]["data"]["reads"], 6);
    assert_eq!(interval["counts"]["branches_taken"], 2);
    let shown = sbctl(&[name]);
    assert!(text(&shown.stdout).contains("first step"), "{shown:?}");

    let range = sbctl(&[name, "--range", "105..107"]);
    let lines: Vec<Vec<&str>> = text(&range.stdout)
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let pc = |offset: u64| format!("{:016x}", CODE + offset);
    assert_eq!(
        lines,
        [
            [
                "105",
                &pc(3),
                "0",
                "update",
                "4",
                "0000000000030008",
                "0000030008"
            ],
            [
                "106",
                &pc(6),
                "0",
                "write",
                "8",
                "000000000001fff0",
                "000001fff0"
            ],
        ]
    );
    let range = sbctl(&[name, "--range", "108..", "--json"]);
    let lines: Vec<Value> = text(&range.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object a line"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["step"], &lines[0]["direction"]),
        (&108.into(), &"read".into())
    );

    let whole = std::fs::read(&path).expect("it is there");
    std::fs::write(&path, &whole[..whole.len() - 90]).expect("room");
    assert_eq!(sbctl(&[name]).status.code(), Some(3), "a cut trace");
    std::fs::write(&path, b"something else").expect("room");
    assert_eq!(sbctl(&[name]).status.code(), Some(2), "no trace");
    assert_eq!(
        sbctl(&[name, "--range", "7"]).status.code(),
        Some(2),
        "no range"
    );
}
