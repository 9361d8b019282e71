//! Privilege and transfers: IRET, far transfers, call gates, system calls, segment loads.

mod calls;
mod far;
mod inspection;
mod returns;
mod segments;

use super::{Case, Suite};
use crate::guest::{Guest, asm, layout::sel, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where transfers to CPL 0 land.
const LANDING: u64 = crate::guest::layout::CODE + 0x400;
/// Where transfers to CPL 3 land.
const USER_LANDING: u64 = crate::guest::layout::USER_CODE + 0x400;
/// Linear address outside the canonical halves.
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

/// A descriptor for the tests: name, access byte, flags.
type Row = (&'static str, u8, u8);

/// Puts code at both landings that shows where it is and ends the case.
fn landings(g: &mut Guest) -> Result<(), IcedError> {
    g.code_at(LANDING, LANDING, |a| {
        asm!(a; mov(eax, cs); mov(ebx, ss); mov(rcx, rsp); pushfq(); pop(rdx); int3(););
        Ok(())
    })?;
    g.code_at(USER_LANDING, USER_LANDING, |a| {
        asm!(a;
            mov(eax, cs); mov(ebx, ss); mov(rcx, rsp); pushfq(); pop(rdx);
            mov(esi, ds); mov(edi, fs); int3();
        );
        Ok(())
    })
}

/// Fills the first free descriptor of the GDT.
fn free_descriptor(g: &mut Guest, access: u8, flags: u8) {
    g.set_descriptor(sel::FREE, tables::descriptor(0, 0xf_ffff, access, flags));
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    returns::cases(&mut cases);
    far::cases(&mut cases);
    calls::cases(&mut cases);
    segments::cases(&mut cases);
    inspection::cases(&mut cases);
    Suite {
        name: "transfers",
        cases,
    }
}
