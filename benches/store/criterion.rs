//! What the store does in its inner loops: hash, encode, decode, ingest, lookup.
//!
//! `cargo bench -p simuboost-benches --bench store`. Fixed seeds; pages as guests have them: half
//! structured, half noise, changed in a few places.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use checkpoint_dedup::internals::{Table, decode, encode};
use checkpoint_dedup::{
    CacheLimits, CheckpointNo, Frame, Haste, Local, OpenOptions, PAGE_BYTES, Page, PageId,
    RecordingName, Repository, SpaceNo, WriterOptions,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FRAMES: usize = 2048;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }
}

/// Records of 64 bytes: a pointer-like word, counters, text, some noise.
fn page(dice: &mut Dice) -> Page {
    let mut page = [0; PAGE_BYTES];
    for record in page.chunks_exact_mut(64) {
        let pointer = 0xffff_8880_0000_0000_u64 + dice.roll(1 << 28) as u64;
        record[..8].copy_from_slice(&pointer.to_le_bytes());
        record[8] = dice.roll(256) as u8;
        record[16..24].copy_from_slice(b"entry/%d");
        for byte in &mut record[40..52] {
            *byte = dice.roll(256) as u8;
        }
    }
    page
}

fn change(page: &mut Page, dice: &mut Dice) {
    for _ in 0..4 {
        let at = dice.roll(PAGE_BYTES - 16);
        for byte in &mut page[at..at + 16] {
            *byte = dice.roll(256) as u8;
        }
    }
}

fn pages(criterion: &mut Criterion) {
    let mut dice = Dice(1);
    let base = page(&mut dice);
    let other = page(&mut dice);
    let mut changed = base;
    change(&mut changed, &mut dice);
    let mut group = criterion.benchmark_group("page");
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    group.bench_function("hash", |b| b.iter(|| PageId::of(black_box(&changed))));
    group.bench_function("encode against its predecessor", |b| {
        b.iter(|| encode(black_box(&changed), &[&base]));
    });
    group.bench_function("encode against four pages", |b| {
        b.iter(|| encode(black_box(&changed), &[&other, &base, &other, &base]));
    });
    let encoded = encode(&changed, &[&base]);
    let mut out = [0; PAGE_BYTES];
    group.bench_function("decode", |b| {
        b.iter(|| decode(black_box(&encoded), &[&base], &mut out).expect("it was encoded"));
    });
    group.finish();
}

fn options() -> WriterOptions {
    WriterOptions {
        spaces: vec![("ram".into(), FRAMES as u32)],
        haste: Haste::Thorough,
        ..WriterOptions::default()
    }
}

/// A recording with one checkpoint, its memory, and the next changes.
fn recorded(root: &std::path::Path) -> (Repository, Vec<Page>) {
    let repository = Repository::create(root).expect("a new directory");
    let mut dice = Dice(7);
    let memory: Vec<Page> = (0..FRAMES).map(|_| page(&mut dice)).collect();
    (repository, memory)
}

fn ingest(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let (repository, memory) = recorded(&directory.path().join("r"));
    let mut next = 0;
    let mut dice = Dice(9);
    let mut group = criterion.benchmark_group("ingest");
    group.throughput(Throughput::Bytes((FRAMES * PAGE_BYTES) as u64));
    group.sample_size(10);
    for (name, fresh) in [("changed pages", true), ("duplicates", false)] {
        let recording = RecordingName::new(&format!("r{}", u8::from(fresh))).expect("a name");
        let mut writer = repository.write(&recording, options()).expect("one writer");
        let mut memory = memory.clone();
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    let mut draft = writer.draft();
                    next += 1;
                    for (frame, page) in (0..).map(Frame).zip(&mut memory) {
                        match fresh {
                            true => change(page, &mut dice),
                            // What another frame held: known, but not in this place.
                            false => *page = recall(frame, next),
                        }
                        draft.put_page(SpaceNo(0), frame, page).expect("in range");
                    }
                    let start = Instant::now();
                    let ticket = writer.publish(draft).expect("the writer works");
                    ticket.wait().expect("it is published");
                    took += start.elapsed();
                }
                took
            });
        });
    }
    group.finish();
}

/// One of as many pages as there are frames.
fn recall(frame: Frame, turn: usize) -> Page {
    let number = (frame.0 as usize + turn * 31) % FRAMES;
    page(&mut Dice(1 + number as u64 * 0x9e37_79b9))
}

fn lookup(criterion: &mut Criterion) {
    let mut table = Table::new(64 << 20);
    let mut dice = Dice(3);
    let prints: Vec<u32> = (0..1_000_000).map(|_| dice.roll(1 << 32) as u32).collect();
    for (pack, prints) in prints.chunks(20_000).enumerate() {
        table.add(pack as u32, prints);
    }
    let mut at = 0;
    criterion.bench_function("lookup/duplicate table of 1 M", |b| {
        b.iter(|| {
            at = (at + 7919) % prints.len();
            table.candidates(black_box(prints[at]))
        });
    });
}

fn read(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("r");
    let (repository, mut memory) = recorded(&root);
    let name = RecordingName::new("a").expect("a name");
    let mut writer = repository.write(&name, options()).expect("one writer");
    let mut dice = Dice(5);
    for _ in 0..8 {
        let mut draft = writer.draft();
        for (frame, page) in (0..).map(Frame).zip(&mut memory) {
            change(page, &mut dice);
            draft.put_page(SpaceNo(0), frame, page).expect("in range");
        }
        writer.publish(draft).expect("the writer works");
    }
    writer.finish().expect("it is published");
    // No caches: each read goes to the file cache.
    let caches = CacheLimits {
        group_bytes: 0,
        page_bytes: 0,
    };
    let fresh = Repository::open_on(Arc::new(Local::new(&root)), OpenOptions { caches });
    let recording = fresh.and_then(|r| r.recording(&name)).expect("it is there");
    let checkpoint = recording.checkpoint(CheckpointNo(7)).expect("it is there");
    let space = checkpoint.space("ram").expect("it is there");
    let mut page = [0; PAGE_BYTES];
    let mut at = 0;
    criterion.bench_function("read/random page, no caches", |b| {
        b.iter(|| {
            at = (at + 797) % FRAMES as u32;
            space.read(Frame(at), &mut page).expect("it is readable");
        });
    });
    let mut group = criterion.benchmark_group("restore");
    group.throughput(Throughput::Bytes((FRAMES * PAGE_BYTES) as u64));
    group.sample_size(10);
    let mut whole = vec![0; FRAMES * PAGE_BYTES];
    let warm = Repository::open(&root)
        .and_then(|r| r.recording(&name))
        .expect("it is there");
    let checkpoint = warm.checkpoint(CheckpointNo(7)).expect("it is there");
    group.bench_function("whole checkpoint", |b| {
        b.iter(|| {
            checkpoint
                .space("ram")
                .and_then(|s| s.restore(&mut whole))
                .expect("readable")
        });
    });
    group.finish();
}

criterion_group!(benches, pages, ingest, lookup, read);
criterion_main!(benches);
