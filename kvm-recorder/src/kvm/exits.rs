//! What comes out of KVM_RUN, as the contract of a vCPU has it.
//!
//! KVM reports several elements of REP INS at once and goes on only when it has a value for each. They are
//! reported one after the other; until the last is answered the vCPU stands between two boundaries.

use super::run_page::{self, PortAccess};
use kvm_ioctls::VcpuFd;
use machine::units::Port;
use machine::vcpu::Exit;

/// What waits for completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// Nothing.
    None,
    /// Elements from `next` on have not been reported.
    Elements { access: PortAccess, next: u32 },
    /// Element `index` was reported and waits for its value.
    Element { access: PortAccess, index: u32 },
    /// RDMSR of the time stamp counter waits for its value.
    Timestamp,
}

impl Pending {
    /// Whether a value must be given before anything else.
    pub(super) fn waits(&self) -> bool {
        matches!(self, Self::Element { .. } | Self::Timestamp)
    }

    /// Reports the next element. `None` if there is none.
    pub(super) fn report(&mut self, vcpu: &mut VcpuFd) -> Option<Exit> {
        let Self::Elements { access, next } = *self else {
            return None;
        };
        let (port, size) = (Port(access.port), access.size);
        if !access.out {
            let index = next;
            *self = Self::Element { access, index };
            return Some(Exit::PortRead { port, size });
        }
        *self = Self::after(access, next);
        let value = run_page::written(vcpu, &access, next);
        Some(Exit::PortWrite { port, size, value })
    }

    /// Answers what waits; nothing must if [`Pending::waits`] is false.
    pub(super) fn answer(&mut self, vcpu: &mut VcpuFd, value: u64) {
        match *self {
            Self::Element { access, index } => {
                run_page::answer(vcpu, &access, index, value as u32);
                *self = Self::after(access, index);
            }
            Self::Timestamp => {
                run_page::answer_msr(vcpu, Some(value));
                *self = Self::None;
            }
            Self::None | Self::Elements { .. } => {}
        }
    }

    /// What is left behind element `index`.
    fn after(access: PortAccess, index: u32) -> Self {
        match index + 1 {
            next if next < access.count => Self::Elements { access, next },
            _ => Self::None,
        }
    }
}
