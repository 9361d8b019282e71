//! Guests for the engine.
