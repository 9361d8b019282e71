//! How a VM with one vCPU is set up.
#![expect(unsafe_code, reason = "guest RAM is handed to KVM by address")]

use super::dirty::DirtyLog;
use super::error::{KvmError, setup};
use super::host::{Capabilities, Host};
use super::msrs;
use kvm_bindings::{
    CpuId, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_X86_QUIRK_FIX_HYPERCALL_INSN, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
    KVM_X86_QUIRK_OUT_7E_INC_RIP, kvm_cpuid_entry2, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;

/// Three pages that Intel processors without unrestricted guests need, below the firmware's place; no
/// guest here sees them.
const TSS_ADDRESS: u64 = 0xfffb_d000;

/// What no processor does: MONITOR and MWAIT that are hidden do nothing instead of faulting, hypercall
/// instructions are patched in the guest's memory, OUT to port 0x7e is reported after RIP has moved.
const UNWANTED_QUIRKS: u32 = KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
    | KVM_X86_QUIRK_FIX_HYPERCALL_INSN
    | KVM_X86_QUIRK_OUT_7E_INC_RIP;

/// The one memory slot.
pub(super) const SLOT: u32 = 0;

/// Makes a VM that runs on `ram`, and its vCPU. `ram` must outlive both.
pub(super) fn build(
    host: &Host,
    ram: &Ram,
    cpuid: &CpuidTable,
    log: DirtyLog,
) -> Result<(VmFd, VcpuFd), KvmError> {
    if !ram.absent_frames().is_empty() {
        return Err(KvmError::LazyRam);
    }
    let vm = host.kvm.create_vm().map_err(setup("creating a VM"))?;
    enable(&vm, host.capabilities())?;
    log.enable(host, &vm)?;
    if ram.bytes() <= TSS_ADDRESS {
        vm.set_tss_address(TSS_ADDRESS as usize)
            .map_err(setup("placing the TSS of real mode"))?;
    }
    add_ram(&vm, ram, KVM_MEM_LOG_DIRTY_PAGES)?;
    let vcpu = vm.create_vcpu(0).map_err(setup("creating a vCPU"))?;
    // Before any state: the table decides which values of control registers and MSRs KVM takes.
    vcpu.set_cpuid2(&cpuid_entries(cpuid))
        .map_err(setup("setting the CPUID table"))?;
    Ok((vm, vcpu))
}

/// Turns on what there is. Must come before vCPUs exist.
fn enable(vm: &VmFd, capabilities: Capabilities) -> Result<(), KvmError> {
    let turn_on = |cap, value: u64| {
        let mut enable = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        enable.args[0] = value;
        vm.enable_cap(&enable)
    };
    let quirks = capabilities.quirks & UNWANTED_QUIRKS;
    if quirks != 0 {
        turn_on(KVM_CAP_DISABLE_QUIRKS2, quirks.into()).map_err(setup("turning quirks off"))?;
    }
    if capabilities.emulation_failure_bytes {
        turn_on(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
            .map_err(setup("asking for exits on emulation failures"))?;
    }
    if capabilities.user_space_msrs {
        msrs::filter(vm)?;
    }
    Ok(())
}

fn add_ram(vm: &VmFd, ram: &Ram, flags: u32) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot: SLOT,
        flags,
        guest_phys_addr: 0,
        memory_size: ram.bytes(),
        userspace_addr: ram.host_base() as u64,
    };
    // SAFETY: the region is RAM's own mapping, as long as it says, and the caller keeps RAM for as long
    // as the VM exists.
    unsafe { vm.set_user_memory_region(region) }.map_err(setup("giving RAM to the VM"))
}

/// The table in KVM's form.
pub fn cpuid_entries(table: &CpuidTable) -> CpuId {
    let rows: Vec<kvm_cpuid_entry2> = table
        .entries
        .iter()
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.leaf,
            index: entry.subleaf,
            // KVM_CPUID_FLAG_SIGNIFCANT_INDEX is bit 0.
            flags: u32::from(entry.has_subleaves),
            eax: entry.registers[0],
            ebx: entry.registers[1],
            ecx: entry.registers[2],
            edx: entry.registers[3],
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&rows).expect("CPUID tables have fewer rows than KVM takes")
}
