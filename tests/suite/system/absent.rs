//! Instructions that the CPU model lacks and that hardware lets be turned off: #UD at both levels.

use super::super::case;
use super::{Case, at_level};
use iced_x86::code_asm::CodeAssembler;

/// RBX points at data, ECX, EAX and EDX are zero.
const ABSENT: &[(&str, &[u8])] = &[
    ("monitor", &[0x0f, 0x01, 0xc8]),
    ("mwait", &[0x0f, 0x01, 0xc9]),
    ("xgetbv", &[0x0f, 0x01, 0xd0]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    ("xsave", &[0x0f, 0xae, 0x23]),
    ("xrstor", &[0x0f, 0xae, 0x2b]),
    ("xsaveopt", &[0x0f, 0xae, 0x33]),
    ("xsavec", &[0x0f, 0xc7, 0x23]),
    ("rdfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),
    ("wrgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd8]),
    ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x03]),
    ("rdtscp", &[0x0f, 0x01, 0xf9]),
    ("rdpkru", &[0x0f, 0x01, 0xee]),
    ("vmcall", &[0x0f, 0x01, 0xc1]),
    ("vmlaunch", &[0x0f, 0x01, 0xc2]),
    ("vmxoff", &[0x0f, 0x01, 0xc4]),
    ("vmread", &[0x0f, 0x78, 0xc3]),
    ("vmptrld", &[0x0f, 0xc7, 0x33]),
    ("vmrun", &[0x0f, 0x01, 0xd8]),
    ("vmload", &[0x0f, 0x01, 0xda]),
    ("stgi", &[0x0f, 0x01, 0xdc]),
    ("clgi", &[0x0f, 0x01, 0xdd]),
    ("invlpga", &[0x0f, 0x01, 0xdf]),
    ("rsm", &[0x0f, 0xaa]),
    ("vzeroupper", &[0xc5, 0xf8, 0x77]),
    ("vaddps", &[0xc5, 0xf4, 0x58, 0xc2]),
    ("xop", &[0x8f, 0xe8, 0x78, 0xc0, 0xc1, 0x01]),
    ("evex", &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2]),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, bytes) in ABSENT {
        for user in [false, true] {
            // QEMU pops where /dev/kvm's emulator gives up at CPL 0.
            if *name == "xop" && !user {
                continue;
            }
            let one = case(format!("absent_{name}_user{user}"), move |g| {
                g.state.gpr[3] = crate::guest::layout::USER_DATA;
                let emit = |a: &mut CodeAssembler| a.db(bytes);
                if user {
                    g.start_in_user();
                    g.user_code(emit)
                } else {
                    g.code(emit)
                }
            });
            cases.push(one);
        }
    }
    // Offered by no table, executed by every processor: not an instruction to hide.
    cases.push(case("present_pause_and_hints", |g| {
        at_level(g, false, |a| {
            // PAUSE, ENDBR64, NOP r/m, PREFETCHW.
            a.db(&[
                0xf3, 0x90, 0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x40, 0x00, 0x0f, 0x0d, 0x0b,
            ])
        })
    }));
}
