//! How pages become bytes: an edit against up to [`MAX_BASES`] other pages, many edits to a group,
//! a group through zstd.

pub(crate) mod edit;
pub(crate) mod group;
pub(crate) mod guess;
pub(crate) mod matcher;
pub(crate) mod sample;
pub(crate) mod squeeze;

/// Most bases a page may have.
pub(crate) const MAX_BASES: usize = 7;

/// Most page decodes that reading one page may take, by the format: 1 + the costs of its bases.
pub(crate) const MAX_COST: u8 = 8;
