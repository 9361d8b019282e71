//! The exact x86-64 engine.
