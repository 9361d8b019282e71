//! Values that the manuals give where the oracle that is otherwise right gives others: rows of cases,
//! keys and reasons. A case's own corrections come on top. A value of `-` removes the key.

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    /// Suite.
    pub(super) suite: &'static str,
    /// Patterns of case names, as in [`super::disputes`].
    pub(super) cases: &'static [&'static str],
    /// Keys and values.
    pub(super) values: &'static [(&'static str, &'static str)],
    /// Manual section and reason.
    pub(super) why: &'static str,
}

/// The rows for a case.
pub(super) fn find<'a>(suite: &'a str, case: &'a str) -> impl Iterator<Item = &'static Row> + 'a {
    TABLE.iter().filter(move |row| {
        let any = |pattern: &&str| super::disputes::matches(pattern, case);
        row.suite == suite && row.cases.iter().any(any)
    })
}

const fn row(
    suite: &'static str,
    cases: &'static [&'static str],
    values: &'static [(&'static str, &'static str)],
    why: &'static str,
) -> Row {
    Row {
        suite,
        cases,
        values,
        why,
    }
}

const IRET_FLAGS: &str = "IRET at CPL 0 loads VIF and VIP (SDM vol. 2, IRET), and the instruction that \
                          it returns to clears RF (SDM vol. 3, 17.3.1.1); QEMU does neither";
const ACCESSED: &str = "loading CS sets the accessed bit of its descriptor (SDM vol. 3, 3.4.5.1)";
const RIP_CHECKED: &str = "a target that is not canonical is #GP of the transfer itself (SDM vol. 2, \
                           IRET, RET, CALL, JMP); the oracles fault at the target";
const SYSCALL_FLAGS: &str = "SYSCALL clears what SFMASK names and nothing else (SDM vol. 2, SYSCALL); \
                             QEMU loses the arithmetic flags and DF";
const BASE: &str = "a base that is not canonical is #GP(selector) (APM vol. 3, LLDT and LTR)";
const LAR_286: &str = "16-bit system descriptors do not exist in long mode (SDM vol. 2, LAR, LSL)";
const CMPS_ORDER: &str =
    "both elements fault; the host reads ES:RDI first, this /dev/kvm's emulator the other";
const CR4: &str =
    "features that the CPU model lacks are reserved bits of CR4: #GP(0) (SDM vol. 3, 2.5)";
const RF_ITERATIONS: &str = "RF is set between iterations (SDM vol. 3, 17.3.1.1)";
const CLFLUSH: &str =
    "CLFLUSH is a load to breakpoints, as ptrace shows on the host (family 6 model 207)";
const GP_CR0: &str = "the upper half of CR0 is reserved: #GP(0) (SDM vol. 2, MOV to control registers); neither oracle checks";
const GP_PAT: &str = "memory types 2, 3 and above 7 are reserved: #GP(0) (SDM vol. 3, 11.12.2); neither oracle checks";
const GP_BASE: &str =
    "an address that is not canonical is #GP(0) (SDM vol. 2, WRMSR); neither oracle checks";
const RF: &str = "RF is set in the frame of a fault (SDM vol. 3, 17.3.1.1)";

/// All rows.
#[rustfmt::skip]
pub(super) const TABLE: &[Row] = &[
    row(
        "transfers",
        &["iretq_flags_all_*", "iretq_flags_reserved_*", "iretd_*_all"],
        &[
            ("e0.rfl", "0x3c3ed7"),
            ("e0.rdx", "0x3c3ed7"),
            ("r.rdx", "0x3c3ed7"),
            ("r.rfl", "0x3c3493"),
        ],
        IRET_FLAGS,
    ),
    row(
        "transfers",
        &["iretq_flags_rf_*"],
        &[("e0.rfl", "0x2")],
        IRET_FLAGS,
    ),
    row(
        "transfers",
        &["iretq_flags_vif_vip_*"],
        &[
            ("e0.rfl", "0x180002"),
            ("e0.rdx", "0x180002"),
            ("r.rdx", "0x180002"),
            ("r.rfl", "0x180093"),
        ],
        IRET_FLAGS,
    ),
    row(
        "transfers",
        &["far_jmp_not_accessed_cpl0", "far_call_not_accessed_cpl0"],
        &[("m.descriptor", "0xaf9b000000ffff")],
        ACCESSED,
    ),
    row(
        "transfers",
        &["gate_target_not_present_jmp_cpl0"],
        &[("e0.vec", "0xb")],
        "a code segment that is not present is #NP (SDM vol. 2, JMP)",
    ),
    row(
        "transfers",
        &["iretq_rip_not_canonical_same"],
        &[
            ("e0.rip", "0x40037"),
            ("e0.rsp", "0x25fd8"),
            ("e0.frame", "0x25fa0"),
            ("r.rsp", "0x25f98"),
        ],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["gate_not_canonical_jmp_cpl0"],
        &[("e0.rip", "0x4000a")],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["gate_not_canonical_call_cpl0"],
        &[
            ("e0.rip", "0x4000a"),
            ("e0.rsp", "0x26000"),
            ("e0.frame", "0x25fd0"),
            ("r.rsp", "0x25fc8"),
            (
                "m.frame",
                "1000000000000000020001000000000000600200000000001800000000000000",
            ),
        ],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["gate_not_canonical_call_cpl3"],
        &[
            ("e0.rip", "0x5000a"),
            ("e0.cs", "0x33"),
            ("e0.rsp", "0x5f000"),
            ("e0.ss", "0x2b"),
            ("e0.frame", "0x25fd0"),
            ("r.rsp", "0x25fc8"),
            (
                "m.frame",
                "3300000000000000020001000000000000f00500000000002b00000000000000",
            ),
        ],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["retfq_not_canonical"],
        &[
            ("e0.rip", "0x40030"),
            ("e0.rsp", "0x25fe0"),
            ("e0.frame", "0x25fb0"),
            ("r.rsp", "0x25fa8"),
        ],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["retfq_imm_not_canonical"],
        &[
            ("e0.rip", "0x40030"),
            ("e0.rsp", "0x25fc8"),
            ("e0.frame", "0x25f90"),
            ("r.rsp", "0x25f88"),
        ],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["retfq_outer_not_canonical"],
        &[
            ("e0.rip", "0x40030"),
            ("e0.cs", "0x10"),
            ("e0.rsp", "0x25fe0"),
            ("e0.ss", "0x18"),
            ("e0.frame", "0x25fb0"),
            ("r.rsp", "0x25fa8"),
            ("r.es", "-"),
            ("r.ss", "-"),
            ("r.ds", "-"),
            ("r.fs", "-"),
            ("r.gs", "-"),
        ],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["retfq_imm_outer_not_canonical"],
        &[
            ("e0.rip", "0x40030"),
            ("e0.cs", "0x10"),
            ("e0.rsp", "0x25fc8"),
            ("e0.ss", "0x18"),
            ("e0.frame", "0x25f90"),
            ("r.rsp", "0x25f88"),
            ("r.es", "-"),
            ("r.ss", "-"),
            ("r.ds", "-"),
            ("r.fs", "-"),
            ("r.gs", "-"),
        ],
        RIP_CHECKED,
    ),
    row(
        "transfers",
        &["gate_conforming_call_cpl3"],
        &[
            ("e0.cs", "0x83"),
            ("e0.rax", "0x83"),
            ("r.rax", "0x83"),
            (
                "m.frame",
                "83000000000000000200000000000000f0ef0500000000002b00000000000000",
            ),
        ],
        "the RPL of CS becomes the CPL, which conforming code does not change (SDM vol. 3, 5.8.4)",
    ),
    row(
        "transfers",
        &["gate_call_rsp0_not_canonical"],
        &[("e0.rip", "0x5000a")],
        "the fault is the call's; QEMU reports the start of its block",
    ),
    row(
        "transfers",
        &["syscall_mask_none", "syscall_mask_fixed"],
        &[
            ("e0.rfl", "0x240ed7"),
            ("e0.rdx", "0x240ed7"),
            ("r.rdx", "0x240ed7"),
            ("r.rfl", "0x240493"),
        ],
        SYSCALL_FLAGS,
    ),
    row(
        "transfers",
        &["syscall_mask_if_df"],
        &[
            ("e0.rfl", "0x2408d7"),
            ("e0.rdx", "0x2408d7"),
            ("r.rdx", "0x2408d7"),
        ],
        SYSCALL_FLAGS,
    ),
    row(
        "transfers",
        &["syscall_mask_ac"],
        &[
            ("e0.rfl", "0x200ed7"),
            ("e0.rdx", "0x200ed7"),
            ("r.rdx", "0x200ed7"),
            ("r.rfl", "0x200493"),
        ],
        SYSCALL_FLAGS,
    ),
    row(
        "transfers",
        &["sysretq_rf_vm"],
        &[("r.rfl", "0x240493")],
        "interrupt gates leave AC alone (SDM vol. 3, 6.12.1.3)",
    ),
    row(
        "transfers",
        &["lldt_base_not_canonical", "ltr_base_not_canonical"],
        &[
            ("e0.vec", "0xd"),
            ("e0.err", "0x80"),
            ("e0.rip", "0x40005"),
            ("e0.cs", "0x10"),
            ("e0.rfl", "0x10002"),
            ("e0.rsp", "0x26000"),
            ("e0.ss", "0x18"),
            ("e0.frame", "0x25fd0"),
            ("e0.rax", "0x80"),
            ("r.rsp", "0x25fc8"),
            ("r.rfl", "0x93"),
            ("r.rcx", "-"),
            ("r.rdx", "-"),
        ],
        BASE,
    ),
    row(
        "transfers",
        &["inspect_tss_286_cpl0*"],
        &[
            ("r.rax", "0xffffffffffffffff"),
            ("r.rcx", "0xffffffffffffffff"),
            ("r.rdx", "0xffffffffffffffff"),
            ("r.rsi", "-"),
            ("r.rdi", "0x1"),
        ],
        LAR_286,
    ),
    row(
        "transfers",
        &["inspect_call_gate_286_cpl0*"],
        &[
            ("r.rax", "0xffffffffffffffff"),
            ("r.rdx", "0xffffffffffffffff"),
            ("r.rsi", "-"),
        ],
        LAR_286,
    ),
    row(
        "interrupts",
        &["window_sti_mov_ss"],
        &[
            ("e0.rip", "0x40046"),
            ("e0.rfl", "0x202"),
            ("e0.rcx", "0x1"),
            ("r.rcx", "0x1"),
        ],
        "MOV SS opens a shadow of its own; that it does not is allowed, too (SDM vol. 3, 6.8.3)",
    ),
    row(
        "smc",
        &["fxsave_over_code"],
        &[("e0.err", "0x2")],
        "a read-modify-write needs write rights from the start (SDM vol. 3, 4.7; /dev/kvm)",
    ),
    row(
        "exceptions",
        &["handler_at_cpl*"],
        &[(
            "m.frame",
            "00000500000000003300000000000000020001000000000000f00500000000002b00000000000000",
        )],
        RF,
    ),
    row("transfers", &["iretq_user_flags"], &[("e0.rfl", "0x240cd7")], IRET_FLAGS),
    row("transfers", &["iretq_cs_not_accessed_rpl3"], &[("m.descriptor", "0xaffb000000ffff")], ACCESSED),
    row("transfers", &["iretq_ss_not_accessed"], &[("m.descriptor", "0xcff3000000ffff")],
        "loading SS sets the accessed bit of its descriptor (SDM vol. 3, 3.4.5.1)"),
    row("transfers", &["iretq_cs_long_and_32_rpl3"],
        &[("e0.vec", "0xd"), ("e0.err", "0x80"), ("e0.rip", "0x40037"), ("e0.cs", "0x10"),
          ("e0.rfl", "0x10002"), ("e0.rsp", "0x25fd8"), ("e0.ss", "0x18"), ("e0.frame", "0x25fa0"),
          ("e0.rax", "0x50400"), ("e0.rcx", "-"), ("e0.rdx", "-"), ("e0.rbx", "-"),
          ("r.rax", "0x50400"), ("r.rcx", "-"), ("r.rdx", "-"), ("r.rbx", "-"),
          ("r.rsp", "0x25f98"), ("r.es", "-"), ("r.ss", "-"), ("r.ds", "-"), ("r.fs", "-"), ("r.gs", "-")],
        "L and D both set is #GP(selector) (SDM vol. 3, 5.2.1; /dev/kvm has it for RPL 0)"),
    row("transfers", &["iretq_rip_not_canonical_outer"],
        &[("e0.rip", "0x40037"), ("e0.cs", "0x10"), ("e0.rsp", "0x25fd8"), ("e0.ss", "0x18"),
          ("e0.frame", "0x25fa0"), ("r.rsp", "0x25f98"), ("r.es", "-"), ("r.ss", "-"), ("r.ds", "-"),
          ("r.fs", "-"), ("r.gs", "-")],
        RIP_CHECKED),
    row("transfers", &["sysretq_rf_vm"],
        &[("e0.rsi", "0x18"), ("e0.rdi", "0x18"), ("r.rsi", "0x18"), ("r.rdi", "0x18")],
        "data segments stay; this /dev/kvm runs CPL 3 with null ones"),
    row("transfers", &["sysretq_not_canonical_intel"],
        &[("e0.rip", "0x40010"), ("e0.cs", "0x10"), ("e0.ss", "0x18"), ("r.ss", "-")],
        "Intel checks RCX before the transfer (SDM vol. 2, SYSRET); both oracles act as AMD does"),
    row("exceptions", &["ss_by_rbp_despite_ds_override_cpl0"], &[("e0.vec", "0xc")],
        "the prefix is ignored in 64-bit mode, as a program on the host finds"),
    row("strings", &["fault_cmps_1_downtrue_userfalse_aligned"],
        &[("e0.cr2", "0x9000010fff"), ("r.cr2", "0x9000010fff")], CMPS_ORDER),
    row("strings", &["fault_cmps_2_downtrue_userfalse_aligned"],
        &[("e0.cr2", "0x9000010ffe"), ("r.cr2", "0x9000010ffe")], CMPS_ORDER),
    row("strings", &["fault_cmps_8_downtrue_userfalse_aligned"],
        &[("e0.cr2", "0x9000010ff8"), ("r.cr2", "0x9000010ff8")], CMPS_ORDER),
    row("strings", &["fault_cmps_2_downtrue_userfalse_straddling", "fault_cmps_8_downtrue_userfalse_straddling"],
        &[("e0.cr2", "0x9000010fff"), ("r.cr2", "0x9000010fff")], CMPS_ORDER),
    row("debug", &["tf_rep_movs_userfalse"], &[("e3.rfl", "0x10102"), ("e4.rfl", "0x10102")],
        "RF is set between iterations (SDM vol. 3, 17.3.1.1)"),
    row("system", &["cr4_osxsave_userfalse"],
        &[("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x40008"), ("e0.cs", "0x10"),
          ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"),
          ("e0.rax", "0x40620"), ("r.rsp", "0x25fc8"), ("r.rfl", "0x93"), ("r.cr4", "-")],
        CR4),
    row("system", &["cr4_fsgsbase_userfalse"],
        &[("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x40008"), ("e0.cs", "0x10"),
          ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"),
          ("e0.rax", "0x10620"), ("r.rsp", "0x25fc8"), ("r.rfl", "0x93"), ("r.cr4", "-")],
        CR4),
    row("system", &["cr4_umip_userfalse"],
        &[("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x40008"), ("e0.cs", "0x10"),
          ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"),
          ("e0.rax", "0xe20"), ("r.rsp", "0x25fc8"), ("r.rfl", "0x93"), ("r.cr4", "-")],
        CR4),
    row("system", &["cr4_high_userfalse"],
        &[("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x40010"), ("e0.cs", "0x10"),
          ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"),
          ("e0.rax", "0x100000620"), ("e0.rcx", "0x100000000"), ("r.rsp", "0x25fc8"), ("r.rfl", "0x93"), ("r.cr4", "-")],
        CR4),
    row("debug", &["data_*_stos_*"], &[("e0.rfl", "0x10002")], RF_ITERATIONS),
    row("debug", &["data_access_movs_source_*"],
        &[("e0.rfl", "0x10002"), ("e1.rfl", "0x10002"), ("e2.rfl", "0x10002"), ("e3.rfl", "0x10002")],
        RF_ITERATIONS),
    row("debug", &["data_access_clflush_userfalse"],
        &[("e0.vec", "0x1"), ("e0.err", "0x0"), ("e0.rip", "0x40012"), ("e0.cs", "0x10"), ("e0.rfl", "0x2"),
          ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"), ("e0.dr6", "0xffff0ff2"),
          ("e0.rax", "0x5"), ("e0.rbx", "0x70100"), ("r.dr6", "0xffff0ff2")],
        CLFLUSH),
    row("debug", &["data_access_clflush_usertrue"],
        &[("e0.vec", "0x1"), ("e0.err", "0x0"), ("e0.rip", "0x50012"), ("e0.cs", "0x33"), ("e0.rfl", "0x2"),
          ("e0.rsp", "0x5f000"), ("e0.ss", "0x2b"), ("e0.frame", "0x25fd0"), ("e0.dr6", "0xffff0ff2"),
          ("e0.rax", "0x5"), ("e0.rbx", "0x70100"), ("r.dr6", "0xffff0ff2")],
        CLFLUSH),
    row("system", &["read_cr1_usertrue", "read_cr5_usertrue", "read_cr9_usertrue", "write_cr1_usertrue",
        "write_cr6_usertrue"],
        &[("e0.vec", "0x6")], "#UD whatever the CPL, as a program on the host finds"),
    row("system", &["mmx_em_ts_*", "movntq_em_ts_*", "sse*_em_ts_*", "maskmovq_em_ts_*"],
        &[("e0.vec", "0x6")], "#UD for EM comes before #NM for TS (SDM vol. 3, table 2-2)"),
    row("system", &["cr0_high_userfalse"],
        &[("r.rsp", "0x25fc8"), ("r.rfl", "0x93"), ("e0.vec", "0xd"), ("e0.err", "0x0"),
          ("e0.rip", "0x40010"), ("e0.cs", "0x10"), ("e0.rfl", "0x10006"),
          ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"),
          ("e0.rax", "0x180010033"), ("e0.rcx", "0x100000000")],
        GP_CR0),
    row("system", &["wrmsr_lstar_2_userfalse"],
        &[("r.rdx", "0x8000"), ("r.rsp", "0x25fc8"), ("r.rsi", "-"), ("r.rfl", "0x93"),
          ("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x4000f"), ("e0.cs", "0x10"),
          ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"), ("e0.ss", "0x18"),
          ("e0.frame", "0x25fd0"), ("e0.rcx", "0xc0000082"), ("e0.rdx", "0x8000")],
        GP_BASE),
    row("system", &["wrmsr_cstar_1_userfalse"],
        &[("r.rdx", "0x8000"), ("r.rsp", "0x25fc8"), ("r.rsi", "-"), ("r.rfl", "0x93"),
          ("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x4000f"), ("e0.cs", "0x10"),
          ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"), ("e0.ss", "0x18"),
          ("e0.frame", "0x25fd0"), ("e0.rcx", "0xc0000083"), ("e0.rdx", "0x8000")],
        GP_BASE),
    row("system", &["wrmsr_fs_base_2_userfalse"],
        &[("r.rdx", "0x8000"), ("r.rsp", "0x25fc8"), ("r.rsi", "-"), ("r.rfl", "0x93"),
          ("r.fsbase", "-"), ("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x4000f"),
          ("e0.cs", "0x10"), ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"),
          ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"), ("e0.rcx", "0xc0000100"),
          ("e0.rdx", "0x8000")],
        GP_BASE),
    row("system", &["wrmsr_gs_base_2_userfalse"],
        &[("r.rdx", "0x8000"), ("r.rsp", "0x25fc8"), ("r.rsi", "-"), ("r.rfl", "0x93"),
          ("r.gsbase", "-"), ("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x4000f"),
          ("e0.cs", "0x10"), ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"),
          ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"), ("e0.rcx", "0xc0000101"),
          ("e0.rdx", "0x8000")],
        GP_BASE),
    row("system", &["wrmsr_kernel_gs_base_2_userfalse"],
        &[("r.rdx", "0x8000"), ("r.rsp", "0x25fc8"), ("r.rsi", "-"), ("r.rfl", "0x93"),
          ("r.kgsbase", "-"), ("e0.vec", "0xd"), ("e0.err", "0x0"), ("e0.rip", "0x4000f"),
          ("e0.cs", "0x10"), ("e0.rfl", "0x10002"), ("e0.rsp", "0x26000"),
          ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"), ("e0.rcx", "0xc0000102"),
          ("e0.rdx", "0x8000")],
        GP_BASE),
    row("system", &["wrmsr_pat_2_userfalse"],
        &[("r.rsp", "0x25fc8"), ("r.rsi", "-"), ("e0.vec", "0xd"), ("e0.err", "0x0"),
          ("e0.rip", "0x4000f"), ("e0.cs", "0x10"), ("e0.rfl", "0x10002"),
          ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"),
          ("e0.rax", "0x2"), ("e0.rcx", "0x277"), ("r.rfl", "0x93")],
        GP_PAT),
    row("system", &["wrmsr_pat_3_userfalse"],
        &[("r.rsp", "0x25fc8"), ("r.rsi", "-"), ("e0.vec", "0xd"), ("e0.err", "0x0"),
          ("e0.rip", "0x4000f"), ("e0.cs", "0x10"), ("e0.rfl", "0x10002"),
          ("e0.rsp", "0x26000"), ("e0.ss", "0x18"), ("e0.frame", "0x25fd0"),
          ("e0.rax", "0x8"), ("e0.rcx", "0x277"), ("r.rfl", "0x93")],
        GP_PAT),
    row("debug", &["write_dr7_ones_disabled_plain", "write_dr7_ones_disabled_de"],
        &[("r.rcx", "0xffff0700"), ("r.dr7", "0xffff0700")],
        "bits 11, 12, 14 and 15 of DR7 are zero without RTM (SDM vol. 3, 17.2.4)"),
    row("debug", &["read_dr8_cpl3", "read_dr8_cpl3_gd"], &[("e0.vec", "0x6")], "#UD, as a program on the host finds"),
    row("debug", &["tf_mov_ss_twice"],
        &[("e1.rip", "0x40009"), ("e2.rip", "0x4000a"), ("e3.rip", "0x4000b"), ("e3.rsp", "0x26000"),
          ("e3.frame", "0x25fd0"), ("e4.rip", "0x4000c"), ("e5.rip", "0x40014"), ("e5.rfl", "0x102"),
          ("e5.rsp", "0x25ff8"), ("e5.frame", "0x25fc0"), ("e6.vec", "0x1"), ("e6.err", "0x0"),
          ("e6.rip", "0x40015"), ("e6.cs", "0x10"), ("e6.rfl", "0x2"), ("e6.rsp", "0x26000"),
          ("e6.ss", "0x18"), ("e6.frame", "0x25fd0"), ("e6.dr6", "0xffff4ff0"), ("e6.rax", "0x18")],
        "of two MOV SS in a row only the first is sure to hold traps back (SDM vol. 3, 6.8.3), and the second \
         does not under ptrace on family 6 model 207"),
    row("debug", &["data_two_at_once"], &[("e0.dr6", "0xffff0ff9"), ("r.dr6", "0xffff0ff9")],
        "DR6 names all breakpoints that were hit (SDM vol. 3, 17.2.3)"),
];

#[cfg(test)]
mod tests {
    #[test]
    fn rows_are_found_by_pattern() {
        let mut rows = super::find("transfers", "inspect_tss_286_cpl0_rpl3");
        assert_eq!(rows.next().map(|row| row.why), Some(super::LAR_286));
        assert!(rows.next().is_none());
    }
}
