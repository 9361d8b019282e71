//! What can be wrong with KVM before a guest runs.

use super::examine::ProbeError;
use machine::vcpu::VcpuError;
use std::io;

/// Why there is no KVM vCPU.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No /dev/kvm, or no right to open it.
    #[error("cannot open /dev/kvm: {source}{}", hint(.source))]
    Open {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something that every KVM of the last decade has.
    #[error("this host's KVM lacks {0}")]
    Lacks(&'static str),
    /// The kernel refused to set something up.
    #[error("{operation}: {source}")]
    Setup {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What it does could not be found out.
    #[error(transparent)]
    Probe(Box<ProbeError>),
    /// KVM reads RAM without asking, so pages that are loaded on first touch would be missed.
    #[error("KVM needs RAM whose pages are all there")]
    LazyRam,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            " (virtualisation is off in the firmware, or this is a virtual machine or container \
             without it)"
        }
        io::ErrorKind::PermissionDenied => {
            " (add yourself to the group that owns it, mostly `kvm`)"
        }
        _ => "",
    }
}

pub(super) fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Names what failed while a VM is set up.
pub(super) fn setup(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Setup {
        operation,
        source: io_error(error),
    }
}

/// Names what failed while the guest exists.
pub(super) fn host(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Host {
        operation,
        source: io_error(error),
    }
}
