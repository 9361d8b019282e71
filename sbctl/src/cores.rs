//! The processors that this process may use, and whether one of them has nothing to do.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// The CPUs of the affinity mask and the control groups.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Cores behind these CPUs: threads of one core count once. At most [`cpus`].
pub(crate) fn cores() -> usize {
    let allowed = allowed();
    let siblings = allowed.iter().map(|cpu| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string())
    });
    let cores = siblings.collect::<BTreeSet<_>>().len();
    match cores {
        0 => cpus(),
        cores => cores.min(cpus()),
    }
}

/// The CPUs of the affinity mask by number; empty where the kernel does not tell.
fn allowed() -> BTreeSet<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.and_then(list).unwrap_or_default()
}

/// Numbers written like `0-3,8`.
fn list(text: &str) -> Option<BTreeSet<usize>> {
    /// More than any kernel has.
    const MOST: usize = 1 << 16;
    let mut all = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.parse().ok()?..=last.parse::<usize>().ok()?.min(MOST);
        all.extend(range);
    }
    Some(all)
}

/// Watches how much of the CPUs nobody needs.
pub(crate) struct SpareMeter {
    allowed: BTreeSet<usize>,
    last: Option<(Instant, u64)>,
    spare: f64,
}

impl SpareMeter {
    /// Shorter looks say nothing: the kernel counts in hundredths of a second.
    const WINDOW: Duration = Duration::from_millis(300);
    const TICKS_PER_SECOND: f64 = 100.0;

    pub(crate) fn new() -> Self {
        Self {
            allowed: allowed(),
            last: None,
            spare: 0.0,
        }
    }

    /// How many CPUs had nothing to do, or only what gives way to everything else, between the last
    /// looks. 0 until it is known.
    pub(crate) fn spare(&mut self) -> f64 {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        self.look(Instant::now(), spare_ticks(&stat, &self.allowed))
    }

    fn look(&mut self, now: Instant, ticks: u64) -> f64 {
        match self.last {
            Some((then, before)) if now - then >= Self::WINDOW => {
                let ticks_gone = (now - then).as_secs_f64() * Self::TICKS_PER_SECOND;
                self.spare = ticks.saturating_sub(before) as f64 / ticks_gone;
                self.last = Some((now, ticks));
            }
            Some(_) => {}
            None => self.last = Some((now, ticks)),
        }
        self.spare
    }
}

/// Time that these CPUs spent idle, waiting for disks, or on processes of low priority.
fn spare_ticks(stat: &str, cpus: &BTreeSet<usize>) -> u64 {
    let of_line = |line: &str| -> Option<u64> {
        // cpuN user nice system idle iowait ...
        let mut fields = line.strip_prefix("cpu")?.split(' ');
        let cpu = fields.next()?.parse().ok()?;
        let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        let spare = [1, 3, 4].map(|at| fields.get(at).copied().unwrap_or(0));
        cpus.contains(&cpu).then(|| spare.iter().sum())
    };
    stat.lines().filter_map(of_line).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(list("0-2,8\n"), Some(BTreeSet::from([0, 1, 2, 8])));
        assert_eq!(list("5"), Some(BTreeSet::from([5])));
        for text in ["", "a", "1-", "1,,2"] {
            assert_eq!(list(text), None, "{text}");
        }
        assert!(!allowed().is_empty());
        assert!((1..=cpus()).contains(&cores()));
    }

    #[test]
    fn spare_time_is_what_nobody_needs() {
        let stat =
            "cpu  9 9 9 9 9\ncpu0 10 20 30 40 5 6 7\ncpu1 1 2 3 4 5\ncpu2 1 1 1 1000 1\nintr 5\n";
        assert_eq!(spare_ticks(stat, &BTreeSet::from([0, 1])), 65 + 11);
        assert_eq!(spare_ticks("", &BTreeSet::from([0])), 0);
        let mut meter = SpareMeter::new();
        let start = Instant::now();
        assert_eq!(meter.look(start, 1000), 0.0);
        assert_eq!(meter.look(start + Duration::from_millis(100), 1010), 0.0);
        let spare = meter.look(start + Duration::from_secs(1), 1150);
        assert!((spare - 1.5).abs() < 1e-6, "{spare}");
    }
}
