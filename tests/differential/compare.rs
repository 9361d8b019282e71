//! What must be equal at the end of a sequence, and the few rules for what need not be.

use super::case::Case;
use super::layout::{IMAGE_BYTES, image_address};
use super::registers::{End, FxImage, Outcome, Registers};
use super::vendor::Vendor;
use std::fmt::{self, Display};

/// From here up the host's kernel reports a page fault as a protection violation whether or not
/// anything is mapped, to hide its own layout.
const KERNEL_HALF: u64 = 0x7fff_ffff_f000;
/// P bit of a page-fault error code.
const PRESENT: u64 = 1;

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// The first item in which two ends of a sequence differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the item: a register, "end" or "memory".
    pub item: String,
    /// Value on the first side.
    pub expected: String,
    /// Value on the second side.
    pub actual: String,
}

impl Difference {
    /// The item without what may change while a case is made smaller.
    pub fn kind(&self) -> &str {
        let word = self.item.split(' ').next().unwrap_or_default();
        word.trim_end_matches(|c: char| c.is_ascii_digit())
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            item,
            expected,
            actual,
        } = self;
        write!(f, "{item}: expected {expected}, got {actual}")
    }
}

/// The end of a sequence on one side.
#[derive(Clone, Copy, Debug)]
pub struct Final<'a> {
    /// Registers and reason.
    pub outcome: &'a Outcome,
    /// Memory image.
    pub memory: &'a [u8; IMAGE_BYTES],
}

/// Whether an end says nothing about the other side: it did not come in time, or is a system call.
pub fn is_comparable(end: End) -> bool {
    matches!(end, End::Exception { .. })
}

/// The first difference in the order: end, RIP, general registers, flags, segments, x87, SSE, memory.
pub fn difference(expected: Final<'_>, actual: Final<'_>) -> Option<Difference> {
    let (a, b) = (&expected.outcome.registers, &actual.outcome.registers);
    end(expected.outcome.end, actual.outcome.end)
        .or_else(|| integer(a, b))
        .or_else(|| segments(a, b))
        .or_else(|| fpu(&a.fpu, &b.fpu))
        .or_else(|| memory(expected.memory, actual.memory))
}

fn unequal(item: &str, expected: impl fmt::LowerHex, actual: impl fmt::LowerHex) -> Difference {
    Difference {
        item: item.to_owned(),
        expected: format!("{expected:#x}"),
        actual: format!("{actual:#x}"),
    }
}

fn check<T: PartialEq + fmt::LowerHex>(item: &str, expected: T, actual: T) -> Option<Difference> {
    (expected != actual).then(|| unequal(item, expected, actual))
}

fn end(expected: End, actual: End) -> Option<Difference> {
    (visible(expected) != visible(actual)).then(|| Difference {
        item: "end".to_owned(),
        expected: format!("{expected:x?}"),
        actual: format!("{actual:x?}"),
    })
}

fn visible(end: End) -> End {
    match end {
        End::Exception {
            vector: 14,
            error,
            cr2,
        } if cr2 >= KERNEL_HALF => End::Exception {
            vector: 14,
            error: error | PRESENT,
            cr2,
        },
        other => other,
    }
}

fn integer(a: &Registers, b: &Registers) -> Option<Difference> {
    check("rip", a.rip, b.rip)
        .or_else(|| (0..16).find_map(|n| check(GPR[n], a.gpr[n], b.gpr[n])))
        .or_else(|| check("rflags", a.rflags, b.rflags))
}

fn segments(a: &Registers, b: &Registers) -> Option<Difference> {
    (0..6)
        .find_map(|n| check(SEGMENTS[n], selector(a, n), selector(b, n)))
        .or_else(|| check("fs base", a.fs_base, b.fs_base))
        .or_else(|| check("gs base", a.gs_base, b.gs_base))
}

/// A selector as the native side can see it: null selectors lose their RPL on the way to the signal
/// handler (the kernel's IRET loads zero for them). Reads within a sequence compare it all the same.
fn selector(registers: &Registers, index: usize) -> u16 {
    match registers.selectors[index] {
        0..=3 => 0,
        other => other,
    }
}

fn fpu(a: &FxImage, b: &FxImage) -> Option<Difference> {
    if a.0[..FxImage::STATE_BYTES] == b.0[..FxImage::STATE_BYTES] {
        return None;
    }
    check("fcw", a.fcw(), b.fcw())
        .or_else(|| check("fsw", a.fsw(), b.fsw()))
        .or_else(|| check("ftw", a.ftw(), b.ftw()))
        .or_else(|| (0..8).find_map(|n| check(&format!("st{n}"), a.st(n), b.st(n))))
        .or_else(|| check("mxcsr", a.mxcsr(), b.mxcsr()))
        .or_else(|| (0..16).find_map(|n| check(&format!("xmm{n}"), a.xmm(n), b.xmm(n))))
        .or_else(|| pointers(a, b))
}

fn memory(a: &[u8; IMAGE_BYTES], b: &[u8; IMAGE_BYTES]) -> Option<Difference> {
    if a == b {
        return None;
    }
    let at = (0..IMAGE_BYTES).find(|&n| a[n] != b[n])?;
    let item = format!("memory at {:#x}", image_address(at));
    Some(unequal(&item, a[at], b[at]))
}

/// Where a case first differs, with what is needed to read it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The seed that the generator made the case from.
    pub seed: u64,
    /// The case, as generated or made smaller.
    pub case: Case,
    /// The difference.
    pub difference: Difference,
}

/// The x87 pointers, where the native side can see them: AMD's FXSAVE gives them only while an
/// unmasked exception waits (APM vol. 5, FXSAVE), and the host's signal frame is such an image. FNSTENV
/// within a sequence compares them in memory all the same.
fn pointers(a: &FxImage, b: &FxImage) -> Option<Difference> {
    const EXCEPTION_SUMMARY: u16 = 0x80;
    if Vendor::of_host().is_amd() && a.fsw() & EXCEPTION_SUMMARY == 0 {
        return None;
    }
    check("fop", a.fop(), b.fop())
        .or_else(|| check("fip", a.fip(), b.fip()))
        .or_else(|| check("fdp", a.fdp(), b.fdp()))
}
