//! The exact x86-64 engine.

pub mod replay;
