//! Cases as text, for reports and for the regression cases kept beside this file.
//!
//! One item per line, `name value`; what is not named has its usual value. `code` lines follow one
//! another in memory, one instruction each. `#` starts a comment.

use super::case::Case;
use super::compare::Finding;
use super::generator::decoder_options;
use super::layout::{IMAGE_BYTES, image_address};
use super::registers::{FxImage, Outcome, Registers, START_SELECTORS};
use iced_x86::{Decoder, Formatter, IntelFormatter};
use std::fmt::{self, Display, Write};

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Why a text is not a case.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}: {text:?}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
    /// The line.
    pub text: String,
}

impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "image {}", self.image)?;
        writeln!(f, "code-at {:#x}", self.code_at)?;
        if self.start.rip != self.code_at {
            writeln!(f, "rip {:#x}", self.start.rip)?;
        }
        for (index, &start) in self.instructions.iter().enumerate() {
            let end = self.instructions.get(index + 1).copied();
            let bytes = &self.code[start..end.unwrap_or(self.code.len())];
            let mut hex = String::new();
            for byte in bytes {
                write!(hex, " {byte:02x}")?;
            }
            let at = self.code_at + start as u64;
            writeln!(f, "code{hex:<46} # {at:#x} {}", disassemble(bytes, at))?;
        }
        write_registers(f, &self.start)
    }
}

/// The cases of a text, divided by lines `---`.
///
/// # Errors
/// [`ParseError`] of the first case that is none; lines count from the start of the case.
pub fn parse_all(text: &str) -> Result<Vec<Case>, ParseError> {
    text.split("\n---\n").map(str::parse).collect()
}

fn disassemble(bytes: &[u8], at: u64) -> String {
    let decoded = Decoder::with_ip(64, bytes, at, decoder_options()).decode();
    let mut text = String::new();
    IntelFormatter::new().format(&decoded, &mut text);
    text
}

fn write_registers(f: &mut fmt::Formatter<'_>, start: &Registers) -> fmt::Result {
    for (name, value) in GPR.iter().zip(start.gpr) {
        if value != 0 {
            writeln!(f, "{name} {value:#x}")?;
        }
    }
    for (name, get, _) in SCALARS {
        let usual = get(&usual());
        if get(start) != usual {
            writeln!(f, "{name} {:#x}", get(start))?;
        }
    }
    for index in (0..8).filter(|&n| start.fpu.st(n) != 0) {
        writeln!(f, "st{index} {:#x}", start.fpu.st(index))?;
    }
    for index in (0..16).filter(|&n| start.fpu.xmm(n) != 0) {
        writeln!(f, "xmm{index} {:#x}", start.fpu.xmm(index))?;
    }
    Ok(())
}

fn usual() -> Registers {
    Registers {
        rflags: 0x202,
        selectors: START_SELECTORS,
        fpu: FxImage::default(),
        ..Registers::default()
    }
}

type Scalar = (&'static str, fn(&Registers) -> u64, fn(&mut Registers, u64));

const SCALARS: [Scalar; 10] = [
    ("rflags", |r| r.rflags, |r, v| r.rflags = v),
    ("fs-base", |r| r.fs_base, |r, v| r.fs_base = v),
    ("gs-base", |r| r.gs_base, |r, v| r.gs_base = v),
    (
        "fcw",
        |r| r.fpu.fcw().into(),
        |r, v| r.fpu.set_fcw(v as u16),
    ),
    (
        "fsw",
        |r| r.fpu.fsw().into(),
        |r, v| r.fpu.set_fsw(v as u16),
    ),
    ("ftw", |r| r.fpu.ftw().into(), |r, v| r.fpu.set_ftw(v as u8)),
    (
        "fop",
        |r| r.fpu.fop().into(),
        |r, v| r.fpu.set_fop(v as u16),
    ),
    ("fip", |r| r.fpu.fip(), |r, v| r.fpu.set_fip(v)),
    ("fdp", |r| r.fpu.fdp(), |r, v| r.fpu.set_fdp(v)),
    (
        "mxcsr",
        |r| r.fpu.mxcsr().into(),
        |r, v| r.fpu.set_mxcsr(v as u32),
    ),
];

impl std::str::FromStr for Case {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut case = Case {
            start: usual(),
            image: 0,
            code_at: 0,
            code: Vec::new(),
            instructions: Vec::new(),
        };
        for (index, full) in text.lines().enumerate() {
            let line = full.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            set(&mut case, name, value.trim()).map_err(|what| ParseError {
                line: index + 1,
                what,
                text: full.to_owned(),
            })?;
        }
        if case.start.rip == 0 {
            case.start.rip = case.code_at;
        }
        if case.code.is_empty() || !case.fits() {
            return Err(ParseError {
                line: 0,
                what: "no code, or code outside its region",
                text: String::new(),
            });
        }
        Ok(case)
    }
}

fn set(case: &mut Case, name: &str, value: &str) -> Result<(), &'static str> {
    if name == "code" {
        case.instructions.push(case.code.len());
        for byte in value.split_whitespace() {
            let byte = u8::from_str_radix(byte, 16).map_err(|_| "a byte is not hexadecimal")?;
            case.code.push(byte);
        }
        return Ok(());
    }
    let number = match value.strip_prefix("0x") {
        Some(hex) => u128::from_str_radix(hex, 16),
        None => value.parse(),
    }
    .map_err(|_| "not a number")?;
    let low = number as u64;
    let numbered = |prefix: &str, bound: usize| {
        let index: usize = name.strip_prefix(prefix)?.parse().ok()?;
        (index < bound).then_some(index)
    };
    if name == "image" {
        case.image = u8::try_from(number)
            .ok()
            .filter(|&n| n < super::image::IMAGES)
            .ok_or("no such image")?;
    } else if name == "code-at" {
        case.code_at = low;
    } else if name == "rip" {
        case.start.rip = low;
    } else if let Some(index) = GPR.iter().position(|&n| n == name) {
        case.start.gpr[index] = low;
    } else if let Some((_, _, put)) = SCALARS.iter().find(|(n, _, _)| *n == name) {
        put(&mut case.start, low);
    } else if let Some(index) = numbered("st", 8) {
        case.start.fpu.set_st(index, number);
    } else if let Some(index) = numbered("xmm", 16) {
        case.start.fpu.set_xmm(index, number);
    } else {
        return Err("unknown name");
    }
    Ok(())
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# seed {}", self.seed)?;
        writeln!(f, "# {}", self.difference)?;
        write!(f, "{}", self.case)
    }
}

/// How a case ended, in one line: what changed.
pub(super) fn describe(
    case: &Case,
    before: &[u8; IMAGE_BYTES],
    end: Result<(Outcome, &[u8; IMAGE_BYTES]), String>,
) -> String {
    let (outcome, memory) = match end {
        Ok(end) => end,
        Err(failure) => return failure,
    };
    let (old, new) = (&case.start, &outcome.registers);
    let mut text = format!("{:x?} at {:#x}", outcome.end, new.rip);
    let mut put = |name: String, old: u128, new: u128| {
        if old != new {
            text += &format!(", {name} {new:#x}");
        }
    };
    for (name, (old, new)) in GPR.iter().zip(old.gpr.into_iter().zip(new.gpr)) {
        put((*name).to_owned(), old.into(), new.into());
    }
    for (name, get, _) in SCALARS {
        put(name.to_owned(), get(old).into(), get(new).into());
    }
    for n in 0..8 {
        put(format!("st{n}"), old.fpu.st(n), new.fpu.st(n));
    }
    for n in 0..16 {
        put(format!("xmm{n}"), old.fpu.xmm(n), new.fpu.xmm(n));
    }
    for (at, (&old, &new)) in before.iter().zip(memory).enumerate() {
        put(
            format!("[{:#x}]", image_address(at)),
            old.into(),
            new.into(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::generator::Generator;
    use super::*;

    #[test]
    fn text_holds_the_whole_case() {
        let mut generator = Generator::default();
        for seed in 0..300 {
            let case = generator.case(seed);
            assert_eq!(case.to_string().parse(), Ok(case), "seed {seed}");
        }
    }

    #[test]
    fn damaged_text_is_refused_with_its_line() {
        for (text, line) in [
            ("image 99\ncode 90", 1),
            ("code 90\nrax zz", 2),
            ("code 9g", 1),
            ("code-at 0x10000000\ncode 90\n\nrxx 1", 4),
            ("code-at 0x10000000", 0),
            ("code-at 0x10001fff\ncode 90 90", 0),
        ] {
            assert_eq!(
                text.parse::<Case>().map_err(|e| e.line),
                Err(line),
                "{text}"
            );
        }
    }
}
