//! `tcg-sim`: the engine by itself, for guests without devices.
//!
//! `tcg-sim selfcheck FILE` runs a bare-metal guest and compares the engine with itself on the way.
//! Exit codes: 0 all the same, 1 failed, 2 usage, 3 the engine differs from itself.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use machine::boot::{self, LinuxBoot};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::units::{GuestPhys, Position, Steps, Vector};
use machine::vcpu::{Vcpu, VcpuError};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tcg_sim::selfcheck::bare::{self, Inputs, Periodic};
use tcg_sim::selfcheck::{Plan, SelfChecked};
use tcg_sim::{Engine, EngineOptions};

/// The exact x86-64 engine by itself
#[derive(Debug, Parser)]
#[command(name = "tcg-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a bare-metal guest, and compare the ways to execute it with each other
    ///
    /// Each window of the run is executed four times more from its start, with nothing translated or
    /// cached: in blocks and in one-instruction blocks, without and with instruments. Registers and all of
    /// memory must be the same at its end; the first step that differs is named.
    Selfcheck(Selfcheck),
}

#[derive(Debug, Args)]
struct Selfcheck {
    /// An x86-64 ELF executable, entered in 64-bit mode with the first 4 GiB mapped to themselves
    #[arg(value_name = "FILE")]
    guest: PathBuf,
    /// FILE is raw code: load it at this address (1 MiB or above) and enter it there
    #[arg(long, value_name = "ADDRESS", value_parser = number)]
    raw: Option<u64>,
    /// RAM in MiB
    #[arg(long, value_name = "MIB", default_value = "32")]
    memory: u64,
    /// Stop after this many steps
    #[arg(long, value_name = "COUNT", value_parser = number, default_value = "10M")]
    steps: u64,
    /// Steps from the start of one compared window to the next
    #[arg(long, value_name = "COUNT", value_parser = number, default_value = "100k")]
    every: u64,
    /// Steps of a window; all of the run is compared if it is not given
    #[arg(long, value_name = "COUNT", value_parser = number)]
    length: Option<u64>,
    /// What the values of port reads are drawn from
    #[arg(long, default_value = "0")]
    seed: u64,
    /// An interrupt every so many steps, such as 0x20:50k
    #[arg(long, value_name = "VECTOR:COUNT", value_parser = periodic)]
    interrupt: Option<Periodic>,
    /// Print a hash of the whole state at each start of a window
    #[arg(long)]
    hashes: bool,
}

/// A decimal count with k, M or G behind it, or a hexadecimal number.
fn number(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number such as 1000, 50k, 10M, 2G or 0x100000");
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).map_err(|_| wrong());
    }
    let digits = text.trim_end_matches(['k', 'K', 'M', 'G']);
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(factor).ok_or_else(wrong)
}

fn periodic(text: &str) -> Result<Periodic, String> {
    let (vector, every) = text.split_once(':').ok_or("VECTOR:COUNT is expected")?;
    let vector = u8::try_from(number(vector)?).map_err(|_| "a vector is below 256")?;
    Ok(Periodic {
        vector: Vector(vector),
        every: NonZeroU64::new(number(every)?).ok_or("the count is not 0")?,
    })
}

const FAILED: u8 = 1;
const DIVERGED: u8 = 3;

fn main() -> ExitCode {
    let Command::Selfcheck(arguments) = Cli::parse().command;
    let error = match selfcheck(&arguments) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    eprintln!("tcg-sim: {error:#}");
    let diverged = matches!(error.downcast_ref(), Some(VcpuError::Diverged(_)));
    ExitCode::from(if diverged { DIVERGED } else { FAILED })
}

impl Selfcheck {
    /// RAM with the guest in it, and an engine at its first instruction.
    fn load(&self, cpuid: &CpuidTable) -> Result<(Arc<Ram>, Engine)> {
        let image = std::fs::read(&self.guest)
            .with_context(|| format!("cannot read {}", self.guest.display()))?;
        let ram = Ram::new(self.memory.saturating_mul(1 << 20)).context("--memory")?;
        let loaded = match self.raw {
            Some(address) => boot::load_flat(&ram, &image, GuestPhys(address)),
            None => boot::load(
                &ram,
                &LinuxBoot {
                    kernel: &image,
                    initrd: None,
                    command_line: "",
                    rng_seed: boot::DEFAULT_RNG_SEED,
                },
            ),
        };
        let loaded = loaded.with_context(|| format!("cannot load {}", self.guest.display()))?;
        let ram = Arc::new(ram);
        let mut engine = Engine::new(ram.clone(), cpuid.clone(), EngineOptions::default())?;
        engine.load(&loaded.state, Position::default())?;
        Ok((ram, engine))
    }
}

fn selfcheck(arguments: &Selfcheck) -> Result<()> {
    let plan = Plan {
        every: arguments.every,
        length: arguments.length.unwrap_or(arguments.every),
        from: 0,
    };
    let every = NonZeroU64::new(arguments.every).context("--every must not be 0")?;
    let cpuid = CpuidTable::of_host();
    let (ram, engine) = arguments.load(&cpuid)?;
    let options = EngineOptions::default();
    let mut vcpu = SelfChecked::around(engine, ram.clone(), cpuid, options, plan)?;
    let progress = vcpu.progress();
    let inputs = Inputs {
        seed: arguments.seed,
        interrupt: arguments.interrupt,
    };
    let mut point = |vcpu: &mut SelfChecked| {
        if arguments.hashes {
            let hash = bare::state_hash(vcpu, &ram)?;
            let position = vcpu.position().unwrap_or_default();
            println!("{position}: {hash}");
        }
        Ok(())
    };
    let end = bare::run(
        &mut vcpu,
        &inputs,
        Steps(arguments.steps),
        every,
        &mut point,
    )?;
    let position = vcpu.position().unwrap_or_default();
    drop(vcpu);
    let compared = progress.end()?;
    println!(
        "{} steps in {} windows were compared, without a difference; the guest ended at {position}: {}",
        compared.steps,
        compared.windows,
        match end {
            bare::End::Reached => "the step asked for",
            bare::End::Halted => "halted",
            bare::End::Shutdown => "triple fault",
        }
    );
    Ok(())
}
