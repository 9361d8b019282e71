//! Debug exceptions: single step, breakpoints of each kind, RF, and the debug registers themselves.

mod breakpoints;
mod registers;
mod stepping;

use super::Suite;

/// The suite.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    stepping::cases(&mut cases);
    breakpoints::cases(&mut cases);
    registers::cases(&mut cases);
    Suite {
        name: "debug",
        cases,
    }
}
