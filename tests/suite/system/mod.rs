//! System instructions: control registers, MSRs, privilege, units that are off, what is not there.

mod absent;
mod control;
mod flags;
mod msr;
mod ports;
mod privileged;
mod units;

use super::{Case, Code, Suite, at_level};

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
