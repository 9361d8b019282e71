//! Exceptions: every vector that this CPU model can raise, and what delivery through the IDT does.

mod delivery;
mod escalation;
mod stacks;
mod vectors;

use super::{Case, Suite};
use crate::guest::Guest;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// Code of a case.
type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Code at CPL 0 or, started there, at CPL 3.
fn at_level(g: &mut Guest, user: bool, code: Code) -> Result<(), IcedError> {
    if user {
        g.start_in_user();
        g.user_code(code)
    } else {
        g.code(code)
    }
}

/// `cpl3` or `cpl0`.
fn level(user: bool) -> &'static str {
    if user { "cpl3" } else { "cpl0" }
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    vectors::cases(&mut cases);
    delivery::cases(&mut cases);
    stacks::cases(&mut cases);
    escalation::cases(&mut cases);
    Suite {
        name: "exceptions",
        cases,
    }
}
