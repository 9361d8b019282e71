//! What maps, index and memory of a large guest cost: `synthetic DIR GIB CHECKPOINTS`.
//!
//! Every page of the first checkpoint is different and nearly empty, so that pages cost little and
//! the rest shows; every later checkpoint changes one frame in a hundred, at random.

use std::path::Path;
use std::time::Instant;

use checkpoint_dedup::*;

const PART: usize = 16 << 10;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, gib, checkpoints] = &arguments[..] else {
        eprintln!("usage: synthetic DIR GIB CHECKPOINTS");
        std::process::exit(2);
    };
    let gib: u32 = gib.parse().expect("GIB is a number");
    let checkpoints: u32 = checkpoints.parse().expect("CHECKPOINTS is a number");
    let frames = gib << 18;
    let root = Path::new(directory);
    let repository = Repository::create(root)?;
    let name = RecordingName::new("synthetic")?;
    let options = WriterOptions {
        spaces: vec![("ram".into(), frames)],
        page_cache_bytes: 64 << 20,
        similarity_bytes: 8 << 20,
        ..WriterOptions::default()
    };
    let mut writer = repository.write(&name, options)?;
    let mut state = 1u64;
    let mut roll = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 16) % u64::from(below)) as u32
    };
    for number in 0..checkpoints {
        let start = Instant::now();
        let mut draft = writer.draft();
        let changed: Box<dyn Iterator<Item = u32>> = match number {
            0 => Box::new(0..frames),
            _ => Box::new((0..frames / 100).map(|_| roll(frames))),
        };
        for frame in changed {
            draft.put_page(SpaceNo(0), Frame(frame), &page(frame, number))?;
            if draft.pages() >= PART {
                writer.hand_over(&mut draft)?;
            }
        }
        let done = writer.publish(draft)?.wait()?;
        if number < 2 || number % 8 == 0 {
            println!(
                "checkpoint {number}: {} pages in {:.1} s, manifest {} bytes, peak {}",
                done.pages,
                start.elapsed().as_secs_f64(),
                done.manifest_bytes,
                peak()
            );
        }
    }
    writer.finish()?;
    drop(repository);
    let start = Instant::now();
    let recording = Repository::open(root)?.recording(&name)?;
    let checkpoint = recording.checkpoint(CheckpointNo(checkpoints - 1))?;
    let space = checkpoint.space("ram")?;
    let mut out = [0; PAGE_BYTES];
    space.read(Frame(frames / 2), &mut out)?;
    println!(
        "opened, one page read: {:.0} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    let start = Instant::now();
    let stats = Repository::open(root)?.stats(None, &Silent)?;
    println!(
        "{stats:#?} in {:.1} s, peak {}",
        start.elapsed().as_secs_f64(),
        peak()
    );
    Ok(())
}

fn page(frame: u32, number: u32) -> Page {
    let mut page = [0; PAGE_BYTES];
    page[64..68].copy_from_slice(&frame.to_le_bytes());
    page[128..132].copy_from_slice(&number.to_le_bytes());
    page
}

/// Peak memory of this process.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_owned()
}
