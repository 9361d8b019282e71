//! Address translation as the architecture defines it, without any cache.

pub mod walk;

pub use walk::{
    Access, AccessType, Mapping, PageFault, PageSize, Paging, PhysMem, is_canonical, probe, walk,
};
