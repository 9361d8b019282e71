//! Whether a state is one a CPU can be in: what VM entry and the instructions that load these
//! registers would refuse (SDM vol. 3, 26.3.1 and 2.5; APM vol. 2, 15.5.1).

use super::{CpuState, Seg, Segment, Shadow, cr0, cr4, efer, rflags};

/// What is wrong with a state. Names the register and shows its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{register} = {value:#x}: {why}")]
pub struct InvalidState {
    /// Which register.
    pub register: &'static str,
    /// Its value.
    pub value: u64,
    /// The rule that it breaks.
    pub why: &'static str,
}

const CR0_DEFINED: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

const CR4_DEFINED: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::LA57
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP;

const EFER_DEFINED: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

/// Guest-physical addresses have at most 52 bits; the bits above are reserved in CR3.
const CR3_DEFINED: u64 = (1 << 52) - 1;

/// x87 and SSE: the components that [`CpuState`] holds.
const XCR0_DEFINED: u64 = 3;

/// Bits that always read as one, and all that can be one.
const DR6_FIXED: u64 = 0xfffe_0ff0;
const DR6_DEFINED: u64 = 0xffff_efff;
const DR7_FIXED: u64 = 1 << 10;
const DR7_DEFINED: u64 = 0xffff_2fff;

const MXCSR_DEFINED: u32 = 0xffff;
const ST_BITS: u32 = 80;
const FOP_DEFINED: u16 = 0x7ff;
/// Bits 8 to 11 of a segment's attributes belong to the limit.
const ATTRIBUTES_DEFINED: u16 = 0xf0ff;

fn check(
    holds: bool,
    register: &'static str,
    value: u64,
    why: &'static str,
) -> Result<(), InvalidState> {
    if holds {
        Ok(())
    } else {
        Err(InvalidState {
            register,
            value,
            why,
        })
    }
}

fn only(register: &'static str, value: u64, defined: u64) -> Result<(), InvalidState> {
    check(
        value & !defined == 0,
        register,
        value,
        "reserved bits are set",
    )
}

impl CpuState {
    /// Whether a CPU can be in this state. Loads of other states are to be refused.
    ///
    /// # Errors
    /// [`InvalidState`], the first violation found.
    pub fn validate(&self) -> Result<(), InvalidState> {
        self.validate_control()?;
        self.validate_mode()?;
        self.validate_flags()?;
        self.validate_debug()?;
        self.validate_segments()?;
        self.validate_msrs()?;
        self.validate_rip()?;
        self.validate_fpu()
    }

    fn long_mode_active(&self) -> bool {
        self.msrs.efer & efer::LMA != 0
    }

    /// Whether all bits above the implemented linear address bits equal the highest of them.
    fn canonical(&self, address: u64) -> bool {
        let unused = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        ((address << unused) as i64 >> unused) as u64 == address
    }

    fn check_canonical(&self, register: &'static str, address: u64) -> Result<(), InvalidState> {
        let canonical = self.canonical(address);
        check(canonical, register, address, "not a canonical address")
    }

    fn validate_control(&self) -> Result<(), InvalidState> {
        only("CR0", self.cr0, CR0_DEFINED)?;
        only("CR3", self.cr3, CR3_DEFINED)?;
        only("CR4", self.cr4, CR4_DEFINED)?;
        only("CR8", self.cr8, 0xf)?;
        only("XCR0", self.xcr0, XCR0_DEFINED)?;
        only("EFER", self.msrs.efer, EFER_DEFINED)?;
        check(self.xcr0 & 1 != 0, "XCR0", self.xcr0, "x87 is not enabled")?;
        let caching = self.cr0 & cr0::NW == 0 || self.cr0 & cr0::CD != 0;
        check(caching, "CR0", self.cr0, "NW without CD")
    }

    /// The rules that join PE, PG, PAE, LME and LMA.
    fn validate_mode(&self) -> Result<(), InvalidState> {
        let paging = self.cr0 & cr0::PG != 0;
        let protected = self.cr0 & cr0::PE != 0;
        check(!paging || protected, "CR0", self.cr0, "PG without PE")?;
        let long = self.long_mode_active();
        let entered = self.msrs.efer & efer::LME != 0 && paging;
        let why = "LMA is not LME and PG";
        check(long == entered, "EFER", self.msrs.efer, why)?;
        let pae = self.cr4 & cr4::PAE != 0;
        check(!long || pae, "CR4", self.cr4, "long mode without PAE")?;
        let pcide = self.cr4 & cr4::PCIDE != 0;
        check(long || !pcide, "CR4", self.cr4, "PCIDE outside long mode")
    }

    fn validate_flags(&self) -> Result<(), InvalidState> {
        let flags = self.rflags;
        only("RFLAGS", flags, rflags::DEFINED)?;
        let fixed = flags & rflags::FIXED != 0;
        check(fixed, "RFLAGS", flags, "bit 1 is clear")?;
        let virtual_8086 = flags & rflags::VM != 0;
        let possible = self.cr0 & cr0::PE != 0 && !self.long_mode_active();
        let why = "VM outside 32-bit protected mode";
        check(!virtual_8086 || possible, "RFLAGS", flags, why)
    }

    fn validate_debug(&self) -> Result<(), InvalidState> {
        only("DR6", self.dr6, DR6_DEFINED)?;
        only("DR7", self.dr7, DR7_DEFINED)?;
        let fixed = self.dr6 & DR6_FIXED == DR6_FIXED;
        check(fixed, "DR6", self.dr6, "fixed bits are clear")?;
        let fixed = self.dr7 & DR7_FIXED != 0;
        check(fixed, "DR7", self.dr7, "bit 10 is clear")?;
        let held = u64::from(self.held_breakpoints);
        only("held breakpoints", held, 0xf)?;
        let shadowed = held == 0 || self.shadow == Shadow::MovSs;
        check(shadowed, "held breakpoints", held, "no shadow of MOV SS")
    }

    fn validate_segments(&self) -> Result<(), InvalidState> {
        let [es, cs, ss, ds, fs, gs] = &self.segs;
        for (name, segment) in [("ES", es), ("CS", cs), ("SS", ss), ("DS", ds)] {
            let why = "the base has more than 32 bits";
            check(segment.base >> 32 == 0, name, segment.base, why)?;
        }
        let (ldtr, tr) = (&self.ldtr, &self.tr);
        for (name, segment) in [("FS", fs), ("GS", gs), ("LDTR", ldtr), ("TR", tr)] {
            self.check_canonical(name, segment.base)?;
        }
        self.check_canonical("GDTR", self.gdtr.base)?;
        self.check_canonical("IDTR", self.idtr.base)?;
        for segment in self.segs.iter().chain([ldtr, tr]) {
            let attributes = u64::from(segment.attributes);
            only("segment attributes", attributes, ATTRIBUTES_DEFINED.into())?;
        }
        self.validate_code_segment()
    }

    fn validate_code_segment(&self) -> Result<(), InvalidState> {
        let cs: &Segment = &self.segs[Seg::Cs as usize];
        let default_32_bit = cs.attributes & 0x4000 != 0;
        let sizes = !(self.long_mode_active() && cs.long_mode() && default_32_bit);
        check(sizes, "CS", cs.attributes.into(), "both L and D are set")
    }

    fn validate_msrs(&self) -> Result<(), InvalidState> {
        let msrs = &self.msrs;
        self.check_canonical("LSTAR", msrs.lstar)?;
        self.check_canonical("CSTAR", msrs.cstar)?;
        self.check_canonical("KERNEL_GS_BASE", msrs.kernel_gs_base)?;
        self.check_canonical("SYSENTER_ESP", msrs.sysenter_esp)?;
        self.check_canonical("SYSENTER_EIP", msrs.sysenter_eip)?;
        only("FMASK", msrs.sfmask, u32::MAX.into())?;
        only("TSC_AUX", msrs.tsc_aux, u32::MAX.into())?;
        let types = msrs.pat.to_le_bytes();
        let known = types.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
        check(known, "PAT", msrs.pat, "an undefined memory type")
    }

    fn validate_rip(&self) -> Result<(), InvalidState> {
        let code_64 = self.long_mode_active() && self.segs[Seg::Cs as usize].long_mode();
        if !code_64 {
            let why = "more than 32 bits outside 64-bit mode";
            return check(self.rip >> 32 == 0, "RIP", self.rip, why);
        }
        // Execution can run off the end of the lower half; the next fetch faults.
        let off_the_end = self.rip != 0 && self.canonical(self.rip - 1);
        let possible = self.canonical(self.rip) || off_the_end;
        check(possible, "RIP", self.rip, "not a canonical address")
    }

    fn validate_fpu(&self) -> Result<(), InvalidState> {
        let fpu = &self.fpu;
        only("MXCSR", fpu.mxcsr.into(), MXCSR_DEFINED.into())?;
        only("FOP", fpu.fop.into(), FOP_DEFINED.into())?;
        for st in fpu.st {
            let above = st >> ST_BITS;
            check(above == 0, "ST", above as u64, "more than 80 bits")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat() -> CpuState {
        CpuState::long_mode(0xffff_ffff_8100_0000, 0x8000, 0x1000)
    }

    #[test]
    fn power_on_and_flat_long_mode_are_valid() {
        assert_eq!(CpuState::default().validate(), Ok(()));
        assert_eq!(flat().validate(), Ok(()));
    }

    #[test]
    fn the_instruction_after_the_last_canonical_one_is_a_valid_place() {
        let mut state = flat();
        state.rip = 0x0000_8000_0000_0000;
        assert_eq!(state.validate(), Ok(()));
        state.rip += 1;
        assert!(state.validate().is_err());
        state.cr4 |= cr4::LA57;
        assert_eq!(state.validate(), Ok(()));
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
        type Break = fn(&mut CpuState);
        let rules: &[(&str, Break)] = &[
            ("CR0", |s| s.cr0 |= 1 << 32),
            ("CR0", |s| s.cr0 |= cr0::NW),
            ("CR0", |s| s.cr0 &= !cr0::PE),
            ("CR3", |s| s.cr3 |= 1 << 63),
            ("CR4", |s| s.cr4 |= 1 << 63),
            ("CR4", |s| s.cr4 &= !cr4::PAE),
            ("CR4", |s| {
                *s = CpuState::default();
                s.cr4 = cr4::PCIDE;
            }),
            ("CR8", |s| s.cr8 = 16),
            ("XCR0", |s| s.xcr0 = 7),
            ("XCR0", |s| s.xcr0 = 2),
            ("EFER", |s| s.msrs.efer |= 1 << 1),
            ("EFER", |s| s.msrs.efer &= !efer::LMA),
            ("EFER", |s| s.msrs.efer &= !efer::LME),
            ("EFER", |s| s.cr0 &= !cr0::PG),
            ("RFLAGS", |s| s.rflags = 0),
            ("RFLAGS", |s| s.rflags |= 1 << 3),
            ("RFLAGS", |s| s.rflags |= rflags::VM),
            ("DR6", |s| s.dr6 = 0),
            ("DR6", |s| s.dr6 |= 1 << 32),
            ("DR7", |s| s.dr7 = 0),
            ("DR7", |s| s.dr7 |= 1 << 40),
            ("CS", |s| s.segs[Seg::Cs as usize].attributes |= 0x4000),
            ("DS", |s| s.segs[Seg::Ds as usize].base = 1 << 32),
            ("FS", |s| s.segs[Seg::Fs as usize].base = 1 << 47),
            ("TR", |s| s.tr.base = 1 << 63),
            ("LDTR", |s| s.ldtr.base = 1 << 63),
            ("GDTR", |s| s.gdtr.base = 1 << 50),
            ("IDTR", |s| s.idtr.base = 1 << 50),
            ("segment attributes", |s| s.segs[0].attributes |= 0x100),
            ("LSTAR", |s| s.msrs.lstar = 1 << 48),
            ("CSTAR", |s| s.msrs.cstar = 1 << 48),
            ("KERNEL_GS_BASE", |s| s.msrs.kernel_gs_base = 1 << 48),
            ("SYSENTER_ESP", |s| s.msrs.sysenter_esp = 1 << 48),
            ("SYSENTER_EIP", |s| s.msrs.sysenter_eip = 1 << 48),
            ("FMASK", |s| s.msrs.sfmask = 1 << 32),
            ("TSC_AUX", |s| s.msrs.tsc_aux = 1 << 32),
            ("PAT", |s| s.msrs.pat = 2),
            ("RIP", |s| s.rip = 1 << 60),
            ("RIP", |s| {
                *s = CpuState::default();
                s.rip = 1 << 32;
            }),
            ("MXCSR", |s| s.fpu.mxcsr |= 1 << 16),
            ("FOP", |s| s.fpu.fop = 0x800),
            ("ST", |s| s.fpu.st[7] = 1 << 80),
        ];
        for (index, (register, break_rule)) in rules.iter().enumerate() {
            let mut state = flat();
            break_rule(&mut state);
            let refused = state.validate().map_err(|invalid| invalid.register);
            assert_eq!(refused, Err(*register), "rule {index}");
        }
    }
}
