//! Saved state: what a checkpoint says about everything but RAM. `docs/format/machine-state.md` is
//! the byte-exact description.
//!
//! The types here are separate from the runtime types, so that those can change without the format.
//! A *blob* is a header (magic, kind, version, length) and a payload in the little-endian encoding of
//! [`codec`]. Decoding never panics and never trusts a length.

pub mod blob;
pub mod clock;
pub mod codec;
pub mod cpu;
pub mod cpuid;
pub mod devices;

pub use blob::Blob;
pub use codec::DecodeError;

/// A decoded value that no machine can be in. Names the part and the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state is damaged: impossible {0}")]
pub struct InvalidSaved(pub &'static str);

pub(crate) fn require(holds: bool, what: &'static str) -> Result<(), InvalidSaved> {
    if holds {
        Ok(())
    } else {
        Err(InvalidSaved(what))
    }
}
