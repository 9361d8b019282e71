//! Stack instructions.

use super::memory::Address;
use super::native::uses_stack_segment;
use super::special::is_narrow;
use super::{Flow, Tail, Translator};
use crate::jit::asm::{Host, Mem};
use crate::jit::block::{MemoryAccess, SiteKind};
use crate::jit::layout::disp;
use crate::jit::regs::{GUEST_RSP, Home, T0, T1, home, number};
use crate::sys::Maker;
use iced_x86::{Instruction, OpKind, Register};

const NEW_TOP: Address = Address {
    register: T0,
    stack_slot: true,
};

/// Bytes that a PUSH or POP moves: 8 (4 in compatibility mode), or 2 with an operand-size prefix.
fn moved_bytes(instruction: &Instruction) -> i32 {
    instruction.stack_pointer_increment().abs()
}

impl Translator<'_> {
    /// Checks the write of `bytes` at T0, which becomes the top of the stack.
    pub(super) fn check_stack_write(&mut self, bytes: u8) {
        let access = MemoryAccess {
            bytes,
            read: false,
            write: true,
            alignment: 0,
            parts: false,
            stack: true,
        };
        self.check(NEW_TOP, access);
    }

    fn check_stack_read(&mut self, address: Address, bytes: u8) {
        let access = MemoryAccess {
            bytes,
            read: true,
            write: false,
            alignment: 0,
            parts: false,
            stack: true,
        };
        self.check(address, access);
    }

    /// Moves the stack pointer by `bytes` into `to`, which may be its home.
    fn move_stack_pointer(&mut self, to: Host, bytes: i32) {
        self.lea_sized(to, Mem::base(GUEST_RSP, bytes), self.compat);
    }

    /// The top of the stack. In compatibility mode in T0: the upper half of RSP does not count.
    fn top(&mut self) -> Address {
        let register = match self.compat {
            true => {
                self.asm.mov32(T0, GUEST_RSP);
                T0
            }
            false => GUEST_RSP,
        };
        Address {
            register,
            stack_slot: true,
        }
    }

    pub(super) fn push(&mut self, instruction: &Instruction) -> Flow {
        let bytes = moved_bytes(instruction);
        let from_memory = instruction.op0_kind() == OpKind::Memory;
        if from_memory {
            self.load_operand_to_scratch(instruction, bytes as u8);
        }
        self.move_stack_pointer(T0, -bytes);
        self.check_stack_write(bytes as u8);
        let to = Mem::sum(T0, T1, 0);
        match instruction.op0_kind() {
            OpKind::Memory => {
                self.asm.load(Host::RCX, Mem::env(disp!(scratch0)));
                self.store_sized(to, Host::RCX, bytes);
            }
            OpKind::Register => {
                let from = match home(number(instruction.op0_register())) {
                    Home::Register(host) => host,
                    Home::Block(at) => {
                        self.asm.load(Host::RCX, Mem::env(at));
                        Host::RCX
                    }
                };
                self.store_sized(to, from, bytes);
            }
            _ if bytes == 2 => self.asm.store_imm16(to, instruction.immediate(0) as i16),
            _ if bytes == 4 => self.asm.store_imm32(to, instruction.immediate(0) as i32),
            _ => self.asm.store_imm(to, instruction.immediate(0) as i32),
        }
        self.asm.mov(GUEST_RSP, T0);
        Flow::Next
    }

    fn store_sized(&mut self, to: Mem, from: Host, bytes: i32) {
        match bytes {
            2 => self.asm.store16(to, from),
            4 => self.asm.store32(to, from),
            _ => self.asm.store(to, from),
        }
    }

    /// Reads the memory operand into the scratch quadword.
    fn load_operand_to_scratch(&mut self, instruction: &Instruction, bytes: u8) {
        let address = self.linear_address(instruction);
        let stack = uses_stack_segment(instruction);
        let access = MemoryAccess {
            bytes,
            read: true,
            write: false,
            alignment: 0,
            parts: false,
            stack,
        };
        self.check(address, access);
        self.load_sized(
            Host::RCX,
            Mem::sum(address.register, T1, 0),
            i32::from(bytes),
        );
        self.asm.store(Mem::env(disp!(scratch0)), Host::RCX);
    }

    pub(super) fn load_sized(&mut self, to: Host, from: Mem, bytes: i32) {
        match bytes {
            2 => self.asm.load_zero16(to, from),
            4 => self.asm.load32(to, from),
            _ => self.asm.load(to, from),
        }
    }

    pub(super) fn pop(&mut self, instruction: &Instruction) -> Flow {
        let bytes = moved_bytes(instruction);
        let top = self.top();
        self.check_stack_read(top, bytes as u8);
        let from = Mem::sum(top.register, T1, 0);
        self.load_sized(Host::RCX, from, bytes);
        if instruction.op0_kind() == OpKind::Memory {
            self.pop_to_memory(instruction, bytes);
            return Flow::Next;
        }
        let register = instruction.op0_register();
        self.move_stack_pointer(GUEST_RSP, bytes);
        match (home(number(register)), bytes) {
            (Home::Register(host), 2) => self.asm.mov16(host, Host::RCX),
            (Home::Register(host), _) => self.asm.mov(host, Host::RCX),
            (Home::Block(at), 2) => self.asm.store16(Mem::env(at), Host::RCX),
            (Home::Block(at), _) => self.asm.store(Mem::env(at), Host::RCX),
        }
        Flow::Next
    }

    /// The destination address is computed with RSP already incremented (SDM, POP).
    fn pop_to_memory(&mut self, instruction: &Instruction, bytes: i32) {
        self.asm.store(Mem::env(disp!(scratch0)), Host::RCX);
        let on_rsp = matches!(instruction.memory_base(), Register::RSP | Register::ESP);
        let extra = if on_rsp { bytes } else { 0 };
        let narrow = is_narrow(instruction) || self.compat;
        self.offset_into(T0, instruction, narrow, extra);
        self.add_segment_base(instruction);
        let access = MemoryAccess {
            bytes: bytes as u8,
            read: false,
            write: true,
            alignment: 0,
            parts: false,
            stack: uses_stack_segment(instruction),
        };
        self.check(
            Address {
                register: T0,
                stack_slot: false,
            },
            access,
        );
        self.asm.load(Host::RCX, Mem::env(disp!(scratch0)));
        self.store_sized(Mem::sum(T0, T1, 0), Host::RCX, bytes);
        self.move_stack_pointer(GUEST_RSP, bytes);
    }

    pub(super) fn leave(&mut self) -> Flow {
        let frame = match self.compat {
            true => {
                self.asm.mov32(T0, Host::RBP);
                T0
            }
            false => Host::RBP,
        };
        let address = Address {
            register: frame,
            stack_slot: true,
        };
        self.check_stack_read(address, self.word as u8);
        self.load_sized(Host::RCX, Mem::sum(frame, T1, 0), self.word);
        self.lea_sized(GUEST_RSP, Mem::base(Host::RBP, self.word), self.compat);
        self.asm.mov(Host::RBP, Host::RCX);
        Flow::Next
    }

    /// Pushes the address of the next instruction.
    fn push_return(&mut self) {
        self.move_stack_pointer(T0, -self.word);
        self.check_stack_write(self.word as u8);
        self.asm.load(Host::RCX, Mem::env(disp!(page_base)));
        self.asm
            .lea(Host::RCX, Mem::base(Host::RCX, self.next_offset as i32));
        self.store_sized(Mem::sum(T0, T1, 0), Host::RCX, self.word);
        self.asm.mov(GUEST_RSP, T0);
    }

    pub(super) fn call(&mut self, instruction: &Instruction) -> Flow {
        self.push_return();
        self.emit_goto(self.branch_target(instruction), false);
        Flow::End
    }

    pub(super) fn call_indirect(&mut self, instruction: &Instruction) -> Flow {
        if instruction.op0_kind() == OpKind::Memory {
            self.load_operand_to_scratch(instruction, self.word as u8);
        } else {
            self.load_guest(Host::RCX, number(instruction.op0_register()));
            self.asm.store(Mem::env(disp!(scratch0)), Host::RCX);
        }
        if self.request.cpu.vendor == Maker::Amd {
            self.check_target();
        }
        self.push_return();
        self.load_sized(T0, Mem::env(disp!(scratch0)), self.word);
        self.emit_indirect(self.word);
        Flow::End
    }

    /// AMD looks at the target before it pushes (Intel after): leaves with the target in T0 and nothing
    /// done if RCX, the target, is not canonical.
    fn check_target(&mut self) {
        self.asm.mov(T0, Host::RCX);
        self.asm.mov_imm(T1, 1 << 47);
        self.asm.lea(Host::RCX, Mem::sum(Host::RCX, T1, 0));
        self.asm
            .pext(Host::RCX, Host::RCX, Mem::env(disp!(high_mask)));
        let canonical = self.asm.jrcxz();
        let from = self.asm.jmp();
        let site = self.new_site(SiteKind::Indirect { undo_rsp: 0 });
        self.tails.push(Tail::Leave { from, site });
        self.asm.bind_short(canonical);
    }

    pub(super) fn ret(&mut self, instruction: &Instruction) -> Flow {
        let released = self.word
            + if instruction.op_count() == 1 {
                i32::from(instruction.immediate16())
            } else {
                0
            };
        let top = self.top();
        self.check_stack_read(top, self.word as u8);
        self.load_sized(T0, Mem::sum(top.register, T1, 0), self.word);
        self.move_stack_pointer(GUEST_RSP, released);
        self.emit_indirect(-released);
        Flow::End
    }
}
