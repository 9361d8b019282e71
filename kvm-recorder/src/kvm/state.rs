//! All state of the vCPU, read and written in an order that matters.
//!
//! Nothing may wait for completion: KVM finishes a port, MMIO or MSR access only when KVM_RUN is called
//! again, and its result would overwrite what was set, or be missing in what was read.

use super::error::{host, io_error};
use super::host::Capabilities;
use super::{fpu, msrs, registers};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, Msrs,
    kvm_debugregs, kvm_msr_entry, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use machine::state::{CpuState, FpuState, Shadow};
use machine::vcpu::VcpuError;

/// Reads everything but the activity, which is this program's to know, and TSC_AUX.
pub(super) fn read(vcpu: &VcpuFd, capabilities: Capabilities) -> Result<CpuState, VcpuError> {
    let mut state = CpuState::default();
    // First the events: reading them makes KVM put what a pending exception carries into CR2 and DR6,
    // which are read below.
    let events = events(vcpu)?;
    state.shadow = shadow_of(&events);
    let regs = vcpu.get_regs().map_err(host("KVM_GET_REGS"))?;
    registers::from_regs(&mut state, &regs);
    let sregs = vcpu.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    registers::from_sregs(&mut state, &sregs);
    state.fpu = read_fpu(vcpu, capabilities)?;
    if capabilities.xcrs {
        let xcrs = vcpu.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
        state.xcr0 = xcr0_of(&xcrs);
    }
    let debug = vcpu.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
    (state.dr, state.dr6, state.dr7) = (debug.db, debug.dr6, debug.dr7);
    read_msrs(vcpu, &mut state)?;
    Ok(state)
}

/// What is pending or being delivered, and the shadow.
pub(super) fn events(vcpu: &VcpuFd) -> Result<kvm_vcpu_events, VcpuError> {
    vcpu.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))
}

/// Whether no event waits or is being delivered and no shadow is open.
pub(super) fn is_settled(events: &kvm_vcpu_events) -> bool {
    let kvm_vcpu_events {
        exception,
        interrupt,
        nmi,
        smi,
        triple_fault,
        ..
    } = events;
    let waiting = [
        exception.injected,
        exception.pending,
        interrupt.injected,
        interrupt.shadow,
        nmi.injected,
        nmi.pending,
        smi.pending,
        triple_fault.pending,
    ];
    waiting.iter().all(|flag| *flag == 0)
}

/// AMD processors have one kind of shadow, which KVM reports as both.
fn shadow_of(events: &kvm_vcpu_events) -> Shadow {
    let shadow = u32::from(events.interrupt.shadow);
    if shadow & KVM_X86_SHADOW_INT_STI != 0 {
        Shadow::Sti
    } else if shadow & KVM_X86_SHADOW_INT_MOV_SS != 0 {
        Shadow::MovSs
    } else {
        Shadow::None
    }
}

fn read_fpu(vcpu: &VcpuFd, capabilities: Capabilities) -> Result<FpuState, VcpuError> {
    if capabilities.xsave {
        let xsave = vcpu.get_xsave().map_err(host("KVM_GET_XSAVE"))?;
        return Ok(fpu::from_xsave(&xsave));
    }
    let image = vcpu.get_fpu().map_err(host("KVM_GET_FPU"))?;
    Ok(fpu::from_fpu(&image))
}

fn xcr0_of(xcrs: &kvm_xcrs) -> u64 {
    let used = &xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())];
    let xcr0 = used.iter().find(|entry| entry.xcr == 0);
    xcr0.map_or(CpuState::default().xcr0, |entry| entry.value)
}

fn read_msrs(vcpu: &VcpuFd, state: &mut CpuState) -> Result<(), VcpuError> {
    let entries = msrs::ROWS.map(|row| kvm_msr_entry {
        index: row.index,
        ..Default::default()
    });
    let mut all = Msrs::from_entries(&entries).expect("the rows are few");
    let count = vcpu.get_msrs(&mut all).map_err(host("KVM_GET_MSRS"))?;
    if let Some(missing) = msrs::ROWS.get(count) {
        return Err(VcpuError::InvalidState(format!(
            "this host's KVM has no MSR {:#x}",
            missing.index
        )));
    }
    for (row, entry) in msrs::ROWS.iter().zip(all.as_slice()) {
        *(row.field)(&mut state.msrs) = entry.data;
    }
    Ok(())
}

/// Writes everything but the activity and TSC_AUX. What KVM does not take is named; the vCPU's state is
/// then between the two.
pub(super) fn write(
    vcpu: &mut VcpuFd,
    capabilities: Capabilities,
    state: &CpuState,
) -> Result<(), VcpuError> {
    // Mode and paging first: what the general registers, MSRs and events may be depends on them.
    vcpu.set_sregs(&registers::to_sregs(state))
        .map_err(refused("control and segment registers"))?;
    // KVM_RUN loads CR8 from the shared page when there is no local APIC.
    vcpu.get_kvm_run().cr8 = state.cr8;
    write_msrs(vcpu, state)?;
    vcpu.set_regs(&registers::to_regs(state))
        .map_err(refused("general registers"))?;
    // XCR0 before the state that it enables.
    if capabilities.xcrs {
        vcpu.set_xcrs(&xcrs(state.xcr0)).map_err(refused("XCR0"))?;
    }
    write_fpu(vcpu, capabilities, &state.fpu)?;
    let debug = kvm_debugregs {
        db: state.dr,
        dr6: state.dr6,
        dr7: state.dr7,
        ..Default::default()
    };
    vcpu.set_debug_regs(&debug)
        .map_err(refused("debug registers"))?;
    // Last: setting general registers drops pending exceptions, and the shadow belongs to this RIP.
    vcpu.set_vcpu_events(&no_events(state.shadow))
        .map_err(refused("the interrupt shadow"))
}

fn write_msrs(vcpu: &VcpuFd, state: &CpuState) -> Result<(), VcpuError> {
    let all = msrs::to_msrs(state);
    let count = vcpu.set_msrs(&all).map_err(host("KVM_SET_MSRS"))?;
    match all.as_slice().get(count) {
        None => Ok(()),
        Some(entry) => Err(VcpuError::InvalidState(format!(
            "this host's KVM does not take {:#x} for MSR {:#x}",
            entry.data, entry.index
        ))),
    }
}

fn xcrs(xcr0: u64) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = xcr0;
    xcrs
}

fn write_fpu(vcpu: &VcpuFd, capabilities: Capabilities, state: &FpuState) -> Result<(), VcpuError> {
    if capabilities.xsave {
        return super::ioctls::set_xsave(vcpu, &fpu::to_xsave(state))
            .map_err(|source| refusal("FPU state", source));
    }
    vcpu.set_fpu(&fpu::to_fpu(state))
        .map_err(refused("FPU state"))
}

fn no_events(shadow: Shadow) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    events.interrupt.shadow = match shadow {
        Shadow::None => 0,
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    events
}

/// Whether the vCPU holds what was written to it.
///
/// The x87 pointers are left out: AMD processors keep them only while an exception waits. So is the kind
/// of a shadow, of which they have one.
pub(super) fn check(written: &CpuState, read: &CpuState) -> Result<(), VcpuError> {
    let comparable = |state: &CpuState| {
        let mut state = state.clone();
        registers::settle(&mut state);
        let fpu = &mut state.fpu;
        (fpu.fop, fpu.fip, fpu.fdp, fpu.fcs, fpu.fds) = (0, 0, 0, 0, 0);
        if state.shadow == Shadow::MovSs {
            state.shadow = Shadow::Sti;
        }
        state
    };
    let (want, have) = (comparable(written), comparable(read));
    let parts = [
        ("general registers", want.gpr == have.gpr),
        ("RIP", want.rip == have.rip),
        ("RFLAGS", want.rflags == have.rflags),
        ("segments", want.segs == have.segs),
        ("LDTR and TR", (want.ldtr, want.tr) == (have.ldtr, have.tr)),
        (
            "GDTR and IDTR",
            (want.gdtr, want.idtr) == (have.gdtr, have.idtr),
        ),
        ("CR0", want.cr0 == have.cr0),
        ("CR2", want.cr2 == have.cr2),
        ("CR3", want.cr3 == have.cr3),
        ("CR4", want.cr4 == have.cr4),
        ("CR8", want.cr8 == have.cr8),
        ("XCR0", want.xcr0 == have.xcr0),
        ("DR0 to DR3", want.dr == have.dr),
        ("DR6", want.dr6 == have.dr6),
        ("DR7", want.dr7 == have.dr7),
        ("MSRs", want.msrs == have.msrs),
        ("FPU state", want.fpu == have.fpu),
        ("everything", want == have),
    ];
    match parts.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((part, _)) => Err(VcpuError::InvalidState(format!(
            "this host's KVM does not keep {part} as given"
        ))),
    }
}

/// KVM refuses values with EINVAL; anything else is the host's trouble.
fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |error| refusal(what, io_error(error))
}

fn refusal(what: &'static str, source: std::io::Error) -> VcpuError {
    if source.raw_os_error() == Some(libc::EINVAL) {
        return VcpuError::InvalidState(format!("this host's KVM does not take the {what}"));
    }
    VcpuError::Host {
        operation: "setting the state of the vCPU",
        source,
    }
}
