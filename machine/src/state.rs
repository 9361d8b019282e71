//! The complete architectural state of one x86-64 vCPU.
//!
//! These are runtime types; the saved form is versioned and separate.

mod save;
mod validate;

pub use validate::InvalidState;

/// Index of a general-purpose register in [`CpuState::gpr`], in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "architectural names")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// Index of a segment register in [`CpuState::segs`], in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "architectural names")]
pub enum Seg {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// RFLAGS bits.
#[expect(missing_docs, reason = "architectural names")]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    /// Bit 1 always reads as one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags.
    pub const OSZAPC: u64 = OF | SF | ZF | AF | PF | CF;
    /// Every bit that can be one.
    pub const DEFINED: u64 =
        OSZAPC | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID | FIXED;
}

/// CR0 bits.
#[expect(missing_docs, reason = "architectural names")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits that the CPU model knows.
#[expect(missing_docs, reason = "architectural names")]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// EFER bits.
#[expect(missing_docs, reason = "architectural names")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Access rights as in descriptor bits 40..56: type (0..4), S (4), DPL (5..7), P (7), AVL (12),
    /// L (13), D/B (14), G (15); bits 8..12 are zero. P = 0 stands for an unusable segment.
    pub attributes: u16,
    /// Limit in bytes, already scaled by G.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl Segment {
    /// Descriptor type field, 0 to 15.
    pub fn kind(&self) -> u8 {
        (self.attributes & 0xf) as u8
    }
    /// Descriptor privilege level, 0 to 3.
    pub fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }
    /// Whether the segment is present (usable).
    pub fn present(&self) -> bool {
        self.attributes & 0x80 != 0
    }
    /// Whether this is a 64-bit code segment.
    pub fn long_mode(&self) -> bool {
        self.attributes & 0x2000 != 0
    }
    /// D/B: 32-bit operands and addresses (code), 32-bit stack pointer (stack).
    pub fn default_32(&self) -> bool {
        self.attributes & 0x4000 != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (offset of the last valid byte).
    pub limit: u16,
}

/// x87, MMX and SSE state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FpuState {
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included.
    pub fsw: u16,
    /// Abridged tag word: bit i set when physical register i is not empty.
    pub ftw: u8,
    /// Opcode of the last non-control x87 instruction, 11 bits.
    pub fop: u16,
    /// Instruction pointer of the last non-control x87 instruction.
    pub fip: u64,
    /// Data pointer of the last non-control x87 instruction with a memory operand.
    pub fdp: u64,
    /// Code segment selector that goes with `fip` (32-bit images).
    pub fcs: u16,
    /// Data segment selector that goes with `fdp` (32-bit images).
    pub fds: u16,
    /// ST(0) to ST(7), 80 significant bits each.
    pub st: [u128; 8],
    /// SSE control and status.
    pub mxcsr: u32,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
}

impl Default for FpuState {
    /// The state after FNINIT and reset of the SSE unit.
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
            st: [0; 8],
            mxcsr: 0x1f80,
            xmm: [0; 16],
        }
    }
}

/// Why the next instruction boundary does not take interrupts (SDM vol. 3, 6.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// No shadow.
    #[default]
    None,
    /// STI set IF in the previous instruction: maskable interrupts wait one instruction.
    Sti,
    /// The previous instruction loaded SS: interrupts and debug exceptions wait one instruction.
    MovSs,
}

/// Whether the vCPU executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// HLT retired; an interrupt resumes.
    Halted,
    /// Triple fault; only a reset resumes.
    Shutdown,
}

/// Model-specific registers that are pure state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msrs {
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            // Power-on value, SDM vol. 3, 11.12.4.
            pat: 0x0007_0406_0007_0406,
            tsc_aux: 0,
        }
    }
}

/// Everything about a vCPU that the guest, now or later, can tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// General-purpose registers in encoding order, see [`Gpr`].
    pub gpr: [u64; 16],
    /// Address of the next instruction.
    pub rip: u64,
    /// RFLAGS; bit 1 is set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, see [`Seg`]. The FS and GS base MSRs are their `base`.
    pub segs: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base.
    pub cr3: u64,
    /// Extensions.
    pub cr4: u64,
    /// Task priority.
    pub cr8: u64,
    /// Extended control register 0 (1 where XSAVE is hidden: x87 only by definition).
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// x87, MMX and SSE.
    pub fpu: FpuState,
    /// Interrupt shadow at the next boundary.
    pub shadow: Shadow,
    /// Data breakpoints (DR6 bits 0 to 3) that the instruction hit which opened a shadow of MOV SS: their
    /// #DB comes after the next instruction. 0 without such a shadow.
    pub held_breakpoints: u8,
    /// Running, halted or shut down.
    pub activity: Activity,
}

impl Default for CpuState {
    /// All registers zero with the architectural fixed bits; not a runnable state. Boot code fills it.
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: rflags::FIXED,
            segs: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            msrs: Msrs::default(),
            fpu: FpuState::default(),
            shadow: Shadow::None,
            held_breakpoints: 0,
            activity: Activity::Running,
        }
    }
}

impl CpuState {
    /// Current privilege level, 0 to 3: the DPL of SS.
    pub fn cpl(&self) -> u8 {
        self.segs[Seg::Ss as usize].dpl()
    }

    /// A flat 64-bit supervisor state: paging on at `cr3`, flat segments with the selectors of the
    /// Linux 64-bit boot protocol (CS 0x10, data 0x18), interrupts off. GDTR and IDTR are empty.
    pub fn long_mode(rip: u64, rsp: u64, cr3: u64) -> Self {
        let data = Segment {
            selector: 0x18,
            attributes: 0xc093,
            limit: u32::MAX,
            base: 0,
        };
        let code = Segment {
            selector: 0x10,
            attributes: 0xa09b,
            limit: u32::MAX,
            base: 0,
        };
        let mut state = Self {
            rip,
            cr3,
            ..Self::default()
        };
        state.gpr[Gpr::Rsp as usize] = rsp;
        state.segs = [data, code, data, data, data, data];
        // A 64-bit busy TSS, as VM entry demands; its limit covers the I/O-map-less structure.
        state.tr = Segment {
            selector: 0,
            attributes: 0x8b,
            limit: 0x67,
            base: 0,
        };
        state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
        state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        state.msrs.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        state
    }
}
