//! Long runs of the differential fuzzer, and single cases.
//!
//! `differential [--pair P] [--seeds A..B] [--out DIR] [--jobs N] [--resume]`
//! `differential [--pair P] --case FILE`
//!
//! Pairs: `native-engine`, `engine-single` (normal against one-instruction blocks), `native-single`,
//! `native-native` (is the host deterministic?). Findings are made small and written to DIR as cases;
//! DIR also holds `progress`, from which `--resume` goes on. `--jobs` starts that many processes, each
//! with a part of the seeds and a directory of its own, and adds up what they saw. `--case` shows how
//! the cases of a file, divided by lines `---`, end on both sides. The exit code is 1 if anything
//! differs.

mod progress;

use anyhow::{Context, bail};
use progress::{Progress, host};
use simuboost_tests::differential::compare::Finding;
use simuboost_tests::differential::engine;
use simuboost_tests::differential::fuzzer::{BATCH, Fuzzer};
use simuboost_tests::differential::image::Images;
use simuboost_tests::differential::native::NativeCpu;
use simuboost_tests::differential::side::Side;
use simuboost_tests::differential::text::parse_all;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Seeds between two looks at the clock.
const CHUNK: u64 = 2_000;
/// Time between two lines of progress.
const REPORT: Duration = Duration::from_secs(30);
/// Findings that are made small; a run with more has one cause worth repairing first.
const MOST_FINDINGS: u64 = 400;

struct Options {
    pair: String,
    seeds: Range<u64>,
    out: PathBuf,
    jobs: u64,
    resume: bool,
    /// The CPU that sequences run on, if it matters which.
    cpu: Option<u32>,
    case: Option<PathBuf>,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        pair: "native-engine".to_owned(),
        seeds: 0..100_000,
        out: PathBuf::from("target/differential"),
        jobs: 1,
        resume: false,
        cpu: None,
        case: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--resume" {
            options.resume = true;
            continue;
        }
        let value = arguments
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--pair" => options.pair = value,
            "--out" => options.out = value.into(),
            "--case" => options.case = Some(value.into()),
            "--cpu" => options.cpu = Some(value.parse()?),
            "--jobs" => options.jobs = value.parse()?,
            "--seeds" => {
                let (from, to) = value.split_once("..").context("--seeds A..B")?;
                options.seeds = from.parse()?..to.parse()?;
            }
            _ => bail!("unknown option {name}"),
        }
    }
    if options.jobs == 0 || options.seeds.is_empty() {
        bail!("at least one job and one seed");
    }
    Ok(options)
}

fn main() -> anyhow::Result<ExitCode> {
    let options = options()?;
    let differences = if options.jobs > 1 {
        spread(&options)?
    } else {
        with_sides(&options)?
    };
    Ok(ExitCode::from(u8::from(differences > 0)))
}

fn with_sides(options: &Options) -> anyhow::Result<u64> {
    let images = Images::default();
    let native = match options.cpu {
        Some(cpu) => NativeCpu::on_cpu(cpu, BATCH, &images)?,
        None => NativeCpu::new(BATCH, &images)?,
    };
    let number = native.cpu_number();
    match options.pair.as_str() {
        "native-native" => {
            let again = NativeCpu::on_cpu(number, BATCH, &images)?;
            run(Fuzzer::new(images, native, again), options)
        }
        "native-engine" => {
            let engine = engine(&images, false, number)?;
            run(Fuzzer::new(images, native, engine), options)
        }
        "native-single" => {
            let engine = engine(&images, true, number)?;
            run(Fuzzer::new(images, native, engine), options)
        }
        "engine-single" => {
            let sides = (
                engine(&images, false, number)?,
                engine(&images, true, number)?,
            );
            run(Fuzzer::new(images, sides.0, sides.1), options)
        }
        other => bail!("unknown pair {other}"),
    }
}

/// Runs on one processor; returns the number of differences.
fn run<A: Side, B: Side>(mut fuzzer: Fuzzer<A, B>, options: &Options) -> anyhow::Result<u64> {
    if let Some(file) = &options.case {
        return show(&mut fuzzer, file);
    }
    std::fs::create_dir_all(&options.out)?;
    let mut progress = Progress::begin(&options.pair, options.seeds.clone());
    if options.resume {
        progress.resume(&options.out)?;
    }
    let (begin, first, before) = (Instant::now(), progress.next, progress.seconds);
    let mut reported = begin;
    while progress.next < options.seeds.end {
        let to = options.seeds.end.min(progress.next + CHUNK);
        let mut findings = Vec::new();
        fuzzer.run(progress.next..to, &mut progress.tally, |finding| {
            findings.push(finding)
        })?;
        progress.next = to;
        for finding in findings {
            report(&mut fuzzer, &finding, &options.out)?;
        }
        if progress.tally.differences > MOST_FINDINGS {
            bail!("more than {MOST_FINDINGS} differences\n{}", progress.tally);
        }
        if reported.elapsed() > REPORT {
            reported = Instant::now();
            progress.seconds = before + begin.elapsed().as_secs();
            progress.save(&options.out)?;
            let rate = (to - first) as f64 / begin.elapsed().as_secs_f64();
            let differences = progress.tally.differences;
            eprintln!("seed {to}: {differences} differ, {rate:.0} sequences/s");
        }
    }
    progress.seconds = before + begin.elapsed().as_secs();
    progress.save(&options.out)?;
    println!("{progress}");
    Ok(progress.tally.differences)
}

fn show<A: Side, B: Side>(fuzzer: &mut Fuzzer<A, B>, file: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let mut differences = 0;
    for case in parse_all(&text)? {
        print!("{case}{}", fuzzer.show(&case)?);
        differences += u64::from(fuzzer.check(&case)?.is_some());
    }
    Ok(differences)
}

fn report<A: Side, B: Side>(
    fuzzer: &mut Fuzzer<A, B>,
    finding: &Finding,
    out: &Path,
) -> anyhow::Result<()> {
    let again = fuzzer.check(&finding.case)?;
    if again.is_none() {
        println!(
            "# seed {} does not differ when repeated: {}",
            finding.seed, finding.difference
        );
    }
    let small = fuzzer.minimise(finding)?;
    std::fs::write(
        out.join(format!("{}.case", finding.seed)),
        small.to_string(),
    )?;
    println!("{small}");
    Ok(())
}

/// Runs one process for each part of the seeds, and adds up.
fn spread(options: &Options) -> anyhow::Result<u64> {
    let (begin, count) = (Instant::now(), options.seeds.end - options.seeds.start);
    let bound = |job: u64| {
        options.seeds.start
            + (u128::from(count) * u128::from(job) / u128::from(options.jobs)) as u64
    };
    let processors = std::thread::available_parallelism()?.get() as u64;
    let mut children = Vec::new();
    for job in 0..options.jobs {
        let seeds = bound(job)..bound(job + 1);
        if seeds.is_empty() {
            continue;
        }
        let out = options.out.join(job.to_string());
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--pair", &options.pair, "--out"]).arg(&out);
        command.args(["--seeds", &format!("{}..{}", seeds.start, seeds.end)]);
        if processors > 1 {
            command.args(["--cpu", &(job % processors).to_string()]);
        }
        if options.resume && out.exists() {
            command.arg("--resume");
        }
        children.push((command.spawn()?, seeds, out));
    }
    let mut total = Progress::begin(&options.pair, options.seeds.clone());
    for (mut child, seeds, out) in children {
        let status = child.wait()?;
        if !matches!(status.code(), Some(0 | 1)) {
            bail!("the process for seeds {seeds:?} ended with {status}");
        }
        let mut part = Progress::begin(&options.pair, seeds);
        part.resume(&out)?;
        total.tally.add(&part.tally);
    }
    total.next = options.seeds.end;
    total.seconds = begin.elapsed().as_secs();
    println!("all {} processes on {}\n{total}", options.jobs, host());
    Ok(total.tally.differences)
}
