//! What follows from what was found.

use super::check::{Check, Group, Status};
use crate::guest::Executes;
use serde::Serialize;
use std::fmt;

/// Checks that must be good for guests to be recorded on KVM.
const KVM_NEEDS: [(Group, &str); 8] = [
    (Group::Kvm, "present"),
    (Group::Kvm, "permissions"),
    (Group::Kvm, "api"),
    (Group::Kvm, "kernel-speed"),
    (Group::Kvm, "user-speed"),
    (Group::Kvm, "results"),
    (Group::Kvm, "cpuid"),
    (Group::Rounds, "kvm"),
];
/// Checks that must be good for guests to be recorded at all.
const NEEDS: [(Group, &str); 4] = [
    (Group::Host, "processor"),
    (Group::Host, "memory"),
    (Group::Host, "disk"),
    (Group::Rounds, "engine"),
];

/// What this host can do.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: u32,
    checks: Vec<Check>,
    /// Whether `sbctl record` works here.
    pub(super) recording_works: bool,
    /// Whether guests can be recorded at hardware speed here.
    kvm_works: bool,
    /// What `sbctl record` would choose: `kvm` or `engine`.
    accel: &'static str,
    /// Why.
    because: String,
    /// What would make recording better.
    better: Vec<String>,
}

impl Report {
    pub(super) fn new(checks: Vec<Check>, build: Executes) -> Self {
        let failed = |needs: &[(Group, &str)]| {
            let needed = |check: &&Check| needs.contains(&(check.group, check.id));
            let found = checks.iter().filter(needed);
            let mut bad = found.filter(|check| check.status == Status::No);
            bad.next().cloned()
        };
        let because = match (failed(&KVM_NEEDS), build) {
            (Some(check), _) => format!("{}: {}", check.id, check.finding),
            (None, Executes::OnKvm) => {
                "KVM runs guests natively, and what was recorded on it verifies".to_owned()
            }
            (None, Executes::OnEngine) => {
                "KVM works, but what it records of Linux does not verify yet, so only --accel kvm uses it"
                    .to_owned()
            }
        };
        let kvm_works = failed(&KVM_NEEDS).is_none();
        let recording_works = failed(&NEEDS).is_none();
        let better = checks
            .iter()
            .filter(|check| matches!(check.status, Status::No | Status::Limited));
        let mut advice: Vec<String> = Vec::new();
        for text in better.filter_map(|check| check.advice.clone()) {
            if !advice.contains(&text) {
                advice.push(text);
            }
        }
        Self {
            version: 1,
            recording_works,
            kvm_works,
            accel: match build {
                Executes::OnKvm if kvm_works => "kvm",
                _ => "engine",
            },
            because,
            better: advice,
            checks,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in Group::ALL {
            writeln!(f, "{}", group.title())?;
            let mut checks = self.checks.iter().filter(|check| check.group == group);
            checks.try_for_each(|check| check.fmt(f))?;
        }
        let on = match self.accel {
            "kvm" => "KVM",
            _ => "the engine",
        };
        match self.recording_works {
            true => writeln!(f, "\n`sbctl record` works here, on {on} ({})", self.because)?,
            false => {
                writeln!(f, "\n`sbctl record` does not work here:")?;
                let bad = |check: &&Check| {
                    NEEDS.contains(&(check.group, check.id)) && check.status == Status::No
                };
                for check in self.checks.iter().filter(bad) {
                    writeln!(f, "  {}: {}", check.id, check.finding)?;
                }
            }
        }
        if !self.better.is_empty() {
            writeln!(f, "It would be better with:")?;
            for advice in &self.better {
                writeln!(f, "  {advice}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_good() -> Vec<Check> {
        let needs = KVM_NEEDS.iter().chain(&NEEDS);
        needs
            .map(|(group, id)| Check::ok(*group, id, "fine"))
            .collect()
    }

    #[test]
    fn good_hosts_record_on_kvm() {
        let report = Report::new(all_good(), Executes::OnKvm);
        assert!(report.recording_works && report.kvm_works);
        assert_eq!(report.accel, "kvm");
        assert!(report.better.is_empty());
        let text = report.to_string();
        assert!(text.contains("works here, on KVM"), "{text}");
        assert!(!text.contains("better with"), "{text}");
        let report = Report::new(all_good(), Executes::OnEngine);
        assert!(report.kvm_works);
        assert_eq!(report.accel, "engine");
        assert!(
            report.because.contains("does not verify yet"),
            "{}",
            report.because
        );
    }

    #[test]
    fn whatever_kvm_needs_and_lacks_leaves_the_engine() {
        for (group, id) in KVM_NEEDS {
            let mut checks = all_good();
            let bad = Check::no(group, id, "is broken").advise("mend it");
            checks.iter_mut().for_each(|check| {
                if (check.group, check.id) == (group, id) {
                    *check = bad.clone();
                }
            });
            let report = Report::new(checks, Executes::OnKvm);
            assert!(report.recording_works, "{id}");
            assert_eq!(report.accel, "engine");
            assert_eq!(report.because, format!("{id}: is broken"));
            assert_eq!(report.better, ["mend it"]);
        }
    }

    #[test]
    fn whatever_recording_needs_and_lacks_is_told() {
        for (group, id) in NEEDS {
            let mut checks = all_good();
            checks.push(Check::no(group, id, "is broken"));
            let report = Report::new(checks, Executes::OnKvm);
            assert!(!report.recording_works, "{id}");
            let text = report.to_string();
            assert!(text.contains(&format!("{id}: is broken")), "{text}");
        }
    }
}
