//! The saved vCPU: components, each with its length, under two bitmaps. One bitmap is ours, the other
//! numbers components as XCR0 does, so that wider vectors become further components.

use crate::saved::codec::{Code, DecodeError, Decoder, saved};
use crate::saved::{InvalidSaved, require};
use crate::state::{Activity, CpuState, DescriptorTable, FpuState, Msrs, Segment, Shadow};

/// Bits of the first bitmap: general, segments, control, MSRs, execution.
pub const CORE_COMPONENTS: u64 = 0x1f;
/// Bits of the second bitmap, numbered as in XCR0: x87 and SSE.
pub const XSTATE_COMPONENTS: u64 = 0x3;

saved! {
    /// Component 0: general-purpose registers.
    SavedGeneral {
        /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
        gpr: [u64; 16],
        /// RIP.
        rip: u64,
        /// RFLAGS.
        rflags: u64,
    }
}

saved! {
    /// A segment register.
    SavedSegment {
        /// Selector.
        selector: u16,
        /// Descriptor bits 40 to 55, those of the limit zero.
        attributes: u16,
        /// Limit in bytes.
        limit: u32,
        /// Base.
        base: u64,
    }
}

saved! {
    /// GDTR or IDTR.
    SavedTable {
        /// Base.
        base: u64,
        /// Limit in bytes.
        limit: u16,
    }
}

saved! {
    /// Component 1: segmentation.
    SavedSegments {
        /// ES, CS, SS, DS, FS, GS.
        segs: [SavedSegment; 6],
        /// LDTR.
        ldtr: SavedSegment,
        /// TR.
        tr: SavedSegment,
        /// GDTR.
        gdtr: SavedTable,
        /// IDTR.
        idtr: SavedTable,
    }
}

saved! {
    /// Component 2: control and debug registers.
    SavedControl {
        /// CR0.
        cr0: u64,
        /// CR2.
        cr2: u64,
        /// CR3.
        cr3: u64,
        /// CR4.
        cr4: u64,
        /// CR8.
        cr8: u64,
        /// XCR0.
        xcr0: u64,
        /// DR0 to DR3.
        dr: [u64; 4],
        /// DR6.
        dr6: u64,
        /// DR7.
        dr7: u64,
    }
}

saved! {
    /// Component 3: model-specific registers.
    SavedMsrs {
        /// IA32_EFER.
        efer: u64,
        /// IA32_STAR.
        star: u64,
        /// IA32_LSTAR.
        lstar: u64,
        /// IA32_CSTAR.
        cstar: u64,
        /// IA32_FMASK.
        sfmask: u64,
        /// IA32_KERNEL_GS_BASE.
        kernel_gs_base: u64,
        /// IA32_SYSENTER_CS.
        sysenter_cs: u64,
        /// IA32_SYSENTER_ESP.
        sysenter_esp: u64,
        /// IA32_SYSENTER_EIP.
        sysenter_eip: u64,
        /// IA32_PAT.
        pat: u64,
        /// IA32_TSC_AUX.
        tsc_aux: u64,
    }
}

saved! {
    /// Component 4: what happens at the next boundary.
    SavedExecution {
        /// Interrupt shadow: 0 none, 1 STI, 2 MOV SS.
        shadow: u8,
        /// 0 running, 1 halted, 2 shut down.
        activity: u8,
    }
}

saved! {
    /// XCR0 component 0: x87.
    SavedX87 {
        /// Control word.
        fcw: u16,
        /// Status word.
        fsw: u16,
        /// Abridged tag word.
        ftw: u8,
        /// Last opcode.
        fop: u16,
        /// Last instruction pointer.
        fip: u64,
        /// Last data pointer.
        fdp: u64,
        /// Selector of `fip`.
        fcs: u16,
        /// Selector of `fdp`.
        fds: u16,
        /// ST(0) to ST(7), 80 bits each in 16 bytes.
        st: [u128; 8],
    }
}

saved! {
    /// XCR0 component 1: SSE.
    SavedSse {
        /// MXCSR.
        mxcsr: u32,
        /// XMM0 to XMM15.
        xmm: [u128; 16],
    }
}

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "one field per component, named as its type")]
pub struct SavedCpu {
    pub general: SavedGeneral,
    pub segments: SavedSegments,
    pub control: SavedControl,
    pub msrs: SavedMsrs,
    pub execution: SavedExecution,
    pub x87: SavedX87,
    pub sse: SavedSse,
}

/// Writes a component: its length (u32), then its bytes.
fn put(component: &impl Code, into: &mut Vec<u8>) {
    let start = into.len();
    0_u32.encode(into);
    component.encode(into);
    let length = into.len() - start - size_of::<u32>();
    let length = u32::try_from(length).expect("components have a few hundred bytes");
    into[start..start + size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
}

/// Reads a component, whose length must be what its fields need.
fn take<T: Code>(from: &mut Decoder<'_>) -> Result<T, DecodeError> {
    let length = u32::decode(from)?;
    let mut inner = Decoder::at(from.offset(), from.bytes(length as usize)?);
    let component = T::decode(&mut inner)?;
    inner.finish()?;
    Ok(component)
}

/// Reads a bitmap of components, all of which must be known and there.
fn bitmap(from: &mut Decoder<'_>, expected: u64) -> Result<(), DecodeError> {
    let found = u64::decode(from)?;
    if found == expected {
        Ok(())
    } else {
        Err(DecodeError::Components { found, expected })
    }
}

impl Code for SavedCpu {
    fn encode(&self, into: &mut Vec<u8>) {
        let Self {
            general,
            segments,
            control,
            msrs,
            execution,
            x87,
            sse,
        } = self;
        CORE_COMPONENTS.encode(into);
        XSTATE_COMPONENTS.encode(into);
        put(general, into);
        put(segments, into);
        put(control, into);
        put(msrs, into);
        put(execution, into);
        put(x87, into);
        put(sse, into);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        bitmap(from, CORE_COMPONENTS)?;
        bitmap(from, XSTATE_COMPONENTS)?;
        Ok(Self {
            general: take(from)?,
            segments: take(from)?,
            control: take(from)?,
            msrs: take(from)?,
            execution: take(from)?,
            x87: take(from)?,
            sse: take(from)?,
        })
    }
}

impl From<Segment> for SavedSegment {
    fn from(segment: Segment) -> Self {
        let Segment {
            selector,
            attributes,
            limit,
            base,
        } = segment;
        Self {
            selector,
            attributes,
            limit,
            base,
        }
    }
}

impl From<&SavedSegment> for Segment {
    fn from(saved: &SavedSegment) -> Self {
        Self {
            selector: saved.selector,
            attributes: saved.attributes,
            limit: saved.limit,
            base: saved.base,
        }
    }
}

impl From<DescriptorTable> for SavedTable {
    fn from(table: DescriptorTable) -> Self {
        let DescriptorTable { base, limit } = table;
        Self { base, limit }
    }
}

impl From<&SavedTable> for DescriptorTable {
    fn from(saved: &SavedTable) -> Self {
        Self {
            base: saved.base,
            limit: saved.limit,
        }
    }
}

impl From<Msrs> for SavedMsrs {
    fn from(msrs: Msrs) -> Self {
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
        Self {
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
        }
    }
}

impl From<&SavedMsrs> for Msrs {
    fn from(saved: &SavedMsrs) -> Self {
        Self {
            efer: saved.efer,
            star: saved.star,
            lstar: saved.lstar,
            cstar: saved.cstar,
            sfmask: saved.sfmask,
            kernel_gs_base: saved.kernel_gs_base,
            sysenter_cs: saved.sysenter_cs,
            sysenter_esp: saved.sysenter_esp,
            sysenter_eip: saved.sysenter_eip,
            pat: saved.pat,
            tsc_aux: saved.tsc_aux,
        }
    }
}

/// Both halves of the FPU.
fn save_fpu(fpu: FpuState) -> (SavedX87, SavedSse) {
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
    let x87 = SavedX87 {
        fcw,
        fsw,
        ftw,
        fop,
        fip,
        fdp,
        fcs,
        fds,
        st,
    };
    (x87, SavedSse { mxcsr, xmm })
}

fn restore_fpu(x87: &SavedX87, sse: &SavedSse) -> FpuState {
    FpuState {
        fcw: x87.fcw,
        fsw: x87.fsw,
        ftw: x87.ftw,
        fop: x87.fop,
        fip: x87.fip,
        fdp: x87.fdp,
        fcs: x87.fcs,
        fds: x87.fds,
        st: x87.st,
        mxcsr: sse.mxcsr,
        xmm: sse.xmm,
    }
}

fn save_execution(shadow: Shadow, activity: Activity) -> SavedExecution {
    SavedExecution {
        shadow: match shadow {
            Shadow::None => 0,
            Shadow::Sti => 1,
            Shadow::MovSs => 2,
        },
        activity: match activity {
            Activity::Running => 0,
            Activity::Halted => 1,
            Activity::Shutdown => 2,
        },
    }
}

fn restore_execution(saved: &SavedExecution) -> Result<(Shadow, Activity), InvalidSaved> {
    require(saved.shadow <= 2, "interrupt shadow")?;
    require(saved.activity <= 2, "activity")?;
    let shadow = [Shadow::None, Shadow::Sti, Shadow::MovSs][usize::from(saved.shadow)];
    let activities = [Activity::Running, Activity::Halted, Activity::Shutdown];
    Ok((shadow, activities[usize::from(saved.activity)]))
}

impl CpuState {
    /// The saved form.
    pub fn save(&self) -> SavedCpu {
        let Self {
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
            activity,
        } = *self;
        let (x87, sse) = save_fpu(fpu);
        SavedCpu {
            general: SavedGeneral { gpr, rip, rflags },
            segments: SavedSegments {
                segs: segs.map(SavedSegment::from),
                ldtr: ldtr.into(),
                tr: tr.into(),
                gdtr: gdtr.into(),
                idtr: idtr.into(),
            },
            control: SavedControl {
                cr0,
                cr2,
                cr3,
                cr4,
                cr8,
                xcr0,
                dr,
                dr6,
                dr7,
            },
            msrs: msrs.into(),
            execution: save_execution(shadow, activity),
            x87,
            sse,
        }
    }

    /// The saved state. It may still be one that no CPU can be in: see [`CpuState::validate`].
    ///
    /// # Errors
    /// [`InvalidSaved`] for values without a meaning.
    pub fn restore(saved: &SavedCpu) -> Result<Self, InvalidSaved> {
        let SavedCpu {
            general,
            segments,
            control,
            msrs,
            execution,
            x87,
            sse,
        } = saved;
        let (shadow, activity) = restore_execution(execution)?;
        Ok(Self {
            gpr: general.gpr,
            rip: general.rip,
            rflags: general.rflags,
            segs: segments.segs.each_ref().map(Segment::from),
            ldtr: (&segments.ldtr).into(),
            tr: (&segments.tr).into(),
            gdtr: (&segments.gdtr).into(),
            idtr: (&segments.idtr).into(),
            cr0: control.cr0,
            cr2: control.cr2,
            cr3: control.cr3,
            cr4: control.cr4,
            cr8: control.cr8,
            xcr0: control.xcr0,
            dr: control.dr,
            dr6: control.dr6,
            dr7: control.dr7,
            msrs: msrs.into(),
            fpu: restore_fpu(x87, sse),
            shadow,
            activity,
        })
    }
}
