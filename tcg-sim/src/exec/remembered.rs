//! Translations that hardware may still remember after a guest made a page writable.
//!
//! An operating system that only adds rights need not flush: a processor that remembers the old ones
//! takes a page fault that its tables no longer explain, once (SDM vol. 3, 4.10.4.3). The engine never does.
//! Whether hardware did cannot be logged, so replay tries it where an interval diverges otherwise: this
//! numbers the writes that may fault, and lets one of them.

use super::soft::Soft;
use crate::mmu::{Access, AccessType, Paging, walk};
use crate::sys::Fault;
use machine::state::CpuState;
use machine::units::PAGE_BYTES;
use std::collections::BTreeMap;

const PRESENT: u32 = 1;
const WRITE: u32 = 2;
const USER: u32 = 4;

/// A page fault that the tables do not explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpuriousFault {
    /// RIP of the write.
    pub rip: u64,
    /// What it wrote to.
    pub address: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// Linear pages, and whether they could be written by a translation that may be remembered.
    writable: BTreeMap<u64, bool>,
    met: u64,
    fault_at: Option<u64>,
    faulting: Option<u64>,
    taken: Option<SpuriousFault>,
}

impl Remembered {
    /// Lets the write with this number fault.
    pub(crate) fn new(fault_at: Option<u64>) -> Self {
        Self {
            fault_at,
            ..Self::default()
        }
    }

    /// How many writes that may fault there were, and the one that did.
    pub(crate) fn met(&self) -> (u64, Option<SpuriousFault>) {
        (self.met, self.taken)
    }

    /// Nothing is remembered, as after a load of CR3.
    pub(super) fn clear(&mut self) {
        self.writable.clear();
    }

    /// A page fault is delivered, after which its address is not remembered.
    pub(super) fn delivered(&mut self, rip: u64, address: u64) {
        let page = address / PAGE_BYTES;
        self.writable.remove(&page);
        if self
            .faulting
            .take_if(|faulting| *faulting == page)
            .is_some()
        {
            self.taken = Some(SpuriousFault { rip, address });
        }
    }

    fn translated(&mut self, va: u64, writable: bool, write: bool) {
        let known = self.writable.entry(va / PAGE_BYTES).or_insert(writable);
        // Whether INVLPG came between does not matter: this only says what may be.
        *known = writable && (*known || write);
    }

    fn may_fault(&self, va: u64) -> bool {
        self.writable.get(&(va / PAGE_BYTES)) == Some(&false)
    }

    /// Whether this write, which may, faults. One that is looked at again before its fault is delivered does so again.
    fn faults(&mut self, va: u64) -> bool {
        if self.faulting == Some(va / PAGE_BYTES) {
            return true;
        }
        let faults = self.fault_at == Some(self.met);
        self.met += 1;
        if faults {
            self.faulting = Some(va / PAGE_BYTES);
        }
        faults
    }
}

impl Soft {
    /// The fault of a translation that was remembered from before the page became writable, if it is to be
    /// taken.
    pub(super) fn spurious_fault(
        &mut self,
        cpu: &CpuState,
        va: u64,
        access: Access,
    ) -> Option<Fault> {
        let remembered = self.remembered.as_ref()?;
        if access.kind != AccessType::Write || !remembered.may_fault(va) {
            return None;
        }
        let read = Access {
            kind: AccessType::Read,
            ..access
        };
        let now = walk(self, &Paging::of(cpu), va, read).ok()?;
        let faults = now.writable && self.remembered.as_mut()?.faults(va);
        let user = if access.user { USER } else { 0 };
        faults.then(|| Fault::page(va, PRESENT | WRITE | user))
    }

    /// Notes a translation.
    pub(super) fn remember(&mut self, va: u64, access: Access, writable: bool) {
        if let Some(remembered) = &mut self.remembered {
            remembered.translated(va, writable, access.kind == AccessType::Write);
        }
    }
}
