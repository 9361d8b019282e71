//! What QEMU TCG 7.2 is known to do otherwise than processors, as rules over reports. Each says from
//! where the right value is; `docs/verification.md` has the same list.

use super::{Case, Report};
use crate::guest::Outcome;

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
/// Error-code bits of segment faults: EXT and IDT.
const EXT: u64 = 1;
const IDT: u64 = 2;

/// QEMU does not set RF in the frames of faults; the CPU does (SDM vol. 3, 17.3.1.1). A double fault
/// follows a fault, whose delivery has set RF (/dev/kvm agrees).
pub(super) fn resume_flag(case: &Case, outcome: &mut Outcome) {
    for (index, event) in outcome.events.iter_mut().enumerate() {
        let fault = FAULTS.contains(&event.vector) || event.vector == 8;
        if fault && !case.software_events.contains(&index) {
            event.rflags |= RF;
        }
    }
}

/// The same in memory that a case watches as `frame`: CS, RFLAGS, RSP and SS are its last quadwords.
fn resume_flag_in_memory(report: &mut Report, notes: &mut Vec<String>) {
    let Some(flags) = value(report, "e0.rfl").filter(|flags| flags & RF != 0) else {
        return;
    };
    let Some((_, text)) = report.iter_mut().find(|(key, _)| key == "m.frame") else {
        return;
    };
    let at = text.len().saturating_sub(48);
    let pushed: String = (flags & !RF)
        .to_le_bytes()
        .map(|b| format!("{b:02x}"))
        .concat();
    if text.get(at..at + 16) == Some(pushed.as_str()) {
        let right: String = flags.to_le_bytes().map(|b| format!("{b:02x}")).concat();
        text.replace_range(at..at + 16, &right);
        notes.push("qemu has RF clear in m.frame: rule of RF".to_owned());
    }
}

/// LAR gives bits 16 to 19, the limit's, as they are in the descriptor (the host does so; undefined in
/// SDM vol. 2, LAR); QEMU clears them. All descriptors that the cases look at have them set.
fn access_rights(case: &Case, report: &mut Report, notes: &mut Vec<String>) {
    if !case.name.starts_with("inspect_") {
        return;
    }
    for key in ["r.rax", "e0.rax"] {
        if let Some(old) = value(report, key).filter(|old| old >> 32 == 0) {
            replace(report, key, old | 0xf_0000, "access rights", notes);
        }
    }
}

/// Applies the rules of a case and notes what each changed.
pub(super) fn apply(case: &Case, report: &mut Report, notes: &mut Vec<String>) {
    walks(case, report, notes);
    delivery(case, report, notes);
    stack_segment(case, report, notes);
    resume_flag_in_memory(report, notes);
    access_rights(case, report, notes);
}

fn value(report: &Report, key: &str) -> Option<u64> {
    let found = report.iter().find(|(k, _)| k == key);
    found.and_then(|(_, value)| number(value))
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn replace(report: &mut Report, key: &str, new: u64, rule: &str, notes: &mut Vec<String>) {
    for (_, text) in report.iter_mut().filter(|(k, _)| k == key) {
        if number(text) != Some(new) {
            notes.push(format!("qemu has {key}={text}: rule of {rule}"));
            *text = format!("{new:#x}");
        }
    }
}

/// In cases that end with one page fault:
/// - QEMU sets accessed bits of entries that a faulting walk read; the engine and KVM only when the
///   access succeeds. Both are allowed (SDM vol. 3, 4.8); the engine's choice is E7's.
/// - QEMU reports RSVD without P; RSVD can only be set if P is (SDM vol. 3, 4.7).
/// - QEMU translates the load of a read-modify-write first, as a read; processors check for the write
///   at once: W is set in the error code (SDM vol. 3, 4.7) and a first page that allows the write has
///   its dirty bit set when the second page faults (/dev/kvm at CPL 3 on family 19h).
fn walks(case: &Case, report: &mut Report, notes: &mut Vec<String>) {
    if value(report, "e0.vec") != Some(14) || value(report, "e1.vec").is_some() {
        return;
    }
    let modify = case.name.contains("_modify_");
    let second = case.name.starts_with("cross_second");
    let keys: Vec<String> = report.iter().map(|(key, _)| key.clone()).collect();
    for key in keys {
        let Some(old) = value(report, &key) else {
            continue;
        };
        let new = match key.as_str() {
            "e0.err" => old | if modify { WRITE } else { 0 } | u64::from(old & RESERVED != 0),
            "m.l1" | "m.l2" | "m.l3" | "m.l4" | "m.pte2" => old & !ACCESSED,
            "m.pte1" if !second => old & !ACCESSED,
            "m.pte1" if modify => old | ACCESSED | DIRTY,
            _ => old,
        };
        replace(report, &key, new, "faulting walks", notes);
    }
}

/// A fault met while an event is delivered: QEMU numbers IDT entries by sixteen bytes where the error
/// code counts eight (SDM vol. 3, 6.13: the index is that of the vector), and leaves EXT clear where
/// the event did not come from INT n or INT3 (SDM vol. 3, 6.13).
fn delivery(case: &Case, report: &mut Report, notes: &mut Vec<String>) {
    let Some(delivery) = case.delivery else {
        return;
    };
    let (Some(vector), Some(error)) = (value(report, "e0.vec"), value(report, "e0.err")) else {
        return;
    };
    if !(10..=13).contains(&vector) || vector == u64::from(delivery.vector) {
        return;
    }
    let entry = u64::from(delivery.vector);
    let by_entry = if error == entry * 16 + IDT {
        entry * 8 + IDT
    } else {
        error
    };
    let new = by_entry | if delivery.software { 0 } else { EXT };
    replace(report, "e0.err", new, "error codes in delivery", notes);
}

/// QEMU makes SS null on a switch to an interrupt stack at the same level; only a change of level
/// does (SDM vol. 3, 6.14.2).
fn stack_segment(case: &Case, report: &mut Report, notes: &mut Vec<String>) {
    let inner = value(report, "e0.cs").is_some_and(|cs| cs & 3 == 0);
    if !case.interrupt_stack || !inner {
        return;
    }
    let data = u64::from(crate::guest::layout::sel::DATA);
    let nested: Vec<String> = report
        .iter()
        .filter(|(key, text)| key.ends_with(".ss") && key != "r.ss" && text == "0x0")
        .map(|(key, _)| key.clone())
        .collect();
    for key in nested {
        replace(report, &key, data, "interrupt stacks", notes);
    }
    let before = report.len();
    report.retain(|(key, text)| key != "r.ss" || text != "0x0");
    if report.len() != before {
        notes.push("qemu has r.ss=0x0: rule of interrupt stacks".to_owned());
    }
}
