//! Which guest the demo records: Linux if it can be had, else the built-in one.

use super::init;
use crate::builtin;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes guest images from packages.
const BUILD: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/guest-images/build.sh"
);

/// What of the image's phases is run: enough for an impression, and done in a minute.
const PHASES: &str = "quiet sb.phases=forkexec,pipes";

/// A guest for the demo.
pub(super) struct DemoGuest {
    /// In a sentence.
    pub(super) what: String,
    /// Options of `sbctl record`.
    pub(super) options: Vec<String>,
    /// Where its console goes.
    pub(super) console: PathBuf,
}

impl DemoGuest {
    /// The best guest that this host has. Says why it is not a better one.
    pub(super) fn find(directory: &Path) -> Result<Self> {
        match images() {
            Ok((kernel, initrd)) => {
                let what = "a stock Debian kernel booting into busybox, which starts programs and \
                            moves data through pipes";
                return Self::linux(directory, what, &kernel, &initrd, PHASES);
            }
            Err(error) => eprintln!("sbctl: no guest from packages: {error:#}"),
        }
        match boot_kernel() {
            Some(kernel) => {
                let what = format!(
                    "the kernel {} of this host, booting into a small built-in program",
                    kernel.display()
                );
                std::fs::create_dir_all(directory)?;
                let initrd = directory.join("initrd.cpio");
                let image = init::initramfs().context("the built-in initramfs")?;
                std::fs::write(&initrd, image)
                    .with_context(|| format!("cannot write {}", initrd.display()))?;
                Self::linux(directory, &what, &kernel, &initrd, "quiet")
            }
            None => {
                eprintln!("sbctl: no kernel under /boot that can be read");
                Self::bare_metal(directory)
            }
        }
    }

    fn linux(
        directory: &Path,
        what: &str,
        kernel: &Path,
        initrd: &Path,
        append: &str,
    ) -> Result<Self> {
        let text = |path: &Path| path.display().to_string();
        let options = [
            ("--kernel", text(kernel)),
            ("--initrd", text(initrd)),
            ("--append", append.to_owned()),
            ("--memory", "256M".into()),
            ("--interval", "120ms".into()),
        ];
        Self::new(directory, what, &options)
    }

    /// The built-in guest.
    pub(super) fn bare_metal(directory: &Path) -> Result<Self> {
        eprintln!("sbctl: the demo uses the built-in bare-metal guest, not Linux");
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let kernel = directory.join("bare-metal.elf");
        // 320 interrupts, one in a million instructions.
        let image = builtin::kernel(320, 1_000_000).context("the built-in guest")?;
        std::fs::write(&kernel, image)
            .with_context(|| format!("cannot write {}", kernel.display()))?;
        let what = "a small bare-metal program without an operating system";
        let options = [
            ("--kernel", kernel.display().to_string()),
            ("--memory", "16M".into()),
            ("--interval", "20ms".into()),
        ];
        Self::new(directory, what, &options)
    }

    fn new(directory: &Path, what: &str, options: &[(&str, String)]) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let options = options.iter();
        let options = options.flat_map(|(name, value)| [(*name).to_owned(), value.clone()]);
        Ok(Self {
            what: what.to_owned(),
            options: options
                .chain(["--accel=engine", "--check-live=no"].map(str::to_owned))
                .collect(),
            console: directory.join("console.txt"),
        })
    }
}

/// Kernel and initramfs, made from packages if they are not there yet.
fn images() -> Result<(PathBuf, PathBuf)> {
    let directory = images_directory().context("there is no HOME")?;
    let (kernel, initrd) = (
        directory.join("vmlinuz-cloud"),
        directory.join("minimal.cpio"),
    );
    if kernel.exists() && initrd.exists() {
        return Ok((kernel, initrd));
    }
    anyhow::ensure!(Path::new(BUILD).exists(), "the script {BUILD} is not there");
    eprintln!("sbctl: fetching a kernel and busybox with the package manager");
    let mut build = Command::new("bash");
    let build = build
        .args([BUILD, "minimal"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = build.status().context("cannot run bash")?;
    anyhow::ensure!(status.success(), "{BUILD} failed ({status})");
    Ok((kernel, initrd))
}

fn images_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(images) = set("SB_GUEST_IMAGES") {
        return Some(images.into());
    }
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))?;
    Some(cache.join("simuboost/guest-images"))
}

/// The newest kernel of this host, if it can be read.
fn boot_kernel() -> Option<PathBuf> {
    let entries = std::fs::read_dir("/boot").ok()?.flatten();
    let kernels =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"));
    let dated = kernels.filter_map(|entry| {
        std::fs::File::open(entry.path()).ok()?;
        Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
    });
    dated.max().map(|(_, path)| path)
}
