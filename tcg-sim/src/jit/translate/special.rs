//! Instructions whose operands need more than renaming.

use super::classify::is_x87;
use super::memory::Address;
use super::native::uses_stack_segment;
use super::{Flow, Translator};
use crate::jit::asm::{Host, Mem};
use crate::jit::block::MemoryAccess;
use crate::jit::layout::{LAST_X87, LAST_X87_MEMORY, disp};
use crate::jit::regs::{GUEST_RSP, Home, T0, T1, home, number, resized};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use machine::state::rflags;

impl Translator<'_> {
    pub(super) fn lea(&mut self, instruction: &Instruction) -> Flow {
        let register = instruction.op0_register();
        let narrow = is_narrow(instruction);
        match (home(number(register)), register.size()) {
            (Home::Register(host), 8) => self.offset_into(host, instruction, narrow, 0),
            (Home::Register(host), 4) => self.offset_into(host, instruction, true, 0),
            (Home::Register(host), _) => {
                self.offset_into(T0, instruction, narrow, 0);
                self.asm.mov16(host, T0);
            }
            (Home::Block(at), 2) => {
                self.offset_into(T0, instruction, narrow, 0);
                self.asm.store16(Mem::env(at), T0);
            }
            (Home::Block(at), size) => {
                self.offset_into(T0, instruction, narrow || size == 4, 0);
                self.asm.store(Mem::env(at), T0);
            }
        }
        Flow::Next
    }

    /// BT, BTS, BTR, BTC with a bit offset in a register: it reaches beyond the operand.
    pub(super) fn bit_string(&mut self, instruction: &Instruction) -> Flow {
        let register = instruction.op1_register();
        let bytes = register.size();
        let segment = segment_base(instruction);
        let narrow = is_narrow(instruction) || self.compat;
        let address = if segment.is_none() {
            self.linear_address(instruction).register
        } else {
            // The bit offset belongs to the effective address: the base comes last.
            self.offset_into(T0, instruction, narrow, 0);
            T0
        };
        self.load_guest(Host::RCX, number(register));
        match bytes {
            2 => self.asm.movsx16(Host::RCX, Host::RCX),
            4 => self.asm.movsx32(Host::RCX, Host::RCX),
            _ => {}
        }
        let log2_bits = bytes.trailing_zeros() as u8 + 3;
        self.asm.mov_imm(T1, u64::from(log2_bits));
        self.asm.sarx(Host::RCX, Host::RCX, T1);
        let element = Mem {
            base: Some(address),
            index: Some((Host::RCX, log2_bits - 3)),
            disp: 0,
        };
        self.lea_sized(T0, element, narrow);
        if has_short_address(instruction) {
            self.asm.movzx16(T0, T0);
        }
        if let Some(base) = segment {
            self.asm.load(T1, Mem::env(base));
            self.lea_sized(T0, Mem::sum(T0, T1, 0), self.compat);
        }
        let write = instruction.mnemonic() != Mnemonic::Bt;
        let stack = uses_stack_segment(instruction);
        let access = MemoryAccess {
            bytes: bytes as u8,
            read: true,
            write,
            alignment: 0,
            parts: false,
            stack,
        };
        self.check(
            Address {
                register: T0,
                stack_slot: false,
            },
            access,
        );
        self.asm.lea(T0, Mem::sum(T0, T1, 0));
        self.load_guest(Host::RCX, number(register));
        let mask = match bytes {
            2 => disp!(bit_mask16),
            4 => disp!(bit_mask32),
            _ => disp!(bit_mask64),
        };
        self.asm.pext(Host::RCX, Host::RCX, Mem::env(mask));
        let mut renamed = plain_memory(instruction, T0);
        renamed.set_op_register(1, resized(Host::RCX, register));
        self.encode(&renamed);
        Flow::Next
    }

    /// MASKMOVQ, MASKMOVDQU: a masked store to [RDI].
    pub(super) fn masked_move(&mut self, instruction: &Instruction) -> Flow {
        match instruction.op0_kind() {
            OpKind::MemorySegEDI => self.asm.mov32(T0, Host::RDI),
            OpKind::MemorySegDI => self.asm.movzx16(T0, Host::RDI),
            _ => self.asm.mov(T0, Host::RDI),
        }
        self.add_segment_base(instruction);
        let bytes = if instruction.mnemonic() == Mnemonic::Maskmovq {
            8
        } else {
            16
        };
        let access = MemoryAccess {
            bytes,
            read: false,
            write: true,
            alignment: 0,
            parts: bytes == 16,
            stack: false,
        };
        let address = Address {
            register: T0,
            stack_slot: false,
        };
        let narrow = instruction.op0_kind() != OpKind::MemorySegRDI;
        if narrow && access.parts || self.is_odd(instruction) {
            self.check_in_rust(address, access);
        } else {
            self.check(address, access);
        }
        if bytes == 8 {
            // A pending exception must come while RDI is the guest's.
            self.asm.wait();
        }
        self.asm.store(Mem::env(disp!(scratch0)), Host::RDI);
        self.asm.lea(Host::RDI, Mem::sum(T0, T1, 0));
        let mut renamed = *instruction;
        renamed.set_op0_kind(OpKind::MemorySegRDI);
        renamed.set_segment_prefix(Register::None);
        self.encode(&renamed);
        self.asm.load(Host::RDI, Mem::env(disp!(scratch0)));
        Flow::Next
    }

    /// CLD, STD, CLI: these flags live in the state block.
    pub(super) fn flag(&mut self, instruction: &Instruction) -> Flow {
        let (at, value) = match instruction.mnemonic() {
            Mnemonic::Cld => (disp!(direction_flag), 0),
            Mnemonic::Std => (disp!(direction_flag), rflags::DF as i32),
            _ => (disp!(interrupt_flag), 0),
        };
        self.asm.store_imm(Mem::env(at), value);
        Flow::Next
    }

    /// SWAPGS at CPL 0.
    pub(super) fn swap_gs(&mut self, instruction: &Instruction) -> Flow {
        if self.one_step {
            return self.execute(instruction, true);
        }
        let (base, other) = (disp!(gs_base), disp!(kernel_gs_base));
        self.asm.load(T0, Mem::env(base));
        self.asm.load(T1, Mem::env(other));
        self.asm.store(Mem::env(base), T1);
        self.asm.store(Mem::env(other), T0);
        Flow::Next
    }

    /// PUSHFQ: the image is the sum of the host's arithmetic flags and the rest in the state block.
    pub(super) fn push_flags(&mut self) -> Flow {
        self.asm.lea(T0, Mem::base(GUEST_RSP, -8));
        self.check_stack_write(8);
        self.asm.lea(T0, Mem::sum(T0, T1, 0));
        self.asm.flags_image(Host::RCX);
        self.asm
            .pext(Host::RCX, Host::RCX, Mem::env(disp!(oszapc_mask)));
        self.asm
            .pdep(Host::RCX, Host::RCX, Mem::env(disp!(oszapc_mask)));
        for part in [
            disp!(system_flags),
            disp!(interrupt_flag),
            disp!(direction_flag),
        ] {
            self.asm.load(T1, Mem::env(part));
            self.asm.lea(Host::RCX, Mem::sum(Host::RCX, T1, 0));
        }
        self.asm.store(Mem::base(T0, 0), Host::RCX);
        self.asm.lea(GUEST_RSP, Mem::base(GUEST_RSP, -8));
        Flow::Next
    }

    /// An x87 instruction: executed by the host, whose pointers then name host code, so the guest's
    /// are kept in the state block.
    pub(super) fn x87(&mut self, instruction: &Instruction) -> Flow {
        let address = self.native_with_address(instruction);
        if is_x87_control(instruction) {
            if instruction.mnemonic() == Mnemonic::Fldcw {
                // No exception waited; one that is unmasked now came from no instruction.
                self.asm.store_imm(Mem::env(disp!(fpu_last_op)), 0);
            }
            return Flow::Next;
        }
        let mut opcode = self.x87_opcode(instruction);
        let (pointer_at, opcode_at) = if self.request.cpu.x87.pointers_on_exception_only {
            opcode |= LAST_X87 as i32;
            if address.is_some() {
                opcode |= LAST_X87_MEMORY as i32;
            }
            (disp!(fpu_last_dp), disp!(fpu_last_op))
        } else {
            (disp!(fpu_dp), disp!(fpu_op))
        };
        if let Some(mut address) = address {
            if segment_base(instruction).is_some() {
                // The pointer is the offset in the segment.
                let narrow = is_narrow(instruction) || self.compat;
                self.offset_into(T0, instruction, narrow, 0);
                address = T0;
            }
            self.asm.store(Mem::env(pointer_at), address);
        }
        self.asm.load(T0, Mem::env(disp!(page_base)));
        self.asm.lea(T0, Mem::base(T0, instruction.ip() as i32));
        self.asm.store(Mem::env(disp!(fpu_ip)), T0);
        self.asm.store_imm(Mem::env(opcode_at), opcode);
        if !self.request.cpu.x87.no_selectors {
            self.asm.load(T0, Mem::env(disp!(code_selector)));
            self.asm.store(Mem::env(disp!(fpu_cs)), T0);
        }
        Flow::Next
    }

    /// The eleven opcode bits: the low three of the first byte, then the ModRM byte.
    fn x87_opcode(&self, instruction: &Instruction) -> i32 {
        let start = instruction.ip() as usize - usize::from(self.request.key.offset);
        let bytes = &self.request.bytes[start.min(self.request.bytes.len())..];
        let escape = bytes
            .iter()
            .position(|byte| (0xd8..=0xdf).contains(byte))
            .unwrap_or(0);
        let at = |index: usize| i32::from(bytes.get(index).copied().unwrap_or(0));
        (at(escape) & 7) << 8 | at(escape + 1)
    }
}

/// Whether the x87 pointers stay as they are.
fn is_x87_control(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    !is_x87(instruction)
        || matches!(
            instruction.mnemonic(),
            M::Wait
                | M::Fldcw
                | M::Fnstcw
                | M::Fstcw
                | M::Fnstsw
                | M::Fstsw
                | M::Fnclex
                | M::Fclex
                | M::Fneni
                | M::Fndisi
                | M::Fnsetpm
        )
}

/// Whether the address is computed modulo 2^32, as far as the instruction shows it.
pub(crate) fn is_narrow(instruction: &Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    // A bare displacement is four bytes with an address-size prefix, else eight.
    let bare = base == Register::None && index == Register::None;
    address_bytes(instruction) < 8
        || base == Register::EIP
        || bare && instruction.memory_displ_size() == 4
}

/// Bytes of the registers of an address; 8 without registers.
pub(super) fn address_bytes(instruction: &Instruction) -> usize {
    [instruction.memory_base(), instruction.memory_index()]
        .into_iter()
        .filter(|register| register.is_gpr())
        .map(Register::size)
        .min()
        .unwrap_or(8)
}

/// Whether the address is computed modulo 2^16.
pub(crate) fn has_short_address(instruction: &Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let bare = base == Register::None && index == Register::None;
    address_bytes(instruction) == 2 || bare && instruction.memory_displ_size() == 2
}

/// Where the base of an FS or GS override is kept.
pub(super) fn segment_base(instruction: &Instruction) -> Option<i32> {
    match instruction.segment_prefix() {
        Register::FS => Some(disp!(fs_base)),
        Register::GS => Some(disp!(gs_base)),
        _ => None,
    }
}

/// The instruction with the memory operand `[base]` and without LOCK.
fn plain_memory(instruction: &Instruction, base: Host) -> Instruction {
    let mut renamed = *instruction;
    renamed.set_has_lock_prefix(false);
    renamed.set_has_rep_prefix(false);
    renamed.set_has_repne_prefix(false);
    renamed.set_memory_base(resized(base, Register::RAX));
    renamed.set_memory_index(Register::None);
    renamed.set_memory_displacement64(0);
    renamed.set_memory_displ_size(0);
    renamed.set_segment_prefix(Register::None);
    renamed
}
