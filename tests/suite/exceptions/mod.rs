//! Exceptions: every vector that this CPU model can raise, and what delivery through the IDT does.

mod delivery;
mod escalation;
mod stacks;
mod vectors;

use super::{Case, Code, Suite, at_level};

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
