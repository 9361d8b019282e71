//! What the translator notes and emits for the instruments: at the entry of a block, after the check
//! of each access, and where a block is left. Nothing is emitted unless it was asked for, nor into
//! blocks of one instruction that run alone, of which the runtime sees everything.

use super::Translator;
use super::memory::Address;
use crate::instrument::InstrumentSet;
use crate::instrument::facts::{AccessFact, BlockFacts, Branch, Slot};
use crate::instrument::memory::{END_OFFSET, PAGE, TAKEN, header};
use crate::jit::asm::{Host, Mem};
use crate::jit::block::{Instrumented, MemoryAccess};
use crate::jit::layout::disp;
use crate::jit::regs::{T0, T1};
use iced_x86::Instruction;

/// What the instruments want of a translation.
pub(super) struct Notes {
    set: InstrumentSet,
    first_slot: u32,
    facts: BlockFacts,
    slots: Vec<Slot>,
}

impl Notes {
    pub(super) fn new(set: InstrumentSet, first_slot: u32) -> Self {
        Self {
            set,
            first_slot,
            facts: BlockFacts::default(),
            slots: Vec::new(),
        }
    }

    /// What the runtime keeps.
    pub(super) fn finish(self) -> Option<Box<Instrumented>> {
        (!self.set.is_empty()).then(|| {
            Box::new(Instrumented {
                facts: self.facts,
                slots: self.slots,
                first_slot: self.first_slot,
            })
        })
    }
}

impl Translator<'_> {
    fn counts(&self) -> bool {
        self.notes.set.contains(InstrumentSet::COUNT) && !self.one_step
    }

    fn traces(&self) -> bool {
        self.notes.set.contains(InstrumentSet::MEMORY) && !self.one_step
    }

    /// Whether the runtime must see each taken branch.
    pub(super) fn notes_branches(&self) -> bool {
        !self.notes.set.is_empty()
    }

    /// The block runs. RCX, T0 and T1 are free.
    pub(super) fn note_entry(&mut self) {
        if self.counts() {
            self.count(Slot::Entry);
        }
        if self.traces() {
            self.asm.load(Host::RCX, Mem::env(disp!(trace)));
            let header = header(self.request.id);
            self.asm.store_imm(Mem::base(Host::RCX, 0), header as i32);
        }
    }

    /// Execution comes from another page; T0 is the base of this one and free afterwards.
    pub(super) fn note_page(&mut self) {
        if self.traces() {
            self.asm.load(Host::RCX, Mem::env(disp!(trace)));
            self.asm.lea(T0, Mem::base(T0, PAGE as i32));
            self.asm.store(Mem::base(Host::RCX, 0), T0);
            self.asm.lea(Host::RCX, Mem::base(Host::RCX, 8));
            self.asm.store(Mem::env(disp!(trace)), Host::RCX);
        }
    }

    /// An instruction follows.
    pub(super) fn note_insn(&mut self, instruction: &Instruction) {
        if !self.notes.set.is_empty() {
            self.notes.facts.push_insn(Branch::of(instruction));
        }
    }

    /// The access may go ahead. RCX is free.
    pub(super) fn note_access(&mut self, address: Address, access: MemoryAccess) {
        if self.traces() {
            let word = 1 + self.notes.facts.accesses.len() as i32;
            self.asm.load(Host::RCX, Mem::env(disp!(trace)));
            self.asm
                .store(Mem::base(Host::RCX, 8 * word), address.register);
        }
        if !self.notes.set.is_empty() {
            self.notes.facts.accesses.push(AccessFact::of(access));
        }
    }

    /// The conditional branch at the current index is taken. RCX and T1 are free.
    pub(super) fn note_taken(&mut self) {
        if self.counts() {
            self.count(Slot::Taken(self.index));
        }
    }

    /// The block is left behind the instruction at the current index. RCX is free.
    pub(super) fn note_exit(&mut self, taken: bool) {
        if !self.traces() {
            return;
        }
        let retired = usize::from(self.index) + 1;
        let used = 1 + self.notes.facts.accesses_before(retired) as i32;
        self.asm.load(Host::RCX, Mem::env(disp!(trace)));
        if taken || retired != self.total {
            let end = retired as u16 | if taken { TAKEN } else { 0 };
            self.asm
                .store_imm16(Mem::base(Host::RCX, END_OFFSET), end as i16);
        }
        self.asm.lea(Host::RCX, Mem::base(Host::RCX, 8 * used));
        self.asm.store(Mem::env(disp!(trace)), Host::RCX);
    }

    fn count(&mut self, slot: Slot) {
        let number = self.notes.first_slot as usize + self.notes.slots.len();
        self.notes.slots.push(slot);
        let counter = Mem::base(Host::RCX, number as i32 * 8);
        self.asm.load(Host::RCX, Mem::env(disp!(counters)));
        self.asm.load(T1, counter);
        self.asm.lea(T1, Mem::base(T1, 1));
        self.asm.store(counter, T1);
    }
}
