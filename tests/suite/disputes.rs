//! Cases in which QEMU TCG 7.2 and /dev/kvm disagree, and which of the two is right by the manuals.
//!
//! A row covers the cases of a suite whose names match one of its patterns (`*` stands for any text);
//! the first row that matches counts. Every disagreement must have a row: [`super::bless`] refuses to
//! write a golden file otherwise. The /dev/kvm of the reference host is a software one: it runs user
//! code on the host CPU and emulates CPL 0 and the delivery of events.

/// Who is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// QEMU, after the rules and the corrections of the case.
    Qemu,
    /// /dev/kvm, then the corrections of the case.
    Kvm,
}

/// One row.
#[derive(Debug)]
pub struct Dispute {
    /// Suite.
    pub suite: &'static str,
    /// Patterns of case names.
    pub cases: &'static [&'static str],
    /// Who is right.
    pub right: Right,
    /// Why.
    pub why: &'static str,
}

/// The row for a case.
pub fn find(suite: &str, case: &str) -> Option<&'static Dispute> {
    TABLE
        .iter()
        .find(|row| row.suite == suite && row.cases.iter().any(|pattern| matches(pattern, case)))
}

/// Whether a name matches a pattern with `*` in it.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    rest.is_empty() || last == Some("") || last.is_some_and(|part| name.ends_with(part))
}

const fn row(
    suite: &'static str,
    cases: &'static [&'static str],
    right: Right,
    why: &'static str,
) -> Dispute {
    Dispute {
        suite,
        cases,
        right,
        why,
    }
}

use Right::{Kvm, Qemu};

const EVENTS: &str = "this /dev/kvm delivers events in software without the checks of SDM vol. 3, 6.12 \
                      to 6.15, and gives #UD for INT n at CPL 3";
const TRANSFERS: &str = "far transfers at CPL 3 reach this /dev/kvm's emulator, which gives #UD or \
                         lacks checks of SDM vol. 3, 5.8";
const HOST_SEGMENTS: &str = "this /dev/kvm runs CPL 3 with the host's own descriptors, flags and \
                             null data segments";

/// All rows.
#[rustfmt::skip]
pub static TABLE: &[Dispute] = &[
    // System.
    row("system",
        &["cr0_clear_pe_*", "cr0_nw_without_cd_*", "cr3_high_*", "cr4_*_userfalse", "cr8_high_*"], Kvm,
        "reserved bits and impossible combinations are #GP(0) (SDM vol. 2, MOV to control registers)"),
    row("system", &["cr0_undefined_low_bits_*"], Kvm,
        "bits of the lower half of CR0 that nothing defines stay clear (SDM vol. 3, 2.5; AMD does the \
         same)"),
    row("system", &["wrmsr_efer_*", "rdmsr_unknown*"], Kvm,
        "reserved bits and unknown registers are #GP(0) (SDM vol. 2, RDMSR and WRMSR)"),
    row("system", &["lgdt_not_canonical_*", "lidt_not_canonical_*"], Kvm,
        "a base that is not canonical is #GP(0) (SDM vol. 2, LGDT)"),
    row("system", &["clflush_not_mapped_*"], Kvm,
        "CLFLUSH faults like a load (SDM vol. 2, CLFLUSH)"),
    row("system", &["rdpmc_userfalse"], Kvm, "an unknown counter is #GP(0) (SDM vol. 2, RDPMC)"),
    row("system", &["absent_xop_*"], Kvm, "XOP needs CR4.OSXSAVE (APM vol. 6, 1.4); QEMU pops"),
    row("system", &["absent_*", "*_ts_usertrue", "*_without_osfxsr", "rdtsc_tsd"], Qemu,
        "this /dev/kvm runs CPL 3 with the host's CPUID table, CR0.TS, CR4 and XCR0, and its emulator \
         has FSGSBASE and VMCALL"),
    row("system", &["iopl*", "cli_*", "sti_*", "popf_*", "pushf_*", "stac_*", "clac_*", "lahf_*"], Qemu,
        "this /dev/kvm runs CPL 3 with the host's IF and without IOPL"),
    row("system",
        &["read_cr*_usertrue", "write_cr*_usertrue", "cr0_high_*", "wrmsr_*star_*", "wrmsr_*base_*",
          "wrmsr_pat_*"], Qemu,
        "neither oracle is right: see the correction"),
    row("system", &["tss_limit_at_map_byte"], Qemu,
        "two bytes of the map are read always (SDM vol. 1, 18.5.2)"),
    // Debug.
    row("debug", &["read_*_gd", "write_*_gd", "gd_cleared_in_handler"], Kvm,
        "MOV of a debug register with DR7.GD set is #DB (SDM vol. 3, 17.2.4); QEMU ignores GD"),
    row("debug", &["execute_and_single_step"], Kvm,
        "the trap of the instruction before comes first, with the bits of what it found (SDM vol. 3, 17.3.1)"),
    row("debug", &["write_dr6_ones_*"], Kvm, "bit 12 of DR6 is zero (SDM vol. 3, 17.2.3)"),
    row("debug", &["read_dr8_cpl3"], Qemu, "neither oracle is right: see the correction"),
    row("debug", &["tf_sti"], Kvm,
        "STI holds back interrupts, not debug traps (SDM vol. 2, STI)"),
    row("debug",
        &["tf_rep_movs_userfalse", "tf_mov_ss*", "tf_out", "tf_iret_*", "popf_sets_tf_before_mov_ss"], Qemu,
        "this /dev/kvm's emulator has no MOV SS shadow and no traps after OUT, IRET and iterations"),
    row("debug", &["tf_rep_movs_usertrue"], Kvm,
        "RF is set between iterations (SDM vol. 3, 17.3.1.1)"),
    row("debug", &["write_dr*"], Qemu,
        "bit 16 of DR6 is fixed without RTM (SDM vol. 3, 17.2.3), bits 14 and 15 of DR7 as well; this \
         /dev/kvm lets them change"),
    row("debug", &["data_*", "length_*", "enabled_*", "execute_*", "port_*"], Qemu,
        "this /dev/kvm has no breakpoints but on instructions at CPL 0"),
    row("debug", &["tf_pushf_usertrue", "tf_int_n_usertrue", "iret_to_user_sets_tf", "syscall_traced_*"], Qemu,
        HOST_SEGMENTS),
    row("transfers", &["far_call_stack_missing"], Kvm,
        "a stack of 64-bit code has 64 bits (SDM vol. 3, 5.8); QEMU wraps at 32"),
    // Paging.
    row(
        "paging",
        &["1g_*", "reserved_1g*", "pat_1g"],
        Qemu,
        "this /dev/kvm offers no 1 GiB pages, so PS is reserved for it",
    ),
    row(
        "paging",
        &["smap_ac_*", "smap_nowp_ac_*"],
        Qemu,
        "an interrupt gate does not clear AC (SDM vol. 3, 6.12.1.3); this /dev/kvm loses it, and may \
         set accessed bits before a fault (SDM vol. 3, 4.8)",
    ),
    row(
        "paging",
        &["cross_second_*_userfalse_*"],
        Qemu,
        "this /dev/kvm's emulator stores up to the page boundary before it faults; the same case at \
         CPL 3, which the host CPU runs, leaves memory unchanged",
    ),
    row(
        "paging",
        &["canonical_last_low_byte_*"],
        Qemu,
        "this /dev/kvm's emulator looks at the first byte only; a program on the host gets #GP",
    ),
    row(
        "paging",
        &["*"],
        Qemu,
        "accessed bits set by a walk that then faults are allowed (SDM vol. 3, 4.8)",
    ),
    // Exceptions.
    row(
        "exceptions",
        &["ac_aligned_on", "ac_byte_on", "ac_sse_unaligned_form_on"],
        Qemu,
        "interrupt gates leave AC alone (SDM vol. 3, 6.12.1.3); this /dev/kvm loses it",
    ),
    row(
        "exceptions",
        &["ac_qword_no_am"],
        Qemu,
        "this /dev/kvm runs CPL 3 with the host's CR0.AM",
    ),
    row(
        "exceptions",
        &["ac_*_on"],
        Kvm,
        "QEMU has no alignment checks",
    ),
    row(
        "exceptions",
        &["db_int1_cpl3"],
        Kvm,
        "INT1 is a trap to vector 1 (SDM vol. 3, 6.4.4)",
    ),
    row(
        "exceptions",
        &["ud_lock_mov_*"],
        Kvm,
        "LOCK is #UD before everything else (SDM vol. 2, LOCK)",
    ),
    row(
        "exceptions",
        &["ud_pop_group_1_cpl3"],
        Kvm,
        "the opcode is undefined (SDM vol. 2, table A-6)",
    ),
    row(
        "exceptions",
        &["ud_vex_without_avx_cpl3"],
        Qemu,
        "this /dev/kvm runs CPL 3 with the host's XCR0",
    ),
    row(
        "exceptions",
        &["gp_fxsave_misaligned_*"],
        Qemu,
        "the operand must be aligned (SDM vol. 2, FXSAVE), as a program on the host finds; this \
         /dev/kvm's emulator executes it",
    ),
    row(
        "exceptions",
        &["gp_mxcsr_reserved_cpl3"],
        Qemu,
        "#GP, as a program on the host finds; this /dev/kvm's emulator does not know LDMXCSR",
    ),
    row(
        "exceptions",
        &["gp_jump_not_canonical_*", "gp_return_not_canonical_*"],
        Kvm,
        "the branch itself faults (SDM vol. 2, JMP and RET)",
    ),
    row(
        "exceptions",
        &[
            "ss_based_not_canonical_*",
            "ss_by_rbp_despite_ds_override_*",
        ],
        Kvm,
        "addresses based on RSP or RBP are of the stack segment: #SS (SDM vol. 1, 3.3.7.1)",
    ),
    row(
        "exceptions",
        &["gp_despite_ss_override_*"],
        Qemu,
        "the prefix is ignored in 64-bit mode, as a program on the host finds; this /dev/kvm's \
         emulator heeds it",
    ),
    row(
        "exceptions",
        &["mf_*", "xm_divide_cpl3", "xm_invalid_packed_cpl3"],
        Kvm,
        "QEMU raises #MF and #XM in part only",
    ),
    row(
        "exceptions",
        &["xm_without_osxmmexcpt_cpl3"],
        Qemu,
        "this /dev/kvm runs CPL 3 with the host's CR4.OSXMMEXCPT",
    ),
    row(
        "exceptions",
        &["stack_user_*"],
        Kvm,
        "RF is set in the frame of a fault (SDM vol. 3, 17.3.1.1)",
    ),
    row(
        "exceptions",
        &["gate_*", "int_*", "stack_*", "tss_*", "*_then_*"],
        Qemu,
        EVENTS,
    ),
    // Transfers.
    row(
        "transfers",
        &["iretq_ss_not_present"],
        Kvm,
        "a stack segment that is not present is #SS (SDM vol. 2, IRET)",
    ),
    row(
        "transfers",
        &["iretq_ss_null_rpl_3_same", "load_ss_null_rpl_3_userfalse"],
        Kvm,
        "a null SS must have the CPL as RPL (SDM vol. 2, MOV)",
    ),
    row(
        "transfers",
        &["far_jmp_long_and_32_cpl0", "far_call_long_and_32_cpl0"],
        Kvm,
        "L and D both set is #GP (SDM vol. 3, 5.2.1)",
    ),
    row(
        "transfers",
        &["ltr_null*"],
        Kvm,
        "LTR of a null selector is #GP(0) (SDM vol. 2, LTR)",
    ),
    row(
        "transfers",
        &["inspect_tss_286_cpl3", "inspect_call_gate_286_cpl3"],
        Kvm,
        "16-bit system descriptors do not exist in long mode (SDM vol. 2, LAR, LSL)",
    ),
    row(
        "transfers",
        &["sysretq_rf_vm"],
        Kvm,
        "SYSRET clears RF and VM (SDM vol. 2, SYSRET); QEMU loads them",
    ),
    row(
        "transfers",
        &["iretd_*", "iretw_*"],
        Qemu,
        "this /dev/kvm's emulator has IRETQ only",
    ),
    row(
        "transfers",
        &["iretq_cs_tss", "ltr_local"],
        Qemu,
        "the error code is the selector, and a system segment is no code (SDM vol. 2, IRET and LTR); \
         this /dev/kvm's emulator has neither check",
    ),
    row(
        "transfers",
        &["iretq_rip_not_canonical_same"],
        Qemu,
        "neither checks RIP (see the correction)",
    ),
    row(
        "transfers",
        &["lldt_*", "ltr_*"],
        Qemu,
        "a descriptor of 16 bytes must end inside the table, and its base be canonical (APM vol. 3, \
         LLDT and LTR); this /dev/kvm's emulator checks neither",
    ),
    row(
        "transfers",
        &["sysexit*", "sysenter*"],
        Qemu,
        "#UD in long mode on AMD (APM vol. 3, SYSEXIT); this /dev/kvm has the host's vendor",
    ),
    row(
        "transfers",
        &["syscall_*", "sysret*"],
        Qemu,
        "this /dev/kvm enters the kernel of the guest at CPL 3 after SYSCALL, and runs user code with \
         the host's STAR and IF",
    ),
    row("transfers", &["gate_*", "far_*", "retf*"], Qemu, TRANSFERS),
    row(
        "transfers",
        &["iretq_*", "load_*", "form_*", "inspect_*", "fs_base_*"],
        Qemu,
        HOST_SEGMENTS,
    ),
    // Strings.
    row(
        "strings",
        &["fault_scas_*", "fault_cmps_*", "resumed_*"],
        Kvm,
        "a fault finds the flags from before the instruction (SDM vol. 2, REP)",
    ),
    row(
        "strings",
        &["ins*", "outs*"],
        Qemu,
        "this /dev/kvm ignores IOPL at CPL 3 and reads ahead at CPL 0",
    ),
    row(
        "strings",
        &["read_only_movs"],
        Kvm,
        "the source was read before the store faulted",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("a*b*c", "a1b2c", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn no_row_is_hidden_by_an_earlier_one_of_the_same_patterns() {
        for (index, row) in TABLE.iter().enumerate() {
            for pattern in row.cases {
                let plain = pattern.replace('*', "x");
                let found = find(row.suite, &plain).expect("the row matches its own pattern");
                assert!(
                    std::ptr::eq(found, &TABLE[index]),
                    "{pattern} of {}",
                    row.suite
                );
            }
        }
    }
}
