//! MOVS, STOS and LODS as far as they stay in one page per operand and go upwards: the host executes
//! the same instruction on host addresses. Everything else about them is left to Rust.

use super::{Flow, Tail, Translator};
use crate::jit::asm::{Host, Mem};
use crate::jit::block::SiteKind;
use crate::jit::layout::{disp, tlb_disp};
use crate::jit::regs::{GUEST_RCX, T0, T1};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// A string instruction that can be tried natively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    log2_size: u8,
    repeated: bool,
    source: bool,
    destination: bool,
}

/// What of the instruction can be tried natively: no 32-bit addresses, no segment with a base.
pub(super) fn shape(instruction: &Instruction) -> Option<Shape> {
    use Mnemonic as M;
    let (source, destination) = match instruction.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => (true, true),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => (false, true),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => (true, false),
        _ => return None,
    };
    let kinds = [instruction.op0_kind(), instruction.op1_kind()];
    let has = |kind| kinds.contains(&kind);
    let based = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let narrow = source && !has(OpKind::MemorySegRSI) || destination && !has(OpKind::MemoryESRDI);
    let odd_repeat = instruction.has_repne_prefix() || repeated && !destination;
    let refused = narrow || odd_repeat || source && based;
    (!refused).then(|| Shape {
        log2_size: instruction.memory_size().size().trailing_zeros() as u8,
        repeated,
        source,
        destination,
    })
}

impl Translator<'_> {
    pub(super) fn string(&mut self, instruction: &Instruction) -> Flow {
        // Instruments see every element, and a state may be looked for between two iterations.
        let watched = !self.request.key.instruments.is_empty()
            || self.request.stop.map(u64::from) == Some(instruction.ip());
        let Some(shape) = shape(instruction).filter(|_| !self.one_step && !watched) else {
            return self.execute(instruction, false);
        };
        // The sum of what must be zero is collected in `scratch0`: the direction flag, the high part
        // of the count, and for each operand the distance in pages of its last byte from the page
        // that its TLB entry maps. No term is negative or large, so the sum does not wrap.
        self.asm.load(Host::RCX, Mem::env(disp!(direction_flag)));
        if shape.repeated {
            self.asm.lea(T0, Mem::base(GUEST_RCX, -1));
            self.asm.shrx(T0, T0, Host::RSP);
            self.asm.lea(Host::RCX, Mem::sum(Host::RCX, T0, 0));
        }
        self.asm.store(Mem::env(disp!(scratch0)), Host::RCX);
        if shape.destination {
            self.string_operand(Host::RDI, shape, true);
        }
        if shape.source {
            if shape.destination {
                self.asm.store(Mem::env(disp!(scratch0)), Host::RCX);
                self.asm.store(Mem::env(disp!(scratch1)), T1);
            }
            self.string_operand(Host::RSI, shape, false);
        }
        let fits = self.asm.jrcxz();
        let from = self.asm.jmp();
        self.asm.bind_short(fits);
        self.run_string(instruction, shape);
        let site = SiteKind::Execute {
            instruction: *instruction,
            resume: self.host_here(),
        };
        let site = self.new_site(site);
        self.tails.push(Tail::Leave { from, site });
        Flow::Next
    }

    /// Leaves the sum in RCX and the addend of the operand in T1 (garbage if the sum is not zero).
    fn string_operand(&mut self, pointer: Host, shape: Shape, write: bool) {
        let (read_tag, write_tag, addend) = tlb_disp(self.class);
        let tag = if write { write_tag } else { read_tag };
        self.asm.lea(T0, behind(pointer, shape, -1));
        self.asm.pext(T1, pointer, Mem::env(disp!(tlb_mask)));
        self.asm.load(Host::RCX, Mem::table(tag, T1));
        self.asm.lea(Host::RCX, Mem::sum(Host::RCX, T0, 0));
        self.asm.shrx(Host::RCX, Host::RCX, Host::RSP);
        self.asm.load(T0, Mem::env(disp!(scratch0)));
        self.asm.lea(Host::RCX, Mem::sum(Host::RCX, T0, 0));
        self.asm.load(T1, Mem::table(addend, T1));
    }

    /// Executes the instruction on host addresses. The addend of the source, or else of the
    /// destination, is in T1, that of the destination of a MOVS in `scratch1`.
    fn run_string(&mut self, instruction: &Instruction, shape: Shape) {
        let move_by = |asm: &mut crate::jit::asm::Asm, pointer, addend| {
            asm.lea(pointer, Mem::sum(pointer, addend, 0));
        };
        if shape.source {
            self.asm.lea(T0, behind(Host::RSI, shape, 0));
            self.asm.store(Mem::env(disp!(scratch0)), T0);
            move_by(&mut self.asm, Host::RSI, T1);
        }
        if shape.destination {
            self.asm.lea(T0, behind(Host::RDI, shape, 0));
            if shape.source {
                self.asm.load(T1, Mem::env(disp!(scratch1)));
            }
            move_by(&mut self.asm, Host::RDI, T1);
        }
        if shape.repeated {
            self.asm.mov(Host::RCX, GUEST_RCX);
        }
        let mut plain = *instruction;
        plain.set_segment_prefix(Register::None);
        self.encode(&plain);
        if shape.destination {
            self.asm.mov(Host::RDI, T0);
        }
        if shape.source {
            self.asm.load(Host::RSI, Mem::env(disp!(scratch0)));
        }
        if shape.repeated {
            self.asm.mov_imm(GUEST_RCX, 0);
        }
    }
}

/// The address `extra` bytes from the end of the operand at `pointer`.
fn behind(pointer: Host, shape: Shape, extra: i32) -> Mem {
    if shape.repeated {
        Mem {
            base: Some(pointer),
            index: Some((GUEST_RCX, shape.log2_size)),
            disp: extra,
        }
    } else {
        Mem::base(pointer, (1 << shape.log2_size) + extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn of(bytes: &[u8]) -> Option<Shape> {
        shape(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn only_plain_moves_are_tried_natively() {
        assert!(of(&[0xf3, 0xa4]).is_some_and(|s| s.source && s.destination && s.repeated));
        assert!(of(&[0xf3, 0x48, 0xab]).is_some_and(|s| s.log2_size == 3 && !s.source));
        assert!(of(&[0xac]).is_some_and(|s| !s.repeated && !s.destination));
        assert_eq!(of(&[0xf3, 0xac]), None, "rep lods");
        assert_eq!(of(&[0xf2, 0xa4]), None, "repne movs");
        assert_eq!(of(&[0x67, 0xa4]), None, "32-bit addresses");
        assert_eq!(of(&[0x65, 0xa4]), None, "gs source");
        assert_eq!(of(&[0xf3, 0xae]), None, "scas");
    }
}
