//! What the guest machine is.
