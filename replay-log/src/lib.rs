//! The ordered record of outside influence.
