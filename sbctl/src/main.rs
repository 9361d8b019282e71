//! Command line of SimuBoost.

fn main() {}
