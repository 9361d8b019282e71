//! Rules in which x86-64 processors of different vendors differ.

use std::sync::OnceLock;

/// Vendor of the CPU that sequences run on natively, as CPUID leaf 0 tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// "AuthenticAMD" or "HygonGenuine".
    Amd,
    /// "GenuineIntel" and all others.
    Intel,
}

impl Vendor {
    /// The vendor of the CPU that this program runs on.
    pub fn of_host() -> Self {
        // A hypervisor makes CPUID slow.
        static VENDOR: OnceLock<Vendor> = OnceLock::new();
        *VENDOR.get_or_init(|| {
            let leaf = std::arch::x86_64::__cpuid(0);
            match &leaf.ebx.to_le_bytes() {
                b"Auth" | b"Hygo" => Self::Amd,
                _ => Self::Intel,
            }
        })
    }

    /// Whether AMD's rules apply.
    pub fn is_amd(self) -> bool {
        self == Self::Amd
    }
}
