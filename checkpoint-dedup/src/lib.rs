//! Content-addressed page store.
