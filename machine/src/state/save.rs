//! CPU state to its saved form and back.

use super::{Activity, CpuState, DescriptorTable, FpuState, Msrs, Segment, Shadow};
use crate::saved::cpu::{
    SavedControl, SavedCpu, SavedExecution, SavedGeneral, SavedHeld, SavedMsrs, SavedSegment,
    SavedSegments, SavedSse, SavedTable, SavedX87,
};
use crate::saved::{InvalidSaved, require};

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
            held_breakpoints,
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
            held: SavedHeld {
                breakpoints: held_breakpoints,
            },
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
            held,
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
            held_breakpoints: held.breakpoints,
            activity,
        })
    }
}
