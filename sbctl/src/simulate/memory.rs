//! How much memory this process may use.

use std::fs;

/// Bytes that are free for new processes: what the kernel says is available, at most what the memory
/// control groups above this process leave.
pub(crate) fn available_bytes() -> u64 {
    let system = fs::read_to_string("/proc/meminfo").ok();
    let system = system.as_deref().and_then(available).unwrap_or(u64::MAX);
    system.min(left_of_control_groups().unwrap_or(u64::MAX))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The least that any group from this process's own to the root leaves (version 2 of control groups).
fn left_of_control_groups() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut path = format!("/sys/fs/cgroup/{own}");
    let mut least = None;
    loop {
        let number = |file: &str| -> Option<u64> {
            let text = fs::read_to_string(format!("{path}/{file}")).ok()?;
            text.trim().parse().ok()
        };
        if let Some(most) = number("memory.max") {
            let left = most.saturating_sub(number("memory.current").unwrap_or(0));
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
        match path.rfind('/') {
            Some(end) if path.len() > "/sys/fs/cgroup".len() => path.truncate(end),
            _ => return least,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_meminfo_is_read() {
        let text = "MemTotal:       100 kB\nMemAvailable:   12345 kB\nBuffers: 1 kB\n";
        assert_eq!(available(text), Some(12345 << 10));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
