//! What the store makes of a series of memory images: sizes, speeds, latencies; and what cutting by
//! content makes of it. One line of JSON; `compare.py` runs it beside other programs.
//!
//! `cargo bench -p simuboost-benches --bench series -- SERIES_DIR WORK_DIR [--no-recompress] [--no-fastcdc]`
//!
//! Everything runs on one thread, so that speeds are those of one core. Ingest is timed by the CPU
//! time of the process, which other load on the machine does not count in, and by the clock.

use checkpoint_dedup::{
    CacheLimits, Checkpoint, CheckpointNo, Frame, GcOptions, Haste, Local, OpenOptions, PAGE_BYTES,
    Page, Published, RecordingName, Repository, Silent, SpaceNo, WriterOptions,
};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    rayon_of_one()?;
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let asked = |flag: &str| arguments.iter().any(|a| a == flag);
    let mut places = arguments.iter().filter(|a| !a.starts_with("--"));
    let (Some(series), Some(work)) = (places.next(), places.next()) else {
        return Err("usage: series SERIES_DIR WORK_DIR [--no-recompress] [--no-fastcdc]".into());
    };
    let images = images(Path::new(series))?;
    let root = Path::new(work).join("store");
    let stored = store(&images, &root)?;
    let read = read(&images, &root)?;
    let recompressed = match asked("--no-recompress") {
        true => None,
        false => Some(recompress(&images, &root, &Path::new(work).join("first"))?),
    };
    let fastcdc = match asked("--no-fastcdc") {
        true => None,
        false => Some(fastcdc(&images)?),
    };
    println!(
        "{{\"images\":{},{stored},{read}{}{}}}",
        images.len(),
        text(recompressed),
        text(fastcdc)
    );
    Ok(())
}

fn text(part: Option<String>) -> String {
    part.map_or_else(String::new, |part| format!(",{part}"))
}

/// All of the store's work on one thread.
fn rayon_of_one() -> Result<(), Failure> {
    Ok(rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()?)
}

fn images(series: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(series)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "ram") {
            out.push(path);
        }
    }
    out.sort();
    match out.len() {
        0 | 1 => Err("a series is at least two .ram files".into()),
        _ => Ok(out),
    }
}

fn load(path: &Path, into: &mut Vec<u8>) -> Result<(), Failure> {
    let file = File::open(path)?;
    into.resize(file.metadata()?.len() as usize, 0);
    Ok(file.read_exact_at(into, 0)?)
}

fn pages(image: &[u8]) -> &[Page] {
    image.as_chunks::<PAGE_BYTES>().0
}

/// CPU time of this process.
fn cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    #[expect(unsafe_code, reason = "std has no clock of CPU time")]
    // SAFETY: `time` is a timespec that outlives the call, which writes to it and nothing else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn name() -> RecordingName {
    RecordingName::new("series").expect("a valid name")
}

/// Publishes images as checkpoints; per checkpoint what was done, and its CPU time.
fn publish(images: &[PathBuf], root: &Path) -> Result<Vec<(Published, Duration)>, Failure> {
    let repository = Repository::create(root)?;
    let frames = std::fs::metadata(&images[0])?.len() / PAGE_BYTES as u64;
    let options = WriterOptions {
        spaces: vec![("ram".into(), frames as u32)],
        haste: Haste::Thorough,
        ..WriterOptions::default()
    };
    let mut writer = repository.write(&name(), options)?;
    let (mut before, mut now) = (vec![0; frames as usize * PAGE_BYTES], Vec::new());
    let mut out = Vec::new();
    for path in images {
        load(path, &mut now)?;
        let mut draft = writer.draft();
        for (frame, (new, old)) in (0..).zip(pages(&now).iter().zip(pages(&before))) {
            if new != old {
                draft.put_page(SpaceNo(0), Frame(frame), new)?;
            }
        }
        let start = cpu();
        let published = writer.publish(draft)?.wait()?;
        out.push((published, cpu() - start));
        std::mem::swap(&mut before, &mut now);
    }
    writer.finish()?;
    Ok(out)
}

fn store(images: &[PathBuf], root: &Path) -> Result<String, Failure> {
    let done = publish(images, root)?;
    let bytes = |p: &Published| p.pack_bytes + p.manifest_bytes;
    let increments: u64 = done[1..].iter().map(|(p, _)| bytes(p)).sum();
    let changed: u64 = done[1..].iter().map(|(p, _)| p.pages).sum();
    let seconds: f64 = done[1..].iter().map(|(_, cpu)| cpu.as_secs_f64()).sum();
    let busy: f64 = done[1..].iter().map(|(p, _)| p.busy.as_secs_f64()).sum();
    let manifests: u64 = done[1..].iter().map(|(p, _)| p.manifest_bytes).sum();
    let whole: u64 = done[1..].iter().map(|(p, _)| p.whole).sum();
    let deltas: u64 = done[1..].iter().map(|(p, _)| p.deltas).sum();
    let same: u64 = done[1..].iter().map(|(p, _)| p.filled + p.duplicates).sum();
    let megabytes = changed as f64 * PAGE_BYTES as f64 / 1e6;
    Ok(format!(
        "\"first_bytes\":{},\"increment_bytes\":{increments},\"manifest_bytes\":{manifests},\
         \"changed_pages\":{changed},\"whole\":{whole},\"deltas\":{deltas},\"known\":{same},\
         \"ingest_cpu_mb_per_s\":{:.1},\"ingest_clock_mb_per_s\":{:.1},\
         \"ingest_ms_per_checkpoint\":{:.1}",
        bytes(&done[0].0),
        megabytes / seconds,
        megabytes / busy,
        busy * 1e3 / (done.len() - 1) as f64,
    ))
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }
}

fn open(root: &Path, caches: CacheLimits, number: u32) -> Result<Checkpoint, Failure> {
    let repository = Repository::open_on(Arc::new(Local::new(root)), OpenOptions { caches })?;
    Ok(repository
        .recording(&name())?
        .checkpoint(CheckpointNo(number))?)
}

/// Latency of single pages without caches of ours, a whole restore, a part of it.
fn read(images: &[PathBuf], root: &Path) -> Result<String, Failure> {
    let none = CacheLimits {
        group_bytes: 0,
        page_bytes: 0,
    };
    let repository = Repository::open_on(Arc::new(Local::new(root)), OpenOptions { caches: none })?;
    let recording = repository.recording(&name())?;
    let mut dice = Dice(11);
    let mut latencies = Vec::new();
    let (mut page, mut expected) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    for (number, path) in (0..).zip(images) {
        let checkpoint = recording.checkpoint(CheckpointNo(number))?;
        let space = checkpoint.space("ram")?;
        let frames = space.nonzero_frames();
        let file = File::open(path)?;
        for round in 0..600 {
            let frame = frames[dice.roll(frames.len())];
            let start = Instant::now();
            space.read(frame, &mut page)?;
            let took = start.elapsed();
            // The first reads open the packs.
            if round >= 100 {
                latencies.push(took);
            }
            file.read_exact_at(&mut expected, u64::from(frame.0) * PAGE_BYTES as u64)?;
            if page != expected {
                return Err(
                    format!("frame {frame} of checkpoint {number} reads back wrong").into(),
                );
            }
        }
    }
    latencies.sort_unstable();
    let micros = |share: usize| latencies[latencies.len() * share / 1000].as_secs_f64() * 1e6;
    let (restore, part) = restore(images, root)?;
    Ok(format!(
        "\"read_median_us\":{:.1},\"read_p99_us\":{:.1},\"restore_gb_per_s\":{:.2},\"part_share\":{:.3}",
        micros(500),
        micros(990),
        restore,
        part
    ))
}

/// GB/s of a restore of the last checkpoint, and the time of 8 % of its pages as a share of that.
fn restore(images: &[PathBuf], root: &Path) -> Result<(f64, f64), Failure> {
    let last = images.len() - 1;
    let mut expected = Vec::new();
    load(&images[last], &mut expected)?;
    // Zero pages of a fresh mapping that the guest will not touch are not touched either.
    let mut memory = vec![0; expected.len()];
    let (mut whole, mut part) = (f64::MAX, f64::MAX);
    for _ in 0..3 {
        memory = vec![0; memory.len()];
        let checkpoint = open(root, CacheLimits::default(), last as u32)?;
        let start = Instant::now();
        checkpoint.space("ram")?.restore(&mut memory)?;
        whole = whole.min(start.elapsed().as_secs_f64());
        if memory != expected {
            return Err("a restored checkpoint is not the image".into());
        }
        let checkpoint = open(root, CacheLimits::default(), last as u32)?;
        let space = checkpoint.space("ram")?;
        let mut dice = Dice(5);
        let frames = expected.len() / PAGE_BYTES;
        let wanted: HashSet<usize> = (0..frames * 8 / 100).map(|_| dice.roll(frames)).collect();
        let mut page = [0; PAGE_BYTES];
        let start = Instant::now();
        for frame in wanted {
            space.read(Frame(frame as u32), &mut page)?;
        }
        part = part.min(start.elapsed().as_secs_f64());
    }
    Ok((expected.len() as f64 / 1e9 / whole, part / whole))
}

fn held_bytes(root: &Path) -> Result<u64, Failure> {
    let mut sum = 0;
    for part in ["packs", "series"] {
        for entry in std::fs::read_dir(root.join(part))? {
            for file in std::fs::read_dir(entry?.path())? {
                sum += file?.metadata()?.len();
            }
        }
    }
    Ok(sum)
}

fn collect(root: &Path) -> Result<Duration, Failure> {
    let options = GcOptions {
        recompress: true,
        ..GcOptions::default()
    };
    let start = cpu();
    Repository::open(root)?.gc(options, &Silent)?.run(&Silent)?;
    Ok(cpu() - start)
}

/// Recompresses all; the increments are what is more than the first checkpoint alone takes.
fn recompress(images: &[PathBuf], root: &Path, first: &Path) -> Result<String, Failure> {
    let took = collect(root)?;
    let all = held_bytes(root)?;
    publish(&images[..1], first)?;
    collect(first)?;
    let alone = held_bytes(first)?;
    let read = read(images, root)?
        .replace("\"r", "\"recompressed_r")
        .replace("\"p", "\"recompressed_p");
    Ok(format!(
        "\"recompressed_first_bytes\":{alone},\"recompressed_increment_bytes\":{},\
         \"recompress_cpu_s\":{:.1},{read}",
        all - alone,
        took.as_secs_f64()
    ))
}

/// Cutting by content at 64 KiB, each new chunk through zstd: bytes of the increments, MB/s of RAM.
fn fastcdc(images: &[PathBuf]) -> Result<String, Failure> {
    let (mut known, mut bytes, mut image) = (HashSet::new(), 0, Vec::new());
    let mut took = Duration::ZERO;
    for (number, path) in images.iter().enumerate() {
        load(path, &mut image)?;
        let start = cpu();
        for chunk in fastcdc::v2020::FastCDC::new(&image, 16 << 10, 64 << 10, 256 << 10) {
            let chunk = &image[chunk.offset..chunk.offset + chunk.length];
            if known.insert(*blake3::hash(chunk).as_bytes()) {
                let stored = zstd::bulk::compress(chunk, 3)?;
                bytes += if number > 0 { stored.len() as u64 } else { 0 };
            }
        }
        if number > 0 {
            took += cpu() - start;
        }
    }
    let per_image = took.as_secs_f64() / (images.len() - 1) as f64;
    Ok(format!(
        "\"fastcdc_increment_bytes\":{bytes},\"fastcdc_ms_per_checkpoint\":{:.1}",
        per_image * 1e3
    ))
}
