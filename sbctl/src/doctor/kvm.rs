//! What is tried of KVM. The trials themselves are in `kvm_recorder::kvm::examine`.

use super::check::{Check, Group};
use crate::quantity::Grouped;
use kvm_recorder::kvm::examine::{self, Level, NATIVE_PER_SECOND};
use kvm_recorder::kvm::{DirtyLog, Host, KvmError};
use machine::conformance::Results;
use machine::cpuid::CpuidTable;
use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

const KVM: Group = Group::Kvm;

/// One thing to try.
type Trial = fn(&Host) -> Check;

/// What is tried once KVM can be opened, in this order.
const TRIALS: [(&str, Trial); 10] = [
    ("kernel-speed", |host| {
        speed(host, "kernel-speed", Level::Kernel)
    }),
    ("user-speed", |host| speed(host, "user-speed", Level::User)),
    ("results", results),
    ("cpuid", cpuid),
    ("window", window),
    ("msr-exits", msr_exits),
    ("dirty-pages", dirty_pages),
    ("userfaultfd", userfaultfd),
    ("tsc", tsc),
    ("pmu", pmu),
];

/// Tries everything; the host, if KVM can be used at all.
pub(super) fn examine(device: &Path) -> (Vec<Check>, Option<Host>) {
    let mut checks = vec![present(device)];
    let host = open(device, &mut checks);
    checks.extend(TRIALS.map(|(id, trial)| match &host {
        Some(host) => trial(host),
        None => Check::skipped(KVM, id, "not tried without KVM"),
    }));
    (checks, host)
}

fn present(device: &Path) -> Check {
    let path = device.display();
    match std::fs::metadata(device) {
        Ok(metadata) if metadata.file_type().is_char_device() => {
            Check::ok(KVM, "present", format!("{path} is there"))
        }
        Ok(_) => Check::no(KVM, "present", format!("{path} is no device")),
        Err(error) => {
            let finding = format!("there is no {path} ({error})");
            Check::no(KVM, "present", finding).advise(how_to_get_kvm(&cpu_flags()))
        }
    }
}

fn cpu_flags() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.unwrap_or_default().to_owned()
}

fn how_to_get_kvm(flags: &str) -> &'static str {
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    if has("vmx") {
        "the processor has VT-x: `sudo modprobe kvm_intel`; in a container, pass the device in \
         (`--device /dev/kvm`)"
    } else if has("svm") {
        "the processor has AMD-V: `sudo modprobe kvm_amd`; in a container, pass the device in \
         (`--device /dev/kvm`)"
    } else {
        "turn on VT-x or AMD-V (\"virtualisation\") in the firmware; in a virtual machine, turn on nested \
         virtualisation for it"
    }
}

/// Opens the device: checks `permissions` and `api`.
fn open(device: &Path, checks: &mut Vec<Check>) -> Option<Host> {
    let path = CString::new(device.as_os_str().as_bytes()).ok()?;
    let (permissions, api, host) = match Host::open_at(&path) {
        Ok(host) => (
            Check::ok(
                KVM,
                "permissions",
                "it can be opened for reading and writing",
            ),
            Check::ok(
                KVM,
                "api",
                "version 12, as on every Linux of the last decade",
            ),
            Some(host),
        ),
        Err(KvmError::Open { source }) => (
            refused(device, &source),
            Check::skipped(KVM, "api", "not tried without KVM"),
            None,
        ),
        Err(error) => (
            Check::ok(
                KVM,
                "permissions",
                "it can be opened for reading and writing",
            ),
            Check::no(KVM, "api", error.to_string())
                .advise("a Linux kernel of 4.13 or later, with its own KVM"),
            None,
        ),
    };
    checks.extend([permissions, api]);
    host
}

fn refused(device: &Path, error: &io::Error) -> Check {
    if error.kind() == ErrorKind::NotFound {
        return Check::skipped(KVM, "permissions", "there is nothing to open");
    }
    let check = Check::no(KVM, "permissions", format!("it cannot be opened: {error}"));
    match (error.kind(), std::fs::metadata(device)) {
        (ErrorKind::PermissionDenied, Ok(metadata)) => check.advise(how_to_be_let_in(
            &device.display().to_string(),
            group_name(metadata.gid()).as_deref(),
            metadata.mode(),
        )),
        _ => check,
    }
}

fn how_to_be_let_in(device: &str, group: Option<&str>, mode: u32) -> String {
    const GROUP_WRITES: u32 = 0o060;
    match group {
        Some(group) if group != "root" && mode & GROUP_WRITES == GROUP_WRITES => {
            format!("`sudo usermod -aG {group} $USER`, then log in anew")
        }
        _ => format!("`sudo setfacl -m u:$USER:rw {device}` (until the next boot)"),
    }
}

fn group_name(gid: u32) -> Option<String> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let gid = gid.to_string();
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid).then(|| name.to_owned())
    })
}

fn speed(host: &Host, id: &'static str, level: Level) -> Check {
    let code = match level {
        Level::Kernel => "kernel code",
        Level::User => "user code",
    };
    let speed = match examine::speed(host, level) {
        Ok(speed) => speed,
        Err(error) => return Check::no(KVM, id, format!("{code} cannot be run: {error}")),
    };
    let millions = speed / 1e6;
    let check = match speed >= NATIVE_PER_SECOND {
        true => Check::ok(
            KVM,
            id,
            format!("{code} runs natively: {millions:.0} million instructions per second"),
        ),
        false => Check::no(
            KVM,
            id,
            format!(
                "{code} is emulated: {millions:.1} million instructions per second, where processors \
                 execute thousands"
            ),
        )
        .advise("a host with VT-x or AMD-V, or nested virtualisation, instead of a KVM made of software"),
    };
    check.measured("instructions_per_second", speed.round())
}

fn results(host: &Host) -> Check {
    const ID: &str = "results";
    let native = match Results::of_host() {
        Ok(native) => native,
        Err(unsteady) => return Check::no(KVM, ID, unsteady.to_string()),
    };
    let mut check = Check::ok(
        KVM,
        ID,
        "guests find the processor's own results, flags and approximations included",
    );
    for (level, code) in Level::BOTH.into_iter().zip(["kernel", "user"]) {
        let found = match examine::results(host, level) {
            Ok(found) => found,
            Err(error) => {
                return Check::no(KVM, ID, format!("in {code} code: {error}"));
            }
        };
        let names: Vec<&str> = native.differing(&found).map(|kind| kind.name).collect();
        if !names.is_empty() {
            let finding = format!(
                "{code} code gets other results than the processor gives: {}",
                names.join(", ")
            );
            check = Check::no(KVM, ID, finding).measured("differing", names);
        }
    }
    check
}

fn cpuid(host: &Host) -> Check {
    const ID: &str = "cpuid";
    let differences = match examine::cpuid(host, &CpuidTable::of_host()) {
        Ok(differences) => differences,
        Err(error) => return Check::no(KVM, ID, error.to_string()),
    };
    if differences.is_empty() {
        return Check::ok(KVM, ID, "guests find the CPUID table that they are given");
    }
    let leaves: Vec<String> = differences
        .iter()
        .map(|difference| format!("{:#x}", difference.input[0]))
        .collect();
    let finding = format!(
        "guests find another CPUID table than they are given, in leaves {}: they would use what the \
         simulator lacks",
        leaves.join(", ")
    );
    Check::no(KVM, ID, finding).measured("leaves", leaves)
}

fn window(host: &Host) -> Check {
    const ID: &str = "window";
    match host.exact_windows() {
        Ok(true) => Check::ok(KVM, ID, "interrupt windows are reported where they open"),
        Ok(false) => Check::limited(
            KVM,
            ID,
            "interrupt windows are reported later than they open: interrupts are placed by landmarks, \
             which the simulator has to search for",
        ),
        Err(error) => Check::no(KVM, ID, error.to_string()),
    }
}

fn msr_exits(host: &Host) -> Check {
    const ID: &str = "msr-exits";
    match host.capabilities().user_space_msrs {
        true => Check::ok(KVM, ID, "accesses to model-specific registers can be logged"),
        false => Check::limited(
            KVM,
            ID,
            "accesses to model-specific registers cannot be logged: a guest that reads the time stamp \
             counter as one does not replay",
        )
        .advise("Linux 5.10 or later"),
    }
}

fn dirty_pages(host: &Host) -> Check {
    const ID: &str = "dirty-pages";
    let check = match DirtyLog::best(host) {
        DirtyLog::Ring => Check::ok(KVM, ID, "written pages are told by a ring"),
        DirtyLog::Bitmap => Check::ok(
            KVM,
            ID,
            "written pages are told by a bitmap that is read without protecting them again",
        ),
        DirtyLog::ProtectedBitmap => Check::limited(
            KVM,
            ID,
            "written pages are told by a bitmap that protects all pages whenever it is read",
        )
        .advise("Linux 5.0 or later"),
    };
    let capabilities = host.capabilities();
    check
        .measured("ring_bytes", capabilities.dirty_ring_bytes)
        .measured("manual_protect", capabilities.manual_protect)
}

fn userfaultfd(host: &Host) -> Check {
    const ID: &str = "userfaultfd";
    let limited = |why: String| {
        Check::limited(
            KVM,
            ID,
            format!("no write protection ({why}): the guest stands still while pages are copied"),
        )
        .advise(
            "Linux 5.7 or later, and the right to use it: `sudo setfacl -m u:$USER:rw \
             /dev/userfaultfd`, or `sudo sysctl vm.unprivileged_userfaultfd=1`",
        )
    };
    match examine::holds_writes(host) {
        Ok(Ok(())) => Check::ok(
            KVM,
            ID,
            "the guest runs on while the pages of a checkpoint are copied",
        ),
        Ok(Err(error)) => limited(error.to_string()),
        Err(error) => limited(error.to_string()),
    }
}

fn tsc(host: &Host) -> Check {
    const ID: &str = "tsc";
    let tsc = match examine::tsc(host) {
        Ok(tsc) => tsc,
        Err(error) => return Check::limited(KVM, ID, error.to_string()),
    };
    let frozen = tsc.slowed && 2 * tsc.stood_still > tsc.tries;
    let check = match frozen {
        true => Check::ok(
            KVM,
            ID,
            "the time stamp counter can be made to stand still between two exits",
        ),
        false => Check::limited(
            KVM,
            ID,
            "the time stamp counter cannot be made to stand still: it is hidden from guests, and one that \
             reads it all the same does not replay from there on",
        )
        .advise("a processor with TSC scaling (Intel since 2015, AMD since 2012), not virtualised"),
    };
    check
        .measured("scaling", host.capabilities().tsc_scaling)
        .measured("offset", host.capabilities().tsc_offset)
        .measured(
            "stood_still",
            format!("{} of {}", tsc.stood_still, tsc.tries),
        )
}

fn pmu(host: &Host) -> Check {
    const ID: &str = "pmu";
    match examine::branches(host) {
        Ok(Ok(branches)) => {
            let [least, most] = branches.counted;
            let steady = least == most && least >= branches.executed;
            let counted = format!(
                "{} to {} branches counted of {}",
                Grouped(least),
                Grouped(most),
                Grouped(branches.executed)
            );
            match steady {
                true => Check::ok(
                    KVM,
                    ID,
                    format!("branches of guests can be counted: {counted}"),
                ),
                false => Check::limited(
                    KVM,
                    ID,
                    format!("branches are not counted exactly: {counted}"),
                ),
            }
        }
        Ok(Err(error)) => Check::limited(
            KVM,
            ID,
            format!(
                "no branch counter ({error}): nothing depends on it, replay only searches longer"
            ),
        ),
        Err(error) => Check::limited(KVM, ID, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_fits_what_is_missing() {
        assert!(how_to_get_kvm("flags : fpu vmx sse").contains("kvm_intel"));
        assert!(how_to_get_kvm("flags : fpu svm").contains("kvm_amd"));
        assert!(how_to_get_kvm("flags : fpu svm_lock").contains("firmware"));
        let advice = how_to_be_let_in("/dev/kvm", Some("kvm"), 0o20660);
        assert!(advice.contains("usermod -aG kvm"), "{advice}");
        for (group, mode) in [(Some("root"), 0o660), (Some("kvm"), 0o600), (None, 0o660)] {
            let advice = how_to_be_let_in("/dev/kvm", group, mode);
            assert!(advice.contains("setfacl"), "{advice}");
        }
        assert_eq!(group_name(0).as_deref(), Some("root"));
        assert_eq!(group_name(u32::MAX), None);
    }

    #[test]
    fn who_may_not_open_it_is_told_what_to_do() {
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        let check = refused(Path::new("/dev/null"), &denied);
        assert!(check.advice.is_some());
        let gone = refused(Path::new("/nowhere"), &ErrorKind::NotFound.into());
        assert_eq!(gone.status, super::super::check::Status::Skipped);
    }
}
