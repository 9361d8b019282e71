//! A file system in memory that forgets, on a crash, what was not made durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use checkpoint_dedup::FileSystem;

use super::common::Dice;

/// What goes wrong. Operations that change something are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// This operation fails.
    FailOnce(u64),
    /// This and all later ones fail.
    FailFrom(u64),
    /// From this one on all seem to succeed, and nothing is durable.
    NotDurableFrom(u64),
}

#[derive(Clone, Default)]
struct Inode {
    data: Arc<Vec<u8>>,
    /// What a crash leaves for certain.
    durable: Option<Arc<Vec<u8>>>,
}

struct State {
    fault: Fault,
    refuse: Option<ErrorKind>,
    operations: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    directories: BTreeSet<PathBuf>,
}

/// The file system; clones share it.
#[derive(Clone)]
pub(crate) struct SimFiles(Arc<Mutex<State>>);

impl SimFiles {
    pub(crate) fn new(fault: Fault) -> Self {
        Self(Arc::new(Mutex::new(State {
            fault,
            refuse: None,
            operations: 0,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            directories: BTreeSet::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Nothing goes wrong from here on.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.fault = Fault::None;
        state.refuse = None;
    }

    /// Every change is refused from here on.
    pub(crate) fn refuse(&self, kind: ErrorKind) {
        self.state().refuse = Some(kind);
    }

    /// Removes files without further ado.
    pub(crate) fn remove_below(&self, directory: &Path) {
        let mut state = self.state();
        state.names.retain(|path, _| !path.starts_with(directory));
        state
            .durable_names
            .retain(|path, _| !path.starts_with(directory));
    }

    /// Power is lost: what was not durable may be there or not, in part or whole. Without a seed
    /// nothing of it is.
    pub(crate) fn crash(&self, seed: Option<u64>) {
        let mut dice = seed.map(Dice::new);
        let state = &mut *self.state();
        let paths: BTreeSet<PathBuf> = state
            .names
            .keys()
            .chain(state.durable_names.keys())
            .cloned()
            .collect();
        let mut after = BTreeMap::new();
        for path in paths {
            let (now, durable) = (state.names.get(&path), state.durable_names.get(&path));
            let left = match dice.as_mut().map(|dice| dice.roll(2)) {
                Some(0) => now,
                _ => durable,
            };
            if let Some(&inode) = left {
                after.insert(path, inode);
            }
        }
        for inode in &mut state.inodes {
            let torn = || Arc::new(inode.data[..inode.data.len() / 2].to_vec());
            inode.data = inode.durable.clone().unwrap_or_else(torn);
            inode.durable = Some(Arc::clone(&inode.data));
        }
        state.names = after.clone();
        state.durable_names = after;
    }

    fn change<T>(&self, act: impl FnOnce(&mut State, bool) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.state();
        if let Some(kind) = state.refuse {
            return Err(kind.into());
        }
        state.operations += 1;
        let now = state.operations;
        match state.fault {
            Fault::FailOnce(at) if at == now => Err(io::Error::other("injected")),
            Fault::FailFrom(at) if at <= now => Err(io::Error::other("injected")),
            Fault::NotDurableFrom(at) => act(state, now < at),
            _ => act(state, true),
        }
    }
}

fn gone() -> io::Error {
    ErrorKind::NotFound.into()
}

impl State {
    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(gone)
    }
}

impl FileSystem for SimFiles {
    type File = Arc<Vec<u8>>;

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let made = self.change(|state, _| {
            if state.names.contains_key(path) {
                return Err(ErrorKind::AlreadyExists.into());
            }
            let parent = path.parent().ok_or_else(gone)?;
            if !state.directories.contains(parent) {
                return Err(gone());
            }
            state.inodes.push(Inode {
                data: Arc::new(bytes.to_vec()),
                durable: None,
            });
            let inode = state.inodes.len() - 1;
            state.names.insert(path.to_path_buf(), inode);
            Ok(())
        });
        if made.is_err() && !matches!(&made, Err(e) if e.kind() != ErrorKind::Other) {
            // A write that fails leaves a part of the file behind.
            let state = &mut *self.state();
            state.inodes.push(Inode {
                data: Arc::new(bytes[..bytes.len() / 3].to_vec()),
                durable: None,
            });
            let inode = state.inodes.len() - 1;
            state.names.entry(path.to_path_buf()).or_insert(inode);
        }
        made
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.change(|state, durable| {
            let inode = state.inode(path)?;
            let inode = &mut state.inodes[inode];
            if durable {
                inode.durable = Some(Arc::clone(&inode.data));
            }
            Ok(())
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state, _| {
            let inode = state.inode(from)?;
            if state.names.contains_key(to) {
                return Err(ErrorKind::AlreadyExists.into());
            }
            state.names.insert(to.to_path_buf(), inode);
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state, _| {
            let inode = state.inode(from)?;
            state.names.remove(from);
            state.names.insert(to.to_path_buf(), inode);
            Ok(())
        })
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.change(|state, durable| {
            if !durable {
                return Ok(());
            }
            let inside = |name: &PathBuf| name.parent() == Some(path);
            state.durable_names.retain(|name, _| !inside(name));
            let now = state.names.iter().filter(|(name, _)| inside(name));
            let now: Vec<(PathBuf, usize)> = now.map(|(n, i)| (n.clone(), *i)).collect();
            state.durable_names.extend(now);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|state, _| state.names.remove(path).map(drop).ok_or_else(gone))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.change(|state, _| {
            let all = path.ancestors().map(Path::to_path_buf);
            state.directories.extend(all);
            Ok(())
        })
    }

    fn open(&self, path: &Path) -> io::Result<Self::File> {
        let state = self.state();
        let inode = state.inode(path)?;
        Ok(Arc::clone(&state.inodes[inode].data))
    }

    fn read_at(&self, file: &Self::File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap().min(file.len());
        let count = buffer.len().min(file.len() - from);
        buffer[..count].copy_from_slice(&file[from..from + count]);
        Ok(count)
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        let state = self.state();
        let inode = state.inode(path)?;
        Ok(state.inodes[inode].data.len() as u64)
    }

    fn entries(&self, path: &Path) -> io::Result<Vec<(PathBuf, u64, bool)>> {
        let state = self.state();
        if !state.directories.contains(path) {
            return Err(gone());
        }
        let inside = |name: &&PathBuf| name.parent() == Some(path);
        let size = |inode: usize| state.inodes[inode].data.len() as u64;
        let files = state.names.iter().filter(|(name, _)| inside(name));
        let directories = state.directories.iter().filter(inside);
        Ok(files
            .map(|(name, &inode)| (name.clone(), size(inode), false))
            .chain(directories.map(|name| (name.clone(), 0, true)))
            .collect())
    }
}
