//! What else an instruction does whose memory access faults, and which of several faults wins, where
//! the manuals leave it to the processor. All of it was seen on Intel family 6 model 207 in runs of the
//! differential fuzzer; what was not seen on AMD is left as the access alone would have it.

use super::access::{Owed, Pieces};
use super::engine::{Engine, Left, Next};
use super::fpu::{self, X87Snapshot};
use crate::jit::block::{MemoryAccess, Site};
use crate::jit::translate::{has_short_address, is_narrow};
use crate::mmu::{Access, AccessType};
use crate::sys::fpu::FpuClass;
use crate::sys::{self, Fault, Maker, vector};
use iced_x86::{Decoder, Instruction, Mnemonic, OpKind, Register};
use machine::state::Seg;

/// An x87 store that runs on a stand-in for memory, since only its execution tells whether it stores.
#[derive(Clone, Copy)]
pub(super) struct Probe {
    /// The fault to deliver if it stores.
    fault: Fault,
    before: X87Snapshot,
    offset: usize,
    bytes: usize,
    /// What is stored all the same: the first part of an operand that is stored in two.
    first: Option<Owed>,
}

/// Fills the stand-in. No x87 store gives it: as an extended value it is an unsupported one.
const UNWRITTEN: u8 = 0x5a;

impl Engine {
    /// An access of translated code cannot be made.
    pub(super) fn faulted(
        &mut self,
        site: Site,
        va: u64,
        access: MemoryAccess,
        direct: u64,
        fault: Fault,
    ) -> Next {
        let instruction = self.instruction_at(site);
        let class = sys::fpu::classify(&instruction);
        if class.waits() && fpu::exception_waits() {
            return self.fault_at(site, Fault::plain(vector::MF));
        }
        if is_x87_store(&instruction) {
            return self.probe(site, va, access, direct, fault);
        }
        let fault = match instruction.mnemonic() {
            Mnemonic::Maskmovdqu => self.masked_store_fault(&instruction, va, fault),
            _ => fault,
        };
        self.enter_mmx(&instruction, class);
        self.fault_at(site, fault)
    }

    fn fault_at(&mut self, site: Site, fault: Fault) -> Next {
        self.rewind(site);
        Next::Left(self.deliver_fault(fault))
    }

    /// The guest instruction of a site.
    pub(super) fn instruction_at(&mut self, site: Site) -> Instruction {
        let block = self.soft.cache.block(site.block);
        let offset = block.insns[usize::from(site.index)].offset;
        let (gfn, second) = (block.key.gfn, block.second);
        let mut bytes = self.soft.code_page(gfn)[usize::from(offset)..].to_vec();
        bytes.truncate(15);
        if let Some(second) = second {
            bytes.extend(&self.soft.code_page(second)[..15]);
        }
        let options = self.soft.cache.decoder_options;
        let bitness = if self.mode.is_compat() { 32 } else { 64 };
        Decoder::with_ip(bitness, &bytes, u64::from(offset), options).decode()
    }

    /// Where the second part of an access is that the processor makes in two, if not right behind the
    /// first: offsets in a segment are as wide as any other address of the instruction.
    pub(super) fn second_part(&mut self, site: Site, va: u64, access: MemoryAccess) -> Option<u64> {
        if !access.parts {
            return None;
        }
        let instruction = self.instruction_at(site);
        let second = self.eight_behind(&instruction, va);
        (second != va.wrapping_add(8)).then_some(second)
    }

    fn eight_behind(&self, instruction: &Instruction, va: u64) -> u64 {
        let edi = instruction.op0_kind() == OpKind::MemorySegEDI;
        if !(edi || self.mode.is_compat() || is_narrow(instruction)) {
            return va.wrapping_add(8);
        }
        let base = match instruction.segment_prefix() {
            Register::FS => self.cpu.segs[Seg::Fs as usize].base,
            Register::GS => self.cpu.segs[Seg::Gs as usize].base,
            _ => 0,
        };
        let short = instruction.op0_kind() == OpKind::MemorySegDI || has_short_address(instruction);
        let width = if short { 0xffff } else { 0xffff_ffff };
        let offset = va.wrapping_sub(base).wrapping_add(8);
        let second = base.wrapping_add(offset & width);
        if self.mode.is_compat() {
            second & 0xffff_ffff
        } else {
            second
        }
    }

    /// The pieces of an access in two parts.
    pub(super) fn two_parts(
        &mut self,
        va: u64,
        second: u64,
        bytes: usize,
        access: Access,
    ) -> Result<Pieces, Fault> {
        let (a, b) = self.soft.pieces(&self.cpu, va, 8, access)?;
        let (c, d) = self.soft.pieces(&self.cpu, second, bytes - 8, access)?;
        Ok([Some(a), b, Some(c), d])
    }

    /// Intel stores the two halves of MASKMOVDQU one after the other, the upper one first.
    fn masked_store_fault(&mut self, instruction: &Instruction, va: u64, fault: Fault) -> Fault {
        if self.soft.host.vendor != Maker::Intel || fault.cr2.is_none() {
            return fault;
        }
        let second = self.eight_behind(instruction, va);
        let access = Access::at_cpl(AccessType::Write, self.mode.cpl());
        for half in [second, va] {
            if let Err(fault) = self.soft.pieces(&self.cpu, half, 8, access) {
                return fault;
            }
        }
        fault
    }

    /// MMX stores that fault have cleared the top of the x87 stack, MASKMOVQ the tags as well.
    fn enter_mmx(&mut self, instruction: &Instruction, class: FpuClass) {
        let masked = instruction.mnemonic() == Mnemonic::Maskmovq;
        let stores = class == FpuClass::Mmx && instruction.op0_kind() == OpKind::Memory;
        if masked || stores && self.soft.host.vendor == Maker::Intel {
            fpu::enter_mmx(masked);
        }
    }

    /// An unmasked exception keeps an x87 store from touching memory, so it comes before the fault.
    fn probe(
        &mut self,
        site: Site,
        va: u64,
        access: MemoryAccess,
        direct: u64,
        fault: Fault,
    ) -> Next {
        self.rewind(site);
        if !self.alone {
            (self.step_alone, self.begun) = (true, true);
            return Next::Left(Left::Boundary);
        }
        let (bytes, offset) = (usize::from(access.bytes), (va & 63) as usize);
        let first = match fault.vector {
            vector::PF => self.first_part(va, bytes, offset),
            _ => None,
        };
        let core = &mut self.soft.env().core;
        let buffer = &mut core.bounce.0[offset..offset + bytes];
        buffer.fill(UNWRITTEN);
        core.t1 = (buffer.as_ptr() as u64).wrapping_sub(va);
        self.probe = Some(Probe {
            fault,
            before: X87Snapshot::take(core),
            offset,
            bytes,
            first,
        });
        Next::Resume(direct)
    }

    /// Intel stores ten bytes as eight and two, and the eight stay if only the two fault.
    fn first_part(&mut self, va: u64, bytes: usize, offset: usize) -> Option<Owed> {
        if bytes != 10 || self.soft.host.vendor != Maker::Intel {
            return None;
        }
        let access = Access::at_cpl(AccessType::Write, self.mode.cpl());
        let (first, second) = self.soft.pieces(&self.cpu, va, 8, access).ok()?;
        let pieces = [Some(first), second, None, None];
        Some(Owed { pieces, offset })
    }

    /// After a probe: the fault, if the instruction did store.
    pub(super) fn conclude_probe(&mut self) -> Option<Left> {
        let probe = self.probe.take()?;
        let core = &mut self.soft.env().core;
        let buffer = &core.bounce.0[probe.offset..probe.offset + probe.bytes];
        if buffer.iter().all(|byte| *byte == UNWRITTEN) {
            return None;
        }
        probe.before.restore(core);
        self.owed = probe.first;
        self.pay();
        Some(self.deliver_fault(probe.fault))
    }
}

fn is_x87_store(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.op0_kind() == OpKind::Memory
        && matches!(
            instruction.mnemonic(),
            M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp
        )
}
