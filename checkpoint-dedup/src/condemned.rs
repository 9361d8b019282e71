//! Lists of packs that garbage collection is about to delete.
//!
//! Between the publishing of such a list and the deletion, every live writer must have put its id
//! into its lease: from then on it refers to nothing in these packs any more.

use crate::backend::Backend;
use crate::envelope::{CONDEMNED, open, seal};
use crate::error::{Error, FormatError};
use crate::id::{PackId, parse_hex};
use crate::lock::unique;
use crate::wire::{Input, Output};

/// Key prefix of the lists.
pub(crate) const PREFIX: &str = "condemned/";

/// Identity of a list, never used twice.
pub(crate) type CondemnedId = [u8; 16];

/// One list: 16 id, v packs, 16 each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condemned {
    pub(crate) id: CondemnedId,
    pub(crate) packs: Vec<PackId>,
}

impl Condemned {
    pub(crate) fn new(packs: Vec<PackId>) -> Self {
        Self {
            id: unique(),
            packs,
        }
    }

    pub(crate) fn key(&self) -> String {
        format!("{PREFIX}{}", PackId::from_bytes(self.id))
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = self.id.to_vec();
        body.put_varint(self.packs.len() as u64);
        for pack in &self.packs {
            body.extend_from_slice(pack.as_bytes());
        }
        seal(&CONDEMNED, &body)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&CONDEMNED, bytes)?);
        let id = input.array()?;
        let packs = (0..input.count(16)?)
            .map(|_| input.array().map(PackId::from_bytes))
            .collect::<Result<_, _>>()?;
        input.finish()?;
        Ok(Self { id, packs })
    }

    pub(crate) fn publish(&self, backend: &dyn Backend) -> Result<(), Error> {
        backend.put_if_absent(&self.key(), &self.encode())?;
        Ok(())
    }
}

/// Lists there are, with the keys of those that cannot be read. A writer does not acknowledge an
/// unreadable list, so nothing that it names is deleted.
pub(crate) fn list(backend: &dyn Backend) -> Result<(Vec<Condemned>, Vec<String>), Error> {
    let (mut lists, mut unreadable) = (Vec::new(), Vec::new());
    for listed in backend.list(PREFIX)? {
        let name = listed.key.strip_prefix(PREFIX).and_then(parse_hex);
        let bytes = match backend.get_all(&listed.key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        match Condemned::decode(&bytes) {
            Ok(list) if Some(list.id) == name => lists.push(list),
            _ => unreadable.push(listed.key),
        }
    }
    Ok((lists, unreadable))
}
