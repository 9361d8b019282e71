//! What this host's KVM can do.

use super::error::KvmError;
use super::examine;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DISABLE_QUIRKS2,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_TSC_CONTROL, KVM_CAP_VCPU_ATTRIBUTES, KVM_CAP_X86_MSR_FILTER,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_XCRS, KVM_CAP_XSAVE,
};
use kvm_ioctls::Kvm;
use std::ffi::CStr;
use std::sync::OnceLock;

/// The version of the interface since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// /dev/kvm, opened.
pub struct Host {
    pub(super) kvm: Kvm,
    capabilities: Capabilities,
    exact_windows: OnceLock<bool>,
}

/// What differs between hosts, as the kernel says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// KVM_RUN can be told to finish what is pending and not to enter the guest.
    pub immediate_exit: bool,
    /// Accesses to MSRs can be had by this program.
    pub user_space_msrs: bool,
    /// Bytes of the largest ring of dirty pages; 0 if there are none.
    pub dirty_ring_bytes: u32,
    /// The bitmap of dirty pages can be read without write-protecting them.
    pub manual_protect: bool,
    /// The guest's time stamp counter can run at another rate.
    pub tsc_scaling: bool,
    /// The offset of the guest's time stamp counter can be set.
    pub tsc_offset: bool,
    /// The FPU's state is had in XSAVE form.
    pub xsave: bool,
    /// XCR0 can be had.
    pub xcrs: bool,
    /// Old habits of KVM that no processor has can be turned off: these.
    pub quirks: u32,
    /// KVM tells the bytes of an instruction that it cannot emulate.
    pub emulation_failure_bytes: bool,
}

impl Host {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// [`KvmError::Open`], [`KvmError::Lacks`].
    pub fn open() -> Result<Self, KvmError> {
        Self::open_at(c"/dev/kvm")
    }

    /// Opens the device at another place.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_at(path: &CStr) -> Result<Self, KvmError> {
        let kvm = Kvm::new_with_path(path).map_err(|error| KvmError::Open {
            source: super::error::io_error(error),
        })?;
        if kvm.get_api_version() != API_VERSION {
            return Err(KvmError::Lacks("version 12 of its interface"));
        }
        let capabilities = Capabilities::of(&kvm);
        if !capabilities.immediate_exit {
            return Err(KvmError::Lacks("immediate exits (Linux 4.13)"));
        }
        Ok(Self {
            kvm,
            capabilities,
            exact_windows: OnceLock::new(),
        })
    }

    /// Whether interrupt windows are reported where they open, which is tried once
    /// ([`examine::window_is_exact`]).
    ///
    /// # Errors
    /// [`KvmError::Probe`].
    pub fn exact_windows(&self) -> Result<bool, KvmError> {
        if let Some(known) = self.exact_windows.get() {
            return Ok(*known);
        }
        let found = examine::window_is_exact(self);
        let found = found.map_err(|source| KvmError::Probe(Box::new(source)))?;
        Ok(*self.exact_windows.get_or_init(|| found))
    }

    /// What it can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

impl Capabilities {
    fn of(kvm: &Kvm) -> Self {
        let value = |capability: u32| kvm.check_extension_raw(capability.into()).max(0) as u32;
        let has = |capability| value(capability) != 0;
        Self {
            immediate_exit: has(KVM_CAP_IMMEDIATE_EXIT),
            user_space_msrs: has(KVM_CAP_X86_USER_SPACE_MSR) && has(KVM_CAP_X86_MSR_FILTER),
            dirty_ring_bytes: match value(KVM_CAP_DIRTY_LOG_RING) {
                0 => value(KVM_CAP_DIRTY_LOG_RING_ACQ_REL),
                bytes => bytes,
            },
            manual_protect: has(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
            tsc_scaling: has(KVM_CAP_TSC_CONTROL),
            tsc_offset: has(KVM_CAP_VCPU_ATTRIBUTES),
            xsave: has(KVM_CAP_XSAVE),
            xcrs: has(KVM_CAP_XCRS),
            quirks: value(KVM_CAP_DISABLE_QUIRKS2),
            emulation_failure_bytes: has(KVM_CAP_EXIT_ON_EMULATION_FAILURE),
        }
    }
}
