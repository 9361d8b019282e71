//! Linux guests for recordings: the images that `tests/guest-images/build.sh` makes.

use kvm_recorder::{Options, RecordError, Recorder, Summary};
use machine::board::Board;
use machine::boot::{self, LinuxBoot};
use machine::checkpoint::{CheckpointPages, CheckpointSink, CheckpointSource};
use machine::cpuid::CpuidTable;
use machine::devices::cmos::DEFAULT_START_UNIX_S;
use machine::ram::Ram;
use machine::units::Position;
use machine::vcpu::Vcpu;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tcg_sim::replay::{Interval, Limits, ReplayError, Report, replay};
use tcg_sim::{Engine, EngineOptions};

/// A Linux guest.
#[derive(Clone, Debug)]
pub struct Linux {
    /// The image: `minimal` or `work`.
    pub image: String,
    /// RAM in bytes.
    pub ram_bytes: u64,
    /// Kernel options behind those of the machine.
    pub append: String,
    /// How engines work.
    pub engine: EngineOptions,
}

/// The folder of the images, if they have been built.
pub fn images() -> Option<PathBuf> {
    let under = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || under("XDG_CACHE_HOME").or_else(|| Some(under("HOME")?.join(".cache")));
    let folder = under("SB_GUEST_IMAGES")
        .or_else(|| Some(cache()?.join("simuboost").join("guest-images")))?;
    folder.join("vmlinuz-cloud").exists().then_some(folder)
}

impl Linux {
    /// An engine on this RAM.
    fn engine(&self, ram: Arc<Ram>) -> Engine {
        Engine::new(ram, CpuidTable::of_host(), self.engine.clone())
            .expect("this host runs the engine")
    }

    /// A recorder of the guest at its first instruction.
    ///
    /// # Errors
    /// Those of reading the images.
    pub fn recorder(
        &self,
        options: Options,
        console: Box<dyn io::Write + Send>,
    ) -> io::Result<Recorder<Engine, Board>> {
        let missing = || io::Error::other("no guest images: run tests/guest-images/build.sh");
        let folder = images().ok_or_else(missing)?;
        let kernel = std::fs::read(folder.join("vmlinuz-cloud"))?;
        let initrd = std::fs::read(folder.join(format!("{}.cpio", self.image)))?;
        let ram = Arc::new(Ram::new(self.ram_bytes).map_err(io::Error::other)?);
        let linux = LinuxBoot {
            kernel: &kernel,
            initrd: Some(&initrd),
            command_line: &boot::command_line(&self.append),
            rng_seed: boot::DEFAULT_RNG_SEED,
        };
        let loaded = boot::load(&ram, &linux).map_err(io::Error::other)?;
        let mut vcpu = self.engine(ram.clone());
        vcpu.load(&loaded.state, Position::default())
            .map_err(io::Error::other)?;
        let board = Board::new(self.ram_bytes, DEFAULT_START_UNIX_S);
        Recorder::new(vcpu, board, ram, options, console).map_err(io::Error::other)
    }

    /// Records the guest to its end.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn record(
        &self,
        options: Options,
        console: Box<dyn io::Write + Send>,
        sink: Box<dyn CheckpointSink>,
    ) -> Result<Summary, RecordError> {
        let recorder = self.recorder(options, console).expect("the guest loads");
        recorder.record(sink)
    }

    /// Replays one interval on an engine of its own.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn replay(
        &self,
        source: &Arc<dyn CheckpointSource>,
        number: u64,
        limits: &Limits,
    ) -> Result<Report, ReplayError> {
        let interval = Interval::load(&**source, number)?;
        let pages = CheckpointPages::new(source.clone(), number);
        let ram = Arc::new(Ram::lazy(self.ram_bytes, Arc::new(pages))?);
        let mut vcpu = self.engine(ram.clone());
        replay(&mut vcpu, &ram, &interval, &**source, limits)
    }

    /// Replays all intervals on `threads` threads; `each` sees every report when it is there.
    pub fn replay_all(
        &self,
        source: &Arc<dyn CheckpointSource>,
        threads: usize,
        limits: &Limits,
        each: impl Fn(u64, Result<Report, ReplayError>) + Sync,
    ) {
        let intervals = source.checkpoints().expect("the store is in memory") - 1;
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= intervals {
                            return;
                        }
                        each(number, self.replay(source, number, limits));
                    }
                });
            }
        });
    }
}
