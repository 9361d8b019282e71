//! Objects as files of a directory.
//!
//! Publishing order: write `tmp/N`, sync it, link it to its name (which fails if the name is
//! taken), sync the directory, remove `tmp/N`. A crash leaves at most a file in `tmp/`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::files::{FileSystem, RealFiles};
use super::{Backend, Listed};
use crate::error::BackendError;
use crate::lock::{is_orphan, temporary_name};

/// Pack files kept open for reading. Each costs a file descriptor.
const OPEN_FILES: usize = 128;

/// A repository directory.
pub struct Local<F: FileSystem = RealFiles> {
    root: PathBuf,
    files: F,
    serial: AtomicU64,
    open: Mutex<OpenFiles<F::File>>,
}

struct OpenFiles<T> {
    by_key: HashMap<String, Arc<T>>,
    order: VecDeque<String>,
}

impl Local {
    /// The directory `root`, which need not exist before the first write.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::with_files(root, RealFiles)
    }
}

impl<F: FileSystem> Local<F> {
    /// A directory in another file system (tests inject faults here).
    pub fn with_files(root: impl Into<PathBuf>, files: F) -> Self {
        Self {
            root: root.into(),
            files,
            serial: AtomicU64::new(0),
            open: Mutex::new(OpenFiles {
                by_key: HashMap::new(),
                order: VecDeque::new(),
            }),
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn fail(&self, action: &'static str, path: &Path, source: io::Error) -> BackendError {
        BackendError {
            action,
            path: path.display().to_string(),
            source,
        }
    }

    fn make_directories(&self, path: &Path) -> Result<(), BackendError> {
        if self.files.entries(path).is_ok() {
            return Ok(());
        }
        self.files
            .make_directory(path)
            .map_err(|e| self.fail("create directory", path, e))?;
        // The new names are in the parents: sync up to the repository's own parent.
        let mut parent = path.parent();
        while let Some(directory) = parent.filter(|d| d.starts_with(&self.root)) {
            self.files
                .sync_directory(directory)
                .map_err(|e| self.fail("sync", directory, e))?;
            parent = directory.parent();
        }
        Ok(())
    }

    /// Writes and syncs a temporary file.
    fn write_temporary(&self, bytes: &[u8]) -> Result<PathBuf, BackendError> {
        let directory = self.path("tmp");
        self.make_directories(&directory)?;
        loop {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(temporary_name(serial));
            match self.files.create(&path, bytes) {
                Ok(()) => {}
                // Left by an earlier process of the same id.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => {
                    let _ = self.files.remove(&path);
                    return Err(self.fail("write", &path, e));
                }
            }
            if let Err(e) = self.files.sync(&path) {
                // After a failed sync the kernel may call the pages clean: this file is never
                // synced again, only thrown away.
                let _ = self.files.remove(&path);
                return Err(self.fail("sync", &path, e));
            }
            return Ok(path);
        }
    }

    /// Gives a synced temporary file its name. Returns whether the name was free.
    fn publish(&self, temporary: &Path, path: &Path) -> Result<bool, BackendError> {
        let free = match self.files.link(temporary, path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) if is_no_links(&e) => {
                let free = self.files.size(path).is_err();
                if free {
                    self.files
                        .rename(temporary, path)
                        .map_err(|e| self.fail("publish", path, e))?;
                }
                free
            }
            Err(e) => return Err(self.fail("publish", path, e)),
        };
        // Also when the name was taken: who took it may have failed to make it durable.
        let directory = path.parent().unwrap_or(&self.root);
        self.files
            .sync_directory(directory)
            .map_err(|e| self.fail("sync", directory, e))?;
        Ok(free)
    }

    fn opened(&self, key: &str) -> Result<Arc<F::File>, BackendError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.by_key.get(key) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(key);
        let file = Arc::new(
            self.files
                .open(&path)
                .map_err(|e| self.fail("open", &path, e))?,
        );
        // Only packs are read piecemeal; other objects are read once and may be replaced under
        // the same key after a removal.
        if key.starts_with("packs/") {
            while open.order.len() >= OPEN_FILES {
                if let Some(old) = open.order.pop_front() {
                    open.by_key.remove(&old);
                }
            }
            open.order.push_back(key.to_owned());
            open.by_key.insert(key.to_owned(), Arc::clone(&file));
        }
        Ok(file)
    }

    fn walk(&self, directory: &Path, out: &mut Vec<Listed>) -> Result<(), BackendError> {
        let entries = match self.files.entries(directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.fail("list", directory, e)),
        };
        for (path, bytes, is_directory) in entries {
            if is_directory {
                self.walk(&path, out)?;
            } else if let Some(key) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) {
                out.push(Listed {
                    key: key.to_owned(),
                    bytes,
                });
            }
        }
        Ok(())
    }
}

fn is_no_links(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
    )
}

impl<F: FileSystem> Backend for Local<F> {
    fn get(&self, key: &str, offset: u64, length: usize) -> Result<Vec<u8>, BackendError> {
        let file = self.opened(key)?;
        let mut bytes = vec![0; length];
        let mut have = 0;
        while have < length {
            match self
                .files
                .read_at(&file, &mut bytes[have..], offset + have as u64)
            {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.fail("read", &self.path(key), e)),
            }
        }
        bytes.truncate(have);
        Ok(bytes)
    }

    fn size(&self, key: &str) -> Result<u64, BackendError> {
        let path = self.path(key);
        self.files
            .size(&path)
            .map_err(|e| self.fail("open", &path, e))
    }

    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<bool, BackendError> {
        let path = self.path(key);
        self.make_directories(path.parent().unwrap_or(&self.root))?;
        let temporary = self.write_temporary(bytes)?;
        let published = self.publish(&temporary, &path);
        let _ = self.files.remove(&temporary);
        published
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BackendError> {
        let mut out = Vec::new();
        self.walk(&self.path(prefix.trim_end_matches('/')), &mut out)?;
        Ok(out)
    }

    fn delete(&self, key: &str) -> Result<(), BackendError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.by_key.remove(key);
        open.order.retain(|k| k != key);
        drop(open);
        let path = self.path(key);
        match self.files.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.fail("remove", &path, e)),
            _ => Ok(()),
        }
    }

    fn delete_durably(&self, key: &str) -> Result<(), BackendError> {
        self.delete(key)?;
        let path = self.path(key);
        let directory = path.parent().unwrap_or(&self.root);
        self.files
            .sync_directory(directory)
            .map_err(|e| self.fail("sync", directory, e))
    }

    fn sweep(&self) -> Result<u64, BackendError> {
        let directory = self.path("tmp");
        let mut removed = 0;
        for (path, bytes, _) in self.files.entries(&directory).unwrap_or_default() {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(is_orphan) {
                self.files
                    .remove(&path)
                    .map_err(|e| self.fail("remove", &path, e))?;
                removed += bytes;
            }
        }
        Ok(removed)
    }

    fn describe(&self, key: &str) -> String {
        self.path(key).display().to_string()
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_put_once_and_read_in_ranges() {
        let directory = tempfile::tempdir().unwrap();
        let backend = Local::new(directory.path().join("repo"));
        assert!(backend.put_if_absent("packs/ab/x", b"0123456789").unwrap());
        assert!(!backend.put_if_absent("packs/ab/x", b"other").unwrap());
        assert_eq!(backend.get("packs/ab/x", 3, 4).unwrap(), b"3456");
        assert_eq!(backend.get("packs/ab/x", 8, 9).unwrap(), b"89");
        let listed = backend.list("packs/").unwrap();
        assert_eq!(
            listed,
            [Listed {
                key: "packs/ab/x".into(),
                bytes: 10
            }]
        );
        assert_eq!(backend.list("tmp/").unwrap(), []);
        backend.delete("packs/ab/x").unwrap();
        backend.delete("packs/ab/x").unwrap();
        assert!(backend.get("packs/ab/x", 0, 1).unwrap_err().is_not_found());
    }
}
