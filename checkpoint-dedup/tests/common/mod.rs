//! Guests that exist in a test only, and what their recordings must read as.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;

use checkpoint_dedup::*;

/// A deterministic source of numbers.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }
}

pub(crate) type Memory = Vec<Page>;

/// Changes memory the way guests do: small edits, copies at odd offsets, fills, fresh noise.
pub(crate) fn mutate(memory: &mut Memory, dice: &mut Dice, changes: usize) -> Vec<Frame> {
    let mut changed = Vec::new();
    for _ in 0..changes {
        let frame = dice.roll(memory.len());
        changed.push(Frame(frame as u32));
        match dice.roll(6) {
            0 => memory[frame].fill(dice.roll(3) as u8),
            1 => {
                let from = memory[dice.roll(memory.len())];
                let (a, b, n) = (dice.roll(2000), dice.roll(2000), dice.roll(2000));
                memory[frame][a..a + n].copy_from_slice(&from[b..b + n]);
            }
            2 => memory[frame].fill_with(|| dice.roll(256) as u8),
            3 => memory[frame] = memory[dice.roll(memory.len())],
            _ => {
                for _ in 0..dice.roll(20) {
                    let at = dice.roll(4000);
                    memory[frame][at..at + 8].copy_from_slice(&(dice.0).to_le_bytes());
                }
            }
        }
    }
    changed
}

/// What one checkpoint holds.
#[derive(Clone, PartialEq)]
pub(crate) struct Moment {
    pub(crate) memory: Memory,
    pub(crate) cpu: Vec<u8>,
    pub(crate) disk: Vec<u8>,
}

/// What a recording holds: checkpoints and log segments that were published.
#[derive(Clone, Default)]
pub(crate) struct History {
    pub(crate) checkpoints: BTreeMap<u32, Moment>,
    pub(crate) logs: BTreeMap<u32, (Vec<u8>, Page)>,
}

/// A guest and the writer of its recording.
pub(crate) struct Guest {
    pub(crate) writer: Writer,
    pub(crate) memory: Memory,
    pub(crate) dice: Dice,
    pub(crate) history: History,
    pub(crate) changes: usize,
}

pub(crate) fn name(text: &str) -> RecordingName {
    RecordingName::new(text).unwrap()
}

pub(crate) fn options(frames: usize) -> WriterOptions {
    WriterOptions {
        spaces: vec![("ram".into(), frames as u32)],
        page_cache_bytes: 16 << 20,
        similarity_bytes: 1 << 20,
        ..WriterOptions::default()
    }
}

impl Guest {
    pub(crate) fn start(
        repository: &Repository,
        recording: &str,
        frames: usize,
        seed: u64,
    ) -> Result<Self, Error> {
        Ok(Self {
            writer: repository.write(&name(recording), options(frames))?,
            memory: vec![[0; PAGE_BYTES]; frames],
            dice: Dice::new(seed),
            history: History::default(),
            changes: frames / 4,
        })
    }

    /// Publishes the next checkpoint and the log segment before it, waiting for both.
    pub(crate) fn step(&mut self) -> Result<(), Error> {
        let number = self.writer.next_checkpoint().0;
        if number > 0 {
            let mut log = LogDraft::default();
            let page = self.memory[self.dice.roll(self.memory.len())];
            let id = log.put_page(&page);
            log.set_bytes(id.as_bytes().repeat(1 + number as usize % 3));
            let bytes = id.as_bytes().repeat(1 + number as usize % 3);
            self.writer
                .publish_log(CheckpointNo(number - 1), log)?
                .wait()?;
            self.history.logs.insert(number - 1, (bytes, page));
        }
        let changed = mutate(&mut self.memory, &mut self.dice, self.changes);
        let mut draft = self.writer.draft();
        for (at, frame) in changed.iter().enumerate() {
            draft.put_page(SpaceNo(0), *frame, &self.memory[frame.0 as usize])?;
            if at == changed.len() / 2 {
                self.writer.hand_over(&mut draft)?;
            }
        }
        let moment = Moment {
            memory: self.memory.clone(),
            cpu: vec![number as u8; 100],
            disk: (0..40_000u32)
                .map(|i| (u64::from(i + number / 4).pow(2) >> 7) as u8)
                .collect(),
        };
        draft.put_blob("cpu", moment.cpu.clone());
        draft.put_blob("disk", moment.disk.clone());
        self.writer.publish(draft)?.wait()?;
        self.history.checkpoints.insert(number, moment);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<History, Error> {
        self.writer.finish()?;
        Ok(self.history)
    }
}

/// Makes a finished recording.
pub(crate) fn record(
    repository: &Repository,
    recording: &str,
    frames: usize,
    checkpoints: u32,
    seed: u64,
) -> Result<History, Error> {
    let mut guest = Guest::start(repository, recording, frames, seed)?;
    for _ in 0..checkpoints {
        guest.step()?;
    }
    guest.finish()
}

/// Reads a checkpoint as a [`Moment`].
pub(crate) fn moment(recording: &Recording, number: u32) -> Result<Moment, Error> {
    let checkpoint = recording.checkpoint(CheckpointNo(number))?;
    let ram = checkpoint.space("ram")?;
    let mut memory = vec![[1; PAGE_BYTES]; ram.frames() as usize];
    for (frame, page) in (0..).map(Frame).zip(&mut memory) {
        ram.read(frame, page)?;
    }
    Ok(Moment {
        memory,
        cpu: checkpoint.blob("cpu")?,
        disk: checkpoint.blob("disk")?,
    })
}

/// A recording reads as its history, and has nothing else.
pub(crate) fn assert_reads(repository: &Repository, recording: &str, history: &History) {
    let recording = repository.recording(&name(recording)).unwrap();
    let numbers: Vec<u32> = recording
        .checkpoints()
        .unwrap()
        .iter()
        .map(|n| n.0)
        .collect();
    let expected: Vec<u32> = history.checkpoints.keys().copied().collect();
    assert_eq!(numbers, expected);
    for (&number, expected) in &history.checkpoints {
        let found = moment(&recording, number).unwrap();
        assert!(found == *expected, "checkpoint {number}");
    }
    let numbers: Vec<u32> = recording.logs().unwrap().iter().map(|n| n.0).collect();
    let expected: Vec<u32> = history.logs.keys().copied().collect();
    assert_eq!(numbers, expected);
    for (&number, (bytes, page)) in &history.logs {
        let log = recording.log(CheckpointNo(number)).unwrap();
        assert!(log.bytes() == bytes, "log {number}");
        assert!(
            *log.page(PageId::of(page)).unwrap() == *page,
            "log {number}"
        );
    }
}

/// Collects garbage and gives the report.
pub(crate) fn collect(repository: &Repository) -> Result<GcReport, Error> {
    repository.gc(GcOptions::default(), &Silent)?.run(&Silent)
}

/// Checks everything; no damage.
pub(crate) fn assert_clean(repository: &Repository) {
    let report = repository
        .check(CheckOptions { read_data: true }, &Silent)
        .unwrap();
    assert!(report.is_clean(), "{:#?}", report.damages);
}

/// All files below a directory, with their paths relative to it.
pub(crate) fn files(root: &std::path::Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let key = path.strip_prefix(root).unwrap();
                out.push(key.to_str().unwrap().to_owned());
            }
        }
    }
    out.sort();
    out
}
