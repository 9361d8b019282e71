//! Doors for fuzzers and benchmarks; nothing here is part of the interface.

use std::sync::Arc;

use crate::backend::{Backend, Local};
use crate::codec::edit::apply;
use crate::codec::group::{Group, GroupName};
use crate::codec::matcher::{Effort, Matcher};
use crate::condemned::Condemned;
use crate::envelope::{self, Kind};
use crate::error::FormatError;
use crate::id::{PAGE_BYTES, PackId, Page};
use crate::index::{Fingerprints, Index, PackMeta, segment};
use crate::lock::LockInfo;
use crate::pack::{Directory, TRAILER, Trailer};
use crate::recording::{End, LogManifest, Manifest, Start};

/// Most frames that a fuzzed manifest may claim; real ones may claim far more.
const FUZZ_FRAMES: u32 = 1 << 16;

/// A decoder that takes any bytes. Damage is an error, never a panic.
pub type Target = fn(&[u8]);

/// A decoder for every format, by name. Sealed objects come in a second form, where the bytes are
/// the body of an envelope that is right.
pub const TARGETS: &[(&str, Target)] = &[
    ("start", |bytes| drop(Start::decode(bytes))),
    ("start body", |bytes| {
        drop(Start::decode(&sealed(&envelope::START, bytes)))
    }),
    ("end", |bytes| drop(End::decode(bytes))),
    ("end body", |bytes| {
        drop(End::decode(&sealed(&envelope::END, bytes)))
    }),
    ("manifest", manifest),
    ("manifest body", |bytes| {
        manifest(&sealed(&envelope::CHECKPOINT, bytes))
    }),
    ("log", log),
    ("log body", |bytes| log(&sealed(&envelope::LOG, bytes))),
    ("index segment", |bytes| drop(segment::decode(bytes))),
    ("index segment body", |bytes| {
        drop(segment::decode(&sealed(&envelope::INDEX, bytes)));
    }),
    ("condemned", |bytes| drop(Condemned::decode(bytes))),
    ("condemned body", |bytes| {
        drop(Condemned::decode(&sealed(&envelope::CONDEMNED, bytes)));
    }),
    ("lock", |bytes| drop(LockInfo::decode("", bytes))),
    ("lock body", |bytes| {
        drop(LockInfo::decode("", &sealed(&envelope::LOCK, bytes)))
    }),
    ("pack trailer", |bytes| {
        let tail = &bytes[bytes.len().saturating_sub(TRAILER)..];
        drop(Trailer::read(
            tail,
            PackId::from_bytes([0; 16]),
            bytes.len() as u64,
        ));
    }),
    ("pack table", pack_table),
    ("group", group),
    ("edit", edit),
];

/// Puts a right envelope around bytes.
fn sealed(kind: &Kind, body: &[u8]) -> Vec<u8> {
    envelope::seal(kind, body)
}

/// The body of a sealed object, whatever it is.
pub fn body_of(object: &[u8]) -> &[u8] {
    object
        .get(20..object.len().saturating_sub(32))
        .unwrap_or_default()
}

fn index() -> Index {
    let backend: Arc<dyn Backend> = Arc::new(Local::new("/nonexistent"));
    Index::new(backend)
}

fn manifest(bytes: &[u8]) {
    drop(Manifest::decode_within(bytes, &index(), FUZZ_FRAMES));
}

fn log(bytes: &[u8]) {
    drop(LogManifest::decode(bytes, &index()));
}

/// The first byte is the number of items.
fn pack_table(bytes: &[u8]) {
    let Some((&items, raw)) = bytes.split_first() else {
        return;
    };
    let Ok(directory) = Directory::decode(raw, usize::from(items)) else {
        return;
    };
    let origins: Vec<u32> = (1..=directory.origins.len() as u32).collect();
    let meta = PackMeta::new(
        PackId::from_bytes([0; 16]),
        0,
        Vec::new(),
        &origins,
        &directory,
    );
    for index in 0..meta.items() {
        let place = meta.place_of(index);
        assert!(meta.cost(place) > 0 && index < meta.group_end(place.group));
        if let Some(item) = meta.held(index) {
            assert!(meta.place(item).is_some());
        }
    }
}

fn group(bytes: &[u8]) {
    let name = GroupName {
        pack: PackId::from_bytes([0; 16]),
        number: 0,
    };
    let checked = Group::decode(name, bytes);
    let Ok(group) = checked.or_else(|_| Group::decode_unchecked(bytes)) else {
        return;
    };
    let base = [7; PAGE_BYTES];
    let mut page = [0; PAGE_BYTES];
    for slot in 0..group.items() {
        if let Some((tokens, literals)) = group.edit(slot) {
            let _ = apply(tokens, literals, &[&base], &mut page);
        }
    }
}

/// The first byte says how many of the rest are tokens.
fn edit(bytes: &[u8]) {
    let Some((&tokens, rest)) = bytes.split_first() else {
        return;
    };
    let (tokens, literals) = rest.split_at(usize::from(tokens).min(rest.len()));
    let base = [7; PAGE_BYTES];
    let mut page = [0; PAGE_BYTES];
    let _ = apply(tokens, literals, &[&base, &base], &mut page);
}

/// Tokens and literals of an encoded page.
pub type Encoded = (Vec<u8>, Vec<u8>);

/// Encodes a page against bases, as the writer does.
pub fn encode(page: &Page, bases: &[&Page]) -> Encoded {
    thread_local! {
        static MATCHER: std::cell::RefCell<Matcher> = std::cell::RefCell::new(Matcher::new());
    }
    let effort = Effort {
        chain: 4,
        step: 4,
        patience: 6,
    };
    let edit = MATCHER.with_borrow_mut(|matcher| matcher.encode(page, bases, &[], effort));
    (edit.tokens, edit.literals)
}

/// Undoes [`encode`].
///
/// # Errors
/// [`FormatError`] for anything that [`encode`] does not give.
pub fn decode(encoded: &Encoded, bases: &[&Page], page: &mut Page) -> Result<(), FormatError> {
    apply(&encoded.0, &encoded.1, bases, page)
}

/// The table that finds duplicates.
pub struct Table(Fingerprints);

impl Table {
    /// A table of at most `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Fingerprints::new(bytes))
    }

    /// Adds the items of a pack.
    pub fn add(&mut self, pack: u32, fingerprints: &[u32]) {
        self.0.add_pack(pack, fingerprints);
    }

    /// Looks one up; how many may be it.
    pub fn candidates(&self, fingerprint: u32) -> usize {
        self.0.candidates(fingerprint).count()
    }
}
