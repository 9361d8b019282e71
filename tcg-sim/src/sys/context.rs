//! One instruction in execution: registers, effective addresses, checked memory operands.

use super::segment::refusal;
use super::{AccessKind, Fault, SysBus};
use crate::mmu::is_canonical;
use iced_x86::{Instruction, OpKind, Register};
use machine::state::{CpuState, Gpr, Seg, cr0, rflags};

/// An instruction with the state it acts on.
pub(super) struct Context<'a> {
    pub(super) instr: &'a Instruction,
    pub(super) cpu: &'a mut CpuState,
    pub(super) bus: &'a mut dyn SysBus,
}

/// A memory operand before the checks: which segment, and the linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Stack segment by default: faults are #SS(0) instead of #GP(0).
    pub(super) stack: bool,
    /// Linear address of the first byte.
    pub(super) va: u64,
}

/// Index of a general-purpose register of any width in [`CpuState::gpr`].
pub(super) fn gpr_index(register: Register) -> usize {
    register.full_register().number()
}

/// Whether the register is AH, CH, DH or BH.
fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// Low `size` bytes set.
pub(super) fn mask(size: usize) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1 << (size * 8)) - 1
    }
}

/// Index in [`CpuState::segs`] of a segment register.
pub(super) fn seg_index(register: Register) -> Option<Seg> {
    Some(match register {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::DS => Seg::Ds,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        _ => return None,
    })
}

impl Context<'_> {
    pub(super) fn gpr(&self, index: Gpr) -> u64 {
        self.cpu.gpr[index as usize]
    }

    pub(super) fn set_gpr(&mut self, index: Gpr, value: u64) {
        self.cpu.gpr[index as usize] = value;
    }

    pub(super) fn cpl(&self) -> u8 {
        self.cpu.cpl()
    }

    /// Address of the next instruction in sequence.
    pub(super) fn next_rip(&self) -> u64 {
        self.narrowed(self.cpu.rip.wrapping_add(self.instr.len() as u64))
    }

    /// Whether this is compatibility mode. Its segments are flat here, but for the bases of FS and GS:
    /// the caller refuses instructions that access others.
    pub(super) fn is_compat(&self) -> bool {
        !self.cpu.segs[Seg::Cs as usize].long_mode()
    }

    /// An address of code or data, as wide as the mode has them.
    pub(super) fn narrowed(&self, address: u64) -> u64 {
        match self.is_compat() {
            true => address & mask(4),
            false => address,
        }
    }

    /// Bytes of a stack slot of an instruction without operand-size prefix.
    pub(super) fn word(&self) -> usize {
        if self.is_compat() { 4 } else { 8 }
    }

    /// The stack pointer, as wide as the mode has it.
    pub(super) fn stack_pointer(&self) -> u64 {
        self.narrowed(self.gpr(Gpr::Rsp))
    }

    /// Replaces the stack pointer.
    pub(super) fn set_stack_pointer(&mut self, value: u64) {
        let value = self.narrowed(value);
        self.set_gpr(Gpr::Rsp, value);
    }

    /// #GP(0) unless at CPL 0.
    pub(super) fn require_cpl0(&self) -> Result<(), Fault> {
        if self.cpl() == 0 {
            Ok(())
        } else {
            Err(Fault::GP0)
        }
    }

    /// I/O privilege level.
    pub(super) fn iopl(&self) -> u8 {
        ((self.cpu.rflags & rflags::IOPL) >> 12) as u8
    }

    /// Zero-extended value of a general-purpose register of any width.
    pub(super) fn register(&self, register: Register) -> u64 {
        let value = self.cpu.gpr[gpr_index(register)];
        if is_high_byte(register) {
            // iced numbers AH to BH 4 to 7 as encoded; the full register is RAX to RBX.
            return (value >> 8) & 0xff;
        }
        value & mask(register.size())
    }

    /// Writes a general-purpose register: 32-bit writes clear the upper half, narrower ones keep
    /// the rest.
    pub(super) fn set_register(&mut self, register: Register, value: u64) {
        let slot = &mut self.cpu.gpr[gpr_index(register)];
        *slot = match register.size() {
            8 => value,
            4 => value & mask(4),
            2 => (*slot & !0xffff) | (value & 0xffff),
            _ if is_high_byte(register) => (*slot & !0xff00) | ((value & 0xff) << 8),
            _ => (*slot & !0xff) | (value & 0xff),
        };
    }

    /// Bytes in an effective address of this instruction: 8 or, with an address-size prefix, 4; in
    /// compatibility mode 4 or 2.
    pub(super) fn address_size(&self) -> usize {
        let instr = self.instr;
        let (base, index) = (instr.memory_base(), instr.memory_index());
        let has_kind =
            |kinds: [OpKind; 3]| (0..instr.op_count()).any(|i| kinds.contains(&instr.op_kind(i)));
        let string = has_kind([
            OpKind::MemorySegESI,
            OpKind::MemoryESEDI,
            OpKind::MemorySegEDI,
        ]);
        let short_string = has_kind([OpKind::MemorySegSI, OpKind::MemoryESDI, OpKind::MemorySegDI]);
        let short = |r: Register| r != Register::None && r.size() == 2;
        let short_displacement =
            base == Register::None && index == Register::None && instr.memory_displ_size() == 2;
        if short_string || short(base) || short(index) || short_displacement {
            return 2;
        }
        let narrow = |r: Register| r == Register::EIP || (r != Register::None && r.size() == 4);
        let displacement_only =
            base == Register::None && index == Register::None && instr.memory_displ_size() == 4;
        if self.is_compat() || string || narrow(base) || narrow(index) || displacement_only {
            4
        } else {
            8
        }
    }

    /// Effective address of the memory operand, without segment base.
    pub(super) fn offset(&self) -> u64 {
        let instr = self.instr;
        let base = match instr.memory_base() {
            Register::None => 0,
            // iced has added the address at which it decoded; the code may have moved since.
            Register::RIP | Register::EIP => self.next_rip().wrapping_sub(instr.next_ip()),
            register => self.register(register),
        };
        let index = match instr.memory_index() {
            Register::None => 0,
            register => self.register(register),
        };
        let scaled = index.wrapping_mul(u64::from(instr.memory_index_scale()));
        let sum = base
            .wrapping_add(scaled)
            .wrapping_add(instr.memory_displacement64());
        sum & mask(self.address_size())
    }

    /// Segment base: only FS and GS have one.
    pub(super) fn segment_base(&self, segment: Register) -> u64 {
        match segment {
            Register::FS => self.cpu.segs[Seg::Fs as usize].base,
            Register::GS => self.cpu.segs[Seg::Gs as usize].base,
            _ => 0,
        }
    }

    /// The memory operand.
    pub(super) fn place(&self) -> Place {
        self.place_behind(0)
    }

    /// The memory operand's part that starts so many bytes in: the offset in the segment is as wide
    /// as any.
    fn place_behind(&self, bytes: u64) -> Place {
        let segment = self.instr.memory_segment();
        // Other prefixes than FS and GS have no effect in 64-bit mode: the base register decides.
        let on_stack = matches!(
            self.instr.memory_base(),
            Register::RSP | Register::RBP | Register::ESP | Register::EBP
        ) || self.is_compat() && segment == Register::SS;
        Place {
            stack: on_stack && !matches!(segment, Register::FS | Register::GS),
            va: self.narrowed(
                self.segment_base(segment)
                    .wrapping_add(self.offset().wrapping_add(bytes) & mask(self.address_size())),
            ),
        }
    }

    /// A place on the stack.
    pub(super) fn stack_place(va: u64) -> Place {
        Place { stack: true, va }
    }

    /// Canonicality of all bytes and, at CPL 3 with AC and AM set, alignment (a power of two), which comes
    /// before that of all bytes but the first (Intel family 6 model 207).
    pub(super) fn check(&self, place: Place, len: usize, alignment: usize) -> Result<(), Fault> {
        check_canonical(place, 1)?;
        let checked =
            self.cpl() == 3 && self.cpu.cr0 & cr0::AM != 0 && self.cpu.rflags & rflags::AC != 0;
        if checked && place.va & (alignment as u64 - 1) != 0 {
            return Err(Fault::AC);
        }
        check_canonical(place, len)
    }

    /// Loads 1 to 8 bytes, zero-extended.
    pub(super) fn load(&mut self, place: Place, size: usize) -> Result<u64, Fault> {
        self.check(place, size, size.next_power_of_two())?;
        let mut bytes = [0; 8];
        self.bus
            .read(self.cpu, place.va, &mut bytes[..size], AccessKind::Data)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores the low 1 to 8 bytes.
    pub(super) fn store(&mut self, place: Place, size: usize, value: u64) -> Result<(), Fault> {
        self.check(place, size, size.next_power_of_two())?;
        let bytes = value.to_le_bytes();
        self.bus
            .write(self.cpu, place.va, &bytes[..size], AccessKind::Data)
    }

    /// A far pointer in memory: offset of `size` bytes, then selector.
    pub(super) fn load_far_pointer(&mut self, size: usize) -> Result<(u64, u16), Fault> {
        let offset = self.load(self.place(), size)?;
        let selector = self.load(self.place_behind(size as u64), 2)?;
        Ok((offset, selector as u16))
    }

    /// Whether the segment register lets an access through, which only compatibility mode asks.
    ///
    /// # Errors
    /// What [`refusal`] says.
    pub(super) fn admit(&self, segment: Register, writes: bool) -> Result<(), Fault> {
        let register = seg_index(segment).filter(|_| self.is_compat());
        match register.and_then(|register| refusal(self.cpu, register, writes)) {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Value of operand `index`: register, or memory of `memory_size` bytes.
    pub(super) fn read_operand(&mut self, index: u32, memory_size: usize) -> Result<u64, Fault> {
        match self.instr.op_kind(index) {
            OpKind::Register => Ok(self.register(self.instr.op_register(index))),
            _ => self.load(self.place(), memory_size),
        }
    }

    /// Stores to operand `index`: register, or memory of `memory_size` bytes.
    pub(super) fn write_operand(
        &mut self,
        index: u32,
        memory_size: usize,
        value: u64,
    ) -> Result<(), Fault> {
        match self.instr.op_kind(index) {
            OpKind::Register => {
                self.set_register(self.instr.op_register(index), value);
                Ok(())
            }
            _ => self.store(self.place(), memory_size, value),
        }
    }

    /// Pushes 2, 4 or 8 bytes. RSP changes only on success.
    pub(super) fn push(&mut self, size: usize, value: u64) -> Result<(), Fault> {
        let rsp = self.narrowed(self.gpr(Gpr::Rsp).wrapping_sub(size as u64));
        self.store(Self::stack_place(rsp), size, value)?;
        self.set_stack_pointer(rsp);
        Ok(())
    }

    /// Reads the slot of `size` bytes at RSP + `skip`.
    pub(super) fn peek(&mut self, skip: u64, size: usize) -> Result<u64, Fault> {
        let va = self.narrowed(self.gpr(Gpr::Rsp).wrapping_add(skip));
        self.load(Self::stack_place(va), size)
    }

    /// Reads the selector in the slot at RSP + `skip`: two bytes, however large the slot is (seen on
    /// Intel family 6 model 207).
    pub(super) fn peek_selector(&mut self, skip: u64) -> Result<u16, Fault> {
        Ok(self.peek(skip, 2)? as u16)
    }

    /// Sets or clears one bit of RFLAGS.
    pub(super) fn set_flag(&mut self, flag: u64, on: bool) {
        if on {
            self.cpu.rflags |= flag;
        } else {
            self.cpu.rflags &= !flag;
        }
    }
}

/// #SS(0) or #GP(0) unless first and last byte are canonical.
pub(super) fn check_canonical(place: Place, len: usize) -> Result<(), Fault> {
    let last = place.va.wrapping_add(len as u64 - 1);
    if is_canonical(place.va) && is_canonical(last) {
        Ok(())
    } else if place.stack {
        Err(Fault::SS0)
    } else {
        Err(Fault::GP0)
    }
}
