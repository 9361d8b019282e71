//! Long runs of the differential fuzzer: `differential [--pair P] [--seeds A..B] [--out DIR]`, or
//! `differential [--pair P] --case FILE`, which shows how one case ends on both sides.
//!
//! Pairs: `native-engine`, `engine-single` (normal against one-instruction blocks), `native-single`,
//! `native-native` (is the host deterministic?). Findings are made small and written to DIR as
//! regression cases. One process uses one seed range; start several for several processors.

use anyhow::{Context, bail};
use simuboost_tests::differential::case::Case;
use simuboost_tests::differential::compare::Finding;
use simuboost_tests::differential::engine;
use simuboost_tests::differential::fuzzer::{BATCH, Fuzzer, Tally};
use simuboost_tests::differential::image::Images;
use simuboost_tests::differential::native::NativeCpu;
use simuboost_tests::differential::side::Side;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// Seeds between two lines of progress.
const CHUNK: u64 = 10_000;
/// Findings that are made small; a run with more has one cause worth repairing first.
const MOST_FINDINGS: u64 = 400;

struct Options {
    pair: String,
    seeds: Range<u64>,
    out: PathBuf,
    case: Option<PathBuf>,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        pair: "native-engine".to_owned(),
        seeds: 0..100_000,
        out: PathBuf::from("differential-findings"),
        case: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--pair" => options.pair = value,
            "--out" => options.out = value.into(),
            "--case" => options.case = Some(value.into()),
            "--seeds" => {
                let (from, to) = value.split_once("..").context("--seeds A..B")?;
                options.seeds = from.parse()?..to.parse()?;
            }
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let images = Images::default();
    let native = NativeCpu::new(BATCH, images.constant())?;
    match options.pair.as_str() {
        "native-native" => {
            let again = NativeCpu::new(BATCH, images.constant())?;
            run(Fuzzer::new(images, native, again), &options)
        }
        "native-engine" => {
            let engine = engine(&images, false, native.cpu_number())?;
            run(Fuzzer::new(images, native, engine), &options)
        }
        "native-single" => {
            let engine = engine(&images, true, native.cpu_number())?;
            run(Fuzzer::new(images, native, engine), &options)
        }
        "engine-single" => {
            let sides = (
                engine(&images, false, native.cpu_number())?,
                engine(&images, true, native.cpu_number())?,
            );
            run(Fuzzer::new(images, sides.0, sides.1), &options)
        }
        other => bail!("unknown pair {other}"),
    }
}

fn run<A: Side, B: Side>(mut fuzzer: Fuzzer<A, B>, options: &Options) -> anyhow::Result<()> {
    if let Some(file) = &options.case {
        let text = std::fs::read_to_string(file)?;
        for part in text.split("\n---\n") {
            let case: Case = part.parse()?;
            print!("{case}{}", fuzzer.show(&case)?);
        }
        return Ok(());
    }
    let mut total = Tally::default();
    let begin = Instant::now();
    let mut from = options.seeds.start;
    while from < options.seeds.end {
        let to = options.seeds.end.min(from + CHUNK);
        let mut findings = Vec::new();
        fuzzer.run(from..to, &mut total, |finding| findings.push(finding))?;
        from = to;
        for finding in findings {
            report(&mut fuzzer, &finding, options)?;
            if total.differences > MOST_FINDINGS {
                bail!("more than {MOST_FINDINGS} differences\n{total}");
            }
        }
        let rate = total.sequences as f64 / begin.elapsed().as_secs_f64();
        eprintln!(
            "seed {to}: {} differ, {rate:.0} sequences/s",
            total.differences
        );
    }
    println!(
        "seeds {:?}, {:.0} s\n{total}",
        options.seeds,
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

fn report<A: Side, B: Side>(
    fuzzer: &mut Fuzzer<A, B>,
    finding: &Finding,
    options: &Options,
) -> anyhow::Result<()> {
    let again = fuzzer.check(&finding.case)?;
    if again.is_none() {
        println!(
            "# seed {} does not differ when repeated: {}",
            finding.seed, finding.difference
        );
    }
    let small = fuzzer.minimise(finding)?;
    std::fs::create_dir_all(&options.out)?;
    std::fs::write(
        options.out.join(format!("{}.case", finding.seed)),
        small.to_string(),
    )?;
    println!("{small}");
    Ok(())
}
