//! Instructions that move the state of the x87 and SSE units to and from memory.

use super::engine::Engine;
use super::fpu::{self, FXSAVE_WRITTEN, IMAGE_BYTES, Image};
use super::operand::{Operand, memory_operand};
use crate::jit::translate::segment_of;
use crate::mmu::{Access, AccessType};
use crate::sys::{self, AccessKind, Fault, Maker, SysBus, vector};
use iced_x86::Instruction;
use machine::state::{cr0, rflags};

/// Bytes of an FXSAVE image.
const FX_BYTES: usize = 512;

/// In which order the ends of an image are looked at.
#[derive(Clone, Copy)]
enum Ends {
    /// The first field, of so many bytes, then the last byte.
    FirstThenLast(usize),
    LastThenFirst,
}

impl Ends {
    fn field(self) -> usize {
        match self {
            Self::FirstThenLast(bytes) => bytes,
            Self::LastThenFirst => 1,
        }
    }
}

impl Engine {
    pub(super) fn fpu_image(
        &mut self,
        instruction: &Instruction,
        operation: Image,
        short: bool,
    ) -> Result<(), Fault> {
        if !operation.stores() && fpu::exception_waits() {
            return Err(Fault::plain(vector::MF));
        }
        let bytes = operation.bytes(short);
        let alignment = if short { 2 } else { 4 };
        let asked = self.checks_alignment().then_some(alignment);
        let access = self.image_access(operation.stores());
        let (soft, cpu) = (&mut self.soft, &self.cpu);
        // As in `check_image`.
        let first_field = |va| match soft.pieces(cpu, va, alignment as usize, access) {
            Err(fault) if fault.cr2.is_some() && soft.host.vendor == Maker::Intel => Err(fault),
            _ => Ok(()),
        };
        let operand = memory_operand(instruction, cpu, bytes as u64, asked, first_field)?;
        let mut buffer = [0; IMAGE_BYTES];
        let order = Ends::FirstThenLast(alignment as usize);
        self.check_image(operand, operation.stores(), order)?;
        if !operation.stores() {
            self.read_image(operand, &mut buffer[..bytes])?;
        }
        let rules = self.soft.host.x87;
        fpu::run_image(
            operation,
            short,
            &mut buffer,
            &mut self.soft.env().core,
            rules,
        );
        if operation.stores() {
            self.write_image(operand, &buffer[..bytes])?;
        }
        Ok(())
    }

    pub(super) fn checks_alignment(&self) -> bool {
        let asked = self.cpu.cr0 & cr0::AM != 0 && self.cpu.rflags & rflags::AC != 0;
        asked && self.cpu.cpl() == 3
    }

    fn image_access(&self, store: bool) -> Access {
        let kind = if store {
            AccessType::Write
        } else {
            AccessType::Read
        };
        Access::at_cpl(kind, self.mode.cpl())
    }

    /// Finds out whether an image can be accessed. Intel looks at its first field and its last byte,
    /// FXSAVE and FXRSTOR at the latter first; elsewhere the first byte that cannot be accessed is
    /// reported.
    fn check_image(&mut self, operand: Operand, store: bool, order: Ends) -> Result<(), Fault> {
        let access = self.image_access(store);
        if self.soft.host.vendor == Maker::Intel {
            let (first, last) = ((operand.va, order.field()), (operand.last(), 1));
            let ends = match order {
                Ends::FirstThenLast(_) => [first, last],
                Ends::LastThenFirst => [last, first],
            };
            for (va, bytes) in ends {
                self.soft.pieces(&self.cpu, va, bytes, access)?;
            }
        }
        for (va, bytes) in operand.runs() {
            self.soft.pieces(&self.cpu, va, bytes, access)?;
        }
        Ok(())
    }

    fn read_image(&mut self, operand: Operand, mut into: &mut [u8]) -> Result<(), Fault> {
        for (va, bytes) in operand.runs() {
            let (now, later) = into.split_at_mut(bytes);
            self.soft.read(&self.cpu, va, now, AccessKind::Data)?;
            into = later;
        }
        Ok(())
    }

    /// Writes the first bytes of an image.
    fn write_image(&mut self, operand: Operand, mut from: &[u8]) -> Result<(), Fault> {
        for (va, bytes) in operand.runs() {
            let (now, later) = from.split_at(bytes.min(from.len()));
            if !now.is_empty() {
                self.soft.write(&self.cpu, va, now, AccessKind::Data)?;
            }
            from = later;
        }
        Ok(())
    }

    /// A 512-byte image: 16-byte aligned, or #GP; Intel prefers #AC where that is asked for and the
    /// address is not even a multiple of four.
    fn fx_operand(&self, instruction: &Instruction) -> Result<Operand, Fault> {
        let intel = self.soft.host.vendor == Maker::Intel;
        let asked = (intel && self.checks_alignment()).then_some(4);
        let operand = memory_operand(instruction, &self.cpu, FX_BYTES as u64, asked, |_| Ok(()))?;
        if operand.va % 16 == 0 {
            Ok(operand)
        } else {
            Err(Fault::GP0)
        }
    }

    pub(super) fn fxsave(&mut self, instruction: &Instruction, wide: bool) -> Result<(), Fault> {
        let operand = self.fx_operand(instruction)?;
        let segment = segment_of(instruction.memory_segment()).filter(|_| self.mode.is_compat());
        if let Some(fault) = segment.and_then(|segment| sys::refusal(&self.cpu, segment, true)) {
            return Err(fault);
        }
        self.check_image(operand, true, Ends::LastThenFirst)?;
        fpu::snapshot(&mut self.soft.env().core, &mut self.cpu.fpu);
        let image = fpu::fxsave_image(&self.cpu.fpu, wide, self.soft.host.x87);
        // Outside 64-bit mode there are eight XMM registers (SDM vol. 2, FXSAVE).
        let written = match self.mode.is_compat() {
            true => FXSAVE_WRITTEN - 8 * 16,
            false => FXSAVE_WRITTEN,
        };
        self.write_image(operand, &image[..written])
    }

    pub(super) fn fxrstor(&mut self, instruction: &Instruction, wide: bool) -> Result<(), Fault> {
        let operand = self.fx_operand(instruction)?;
        let mut image = [0; FX_BYTES];
        self.check_image(operand, false, Ends::LastThenFirst)?;
        self.read_image(operand, &mut image)?;
        fpu::snapshot(&mut self.soft.env().core, &mut self.cpu.fpu);
        let high = self.cpu.fpu.xmm;
        let rules = self.soft.host.x87;
        if !fpu::load_fxsave_image(&mut self.cpu.fpu, &image, wide, rules) {
            return Err(Fault::GP0);
        }
        if self.mode.is_compat() {
            self.cpu.fpu.xmm[8..].copy_from_slice(&high[8..]);
        }
        fpu::enter(&mut self.soft.env().core, &self.cpu.fpu);
        Ok(())
    }
}
