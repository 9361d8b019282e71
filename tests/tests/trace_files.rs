//! Memory traces in files: what was written is read back, joined traces read in order, and damage is
//! found where it is.

use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::units::Position;
use machine::vcpu::{Exit, Vcpu};
use simuboost_tests::guest::layout;
use simuboost_tests::recording::programs::Program;
use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::sync::{Arc, Mutex};
use tcg_sim::instrument::Instruments;
use tcg_sim::trace::{Chunk, MemorySink, TraceError, TraceReader, TraceWriter};
use tcg_sim::{Engine, EngineOptions};

/// Sends chunks to two sinks.
struct Both<A, B>(A, B);

impl<A: MemorySink, B: MemorySink> MemorySink for Both<A, B> {
    fn chunk(&mut self, chunk: &Chunk) -> std::io::Result<()> {
        self.0.chunk(chunk)?;
        self.1.chunk(chunk)
    }

    fn keep(&mut self, chunks: u64) -> std::io::Result<()> {
        self.0.keep(chunks)?;
        self.1.keep(chunks)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.0.finish()?;
        self.1.finish()
    }
}

/// The trace of `steps` steps in memory, and the bytes of its file.
fn traced(interval: u64, steps: u64) -> (Vec<Chunk>, Vec<u8>) {
    let ram = Arc::new(Ram::new(layout::RAM_BYTES).expect("RAM is small"));
    let start = Program::quiet(interval).load(&ram);
    let cpuid = CpuidTable::x86_64_v2();
    let mut engine = Engine::new(ram, cpuid, EngineOptions::default()).expect("BMI2");
    engine.load(&start, Position::default()).expect("valid");
    let chunks = Arc::new(Mutex::new(Vec::new()));
    let mut file = tempfile::tempfile().expect("a temporary file");
    let handle = file.try_clone().expect("another handle");
    let writer = TraceWriter::new(handle, interval).expect("room for a header");
    let both = Both(chunks.clone(), writer);
    engine.set_instruments(Instruments::none().with_memory_trace(Box::new(both)));
    let until = Some(Position::at(steps));
    while engine.run(until).expect("no limits") != Exit::Reached {}
    engine.finish_trace().expect("room for the trace");
    let chunks = std::mem::take(&mut *chunks.lock().expect("no panic under the lock"));
    (chunks, content(&mut file))
}

fn content(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("a file can be rewound");
    file.read_to_end(&mut bytes).expect("a file can be read");
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<(u64, Chunk)>, (usize, TraceError)> {
    let mut reader = TraceReader::new(Cursor::new(bytes)).map_err(|error| (0, error))?;
    let mut all = Vec::new();
    loop {
        match reader.chunk() {
            Ok(Some((info, chunk))) => all.push((info.interval, chunk)),
            Ok(None) => return Ok(all),
            Err(error) => return Err((all.len(), error)),
        }
    }
}

#[test]
fn what_was_written_is_read_back_and_traces_can_be_joined() {
    let (first, mut file) = traced(4, 600_000);
    let (second, bytes) = traced(5, 50_000);
    assert!(first.len() > 2, "{} chunks", first.len());
    file.extend(bytes);
    let expected: Vec<_> = (first.into_iter().map(|chunk| (4, chunk)))
        .chain(second.into_iter().map(|chunk| (5, chunk)))
        .collect();
    assert_eq!(read(&file).expect("a good file"), expected);
    let mut reader = TraceReader::new(Cursor::new(&file)).expect("a good file");
    let mut infos = Vec::new();
    while let Some(info) = reader.skip().expect("a good file") {
        infos.push(info);
    }
    assert_eq!(infos.len(), expected.len());
    for (info, (interval, chunk)) in infos.iter().zip(&expected) {
        let told = (info.interval, info.start, info.end, info.accesses);
        assert_eq!(
            told,
            (*interval, chunk.start(), chunk.end(), chunk.accesses())
        );
    }
}

#[test]
fn going_back_leaves_nothing_in_the_file() {
    let (chunks, expected) = traced(4, 600_000);
    let mut file = tempfile::tempfile().expect("a temporary file");
    let handle = file.try_clone().expect("another handle");
    let mut writer = TraceWriter::new(handle, 4).expect("room for a header");
    for chunk in chunks.iter().chain(&chunks) {
        writer.chunk(chunk).expect("room");
    }
    writer.keep(1).expect("files can be cut");
    for chunk in &chunks[1..] {
        writer.chunk(chunk).expect("room");
    }
    writer.finish().expect("room");
    assert_eq!(content(&mut file), expected);
}

#[test]
fn damage_is_found_in_its_chunk_and_a_cut_trace_is_told_from_a_damaged_one() {
    let (chunks, file) = traced(4, 600_000);
    let mut reader = TraceReader::new(Cursor::new(&file)).expect("a good file");
    let mut ends = vec![32];
    while let Some(info) = reader.skip().expect("a good file") {
        ends.push((info.offset + info.stored_bytes) as usize);
    }
    let good = |at: usize| ends.iter().filter(|end| **end <= at).count() - 1;
    for at in (32..file.len()).step_by(file.len() / 100) {
        let (before, error) = read(&file[..at]).expect_err("a cut trace");
        assert_eq!(before, good(at), "cut at {at}");
        assert!(matches!(error, TraceError::Torn { chunks } if chunks == before as u64));
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        let (before, error) = read(&damaged).expect_err("a damaged trace");
        assert_eq!(before, good(at), "damaged at {at}: {error}");
        let told = matches!(error, TraceError::Damaged { .. } | TraceError::Torn { .. });
        assert!(told, "{error}");
    }
    assert_eq!(ends.len(), chunks.len() + 1);
}

#[test]
fn other_files_and_other_versions_are_refused() {
    let (_, mut file) = traced(1, 1_000);
    assert!(matches!(
        read(b"").expect_err("nothing").1,
        TraceError::Magic
    ));
    assert!(matches!(
        read(&file[1..]).expect_err("shifted").1,
        TraceError::Magic
    ));
    file[8] = 2;
    assert!(matches!(
        read(&file).expect_err("newer").1,
        TraceError::Version(2)
    ));
}
