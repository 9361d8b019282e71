//! The guest that `run` and `record` are told about.

use crate::quantity::{ByteSize, Count};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use kvm_recorder::kvm::examine::{self, Level, NATIVE_PER_SECOND};
use kvm_recorder::kvm::{Host, KvmVcpu};
use machine::board::Board;
use machine::boot::{self, LinuxBoot};
use machine::clock::{HostClock, InsnClock, VirtualClock};
use machine::cpuid::CpuidTable;
use machine::devices::cmos::DEFAULT_START_UNIX_S;
use machine::ram::Ram;
use machine::units::Position;
use machine::vcpu::Vcpu;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use tcg_sim::{Engine, EngineOptions};

/// Options that say what the guest is.
#[derive(Debug, Args)]
pub(crate) struct GuestArguments {
    /// Kernel: a Linux bzImage (vmlinuz) or an x86-64 ELF executable
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel options, put behind those that the machine itself needs
    #[arg(long, value_name = "OPTIONS", default_value = "")]
    pub(crate) append: String,
    /// RAM
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) memory: ByteSize,
    /// What executes the guest (`run`: always the engine)
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    pub(crate) accel: Accel,
    /// Where virtual time comes from; on KVM always the host's clock
    #[arg(long, value_enum, default_value_t = Clock::Insn)]
    pub(crate) clock: Clock,
    /// Instructions per second of virtual time, with --clock insn
    #[arg(long, value_name = "COUNT", default_value = "1G")]
    pub(crate) ips: Count,
    /// The guest's serial console: stdio, none or file:PATH
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub(crate) console: ConsoleArgument,
}

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// The best that this host has
    Auto,
    /// Hardware, through KVM
    Kvm,
    /// Hardware, and the engine where this host's KVM cannot run the guest
    KvmOrEngine,
    /// The translating engine
    Engine,
}

/// What `record` executes guests on where nobody says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Executes {
    /// On the engine, however good the host's KVM is.
    OnEngine,
    /// On KVM where that is good.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "what KVM records of Linux does not verify yet")
    )]
    OnKvm,
}

/// What this build does; `sbctl doctor` says what follows from it.
pub(crate) const EXECUTES: Executes = Executes::OnEngine;

impl Accel {
    /// KVM, if the guest is to be recorded there. Says why it is not, where that was not asked for.
    pub(crate) fn choose(self) -> Result<Option<Host>> {
        match self {
            Self::Engine => Ok(None),
            Self::Kvm => Ok(Some(Host::open()?)),
            Self::KvmOrEngine => Ok(or_engine(Host::open().map_err(anyhow::Error::from))),
            Self::Auto => Ok(or_engine(match EXECUTES {
                Executes::OnKvm => fast_host(),
                Executes::OnEngine => Err(anyhow!(
                    "what KVM records of Linux does not verify yet; --accel kvm does it all the same"
                )),
            })),
        }
    }

    /// Whether the engine takes over where KVM cannot run the guest.
    pub(crate) fn falls_back(self) -> bool {
        matches!(self, Self::Auto | Self::KvmOrEngine)
    }
}

/// KVM, or none, and why.
fn or_engine(host: Result<Host>) -> Option<Host> {
    host.inspect_err(say_engine).ok()
}

/// Says why the guest runs on the engine.
pub(crate) fn say_engine(why: &anyhow::Error) {
    eprintln!("sbctl: the guest runs on the engine: {why:#}");
}

/// A KVM that executes kernel code on the processor, and lets no access to an MSR go unseen.
fn fast_host() -> Result<Host> {
    let host = Host::open()?;
    if !host.capabilities().user_space_msrs {
        bail!("this host's KVM answers accesses to MSRs by itself (before Linux 5.10)");
    }
    let speed = examine::speed(&host, Level::Kernel)?;
    if speed < NATIVE_PER_SECOND {
        bail!(
            "this host's KVM emulates kernel code, at {:.1} million instructions a second",
            speed / 1e6
        );
    }
    Ok(host)
}

/// Where virtual time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Clock {
    /// From the instructions executed: the same in every run
    Insn,
    /// From the host's clock
    Host,
}

impl Clock {
    /// The name that the command line has for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Insn => "insn",
            Self::Host => "host",
        }
    }
}

/// Where the guest's console is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleArgument {
    /// Output on standard output, input from standard input.
    Stdio,
    /// Output is dropped; there is no input.
    None,
    /// Output goes to a file; there is no input.
    File(PathBuf),
}

impl FromStr for ConsoleArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "none" => Ok(Self::None),
            _ => text
                .strip_prefix("file:")
                .filter(|path| !path.is_empty())
                .map(|path| Self::File(path.into()))
                .ok_or_else(|| "stdio, none or file:PATH is expected".to_owned()),
        }
    }
}

/// A guest at its first instruction.
pub(crate) struct Guest<V = Engine> {
    pub(crate) ram: Arc<Ram>,
    pub(crate) vcpu: V,
    pub(crate) board: Board,
    pub(crate) clock: VirtualClock,
    pub(crate) cpuid: CpuidTable,
    pub(crate) command_line: String,
    /// What the guest reads of a time stamp counter that the processor holds still, if it does.
    pub(crate) frozen_tsc: Option<u64>,
}

impl GuestArguments {
    /// Loads the guest on the engine.
    pub(crate) fn prepare(&self) -> Result<Guest> {
        self.load(self.virtual_clock()?, |ram, cpuid| {
            Ok(Engine::new(
                ram.clone(),
                cpuid.clone(),
                EngineOptions::default(),
            )?)
        })
    }

    /// Loads the guest on KVM, where time is the host's.
    pub(crate) fn prepare_on(&self, host: &Host) -> Result<Guest<KvmVcpu>> {
        let clock = VirtualClock::Host(HostClock::new());
        let mut guest = self.load(clock, |ram, cpuid| {
            let vcpu = KvmVcpu::new(host, ram.clone(), cpuid)?;
            if let Err(error) = vcpu.holds_writes() {
                eprintln!(
                    "sbctl: the guest stands still while pages of checkpoints are copied, as this kernel \
                     does not let its writes wait (userfaultfd: {error})"
                );
            }
            Ok(vcpu)
        })?;
        guest.frozen_tsc = guest.vcpu.frozen_tsc();
        Ok(guest)
    }

    fn load<V: Vcpu>(
        &self,
        clock: VirtualClock,
        vcpu: impl FnOnce(&Arc<Ram>, &CpuidTable) -> Result<V>,
    ) -> Result<Guest<V>> {
        let kernel = read(&self.kernel, "kernel")?;
        let initrd = self.initrd.as_deref().map(|path| read(path, "initrd"));
        let initrd = initrd.transpose()?;
        let ram = Arc::new(Ram::new(self.memory.0).context("--memory")?);
        let command_line = boot::command_line(&self.append);
        let loaded = boot::load(
            &ram,
            &LinuxBoot {
                kernel: &kernel,
                initrd: initrd.as_deref(),
                command_line: &command_line,
                rng_seed: boot::DEFAULT_RNG_SEED,
            },
        )
        .with_context(|| format!("cannot load {}", self.kernel.display()))?;
        let cpuid = CpuidTable::of_host();
        let mut vcpu = vcpu(&ram, &cpuid)?;
        vcpu.load(&loaded.state, Position::default())?;
        Ok(Guest {
            board: Board::new(ram.bytes(), DEFAULT_START_UNIX_S),
            ram,
            vcpu,
            clock,
            cpuid,
            command_line,
            frozen_tsc: None,
        })
    }

    fn virtual_clock(&self) -> Result<VirtualClock> {
        Ok(match self.clock {
            Clock::Host => VirtualClock::Host(HostClock::new()),
            Clock::Insn => {
                let rate = NonZeroU64::new(self.ips.0).context("--ips must not be 0")?;
                VirtualClock::Insn(InsnClock::new(rate))
            }
        })
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read the {what} {}", path.display()))
}
