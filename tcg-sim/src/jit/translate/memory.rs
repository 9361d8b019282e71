//! Linear addresses and the inline TLB check.

use super::special::{address_bytes, is_narrow, segment_base};
use super::{Tail, Translator, odd_segment};
use crate::jit::asm::{Host, Mem, Patch};
use crate::jit::block::MemoryAccess;
use crate::jit::layout::{disp, slot_disp, slot_mask_disp, tlb_disp};
use crate::jit::regs::{GUEST_RSP, Home, T0, T1, home, number};
use iced_x86::{Instruction, Register};

/// A linear address in a register, and whether RSP alone is its base.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) register: Host,
    pub(super) stack_slot: bool,
}

/// Whether the address is ESP plus a constant.
fn is_on_stack_pointer(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::ESP && instruction.memory_index() == Register::None
}

impl Translator<'_> {
    /// Computes the linear address of the memory operand. Uses T0 and T1; RCX stays untouched.
    pub(super) fn linear_address(&mut self, instruction: &Instruction) -> Address {
        let segment = segment_base(instruction);
        let narrow = is_narrow(instruction) || self.compat;
        if self.compat && segment.is_none() && is_on_stack_pointer(instruction) {
            let displacement = instruction.memory_displacement64() as i32;
            self.asm.lea32(T0, Mem::base(GUEST_RSP, displacement));
            return Address {
                register: T0,
                stack_slot: true,
            };
        }
        if segment.is_none()
            && !narrow
            && instruction.memory_index() == Register::None
            && let Some(address) = self.plain_base(instruction)
        {
            return address;
        }
        self.offset_into(T0, instruction, narrow, 0);
        self.add_segment_base(instruction);
        Address {
            register: T0,
            stack_slot: false,
        }
    }

    /// Adds the base of FS or GS, if the instruction names one, to the offset in T0. Uses T1.
    pub(super) fn add_segment_base(&mut self, instruction: &Instruction) {
        if let Some(base) = segment_base(instruction) {
            self.asm.load(T1, Mem::env(base));
            self.lea_sized(T0, Mem::sum(T0, T1, 0), self.compat);
        }
    }

    /// `[register]`, or anything based on RSP alone.
    fn plain_base(&mut self, instruction: &Instruction) -> Option<Address> {
        let displacement = instruction.memory_displacement64();
        match instruction.memory_base() {
            Register::RSP if displacement == 0 => Some(Address {
                register: GUEST_RSP,
                stack_slot: true,
            }),
            Register::RSP => {
                self.asm.lea(T0, Mem::base(GUEST_RSP, displacement as i32));
                Some(Address {
                    register: T0,
                    stack_slot: true,
                })
            }
            Register::None | Register::RIP => None,
            base => match home(number(base)) {
                Home::Register(host) if displacement == 0 => Some(Address {
                    register: host,
                    stack_slot: false,
                }),
                _ => None,
            },
        }
    }

    /// Computes the effective address (no segment base) plus `extra` into `to`, which may be T0 or
    /// the home of any register. Uses T1 for an index in the state block.
    pub(super) fn offset_into(
        &mut self,
        to: Host,
        instruction: &Instruction,
        narrow: bool,
        extra: i32,
    ) {
        let base = instruction.memory_base();
        if base == Register::RIP || base == Register::EIP {
            // Decoded at the page offset: the displacement is relative to the page base.
            let relative = instruction.memory_displacement64() as i64 + i64::from(extra);
            self.asm.load(T0, Mem::env(disp!(page_base)));
            if narrow || i32::try_from(relative).is_ok() {
                self.lea_sized(to, Mem::base(T0, relative as i32), narrow);
            } else {
                self.asm.mov_imm(T1, relative as u64);
                self.asm.lea(to, Mem::sum(T0, T1, 0));
            }
            return;
        }
        let displacement = instruction.memory_displacement64();
        if base == Register::None && instruction.memory_index() == Register::None {
            let value = displacement.wrapping_add_signed(i64::from(extra));
            self.asm.mov_imm(
                to,
                if narrow {
                    u64::from(value as u32)
                } else {
                    value
                },
            );
            return;
        }
        let base = match (base, base.is_gpr().then(|| home(number(base)))) {
            (_, Some(Home::Register(host))) => Some(host),
            (_, Some(Home::Block(at))) => {
                self.asm.load(T0, Mem::env(at));
                Some(T0)
            }
            (_, None) => None,
        };
        let index = self.index_register(instruction);
        let displacement = displacement as i32;
        let (disp, rest) = match displacement.checked_add(extra) {
            Some(sum) => (sum, 0),
            None => (displacement, extra),
        };
        self.lea_sized(to, Mem { base, index, disp }, narrow);
        if rest != 0 {
            self.lea_sized(to, Mem::base(to, rest), narrow);
        }
        if address_bytes(instruction) == 2 {
            self.asm.movzx16(to, to);
        }
    }

    fn index_register(&mut self, instruction: &Instruction) -> Option<(Host, u8)> {
        let index = instruction.memory_index();
        if index == Register::None {
            return None;
        }
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        match home(number(index)) {
            Home::Register(host) => Some((host, scale)),
            Home::Block(at) => {
                self.asm.load(T1, Mem::env(at));
                Some((T1, scale))
            }
        }
    }

    pub(super) fn lea_sized(&mut self, to: Host, mem: Mem, narrow: bool) {
        if narrow {
            self.asm.lea32(to, mem)
        } else {
            self.asm.lea(to, mem)
        }
    }

    /// Checks that the access may go ahead directly and leaves the addend in T1: the bytes are at
    /// host address `register + T1`. Clobbers RCX; on the slow path T0 as well.
    pub(super) fn check(&mut self, address: Address, access: MemoryAccess) {
        self.emit_check(address, access);
        self.note_access(address, access);
    }

    fn emit_check(&mut self, address: Address, access: MemoryAccess) {
        if self.one_step {
            return self.emit_check_in_rust(address, access);
        }
        // Sixteen unaligned bytes are common on the stack, and the slot takes aligned accesses only.
        let aligned = access.bytes <= 8 || access.alignment != 0;
        let slot_mask = (access.bytes.is_power_of_two() && access.bytes <= 16 && aligned)
            .then(|| slot_mask_disp(access.bytes.trailing_zeros()));
        match slot_mask {
            Some(mask) if address.stack_slot => self.check_slot(address, access, mask),
            _ => self.check_table(address, access),
        }
    }

    /// Whether the instruction accesses memory through an odd segment: only Rust knows what comes of it.
    pub(super) fn is_odd(&self, instruction: &Instruction) -> bool {
        odd_segment(instruction, self.request.key.mode).is_some()
    }

    /// As [`Self::check`], always on the slow path.
    pub(super) fn check_in_rust(&mut self, address: Address, access: MemoryAccess) {
        self.emit_check_in_rust(address, access);
        self.note_access(address, access);
    }

    fn emit_check_in_rust(&mut self, address: Address, access: MemoryAccess) {
        let from = self.asm.jmp();
        self.slow_memory(from, address, access);
    }

    fn check_slot(&mut self, address: Address, access: MemoryAccess, mask: i32) {
        let (tag, addend) = slot_disp(self.class);
        self.asm.load(Host::RCX, Mem::env(tag));
        self.asm
            .lea(Host::RCX, Mem::sum(Host::RCX, address.register, 0));
        self.asm.pext(Host::RCX, Host::RCX, Mem::env(mask));
        let hit = self.asm.jrcxz();
        let from = self.asm.jmp();
        self.asm.bind_short(hit);
        self.asm.load(T1, Mem::env(addend));
        let direct = self.host_here();
        let site = self.memory_site(access, direct);
        self.tails.push(Tail::Slot {
            from,
            address,
            access,
            direct,
            site,
        });
    }

    fn check_table(&mut self, address: Address, access: MemoryAccess) {
        let from = self.look_up(address, access);
        self.slow_memory(from, address, access);
    }

    /// Gets the addend from the table; returns the jump for the case that it is not there.
    pub(super) fn look_up(&mut self, address: Address, access: MemoryAccess) -> Patch {
        let (read_tag, write_tag, addend) = tlb_disp(self.class);
        let tag = if access.write { write_tag } else { read_tag };
        self.asm
            .pext(T1, address.register, Mem::env(disp!(tlb_mask)));
        self.asm.load(Host::RCX, Mem::table(tag, T1));
        let last = i32::from(access.bytes) - 1;
        self.asm
            .lea(Host::RCX, Mem::sum(Host::RCX, address.register, last));
        self.asm.shrx(Host::RCX, Host::RCX, Host::RSP);
        let hit = self.asm.jrcxz();
        let from = self.asm.jmp();
        self.asm.bind_short(hit);
        self.asm.load(T1, Mem::table(addend, T1));
        from
    }

    fn slow_memory(&mut self, from: Patch, address: Address, access: MemoryAccess) {
        let direct = self.host_here();
        let site = self.memory_site(access, direct);
        self.tails.push(Tail::Memory {
            from,
            address: address.register,
            site,
        });
    }
}
