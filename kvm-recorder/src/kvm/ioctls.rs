//! Calls that the kvm-ioctls crate has no name for.
#![expect(unsafe_code, reason = "ioctl is untyped")]

use kvm_bindings::{kvm_interrupt, kvm_xsave};
use kvm_ioctls::VcpuFd;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`, include/uapi/linux/kvm.h.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// Queues an external interrupt, which is delivered when the guest is entered.
pub(super) fn interrupt(vcpu: &impl AsRawFd, vector: u8) -> io::Result<()> {
    let request = kvm_interrupt { irq: vector.into() };
    // SAFETY: this request reads a `kvm_interrupt`, which `request` is.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the FPU's state. The image has no component beyond the first page: only programs that asked the
/// kernel for such components (AMX) have any.
pub(super) fn set_xsave(vcpu: &VcpuFd, image: &kvm_xsave) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it would write, which is one page as long as this process
    // has not asked for components that need more; nothing here does.
    unsafe { vcpu.set_xsave(image) }.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}
