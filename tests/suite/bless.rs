//! Making golden files from the oracles.

use super::golden::{block, differences};
use super::{Case, Devices, Report, Suite};
use crate::guest::{End, Outcome};
use crate::oracle::kvm::KvmOracle;
use crate::oracle::qemu::Qemu;
use std::io;

/// RF, bit 16.
const RF: u64 = 1 << 16;
/// Accessed bit of a page-table entry.
const ACCESSED: u64 = 1 << 5;
/// Dirty bit of a page-table entry.
const DIRTY: u64 = 1 << 6;
/// W of a page fault's error code.
const WRITE: u64 = 1 << 1;
/// RSVD of a page fault's error code.
const RESERVED: u64 = 1 << 3;
/// Fault-class vectors (SDM vol. 3, table 6-1).
const FAULTS: [u64; 12] = [0, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19];

/// The golden file's text. A run on KVM that ends otherwise than on QEMU because its emulator gave up
/// is noted; every other difference is noted key by key.
///
/// # Errors
/// QEMU cannot be run, or there is no /dev/kvm.
pub fn golden(suite: &Suite, only: &dyn Fn(&str) -> bool) -> io::Result<Vec<(String, String)>> {
    let qemu = Qemu::new()?;
    let kvm = KvmOracle::new()?;
    let mut blocks = Vec::new();
    for case in suite.cases.iter().filter(|case| only(&case.name)) {
        let guest = case.guest();
        let mut outcome = qemu.run(&guest)?;
        correct_rf(case, &mut outcome);
        let mut notes = Vec::new();
        let mut report = case.report(&outcome);
        walk_rules(case, &mut report, &mut notes);
        let expected = corrected(case, report, &mut notes);
        if case.devices == Devices::None {
            notes.push(compare_kvm(case, &expected, kvm.run(&guest)));
        }
        blocks.push((case.name.clone(), block(&case.name, &expected, &notes)));
    }
    Ok(blocks)
}

/// Where QEMU is known to be otherwise than processors, in cases that end with one page fault:
/// - QEMU sets accessed bits of entries that a faulting walk read; the engine and KVM only when the
///   access succeeds. Both are allowed (SDM vol. 3, 4.8); the engine's choice is E7's.
/// - QEMU reports RSVD without P; RSVD can only be set if P is (SDM vol. 3, 4.7).
/// - QEMU translates the load of a read-modify-write first, as a read; processors check for the write
///   at once: W is set in the error code (SDM vol. 3, 4.7) and a first page that allows the write has
///   its dirty bit set when the second page faults (/dev/kvm at CPL 3 on family 19h).
fn walk_rules(case: &Case, report: &mut Report, notes: &mut Vec<String>) {
    let value = |report: &Report, key: &str| {
        let found = report.iter().find(|(k, _)| k == key);
        found.and_then(|(_, value)| number(value))
    };
    if value(report, "e0.vec") != Some(14) || value(report, "e1.vec").is_some() {
        return;
    }
    let modify = case.name.contains("_modify_");
    let second = case.name.starts_with("cross_second");
    for (key, text) in report.iter_mut() {
        let Some(old) = number(text) else { continue };
        let new = match key.as_str() {
            "e0.err" => old | if modify { WRITE } else { 0 } | u64::from(old & RESERVED != 0),
            "m.l1" | "m.l2" | "m.l3" | "m.l4" | "m.pte2" => old & !ACCESSED,
            "m.pte1" if !second => old & !ACCESSED,
            "m.pte1" if modify => old | ACCESSED | DIRTY,
            _ => old,
        };
        if new != old {
            notes.push(format!("qemu has {key}={text}: rule of faulting walks"));
            *text = format!("{new:#x}");
        }
    }
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// QEMU does not set RF in the frames of faults; the CPU does (SDM vol. 3, 17.3.1.1).
fn correct_rf(case: &Case, outcome: &mut Outcome) {
    for (index, event) in outcome.events.iter_mut().enumerate() {
        if FAULTS.contains(&event.vector) && !case.software_events.contains(&index) {
            event.rflags |= RF;
        }
    }
}

fn corrected(case: &Case, mut report: Report, notes: &mut Vec<String>) -> Report {
    for correction in &case.corrections {
        let at = report.iter().position(|(key, _)| *key == correction.key);
        let before = at.map_or("-", |at| report[at].1.as_str());
        let after = correction.value.as_deref().unwrap_or("-");
        if before == after {
            notes.push(format!("correction of {} not needed", correction.key));
            continue;
        }
        notes.push(format!(
            "qemu has {}={before}: {}",
            correction.key, correction.why
        ));
        match (at, &correction.value) {
            (Some(at), Some(value)) => report[at].1.clone_from(value),
            (Some(at), None) => drop(report.remove(at)),
            (None, Some(value)) => insert(&mut report, &correction.key, value),
            (None, None) => {}
        }
    }
    report
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

fn compare_kvm(case: &Case, expected: &Report, run: io::Result<Outcome>) -> String {
    let outcome = match run {
        Ok(outcome) => outcome,
        Err(e) => return format!("kvm refuses the state: {e}"),
    };
    if let End::Unsupported(what) = &outcome.end {
        return format!("kvm cannot: {}", what.split(' ').next().unwrap_or(what));
    }
    let differing = differences(expected, &case.report(&outcome));
    if differing.is_empty() {
        return "kvm agrees".to_owned();
    }
    if outcome.events.len() > 4 {
        return format!("kvm differs: {} events", outcome.events.len());
    }
    let list: Vec<String> = differing
        .iter()
        .map(|(key, _, actual)| format!("{key}={actual}"))
        .collect();
    format!("kvm differs: {}", list.join(" "))
}
