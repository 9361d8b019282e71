//! QEMU TCG as an oracle. RAM is a file shared with QEMU, so that it can be read after any end.

use crate::guest::{End, Guest, Outcome, boot, layout};
use crate::suite::{Case, Devices};
use machine::cpuid::Maker;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs guests on `qemu-system-x86_64 -accel tcg`.
pub struct Qemu {
    dir: tempfile::TempDir,
    /// Value of `-cpu`.
    pub cpu: String,
    /// A run that takes longer ends as [`End::Limit`].
    pub timeout: Duration,
}

/// The CPU model of `machine::cpuid::CpuidTable::x86_64_v2` in QEMU's words.
pub const CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+pdpe1gb,+lahf-lm,+smep,+smap,\
                       -tsc,-apic,-svm,-mtrr,-mca,-mce,-rdtscp,-xsave,-avx,-monitor,-vme,-pse36";

impl Qemu {
    /// QEMU with the CPU model of the tests.
    ///
    /// # Errors
    /// No temporary directory, or no QEMU.
    pub fn new() -> io::Result<Self> {
        let version = Command::new("qemu-system-x86_64")
            .arg("--version")
            .stdout(Stdio::null())
            .status()?;
        if !version.success() {
            return Err(io::Error::other("qemu-system-x86_64 --version failed"));
        }
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("rom"), boot::rom())?;
        Ok(Self {
            dir,
            cpu: CPU.to_owned(),
            timeout: Duration::from_secs(10),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command line that runs a RAM image file.
    pub fn command(&self, ram: &Path, case: &Case) -> Command {
        let vendor = match case.vendor {
            Some(Maker::Intel) => ",vendor=GenuineIntel",
            _ => "",
        };
        let cpu = format!("{}{vendor}", self.cpu);
        let mut command = Command::new("qemu-system-x86_64");
        let memory = format!(
            "memory-backend-file,id=ram,size={},share=on,mem-path={}",
            layout::RAM_BYTES,
            ram.display()
        );
        command
            .args([
                "-M",
                "isapc,memory-backend=ram",
                "-nodefaults",
                "-no-reboot",
            ])
            .args(["-display", "none", "-serial", "null", "-m"])
            .arg(format!("{}M", layout::RAM_BYTES >> 20))
            .args(["-accel", "tcg,thread=single", "-cpu", &cpu, "-object"])
            .arg(memory)
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
            .arg(self.path("rom"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if case.devices == Devices::Board {
            // Blocks of one instruction, so that interrupts are looked for after each.
            command.arg("-singlestep");
        }
        command
    }

    /// Runs a guest to its end.
    ///
    /// # Errors
    /// QEMU cannot be run or ended in a way that no guest causes.
    pub fn run(&self, guest: &Guest, case: &Case) -> io::Result<Outcome> {
        let ram = self.path("ram");
        let image = boot::bootable(guest).map_err(io::Error::other)?;
        std::fs::write(&ram, image)?;
        let end = self.wait(&ram, case)?;
        let after = std::fs::read(&ram)?;
        Ok(Outcome::from_ram(end, &after, &guest.watched))
    }

    fn wait(&self, ram: &Path, case: &Case) -> io::Result<End> {
        let mut child = self.command(ram, case).spawn()?;
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return ended(status);
            }
            if started.elapsed() > self.timeout {
                child.kill()?;
                child.wait()?;
                return Ok(End::Limit);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// isa-debug-exit makes QEMU exit with (value << 1) | 1; a triple fault is a reset, which
/// `-no-reboot` turns into exit code 0.
fn ended(status: ExitStatus) -> io::Result<End> {
    match status.code() {
        Some(code) if code == i32::from(layout::EXIT_VALUE) << 1 | 1 => Ok(End::Finished),
        Some(0) => Ok(End::Shutdown),
        _ => Err(io::Error::other(format!("QEMU ended with {status}"))),
    }
}
