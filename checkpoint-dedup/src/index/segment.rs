//! Index segments: the directories and fingerprints of many packs in one checksummed object, so
//! that opening a repository does not read the end of every pack. Only ever added, and replaced by
//! a merged one; a pack that no segment covers is read itself.

use crate::backend::Backend;
use crate::codec::squeeze::{squeeze, unsqueeze};
use crate::envelope::{INDEX, open, seal};
use crate::error::{BackendError, Error, FormatError};
use crate::id::{PackId, prefix};
use crate::pack::Directory;
use crate::wire::{Input, Output};

/// Most raw bytes of the tables of one segment.
const MAX_TABLES: usize = 1 << 30;

/// What a segment knows of one pack.
pub(crate) struct Covered {
    pub(crate) pack: PackId,
    pub(crate) directory: Directory,
    pub(crate) fingerprints: Vec<u32>,
}

/// Key of a segment with this content: the first half of its BLAKE3.
fn key(sealed: &[u8]) -> String {
    let name = prefix(blake3::hash(sealed).as_bytes());
    format!("index/{}", PackId::from_bytes(name))
}

/// Publishes a segment. Returns its key.
///
/// The key is a hash of what is published, so a different file under it is a damaged one: making the
/// index anew from the same packs arrives at the same key, and the damage must not survive that.
pub(crate) fn publish(backend: &dyn Backend, packs: &[Covered]) -> Result<String, Error> {
    let mut tables = Vec::new();
    let mut fingerprints = Vec::new();
    for covered in packs {
        tables.extend_from_slice(covered.pack.as_bytes());
        tables.put_varint(covered.fingerprints.len() as u64);
        tables.put_block(&covered.directory.encode());
        covered
            .fingerprints
            .iter()
            .for_each(|&f| fingerprints.put_u32(f));
    }
    let stored = squeeze(&tables, 3);
    let mut body = Vec::new();
    body.put_varint(packs.len() as u64);
    body.put_varint(tables.len() as u64);
    body.put_block(&stored);
    body.extend_from_slice(&fingerprints);
    let sealed = seal(&INDEX, &body);
    let key = key(&sealed);
    if !backend.put_if_absent(&key, &sealed)? && !holds(backend, &key, &sealed)? {
        backend.delete(&key)?;
        backend.put_if_absent(&key, &sealed)?;
    }
    Ok(key)
}

fn holds(backend: &dyn Backend, key: &str, bytes: &[u8]) -> Result<bool, BackendError> {
    match backend.get_all(key) {
        Ok(found) => Ok(found == bytes),
        // Collected by somebody else since.
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Decodes a segment.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Covered>, FormatError> {
    let mut input = Input::new(open(&INDEX, bytes)?);
    let packs = input.varint()?;
    let raw = input.varint32()? as usize;
    if raw > MAX_TABLES {
        return Err(input.malformed("table size"));
    }
    let tables = unsqueeze(input.block()?, raw)?;
    let mut tables = Input::new(&tables);
    let mut out = Vec::new();
    for _ in 0..packs {
        let pack = PackId::from_bytes(tables.array()?);
        let items = tables.varint32()? as usize;
        let directory = Directory::decode(tables.block()?, items)?;
        let mut prints = Input::new(input.take(4 * items)?);
        let fingerprints = (0..items).map(|_| prints.u32()).collect::<Result<_, _>>()?;
        out.push(Covered {
            pack,
            directory,
            fingerprints,
        });
    }
    tables.finish()?;
    input.finish()?;
    Ok(out)
}

/// All packs that segments cover. A damaged segment is passed over (the packs are the truth, and
/// `check` reports it); one of a newer version is an error.
pub(crate) fn read_all(backend: &dyn Backend) -> Result<Vec<Covered>, Error> {
    let mut out = Vec::new();
    for listed in backend.list("index/")? {
        let bytes = match backend.get_all(&listed.key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        match decode(&bytes) {
            Ok(covered) => out.extend(covered),
            Err(source @ FormatError::Version { .. }) => {
                return Err(Error::Damaged {
                    path: backend.describe(&listed.key),
                    source,
                });
            }
            Err(_) => {}
        }
    }
    Ok(out)
}
