//! Cross-crate tests of SimuBoost, and the machinery they share.

pub mod differential;
