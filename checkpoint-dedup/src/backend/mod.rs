//! Where objects live. Three operations carry everything that is published: ranged get,
//! put-if-absent and list; nothing published is renamed, appended to or overwritten, so an object
//! store can hold a repository as well as a directory can.

mod files;
mod local;

pub use files::{FileSystem, RealFiles};
pub use local::Local;

use crate::error::BackendError;

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Key of the object: relative, `/` between parts.
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

/// Storage of immutable objects.
pub trait Backend: Send + Sync {
    /// Bytes `offset..offset + length` of an object; fewer if it ends before.
    fn get(&self, key: &str, offset: u64, length: usize) -> Result<Vec<u8>, BackendError>;

    /// Size of an object.
    fn size(&self, key: &str) -> Result<u64, BackendError>;

    /// Stores an object durably and completely under a key, unless the key is taken.
    /// Returns whether it was free.
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<bool, BackendError>;

    /// All objects below a prefix (`packs/`), in any order.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BackendError>;

    /// Removes an object; an absent one is no error. A crash may bring it back.
    fn delete(&self, key: &str) -> Result<(), BackendError>;

    /// Removes an object for good: no crash brings it back.
    fn delete_durably(&self, key: &str) -> Result<(), BackendError> {
        self.delete(key)
    }

    /// Removes what crashed writers left in this place that is no object. Returns its bytes.
    fn sweep(&self) -> Result<u64, BackendError> {
        Ok(0)
    }

    /// How a user would name the object in this place.
    fn describe(&self, key: &str) -> String;

    /// The directory behind the backend, if it is one (the catalogue needs one).
    fn directory(&self) -> Option<&std::path::Path> {
        None
    }

    /// A whole object.
    fn get_all(&self, key: &str) -> Result<Vec<u8>, BackendError> {
        let size = self.size(key)?;
        self.get(key, 0, usize::try_from(size).unwrap_or(usize::MAX))
    }
}
