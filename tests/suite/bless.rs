//! Making golden files from the oracles.

use super::disputes::{self, Dispute, Right};
use super::golden::{block, differences};
use super::{Case, Correction, Devices, Report, Suite, corrections, rules};
use crate::guest::{End, Outcome};
use crate::oracle::kvm::KvmOracle;
use crate::oracle::qemu::Qemu;
use std::fmt::Write as _;
use std::io;

/// A golden file and what is wrong with it.
#[derive(Debug, Default)]
pub struct Blessed {
    /// Its text.
    pub text: String,
    /// Cases in which the oracles disagree and no row of [`disputes::TABLE`] says who is right.
    pub unexplained: String,
}

/// Asks the oracles. What each said otherwise is noted beside a case, with the reason.
///
/// # Errors
/// QEMU cannot be run, or there is no /dev/kvm.
pub fn golden(suite: &Suite) -> io::Result<Blessed> {
    let qemu = Qemu::new()?;
    let kvm = KvmOracle::new()?;
    let mut blessed = Blessed::default();
    for case in &suite.cases {
        let (block, open) = bless(suite.name, case, &qemu, &kvm)?;
        blessed.text += &block;
        if let Some(what) = open {
            let _ = writeln!(blessed.unexplained, "{}: {what}", case.name);
        }
    }
    Ok(blessed)
}

/// The block of one case, and what is not explained.
fn bless(
    suite: &str,
    case: &Case,
    qemu: &Qemu,
    kvm: &KvmOracle,
) -> io::Result<(String, Option<String>)> {
    let guest = case.guest();
    let mut notes = Vec::new();
    let from_qemu = qemu.run(&guest, case).map(|mut outcome| {
        rules::resume_flag(case, &mut outcome);
        let mut report = case.report(&outcome);
        rules::apply(case, &mut report, &mut notes);
        report
    });
    let from_kvm = match case.devices {
        Devices::None => Some(kvm.run(&guest)),
        Devices::Board => None,
    };
    let dispute = disputes::find(suite, &case.name);
    let (before, said) = match (from_qemu, from_kvm, dispute) {
        (Ok(report), None, _) => (report, None),
        (
            Ok(report),
            Some(run),
            Some(Dispute {
                right: Right::Qemu, ..
            })
            | None,
        ) => {
            let expected = corrected(suite, case, report.clone(), &mut Vec::new());
            (report, Some(compare(case, "kvm", &expected, run)))
        }
        (
            other,
            Some(Ok(outcome)),
            Some(Dispute {
                right: Right::Kvm, ..
            }),
        ) => {
            notes.clear();
            let report = case.report(&outcome);
            let expected = corrected(suite, case, report.clone(), &mut Vec::new());
            let said = match other {
                Ok(qemu) => differing("qemu", &differences(&expected, &qemu)),
                Err(e) => Said::Differs(format!("qemu: {e}")),
            };
            (report, Some(said))
        }
        (Err(e), ..) => return Ok((String::new(), Some(e.to_string()))),
        (_, Some(Err(e)), _) => return Err(e),
    };
    let expected = corrected(suite, case, before, &mut notes);
    let mut open = None;
    match (said, dispute) {
        (Some(Said::Differs(what)), None) => open = Some(what),
        (Some(Said::Differs(what)), Some(dispute)) => {
            notes.push(what);
            notes.push(format!("because: {}", dispute.why));
        }
        (Some(Said::Agrees(what) | Said::Cannot(what)), _) => notes.push(what),
        (None, _) => {}
    }
    Ok((block(&case.name, &expected, &notes), open))
}

/// What the oracle that does not decide said.
enum Said {
    Agrees(String),
    Cannot(String),
    Differs(String),
}

fn corrected(suite: &str, case: &Case, mut report: Report, notes: &mut Vec<String>) -> Report {
    for row in corrections::find(suite, &case.name) {
        for (key, value) in row.values {
            let value = (*value != "-").then_some(*value);
            correct(&mut report, key, value, row.why, notes);
        }
    }
    for Correction { key, value, why } in &case.corrections {
        correct(&mut report, key, value.as_deref(), why, notes);
    }
    report
}

/// Replaces, adds or (`None`) removes a key.
fn correct(
    report: &mut Report,
    key: &str,
    value: Option<&str>,
    why: &str,
    notes: &mut Vec<String>,
) {
    let at = report.iter().position(|(known, _)| known == key);
    let before = at.map_or("-", |at| report[at].1.as_str());
    if before == value.unwrap_or("-") {
        notes.push(format!("correction of {key} not needed"));
        return;
    }
    notes.push(format!("the oracle has {key}={before}: {why}"));
    match (at, value) {
        (Some(at), Some(value)) => value.clone_into(&mut report[at].1),
        (Some(at), None) => drop(report.remove(at)),
        (None, Some(value)) => insert(report, key, value),
        (None, None) => {}
    }
}

/// Puts a new key after the last one with its prefix.
fn insert(report: &mut Report, key: &str, value: &str) {
    let prefix = key.split('.').next().unwrap_or(key);
    let at = report
        .iter()
        .rposition(|(k, _)| k.split('.').next() == Some(prefix))
        .map_or(report.len(), |at| at + 1);
    report.insert(at, (key.to_owned(), value.to_owned()));
}

fn compare(case: &Case, who: &str, expected: &Report, run: io::Result<Outcome>) -> Said {
    let outcome = match run {
        Ok(outcome) => outcome,
        Err(e) => return Said::Cannot(format!("{who} refuses the state: {e}")),
    };
    if let End::Unsupported(what) = &outcome.end {
        return Said::Cannot(format!(
            "{who} cannot: {}",
            what.split(' ').next().unwrap_or(what)
        ));
    }
    differing(who, &differences(expected, &case.report(&outcome)))
}

fn differing(who: &str, differing: &[(String, String, String)]) -> Said {
    if differing.is_empty() {
        return Said::Agrees(format!("{who} agrees"));
    }
    let shown: Vec<String> = differing
        .iter()
        .take(12)
        .map(|(key, _, actual)| format!("{key}={actual}"))
        .collect();
    let more = match differing.len().saturating_sub(shown.len()) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Said::Differs(format!("{who} differs: {}{more}", shown.join(" ")))
}
