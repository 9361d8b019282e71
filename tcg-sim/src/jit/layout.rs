//! The state block that translated code addresses through host RSP.
//!
//! RSP is a register that guest code never needs natively, so it is the base of the block, and every
//! displacement is a constant of the translation. The base is congruent 12 modulo 64: a shift by RSP
//! (`shrx r, r, rsp`) is then a shift by 12, the page shift, without a register for the constant.
//! Signal handlers of this crate run on an alternate stack; others may use the bytes below the block,
//! which is why [`EnvBox`] leaves room there.
#![expect(unsafe_code, reason = "owns the memory that translated code addresses")]

use crate::jit::mode::{TLB_CLASSES, TlbClass};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::offset_of;
use std::ptr::NonNull;

/// Entries of each TLB, a power of two.
pub(crate) const TLB_ENTRIES: usize = 1024;
/// Entries of each indirect-branch cache, a power of two.
pub(crate) const IBTC_ENTRIES: usize = 8192;
/// No page has this address, negated: it is not a multiple of the page size.
pub(crate) const NO_STOP: u64 = 1;
/// Bytes from the start of [`Env`] to the address in RSP.
const BASE: usize = 140;
/// Room below the block for signal frames of handlers without an alternate stack.
const SIGNAL_ROOM: usize = 64 << 10;

/// Software TLB of one class of accesses: structure of arrays, direct-mapped by page number.
#[repr(C)]
pub(crate) struct Tlb {
    /// Negated page address for reads; see [`invalid_tag`].
    pub(crate) read_tag: [u64; TLB_ENTRIES],
    /// Negated page address for writes.
    pub(crate) write_tag: [u64; TLB_ENTRIES],
    /// Host address minus guest-linear address.
    pub(crate) addend: [u64; TLB_ENTRIES],
}

/// Indirect-branch target cache of one class.
#[repr(C)]
pub(crate) struct Ibtc {
    /// Negated guest-linear target; see [`invalid_branch_tag`].
    pub(crate) tag: [u64; IBTC_ENTRIES],
    /// Far entry of the translation.
    pub(crate) host: [u64; IBTC_ENTRIES],
}

/// One-entry TLB for accesses relative to RSP.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct StackSlot {
    /// Negated page address; the page is readable and writable.
    pub(crate) tag: u64,
    /// Host address minus guest-linear address.
    pub(crate) addend: u64,
}

/// The scalar part: registers and everything else that survives a change of address space.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Core {
    /// The first slot is below the reach of the eight-bit displacements.
    pub(crate) slots: [StackSlot; TLB_CLASSES],
    /// Masks for the one-slot check by log2 of the size: zero iff in page and aligned.
    pub(crate) slot_mask: [u64; 5],
    /// Maskable-interrupt flag as it stands in RFLAGS (0 or 0x200).
    pub(crate) interrupt_flag: u64,
    /// Direction flag as it stands in RFLAGS (0 or 0x400).
    pub(crate) direction_flag: u64,
    /// Host address of the instruments' counters.
    pub(crate) counters: u64,
    /// `call` and signal-free scratch: nothing may live here.
    _scratch: [u8; 16],
    // Reach of positive eight-bit displacements starts here (offset +4).
    pub(crate) r10: u64,
    pub(crate) r11: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
    /// Guest-linear address of the page that executes.
    pub(crate) page_base: u64,
    pub(crate) r9: u64,
    pub(crate) tlb_mask: u64,
    pub(crate) ibtc_mask: u64,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    pub(crate) scratch0: u64,
    pub(crate) scratch1: u64,
    /// RFLAGS without OSZAPC, IF and DF.
    pub(crate) system_flags: u64,
    pub(crate) fpu_ip: u64,
    pub(crate) fpu_dp: u64,
    pub(crate) fpu_op: u64,
    // Written by the gates.
    pub(crate) rax: u64,
    pub(crate) rdx: u64,
    pub(crate) rbx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) rbp: u64,
    pub(crate) r8: u64,
    /// Steps left; negative after a block entry that must not run.
    pub(crate) budget: i64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) rsp: u64,
    pub(crate) rcx: u64,
    /// First scratch register: the linear address on a slow memory path, the target of a branch.
    pub(crate) t0: u64,
    /// Second scratch register: the addend that a slow path returns.
    pub(crate) t1: u64,
    /// AH: SF ZF AF PF CF as LAHF stores them; AL: OF.
    pub(crate) flags: u64,
    /// Site through which translated code left.
    pub(crate) site: u64,
    /// Host address at which `enter` continues.
    pub(crate) resume: u64,
    pub(crate) host_rsp: u64,
    pub(crate) mxcsr: u32,
    pub(crate) host_mxcsr: u32,
    /// Host trap number, error code and address when `site` is the fault site.
    pub(crate) trap_number: u64,
    pub(crate) trap_pc: u64,
    pub(crate) bit_mask16: u64,
    pub(crate) bit_mask32: u64,
    pub(crate) bit_mask64: u64,
    /// All arithmetic flags of a host RFLAGS image.
    pub(crate) oszapc_mask: u64,
    /// Where the last x87 instruction had its operand, and its opcode with [`LAST_X87`] and
    /// [`LAST_X87_MEMORY`], on hosts where that becomes visible with an unmasked exception only.
    pub(crate) fpu_last_dp: u64,
    pub(crate) fpu_last_op: u64,
    /// Selectors that go with the x87 pointers.
    pub(crate) fpu_cs: u64,
    pub(crate) fpu_ds: u64,
    /// The bits that are zero in a canonical address once 2^47 is added.
    pub(crate) high_mask: u64,
    /// Selector in CS.
    pub(crate) code_selector: u64,
    /// Negated address of the page of the state that is looked for, or [`NO_STOP`].
    pub(crate) stop_page: u64,
    /// Negated general-purpose registers of that state, in encoding order.
    pub(crate) stop_gpr: [u64; 16],
    /// IA32_KERNEL_GS_BASE, which SWAPGS exchanges.
    pub(crate) kernel_gs_base: u64,
    /// Where the memory trace goes on.
    pub(crate) trace: u64,
    /// Stands in for memory that is not one directly accessible piece.
    pub(crate) bounce: Bounce,
    pub(crate) xmm: [u128; 16],
    pub(crate) fx: FxArea,
}

/// Set in [`Core::fpu_last_op`] while it holds an instruction.
pub(crate) const LAST_X87: u64 = 1 << 16;
/// Set in [`Core::fpu_last_op`] if the instruction has a memory operand.
pub(crate) const LAST_X87_MEMORY: u64 = 1 << 17;

/// Aligned like the largest naturally aligned access, so that alignment faults stay what they are.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Bounce(pub(crate) [u8; 192]);

/// An FXSAVE image.
#[derive(Clone)]
#[repr(C, align(16))]
pub(crate) struct FxArea(pub(crate) [u8; 512]);

/// The state block: scalars, then the tables of one address space.
#[repr(C)]
pub(crate) struct Env {
    pub(crate) core: Core,
    pub(crate) tlb: [Tlb; TLB_CLASSES],
    pub(crate) ibtc: [Ibtc; TLB_CLASSES],
}

/// Displacement of a [`Core`] field from RSP.
macro_rules! disp {
    ($field:ident) => {
        $crate::jit::layout::core_disp(std::mem::offset_of!($crate::jit::layout::Core, $field))
    };
}
pub(crate) use disp;

pub(crate) const fn core_disp(offset: usize) -> i32 {
    offset as i32 - BASE as i32
}

/// Displacements of the read tags, write tags and addends of a class.
pub(crate) fn tlb_disp(class: TlbClass) -> (i32, i32, i32) {
    let at = offset_of!(Env, tlb) + class as usize * size_of::<Tlb>();
    let table = |offset| core_disp(at + offset);
    (
        table(offset_of!(Tlb, read_tag)),
        table(offset_of!(Tlb, write_tag)),
        table(offset_of!(Tlb, addend)),
    )
}

/// Displacements of the tags and host addresses of a class's indirect-branch cache.
pub(crate) fn ibtc_disp(class: TlbClass) -> (i32, i32) {
    let at = offset_of!(Env, ibtc) + class as usize * size_of::<Ibtc>();
    (
        core_disp(at + offset_of!(Ibtc, tag)),
        core_disp(at + offset_of!(Ibtc, host)),
    )
}

/// Displacements of tag and addend of a class's stack slot.
pub(crate) fn slot_disp(class: TlbClass) -> (i32, i32) {
    let at = offset_of!(Core, slots) + class as usize * size_of::<StackSlot>();
    (core_disp(at), core_disp(at + 8))
}

/// Displacement of the slot mask for accesses of `1 << log2` bytes.
pub(crate) fn slot_mask_disp(log2: u32) -> i32 {
    core_disp(offset_of!(Core, slot_mask) + 8 * log2 as usize)
}

/// A tag that no access through TLB entry `index` can match: it names a non-canonical page whose
/// index bits differ from `index` by 2, so neither the access's first page nor the page after it
/// (where its last byte may lie) has that number.
pub(crate) const fn invalid_tag(index: usize) -> u64 {
    (0x8000_0000_0000_0000 | ((index as u64 ^ 2) << 12)).wrapping_neg()
}

/// A branch tag that no target through entry `index` can match.
pub(crate) const fn invalid_branch_tag(index: usize) -> u64 {
    (0x8000_0000_0000_0000 | (index as u64 ^ 2)).wrapping_neg()
}

const INVALID_TAGS: [u64; TLB_ENTRIES] = {
    let mut tags = [0; TLB_ENTRIES];
    let mut index = 0;
    while index < TLB_ENTRIES {
        tags[index] = invalid_tag(index);
        index += 1;
    }
    tags
};

static INVALID_BRANCH_TAGS: [u64; IBTC_ENTRIES] = {
    let mut tags = [0; IBTC_ENTRIES];
    let mut index = 0;
    while index < IBTC_ENTRIES {
        tags[index] = invalid_branch_tag(index);
        index += 1;
    }
    tags
};

/// No RSP-relative access hits it: its page is not canonical and the masks keep the high bits.
const EMPTY_SLOT: StackSlot = StackSlot {
    tag: 0x4000_0000_0000_0000,
    addend: 0,
};

impl Env {
    /// Forgets every cached translation of linear addresses to RAM.
    pub(crate) fn flush_tlb(&mut self) {
        for tlb in &mut self.tlb {
            tlb.read_tag = INVALID_TAGS;
            tlb.write_tag = INVALID_TAGS;
        }
        self.core.slots = [EMPTY_SLOT; TLB_CLASSES];
    }

    /// Forgets which pages may be written directly.
    pub(crate) fn flush_write_tags(&mut self) {
        for tlb in &mut self.tlb {
            tlb.write_tag = INVALID_TAGS;
        }
        self.core.slots = [EMPTY_SLOT; TLB_CLASSES];
    }

    /// Forgets what is cached of one linear page.
    pub(crate) fn flush_page(&mut self, page: u64) {
        let index = tlb_index(page);
        for tlb in &mut self.tlb {
            tlb.read_tag[index] = invalid_tag(index);
            tlb.write_tag[index] = invalid_tag(index);
        }
        self.core.slots = [EMPTY_SLOT; TLB_CLASSES];
    }
}

impl Core {
    /// The sixteen general-purpose registers in encoding order.
    pub(crate) fn gprs(&self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi,
            self.r8, self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// RFLAGS, RF apart.
    pub(crate) fn rflags(&self) -> u64 {
        let (low, overflow) = (self.flags >> 8 & 0xd5, (self.flags & 1) << 11);
        low | overflow | self.system_flags | self.interrupt_flag | self.direction_flag
    }

    /// Replaces the sixteen general-purpose registers.
    pub(crate) fn set_gprs(&mut self, gpr: &[u64; 16]) {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi,
            self.r8, self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ] = *gpr;
    }
}

/// TLB entry of a linear address.
pub(crate) fn tlb_index(address: u64) -> usize {
    (address >> 12) as usize & (TLB_ENTRIES - 1)
}

/// Indirect-branch cache entry of a target. The page number takes part, or targets at the same
/// offset of different pages would displace each other.
pub(crate) fn ibtc_index(target: u64) -> usize {
    target.wrapping_add(target >> 12) as usize & (IBTC_ENTRIES - 1)
}

/// Owns an [`Env`] with room for signal frames below it.
pub(crate) struct EnvBox {
    allocation: NonNull<u8>,
}

impl EnvBox {
    fn layout() -> Layout {
        Layout::from_size_align(SIGNAL_ROOM + size_of::<Env>(), 4096)
            .expect("a constant size far below the address space")
    }

    /// A block with empty tables and zero registers.
    pub(crate) fn new() -> Self {
        // SAFETY: the layout has a non-zero size.
        let allocation = NonNull::new(unsafe { alloc_zeroed(Self::layout()) })
            .unwrap_or_else(|| handle_alloc_error(Self::layout()));
        let mut this = Self { allocation };
        let env = this.get_mut();
        env.flush_tlb();
        for ibtc in &mut env.ibtc {
            ibtc.tag = INVALID_BRANCH_TAGS;
        }
        let core = &mut env.core;
        core.tlb_mask = (TLB_ENTRIES as u64 - 1) << 12;
        core.ibtc_mask = IBTC_ENTRIES as u64 - 1;
        core.slot_mask = [0, 1, 2, 3, 4].map(|log2| !(0xfff & !((1 << log2) - 1)));
        core.host_mxcsr = 0x1f80;
        core.mxcsr = 0x1f80;
        core.bit_mask16 = 15;
        core.bit_mask32 = 31;
        core.bit_mask64 = 63;
        core.high_mask = 0xffff << 48;
        core.oszapc_mask = machine::state::rflags::OSZAPC;
        core.stop_page = NO_STOP;
        this
    }

    fn pointer(&self) -> *mut Env {
        // SAFETY: the allocation holds SIGNAL_ROOM bytes and then an Env, 64-byte aligned.
        unsafe { self.allocation.as_ptr().add(SIGNAL_ROOM) }.cast()
    }

    /// The value of RSP while translated code runs on this block.
    pub(crate) fn base(&self) -> *mut u8 {
        // SAFETY: BASE lies within the Env.
        unsafe { self.pointer().cast::<u8>().add(BASE) }
    }

    /// The block.
    pub(crate) fn get(&self) -> &Env {
        // SAFETY: zero-initialised integers are a valid Env; `self` is borrowed.
        unsafe { &*self.pointer() }
    }

    /// The block.
    pub(crate) fn get_mut(&mut self) -> &mut Env {
        // SAFETY: as in `get`; `self` is borrowed mutably and translated code does not run.
        unsafe { &mut *self.pointer() }
    }
}

impl Drop for EnvBox {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.allocation.as_ptr(), Self::layout()) }
    }
}

// SAFETY: the block is plain memory owned by this box.
unsafe impl Send for EnvBox {}

const _: () = {
    assert!(BASE % 64 == 12, "RSP must shift by the page shift");
    assert!(offset_of!(Core, r10) == BASE + 4);
    assert!(offset_of!(Core, slots) == 0);
    assert!(offset_of!(Core, _scratch) == 128);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_tags_match_no_address_through_their_entry() {
        for index in 0..TLB_ENTRIES {
            for high in [0u64, 0x7fff_ffff_ffff, !0, 0x8000_0000_0000_0000 >> 12] {
                let page =
                    (high << 12) & !(((TLB_ENTRIES as u64) - 1) << 12) | (index as u64) << 12;
                for (offset, size) in [(0, 1), (4095, 1), (4095, 2), (4090, 64), (0, 64)] {
                    let last = page.wrapping_add(offset).wrapping_add(size - 1);
                    assert_ne!(invalid_tag(index).wrapping_add(last) >> 12, 0);
                }
            }
        }
    }

    #[test]
    fn invalid_branch_tags_match_no_target_through_their_entry() {
        for index in 0..IBTC_ENTRIES {
            assert_ne!(ibtc_index(invalid_branch_tag(index).wrapping_neg()), index);
        }
    }

    #[test]
    fn the_base_shifts_by_twelve() {
        assert_eq!(EnvBox::new().base() as usize % 64, 12);
    }
}
