//! Registers that differ, by name.

use machine::state::{CpuState, DescriptorTable, FpuState, Msrs, Segment};
use std::fmt;

/// A register whose value is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterDifference {
    /// Its name, as in manuals where it has one.
    pub name: String,
    /// Value in the checkpoint.
    pub expected: u128,
    /// Value in the simulation.
    pub actual: u128,
}

impl fmt::Display for RegisterDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            expected,
            actual,
        } = self;
        write!(f, "{name}: expected {expected:#x}, found {actual:#x}")
    }
}

const GPR: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15",
];
const SEGMENTS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];

/// The registers that differ, RIP first.
pub fn differences(expected: &CpuState, actual: &CpuState) -> Vec<RegisterDifference> {
    let pairs = named(expected).into_iter().zip(named(actual));
    pairs
        .filter(|((_, expected), (_, actual))| expected != actual)
        .map(|((name, expected), (_, actual))| RegisterDifference {
            name,
            expected,
            actual,
        })
        .collect()
}

type Named = Vec<(String, u128)>;

fn named(cpu: &CpuState) -> Named {
    let CpuState {
        gpr,
        rip,
        rflags,
        segs,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        xcr0,
        dr,
        dr6,
        dr7,
        msrs,
        fpu,
        shadow,
        held_breakpoints,
        activity,
    } = cpu;
    let mut out = Named::new();
    words(&mut out, &[("RIP", *rip), ("RFLAGS", *rflags)]);
    out.extend(
        GPR.iter()
            .zip(gpr)
            .map(|(name, value)| ((*name).into(), u128::from(*value))),
    );
    for (name, segment) in SEGMENTS
        .iter()
        .zip(segs)
        .chain([(&"LDTR", ldtr), (&"TR", tr)])
    {
        put_segment(&mut out, name, segment);
    }
    for (name, DescriptorTable { base, limit }) in [("GDTR", gdtr), ("IDTR", idtr)] {
        out.push((format!("{name} base"), u128::from(*base)));
        out.push((format!("{name} limit"), u128::from(*limit)));
    }
    words(
        &mut out,
        &[("CR0", *cr0), ("CR2", *cr2), ("CR3", *cr3), ("CR4", *cr4)],
    );
    words(
        &mut out,
        &[
            ("CR8", *cr8),
            ("XCR0", *xcr0),
            ("DR0", dr[0]),
            ("DR1", dr[1]),
        ],
    );
    words(
        &mut out,
        &[("DR2", dr[2]), ("DR3", dr[3]), ("DR6", *dr6), ("DR7", *dr7)],
    );
    put_msrs(&mut out, msrs);
    put_fpu(&mut out, fpu);
    words(
        &mut out,
        &[
            ("interrupt shadow", *shadow as u64),
            ("held breakpoints", u64::from(*held_breakpoints)),
            ("activity", *activity as u64),
        ],
    );
    out
}

fn words(out: &mut Named, words: &[(&str, u64)]) {
    out.extend(
        words
            .iter()
            .map(|(name, value)| ((*name).into(), u128::from(*value))),
    );
}

fn put_segment(out: &mut Named, name: &str, segment: &Segment) {
    let Segment {
        selector,
        attributes,
        limit,
        base,
    } = segment;
    out.push((format!("{name} selector"), u128::from(*selector)));
    out.push((format!("{name} attributes"), u128::from(*attributes)));
    out.push((format!("{name} limit"), u128::from(*limit)));
    out.push((format!("{name} base"), u128::from(*base)));
}

fn put_msrs(out: &mut Named, msrs: &Msrs) {
    let Msrs {
        efer,
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        tsc_aux,
    } = msrs;
    words(
        out,
        &[
            ("EFER", *efer),
            ("STAR", *star),
            ("LSTAR", *lstar),
            ("CSTAR", *cstar),
            ("FMASK", *sfmask),
            ("KERNEL_GS_BASE", *kernel_gs_base),
            ("SYSENTER_CS", *sysenter_cs),
            ("SYSENTER_ESP", *sysenter_esp),
            ("SYSENTER_EIP", *sysenter_eip),
            ("PAT", *pat),
            ("TSC_AUX", *tsc_aux),
        ],
    );
}

fn put_fpu(out: &mut Named, fpu: &FpuState) {
    let FpuState {
        fcw,
        fsw,
        ftw,
        fop,
        fip,
        fdp,
        fcs,
        fds,
        st,
        mxcsr,
        xmm,
    } = fpu;
    words(
        out,
        &[
            ("x87 control word", u64::from(*fcw)),
            ("x87 status word", u64::from(*fsw)),
            ("x87 tag word", u64::from(*ftw)),
            ("x87 opcode", u64::from(*fop)),
            ("x87 instruction pointer", *fip),
            ("x87 data pointer", *fdp),
            ("x87 code selector", u64::from(*fcs)),
            ("x87 data selector", u64::from(*fds)),
            ("MXCSR", u64::from(*mxcsr)),
        ],
    );
    let numbered = |prefix: &str, values: &[u128]| -> Named {
        let names = (0..).map(|n| format!("{prefix}{n}"));
        names.zip(values.iter().copied()).collect()
    };
    out.extend(numbered("ST", st));
    out.extend(numbered("XMM", xmm));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_difference_of_states_has_a_name() {
        let base = CpuState::long_mode(0x1000, 0x8000, 0x2000);
        type Change = (&'static str, fn(&mut CpuState));
        let changes: &[Change] = &[
            ("RIP", |c| c.rip ^= 1),
            ("R15", |c| c.gpr[15] ^= 1),
            ("GS base", |c| c.segs[5].base ^= 1),
            ("TR limit", |c| c.tr.limit ^= 1),
            ("IDTR limit", |c| c.idtr.limit ^= 1),
            ("CR8", |c| c.cr8 ^= 1),
            ("DR7", |c| c.dr7 ^= 1),
            ("TSC_AUX", |c| c.msrs.tsc_aux ^= 1),
            ("x87 data selector", |c| c.fpu.fds ^= 1),
            ("ST7", |c| c.fpu.st[7] ^= 1 << 79),
            ("XMM15", |c| c.fpu.xmm[15] ^= 1 << 127),
            ("interrupt shadow", |c| {
                c.shadow = machine::state::Shadow::Sti
            }),
            ("held breakpoints", |c| c.held_breakpoints ^= 1),
            ("activity", |c| {
                c.activity = machine::state::Activity::Halted
            }),
        ];
        assert_eq!(differences(&base, &base), []);
        for (name, change) in changes {
            let mut other = base.clone();
            change(&mut other);
            let found = differences(&base, &other);
            assert_eq!(found.len(), 1, "{name}");
            assert_eq!(found[0].name, *name);
        }
    }
}
