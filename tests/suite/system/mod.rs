//! System instructions: control registers, MSRs, privilege, units that are off, what is not there.

mod absent;
mod control;
mod flags;
mod msr;
mod ports;
mod privileged;
mod units;

use super::{Case, Suite};
use crate::guest::Guest;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// Code of a case.
type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn at_level(g: &mut Guest, user: bool, code: Code) -> Result<(), IcedError> {
    if user {
        g.start_in_user();
        g.user_code(code)
    } else {
        g.code(code)
    }
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    absent::cases(&mut cases);
    control::cases(&mut cases);
    flags::cases(&mut cases);
    msr::cases(&mut cases);
    ports::cases(&mut cases);
    privileged::cases(&mut cases);
    units::cases(&mut cases);
    Suite {
        name: "system",
        cases,
    }
}
