//! Which process this is, in a way that another process can check later.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::FormatError;
use crate::wire::{Input, Output};

/// A process, told from a later one of the same number by its start time, from one of an earlier
/// boot by the boot id, and from one of another container by the namespace of its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) host: String,
    pub(super) boot: String,
    pub(super) namespace: String,
    pub(super) pid: u32,
    pub(super) started: u64,
}

impl Process {
    pub(super) fn current() -> Self {
        let pid = std::process::id();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            namespace: fs::read_link("/proc/self/ns/pid")
                .map(|link| link.display().to_string())
                .unwrap_or_default(),
            pid,
            started: start_time(pid).unwrap_or(0),
        }
    }

    /// False only if the process is known to be gone.
    pub(super) fn may_live(&self) -> bool {
        let here = Self::current();
        if self.host != here.host {
            return true;
        }
        if self.boot != here.boot {
            return false;
        }
        self.namespace != here.namespace || start_time(self.pid) == Some(self.started)
    }

    /// Where its number means something: host and namespace. After a reboot an earlier number may
    /// be taken again, but not with the same start time.
    fn place(&self) -> String {
        let text = format!("{}\n{}", self.host, self.namespace);
        let hash = blake3::hash(text.as_bytes());
        hash.to_hex()[..16].to_owned()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for text in [&self.host, &self.boot, &self.namespace] {
            out.put_block(text.as_bytes());
        }
        out.put_u32(self.pid);
        out.put_u64(self.started);
    }

    pub(super) fn decode(input: &mut Input<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            host: input.text()?.to_owned(),
            boot: input.text()?.to_owned(),
            namespace: input.text()?.to_owned(),
            pid: input.u32()?,
            started: input.u64()?,
        })
    }
}

/// A name for a temporary file of this process.
pub(crate) fn temporary_name(serial: u64) -> String {
    let here = Process::current();
    format!("{}-{}-{}-{serial}", here.place(), here.pid, here.started)
}

/// Whether a temporary file is of a process that is known to be gone.
pub(crate) fn is_orphan(name: &str) -> bool {
    let here = Process::current();
    let parts: Vec<&str> = name.split('-').collect();
    let [place, pid, started, _] = parts[..] else {
        return false;
    };
    let (Ok(pid), Ok(started)) = (pid.parse(), started.parse()) else {
        return false;
    };
    place == here.place() && start_time(pid) != Some(started)
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Start time of a live process in clock ticks since boot (field 22 of its stat file); a zombie
/// does not count as live, since nothing of it writes any more.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses; fields are counted after its end.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Nanoseconds since 1970.
pub(crate) fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// Sixteen bytes that no other call on any host gives.
pub(crate) fn unique() -> [u8; 16] {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let process = Process::current();
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    process.encode(&mut bytes);
    bytes.put_u64(SERIAL.fetch_add(1, Ordering::Relaxed));
    bytes.put_u64(unix_ns(SystemTime::now()));
    // Seeded by the operating system.
    bytes.put_u64(RandomState::new().hash_one(0));
    hasher.update(&bytes);
    crate::id::prefix(hasher.finalize().as_bytes())
}
