//! Long runs of the hostile guests: `hostile [--kind code|state] [--seeds A..B] [--seconds N]`.
//!
//! Each chunk of seeds runs in a process of its own, so that a crash names its seed and the rest goes
//! on. Findings go to standard output, one a line; the exit code is 1 if there was any.

use anyhow::{Context, bail};
use simuboost_tests::hostile::{case, random, state, watchdog::Watchdog};
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seeds of one process.
const CHUNK: u64 = 2000;

struct Options {
    kind: String,
    seeds: Range<u64>,
    seconds: u64,
    child: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        kind: "code".to_owned(),
        seeds: 0..u64::MAX,
        seconds: u64::MAX,
        child: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--kind" => options.kind = value,
            "--seeds" => {
                let (from, to) = value.split_once("..").context("--seeds A..B")?;
                options.seeds = from.parse()?..to.parse()?;
            }
            "--seconds" => options.seconds = value.parse()?,
            "--child" => options.child = value == "yes",
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    if options.child {
        return child(&options);
    }
    let started = Instant::now();
    let (mut cases, mut findings) = (0, 0);
    let mut from = options.seeds.start;
    while from < options.seeds.end && started.elapsed() < Duration::from_secs(options.seconds) {
        let to = options.seeds.end.min(from + CHUNK);
        let mut next = from;
        while next < to {
            let (done, crashed) = chunk(&options, next..to, &mut findings)?;
            next = done;
            if crashed {
                println!("seed {done}: the process ended");
                findings += 1;
                next += 1;
            }
        }
        cases += to - from;
        from = to;
        eprintln!(
            "{cases} cases, {findings} findings, {:.0}/s",
            cases as f64 / started.elapsed().as_secs_f64()
        );
    }
    if findings > 0 {
        bail!("{findings} findings");
    }
    Ok(())
}

/// Runs seeds in a process; returns the first seed that was not done, and whether it crashed.
fn chunk(options: &Options, seeds: Range<u64>, findings: &mut u64) -> anyhow::Result<(u64, bool)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--child", "yes", "--kind", &options.kind, "--seeds"])
        .arg(format!("{}..{}", seeds.start, seeds.end))
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("the child's output is piped")?;
    let mut next = seeds.start;
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.strip_prefix("begin ") {
            Some(seed) => next = seed.parse()?,
            None => {
                println!("{line}");
                *findings += 1;
            }
        }
    }
    let crashed = !child.wait()?.success();
    Ok((if crashed { next } else { seeds.end }, crashed))
}

fn child(options: &Options) -> anyhow::Result<()> {
    let watchdog = Watchdog::new();
    let mut out = std::io::stdout().lock();
    for seed in options.seeds.clone() {
        writeln!(out, "begin {seed}")?;
        out.flush()?;
        let mut watch = |vcpu: &dyn machine::vcpu::Vcpu| watchdog.watch(seed, vcpu);
        let finding = match options.kind.as_str() {
            "code" => case::run(&random::input(seed), &mut watch)
                .err()
                .map(|finding| finding.to_string()),
            "state" => state::load_damaged(seed, &mut watch).err(),
            other => bail!("unknown kind {other}"),
        };
        if let Some(finding) = finding {
            writeln!(out, "seed {seed}: {}", finding.replace('\n', " "))?;
        }
    }
    Ok(())
}
