//! Maintenance: everything here is planned, shown, then run.

use std::collections::HashSet;

use crate::backend::Backend;
use crate::error::Error;
use crate::id::PackId;

/// Packs that garbage collection is about to remove.
pub(crate) fn condemned_packs(_backend: &dyn Backend) -> Result<HashSet<PackId>, Error> {
    Ok(HashSet::new())
}
