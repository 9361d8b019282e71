//! The engine compared with itself: agreement on a guest with port accesses, and differences found
//! where they are.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use iced_x86::code_asm::*;
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{GuestPhys, Position};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::sync::Arc;
use tcg_sim::selfcheck::{Divergence, Plan, SelfChecked};
use tcg_sim::{Engine, EngineOptions};

const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x2_0000;
const TABLES: u64 = 0x1000;
/// Where the loop of [`program`] has its CPUID.
const CPUID: u64 = CODE + 15;

/// Reads and writes a port and executes CPUID, over and over.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.mov(rsi, 0x3_0000u64).unwrap();
    a.set_label(&mut again).unwrap();
    a.mov(eax, 0x8000_0002u32).unwrap();
    assert_eq!(a.assemble(CODE).unwrap().len() as u64, CPUID - CODE);
    a.cpuid().unwrap();
    a.in_(al, 0x20).unwrap();
    a.add(qword_ptr(rsi), rax).unwrap();
    a.push(rax).unwrap();
    a.pop(rdi).unwrap();
    a.out(0x21, al).unwrap();
    a.jmp(again).unwrap();
    a.assemble(CODE).unwrap()
}

/// RAM with the first GiB mapped to itself in 2 MiB pages.
fn ram() -> Arc<Ram> {
    let ram = Ram::new(8 << 20).unwrap();
    let mut entries = vec![
        (TABLES, (TABLES + 0x1000) | 7),
        (TABLES + 0x1000, (TABLES + 0x2000) | 7),
    ];
    entries.extend((0..512).map(|index| (TABLES + 0x2000 + 8 * index, (index << 21) | 0x87)));
    for (address, entry) in entries {
        ram.write(GuestPhys(address), &entry.to_le_bytes()).unwrap();
    }
    ram.write(GuestPhys(CODE), &program()).unwrap();
    Arc::new(ram)
}

/// Runs to a step, with port reads that count up.
fn drive(vcpu: &mut impl Vcpu, steps: u64) -> Result<(), VcpuError> {
    let mut value = 0;
    loop {
        match vcpu.run(Some(Position::at(steps)))? {
            Exit::Reached => return Ok(()),
            Exit::PortRead { .. } => {
                value += 1;
                vcpu.complete_read(value & 0xff)?;
            }
            Exit::PortWrite { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn checked(table_of_the_run: CpuidTable, plan: Plan) -> SelfChecked {
    let ram = ram();
    let options = EngineOptions::default();
    let mut engine = Engine::new(ram.clone(), table_of_the_run, options.clone()).unwrap();
    engine
        .load(
            &CpuState::long_mode(CODE, STACK, TABLES),
            Position::default(),
        )
        .unwrap();
    SelfChecked::around(engine, ram, CpuidTable::x86_64_v2(), options, plan).unwrap()
}

#[test]
fn windows_cover_what_the_plan_says() {
    for (every, length, from, windows, steps) in [
        (1000, 1000, 0, 10, 10_000),
        (1000, 100, 0, 10, 1000),
        (3000, 500, 2000, 3, 1500),
        (20_000, 20_000, 0, 1, 10_000),
    ] {
        let plan = Plan {
            every,
            length,
            from,
        };
        let mut vcpu = checked(CpuidTable::x86_64_v2(), plan);
        drive(&mut vcpu, 10_000).unwrap();
        let progress = vcpu.progress();
        drop(vcpu);
        let compared = progress.end().unwrap();
        assert_eq!(
            (compared.windows, compared.steps),
            (windows, steps),
            "{plan:?}"
        );
    }
}

fn divergence(error: VcpuError) -> Divergence {
    match error {
        VcpuError::Diverged(found) => *found.downcast().unwrap(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_run_that_stands_alone_is_found() {
    let mut table = CpuidTable::x86_64_v2();
    for entry in table.entries.iter_mut().filter(|e| e.leaf == 0x8000_0002) {
        entry.registers[0] ^= 0x100;
    }
    let plan = Plan {
        every: 1000,
        length: 100,
        from: 500,
    };
    let error = drive(&mut checked(table, plan), 10_000).unwrap_err();
    let found = divergence(error);
    assert!(found.run_alone && found.first.is_none(), "{found}");
    assert_eq!(found.window.0, Position::at(500));
    assert!(found.page.is_some(), "RAX was added to memory: {found}");
}

#[test]
fn the_last_window_is_compared_in_the_end() {
    let mut table = CpuidTable::x86_64_v2();
    for entry in table.entries.iter_mut().filter(|e| e.leaf == 0x8000_0002) {
        entry.registers[0] ^= 0x100;
    }
    let plan = Plan {
        every: 1000,
        length: 100,
        from: 500,
    };
    let mut vcpu = checked(table, plan);
    drive(&mut vcpu, 550).unwrap();
    let progress = vcpu.progress();
    drop(vcpu);
    let found = divergence(progress.end().unwrap_err());
    assert_eq!(found.window, (Position::at(500), Position::at(550)));
}

#[test]
fn the_first_step_that_differs_is_named() {
    let plan = Plan {
        every: 1000,
        length: 1000,
        from: 0,
    };
    let mut vcpu = checked(CpuidTable::x86_64_v2(), plan);
    // One of the two other ways gets another table: their first difference is CPUID, step 2 or 3.
    let mut table = CpuidTable::x86_64_v2();
    for entry in table.entries.iter_mut().filter(|e| e.leaf == 0x8000_0002) {
        entry.registers[1] ^= 4;
    }
    vcpu.replace_cold_table(table).unwrap();
    let found = divergence(drive(&mut vcpu, 10_000).unwrap_err());
    let first = found.first.as_ref().unwrap();
    assert_eq!(
        (first.rip, first.instruction.as_str()),
        (CPUID, "cpuid"),
        "{found}"
    );
    let names: Vec<&str> = first.registers.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["RBX"], "{found}");
    assert!(
        found.to_string().contains("cpuid at RIP 0x1000f"),
        "{found}"
    );
}
