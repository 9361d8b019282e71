//! The page that KVM shares with the program, read according to the exit reason.
#![expect(
    unsafe_code,
    reason = "the page is a union, and port data lies at an offset that the kernel gives"
)]

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_run,
};
use kvm_ioctls::VcpuFd;

/// A string of accesses to one port; all have the same direction and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortAccess {
    pub(super) port: u16,
    /// Bytes of one element: 1, 2 or 4.
    pub(super) size: u8,
    pub(super) count: u32,
    pub(super) out: bool,
    offset: u64,
}

/// Why KVM_RUN came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Port(PortAccess),
    MmioRead,
    MmioWrite,
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Halt,
    Window,
    Shutdown,
    /// CR8 was written, which needs no answer.
    TaskPriority,
    DirtyRingFull,
    /// KVM cannot go on: what it says, and the instruction if it tells.
    Failed(String, Option<Vec<u8>>),
}

/// Reads why the last KVM_RUN, which succeeded, came back.
pub(super) fn reason(vcpu: &mut VcpuFd) -> Reason {
    let run = vcpu.get_kvm_run();
    // SAFETY of each union access below: the exit reason, which the kernel wrote, says which of its
    // forms the union has; all forms are plain numbers.
    match run.exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: as said above.
            let io = unsafe { run.__bindgen_anon_1.io };
            Reason::Port(PortAccess {
                port: io.port,
                size: io.size,
                count: io.count,
                out: u32::from(io.direction) == KVM_EXIT_IO_OUT,
                offset: io.data_offset,
            })
        }
        KVM_EXIT_MMIO => {
            // SAFETY: as said above.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            if mmio.is_write != 0 {
                return Reason::MmioWrite;
            }
            mmio.data = [0xff; 8];
            Reason::MmioRead
        }
        // SAFETY: as said above.
        KVM_EXIT_X86_RDMSR => Reason::ReadMsr(unsafe { run.__bindgen_anon_1.msr }.index),
        KVM_EXIT_X86_WRMSR => {
            // SAFETY: as said above.
            let msr = unsafe { run.__bindgen_anon_1.msr };
            Reason::WriteMsr(msr.index, msr.data)
        }
        KVM_EXIT_HLT => Reason::Halt,
        KVM_EXIT_IRQ_WINDOW_OPEN => Reason::Window,
        KVM_EXIT_SHUTDOWN => Reason::Shutdown,
        KVM_EXIT_SET_TPR => Reason::TaskPriority,
        KVM_EXIT_DIRTY_RING_FULL => Reason::DirtyRingFull,
        KVM_EXIT_INTERNAL_ERROR => internal_error(run),
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as said above.
            let why = unsafe { run.__bindgen_anon_1.fail_entry };
            let code = why.hardware_entry_failure_reason;
            let what = format!("the processor refused to enter the guest (reason {code:#x})");
            Reason::Failed(what, None)
        }
        other => Reason::Failed(
            format!("KVM stopped for a reason unknown here ({other})"),
            None,
        ),
    }
}

fn internal_error(run: &kvm_run) -> Reason {
    // SAFETY: the exit reason says that the union has this form, whose first fields it shares with the
    // form below.
    let failure = unsafe { run.__bindgen_anon_1.internal };
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        let what = format!("KVM met an internal error ({})", failure.suberror);
        return Reason::Failed(what, None);
    }
    let what = "KVM emulates this instruction and does not know how".to_owned();
    // Three words: flags, and length with bytes (Documentation/virt/kvm/api.rst, KVM_EXIT_INTERNAL_ERROR).
    if failure.ndata < 3 {
        return Reason::Failed(what, None);
    }
    // SAFETY: as above; for this error and at least three words the union has this form.
    let form = unsafe { run.__bindgen_anon_1.emulation_failure };
    let told = form.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    // SAFETY: the inner union has one form.
    let instruction = unsafe { form.__bindgen_anon_1.__bindgen_anon_1 };
    let length = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
    let bytes = told.then(|| instruction.insn_bytes[..length].to_vec());
    Reason::Failed(what, bytes.filter(|bytes| !bytes.is_empty()))
}

/// The data of element `index` of a string of accesses.
fn element<'a>(vcpu: &'a mut VcpuFd, access: &PortAccess, index: u32) -> &'a mut [u8] {
    assert!(index < access.count, "callers name elements that exist");
    let page = std::ptr::from_mut(vcpu.get_kvm_run()).cast::<u8>();
    let size = usize::from(access.size);
    let offset = access.offset as usize + index as usize * size;
    // SAFETY: the kernel gives the offset of `count` elements of `size` bytes in the mapping that
    // begins with the page; the borrow of the vCPU keeps it mapped and lets no one else write.
    unsafe { std::slice::from_raw_parts_mut(page.add(offset), size) }
}

/// The value that the guest wrote.
pub(super) fn written(vcpu: &mut VcpuFd, access: &PortAccess, index: u32) -> u32 {
    let mut value = [0; 4];
    let data = element(vcpu, access, index);
    value[..data.len()].copy_from_slice(data);
    u32::from_le_bytes(value)
}

/// Answers a read of the guest.
pub(super) fn answer(vcpu: &mut VcpuFd, access: &PortAccess, index: u32, value: u32) {
    let data = element(vcpu, access, index);
    let length = data.len();
    data.copy_from_slice(&value.to_le_bytes()[..length]);
}

/// Answers an access to an MSR: with a value, or with #GP(0). Only after [`Reason::ReadMsr`] or
/// [`Reason::WriteMsr`].
pub(super) fn answer_msr(vcpu: &mut VcpuFd, value: Option<u64>) {
    // SAFETY: the exit was for an MSR, so the union has this form.
    let msr = unsafe { &mut vcpu.get_kvm_run().__bindgen_anon_1.msr };
    msr.error = u8::from(value.is_none());
    msr.data = value.unwrap_or(msr.data);
}
