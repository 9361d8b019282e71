//! Counting the guest's branches with the processor's performance counters.
#![expect(unsafe_code, reason = "perf_event_open has no safe name")]

use super::{Level, OUT, ProbeError, SmallGuest};
use crate::kvm::Host;
use machine::cpuid::CpuidTable;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

/// What was counted of a guest with a known number of branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branches {
    /// Branches that the guest executed.
    pub executed: u64,
    /// The least and the most that was counted in several runs.
    pub counted: [u64; 2],
}

/// The first version of `struct perf_event_attr`, include/uapi/linux/perf_event.h.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

/// Retired branches, of PERF_TYPE_HARDWARE.
const BRANCH_INSTRUCTIONS: u64 = 4;
/// What this process and the kernel do does not count.
const EXCLUDE_HOST: u64 = 1 << 19;

/// Counts retired branches of the guest that this thread runs.
fn open() -> io::Result<File> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        config: BRANCH_INSTRUCTIONS,
        flags: EXCLUDE_HOST,
        ..Attributes::default()
    };
    let (this_thread, any_cpu, no_group, no_flags) = (0, -1, -1, 0);
    // SAFETY: the kernel reads the attributes, which are as long as they say; the other arguments are
    // numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            this_thread,
            any_cpu,
            no_group,
            no_flags,
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd @ 0..) => Ok(unsafe { File::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn read(counter: &mut File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    counter.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Counts the branches of a small guest.
///
/// # Errors
/// The guest does not run.
///
/// The inner error is why there is no counter.
pub fn branches(host: &Host) -> Result<io::Result<Branches>, ProbeError> {
    const RUNS: usize = 5;
    const ROUNDS: u32 = 10_000;
    let mut counter = match open() {
        Ok(counter) => counter,
        Err(error) => return Ok(Err(error)),
    };
    // MOV ECX, rounds; DEC ECX; JNZ back.
    let code = [
        &[0xb9][..],
        &ROUNDS.to_le_bytes(),
        &[0xff, 0xc9, 0x75, 0xfc],
        &OUT,
    ]
    .concat();
    let mut guest = SmallGuest::new(host, &CpuidTable::of_host(), Level::Kernel, &code)?;
    let mut counted = [u64::MAX, 0];
    for _ in 0..RUNS {
        let before = read(&mut counter);
        guest.run()?;
        match (before, read(&mut counter)) {
            (Ok(before), Ok(after)) => {
                let count = after.wrapping_sub(before);
                counted = [counted[0].min(count), counted[1].max(count)];
            }
            (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
        }
    }
    Ok(Ok(Branches {
        executed: ROUNDS.into(),
        counted,
    }))
}
