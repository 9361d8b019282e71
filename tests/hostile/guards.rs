//! Memory around guest RAM that nothing may touch.
#![expect(
    unsafe_code,
    reason = "guard pages are mapped at addresses of our choice and looked at through pointers"
)]

use machine::ram::Ram;

/// How far the guards reach on each side: the largest displacement that an instruction adds to a
/// checked page is far smaller.
const REACH: usize = 1 << 20;
/// Smallest piece that is tried.
const LEAST_PIECE: usize = 1 << 14;

/// Inaccessible memory below and above a RAM, as far as the host had nothing there; what lies within
/// a page of RAM's edges always is.
pub struct Guards {
    ranges: Vec<(usize, usize)>,
}

impl Guards {
    /// Maps what is free on both sides. The RAM must outlive the guards' usefulness, not the guards.
    pub fn around(ram: &Ram) -> Self {
        let start = ram.host_base() as usize;
        let end = start + ram.bytes() as usize;
        let mut ranges = Vec::new();
        reserve_free(start.saturating_sub(REACH), REACH, &mut ranges);
        reserve_free(end, REACH, &mut ranges);
        Self { ranges }
    }

    /// Bytes that are guarded.
    pub fn bytes(&self) -> usize {
        self.ranges.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Whether the guards are still as they were: mapped, and never written (they hold zeros).
    ///
    /// # Errors
    /// The address of the first byte that is not zero.
    pub fn check(&self) -> Result<(), String> {
        for (start, bytes) in &self.ranges {
            // SAFETY: the range is a mapping of ours, made readable here and inaccessible again.
            unsafe {
                libc::mprotect(*start as *mut _, *bytes, libc::PROT_READ);
                let content = std::slice::from_raw_parts(*start as *const u8, *bytes);
                let dirty = content.iter().position(|byte| *byte != 0);
                libc::mprotect(*start as *mut _, *bytes, libc::PROT_NONE);
                if let Some(at) = dirty {
                    return Err(format!(
                        "the host's memory at {:#x} was written",
                        start + at
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        for (start, bytes) in &self.ranges {
            // SAFETY: the range is a mapping of ours.
            unsafe { libc::munmap(*start as *mut _, *bytes) };
        }
    }
}

/// Reserves what is free of a range, in pieces where something lies in it.
fn reserve_free(start: usize, bytes: usize, ranges: &mut Vec<(usize, usize)>) {
    if reserve(start, bytes) {
        ranges.push((start, bytes));
    } else if bytes > LEAST_PIECE {
        reserve_free(start, bytes / 2, ranges);
        reserve_free(start + bytes / 2, bytes / 2, ranges);
    }
}

/// Maps inaccessible memory at an address if nothing is there.
fn reserve(start: usize, bytes: usize) -> bool {
    // SAFETY: MAP_FIXED_NOREPLACE never touches an existing mapping.
    let got = unsafe {
        libc::mmap(
            start as *mut _,
            bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if got == libc::MAP_FAILED {
        return false;
    }
    if got as usize != start {
        // SAFETY: kernels before 4.17 ignore the flag; the mapping is ours wherever it is.
        unsafe { libc::munmap(got, bytes) };
        return false;
    }
    true
}
