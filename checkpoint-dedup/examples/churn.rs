//! Works on a repository without end, as a process that a test can kill: `churn DIR SEED MODE`.
//!
//! Modes: `write` records, `collect` removes, trims and collects garbage, `read` reads everything,
//! `all` does all of it in turn. What was acknowledged is printed, one line each:
//! `published NAME N`, `removing NAME`. Every checkpoint holds the hash of its own memory, so
//! whoever reads one can tell whether it is right.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use checkpoint_dedup::*;

const FRAMES: u32 = 60;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }
}

fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    // Whoever reads this has gone: so may we.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, seed, mode] = &arguments[..] else {
        eprintln!("usage: churn DIR SEED write|collect|read|all");
        std::process::exit(2);
    };
    let seed: u64 = seed.parse().expect("SEED is a number");
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let repository = open(Path::new(directory))?;
    for turn in 0u64.. {
        let name = format!("w{seed}-{turn}");
        let done = match mode.as_str() {
            "write" => write(&repository, &mut dice, &name),
            "collect" => collect(&repository, &mut dice),
            "read" => read(&repository),
            _ => {
                write(&repository, &mut dice, &name).and_then(|()| collect(&repository, &mut dice))
            }
        };
        if let Err(error) = done {
            eprintln!("churn {mode} {seed}: {error}");
            return Err(error);
        }
    }
    Ok(())
}

fn open(directory: &Path) -> Result<Repository, Error> {
    match Repository::create(directory) {
        Err(Error::RepositoryExists { .. }) => Repository::open(directory),
        done => done,
    }
}

/// Makes one recording. A few recurring seeds, so that recordings share pages.
fn write(repository: &Repository, dice: &mut Dice, name: &str) -> Result<(), Error> {
    let name = RecordingName::new(name)?;
    let options = WriterOptions {
        spaces: vec![("ram".into(), FRAMES)],
        patience: Patience(Duration::from_secs(60)),
        page_cache_bytes: 8 << 20,
        similarity_bytes: 1 << 20,
        ..WriterOptions::default()
    };
    let mut writer = repository.write(&name, options)?;
    let mut guest = Dice(1 + dice.roll(3) as u64);
    let mut memory = vec![[0; PAGE_BYTES]; FRAMES as usize];
    for number in 0..3 + dice.roll(6) {
        let mut draft = writer.draft();
        for _ in 0..15 {
            let frame = guest.roll(memory.len());
            if guest.roll(3) == 0 {
                memory[frame].fill_with(|| guest.roll(256) as u8);
            } else {
                memory[frame][guest.roll(4000)] = guest.roll(256) as u8;
            }
            draft.put_page(SpaceNo(0), Frame(frame as u32), &memory[frame])?;
        }
        draft.put_blob("hash", hash(&memory));
        writer.publish(draft)?.wait()?;
        say(format_args!("published {name} {number}"));
        let mut log = LogDraft::default();
        let id = log.put_page(&memory[guest.roll(memory.len())]);
        log.set_bytes(id.as_bytes().to_vec());
        writer
            .publish_log(CheckpointNo(number as u32), log)?
            .wait()?;
    }
    writer.finish()
}

fn hash(memory: &[Page]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for page in memory {
        hasher.update(page);
    }
    hasher.finalize().as_bytes().to_vec()
}

/// Keeps about eight recordings.
fn collect(repository: &Repository, dice: &mut Dice) -> Result<(), Error> {
    for name in repository.prunable(8)? {
        say(format_args!("removing {name}"));
        match repository.remove(&name) {
            Err(Error::NoRecording { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    let all = repository.recordings()?;
    if let Some(info) = all.get(dice.roll(all.len().max(1))) {
        let range = TrimRange {
            from: info.first.map(CheckpointNo::next),
            to: None,
        };
        if info.state == RecordingState::Finished && info.first < info.last {
            say(format_args!("removing {}", info.name));
            match repository.trim(&info.name, range) {
                Err(Error::NoRecording { .. } | Error::NoCheckpoint { .. }) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let options = GcOptions {
        writers: Duration::from_secs(2),
        recompress: dice.roll(3) == 0,
        ..GcOptions::default()
    };
    repository.gc(options, &Silent)?.run(&Silent)?;
    Ok(())
}

/// Reads everything; what is gone meanwhile is gone, what is there is right.
fn read(repository: &Repository) -> Result<(), Error> {
    let mut count = 0;
    for info in repository.recordings()? {
        let recording = match repository.recording(&info.name) {
            Err(Error::NoRecording { .. }) => continue,
            opened => opened?,
        };
        for number in recording.checkpoints()? {
            match read_checkpoint(&recording, number) {
                // Trimmed away, or what a trim cut off was collected.
                Err(Error::NoCheckpoint { .. } | Error::NoRecording { .. }) => {}
                Err(Error::Missing { .. }) if is_trimmed(&recording, number) => {}
                done => done?,
            }
            count += 1;
        }
    }
    say(format_args!("read {count}"));
    Ok(())
}

fn is_trimmed(recording: &Recording, number: CheckpointNo) -> bool {
    recording
        .checkpoints()
        .is_ok_and(|now| now.first().is_none_or(|first| *first > number))
}

fn read_checkpoint(recording: &Recording, number: CheckpointNo) -> Result<(), Error> {
    let checkpoint = recording.checkpoint(number)?;
    let space = checkpoint.space("ram")?;
    let mut memory = vec![[0; PAGE_BYTES]; FRAMES as usize];
    for (frame, page) in (0..).map(Frame).zip(&mut memory) {
        space.read(frame, page)?;
    }
    let expected = checkpoint.blob("hash")?;
    assert!(hash(&memory) == expected, "{number} reads wrong");
    Ok(())
}
