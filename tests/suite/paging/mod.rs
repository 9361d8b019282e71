//! Paging: every page size, right and reserved bit, at both privilege levels, and what happens when
//! tables change.

mod addresses;
mod changes;
mod code;
mod crossing;
mod entries;
mod rights;

use super::{Case, Suite};
use crate::guest::{Guest, Size, asm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where the page under test is mapped: aligned for every size, and the root's entry is its own.
const PAGE: u64 = 0x80_0000_0000;
/// Offset of the access inside the page.
const OFFSET: u64 = 0x1238;
/// Frame behind the page for each size; the data lies at frame + OFFSET.
fn frame(size: Size) -> u64 {
    match size {
        Size::Kib4 | Size::Mib2 => 0x40_0000,
        Size::Gib1 => 0,
    }
}
/// Linear address that reaches guest-physical 0x401238 through the page.
fn target(size: Size) -> u64 {
    match size {
        Size::Kib4 => PAGE + 0x238,
        Size::Mib2 => PAGE + OFFSET,
        Size::Gib1 => PAGE + 0x40_0000 + OFFSET,
    }
}
fn physical(size: Size) -> u64 {
    match size {
        Size::Kib4 => 0x40_0238,
        _ => 0x40_0000 + OFFSET,
    }
}

/// How the page is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touch {
    Read,
    Write,
    Modify,
    Fetch,
}

const TOUCHES: [Touch; 4] = [Touch::Read, Touch::Write, Touch::Modify, Touch::Fetch];

/// Touches `va` with the register-visible result in RAX; after the touch RDX is 1.
fn touch(a: &mut CodeAssembler, kind: Touch, va: u64) -> Result<(), IcedError> {
    asm!(a; mov(rbx, va); mov(rax, 0x1111u64););
    match kind {
        Touch::Read => {
            asm!(a; mov(rax, ptr(rbx)););
        }
        Touch::Write => {
            asm!(a; mov(ptr(rbx), rax););
        }
        Touch::Modify => {
            asm!(a; add(ptr(rbx), rax););
        }
        Touch::Fetch => {
            asm!(a; call(rbx););
        }
    }
    asm!(a; mov(edx, 1););
    Ok(())
}

/// The content of the page under test: MOV EAX, 0x77; RET, also read as data.
fn fill(g: &mut Guest, size: Size) {
    g.poke(physical(size), &[0xb8, 0x77, 0, 0, 0, 0xc3, 0x90, 0x90]);
}

/// Shows the entries that map the page and the data.
fn watch(g: &mut Guest, size: Size) {
    for (level, slot) in g.walk_slots(PAGE, size).into_iter().enumerate() {
        g.watch(&format!("l{}", 4 - level), slot, 8);
    }
    g.watch("data", physical(size), 8);
}

/// Runs `touch` at CPL 0 or 3 on a page whose leaf has `bits`.
fn touch_page(
    g: &mut Guest,
    size: Size,
    bits: u64,
    kind: Touch,
    user: bool,
) -> Result<(), IcedError> {
    g.map(PAGE, frame(size), bits, size);
    fill(g, size);
    watch(g, size);
    if user {
        g.start_in_user();
        g.user_code(|a| touch(a, kind, target(size)))
    } else {
        g.code(|a| touch(a, kind, target(size)))
    }
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    rights::cases(&mut cases);
    entries::cases(&mut cases);
    crossing::cases(&mut cases);
    changes::cases(&mut cases);
    code::cases(&mut cases);
    addresses::cases(&mut cases);
    Suite {
        name: "paging",
        cases,
    }
}
