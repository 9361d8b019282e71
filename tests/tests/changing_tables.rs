//! Invariant E7 where page tables change under the code that executes, and where one table serves several
//! levels: a store to a table, by whatever way, is seen by the next instruction and iteration.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use simuboost_tests::guest::{Guest, Outcome, Size, asm, layout as at, pte};
use simuboost_tests::hostile::{case, random};
use simuboost_tests::oracle::vcpu;

/// Slot of the root table that leads to the root table.
const SLOT: u64 = 0x1ed;
/// Where code is mapped by tables of its own, and to which frame.
const PAGE: u64 = 0x90_0000_0000;
const FRAME: u64 = 0x40_0000;

/// Linear address of the entry that maps `va`, `levels` levels up, through the slot.
fn through_the_slot(va: u64, levels: u32) -> u64 {
    let mut address = va;
    for _ in 0..levels {
        address = address >> 9 & 0x7f_ffff_ffff | SLOT << 39;
    }
    address & !7 | 0xffff_0000_0000_0000
}

fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.poke_u64(at::PML4 + SLOT * 8, at::PML4 | pte::ALL);
    guest
}

fn run(guest: &Guest) -> [Outcome; 2] {
    [false, true].map(|one_instruction_blocks| {
        let (ram, mut engine) = vcpu::engine_for(guest, one_instruction_blocks);
        vcpu::run(&mut engine, &ram, guest, &mut vcpu::NoPorts)
    })
}

/// Runs code at [`PAGE`], whose tables are its own, and expects it to be gone after `store_end` bytes:
/// the fetch of the next instruction faults and RAX still is 0.
fn expect_gone(guest: &mut Guest, code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut store_end = 0;
    guest
        .code_at(PAGE, FRAME, |a| {
            code(a)?;
            store_end = PAGE + a.assemble(PAGE)?.len() as u64;
            asm!(a; inc(rax); inc(rax); mov(rdx, at::FINISH); jmp(rdx););
            Ok(())
        })
        .unwrap();
    guest
        .code(|a| {
            asm!(a; xor(eax, eax); mov(rdx, PAGE); jmp(rdx););
            Ok(())
        })
        .unwrap();
    for outcome in run(guest) {
        let event = outcome.events.first().expect("the fetch faults");
        assert_eq!((event.vector, event.error), (14, 0x10));
        assert_eq!((event.rip, event.cr2), (store_end, store_end));
        assert_eq!(event.registers[0], 0, "nothing more was executed");
    }
}

/// Takes the executing page away through each level of its own walk. Regression: a block went on,
/// since the walk of the store had found the root table at other levels.
#[test]
fn a_store_that_unmaps_the_executing_page_is_its_last_instruction() {
    for levels in 1..=4 {
        let mut guest = guest();
        guest.map(PAGE, FRAME, pte::P | pte::RW, Size::Kib4);
        let entry = through_the_slot(PAGE, levels);
        expect_gone(&mut guest, |a| {
            asm!(a; mov(rbx, entry); mov(ptr(rbx), rax););
            Ok(())
        });
    }
}

/// The table that maps the executing page serves as a directory for another address, and is looked
/// at as that before it is stored to.
#[test]
fn a_table_that_serves_elsewhere_still_maps_the_executing_page() {
    let mut guest = Guest::new();
    guest.map(PAGE, FRAME, pte::P | pte::RW, Size::Kib4);
    let slot = guest.leaf_slot(PAGE, Size::Kib4);
    let elsewhere = share(&mut guest, slot);
    expect_gone(&mut guest, |a| {
        asm!(a; mov(rbx, elsewhere); mov(rcx, ptr(rbx)); mov(rdi, slot); mov(ptr(rdi), rax););
        Ok(())
    });
}

/// Makes the table that holds `slot` the directory of another GiB; an address in that GiB that leads
/// through entry 0x100 of it.
fn share(guest: &mut Guest, slot: u64) -> u64 {
    let table = slot & !0xfff;
    let address = 0xa0_0000_0000 + (0x100 << 21);
    let directory_slot = guest.leaf_slot(address, Size::Gib1);
    guest.poke_u64(directory_slot, table | pte::ALL);
    guest.map(address, FRAME + 0x1000, pte::P | pte::RW, Size::Kib4);
    address
}

/// An instruction lies in two pages, and what is the table of the first is the directory of the second.
/// The block that holds it depends on both.
#[test]
fn an_instruction_in_two_pages_depends_on_a_table_in_two_places() {
    // The last page of a GiB and the first of the next.
    let first = 0x90_3fff_f000u64;
    let second = first + 0x1000;
    let mut guest = Guest::new();
    guest.map(first, FRAME, pte::P | pte::RW, Size::Kib4);
    let slot = guest.leaf_slot(first, Size::Kib4);
    let directory_slot = guest.leaf_slot(second, Size::Gib1);
    guest.poke_u64(directory_slot, slot & !0xfff | pte::ALL);
    guest.map(second, FRAME + 0x1000, pte::P | pte::RW, Size::Kib4);
    // MOV ECX, imm32 across the boundary, then RET.
    guest.poke(FRAME + 0xffe, &[0xb9, 1, 0, 0, 0, 0xc3]);
    let start = first + 0xffe;
    guest
        .code(|a| {
            let (mut again, mut call) = (a.create_label(), a.create_label());
            asm!(a;
                mov(rdi, slot); mov(rbx, start); mov(ebp, 20); xor(eax, eax);
                set_label(&mut again); dec(ebp); jne(call); mov(ptr(rdi), rax);
                set_label(&mut call); call(rbx); jmp(again););
            Ok(())
        })
        .unwrap();
    for outcome in run(&guest) {
        let event = outcome.events.first().expect("the fetch faults");
        assert_eq!((event.vector, event.error), (14, 0x10));
        assert_eq!((event.rip, event.cr2), (start, start));
    }
}

/// A repetition takes its own page away in its third iteration: the fourth is fetched, which faults.
/// Regression: it went on for as long as what was cached let it.
#[test]
fn a_repetition_that_unmaps_itself_ends_there() {
    let mut guest = Guest::new();
    guest.map(PAGE, FRAME, pte::P | pte::RW, Size::Kib4);
    let slot = guest.leaf_slot(PAGE, Size::Kib4);
    let mut repetition = 0;
    guest
        .code_at(PAGE, FRAME, |a| {
            asm!(a; mov(rdi, slot - 16); mov(ecx, 10););
            repetition = PAGE + a.assemble(PAGE)?.len() as u64;
            a.rep().stosq()
        })
        .unwrap();
    guest
        .code(|a| {
            asm!(a; xor(eax, eax); mov(rdx, PAGE); jmp(rdx););
            Ok(())
        })
        .unwrap();
    for outcome in run(&guest) {
        let event = outcome.events.first().expect("the fetch faults");
        assert_eq!((event.vector, event.error), (14, 0x10));
        assert_eq!((event.rip, event.cr2), (repetition, repetition));
        assert_eq!(event.registers[1], 7, "iterations left");
        assert_eq!(event.registers[5], slot + 8);
    }
}

/// Random guests that once differed: blocks that outlived their page tables, and an instruction whose
/// own bytes were the page-table entry in which its access sets the accessed bit (1106744).
#[test]
fn random_guests_that_once_differed() {
    for seed in [
        1_001_087, 1_001_574, 1_100_893, 1_101_711, 1_101_781, 1_101_955, 1_102_609, 1_103_548,
        1_104_774, 1_105_527, 1_105_873, 1_106_744, 1_108_203, 1_243_196,
    ] {
        case::run(&random::input(seed), &mut |_| {})
            .unwrap_or_else(|finding| panic!("seed {seed}: {finding}"));
    }
}
