//! A minimal x86-64 emitter for what the translator adds around guest instructions. Every emitted
//! form here leaves RFLAGS alone unless its name says otherwise.

/// A host register by encoding number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host(pub(crate) u8);

impl Host {
    pub(crate) const RAX: Self = Self(0);
    pub(crate) const RCX: Self = Self(1);
    pub(crate) const RDX: Self = Self(2);
    pub(crate) const RBX: Self = Self(3);
    pub(crate) const RSP: Self = Self(4);
    pub(crate) const RBP: Self = Self(5);
    pub(crate) const RSI: Self = Self(6);
    pub(crate) const RDI: Self = Self(7);
    pub(crate) const R8: Self = Self(8);
    pub(crate) const R9: Self = Self(9);
    pub(crate) const R10: Self = Self(10);
    pub(crate) const R11: Self = Self(11);
    pub(crate) const R12: Self = Self(12);
    pub(crate) const R13: Self = Self(13);
    pub(crate) const R14: Self = Self(14);
    pub(crate) const R15: Self = Self(15);
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mem {
    pub(crate) base: Option<Host>,
    /// Index register and log2 of the scale.
    pub(crate) index: Option<(Host, u8)>,
    pub(crate) disp: i32,
}

impl Mem {
    /// A field of the state block.
    pub(crate) fn env(disp: i32) -> Self {
        Self {
            base: Some(Host::RSP),
            index: None,
            disp,
        }
    }
    pub(crate) fn base(base: Host, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: None,
            disp,
        }
    }
    pub(crate) fn sum(base: Host, index: Host, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: Some((index, 0)),
            disp,
        }
    }
    /// Element `index` of a table of quadwords in the state block.
    pub(crate) fn table(disp: i32, index: Host) -> Self {
        Self {
            base: Some(Host::RSP),
            index: Some((index, 3)),
            disp,
        }
    }
}

/// Code under construction for a known host address.
pub(crate) struct Asm {
    pub(crate) bytes: Vec<u8>,
    /// Host address at which `bytes[0]` will execute.
    base: u64,
}

/// A jump whose 32-bit displacement is set later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patch(pub(crate) usize);

/// A jump whose 8-bit displacement is set later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShortPatch(usize);

impl Asm {
    pub(crate) fn new(base: u64) -> Self {
        Self {
            bytes: Vec::with_capacity(1024),
            base,
        }
    }

    /// Offset of the next byte.
    pub(crate) fn offset(&self) -> usize {
        self.bytes.len()
    }

    fn modrm(&mut self, reg: u8, mem: Mem) {
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            let (index, scale) = mem.index.map_or((4, 0), |(i, s)| (i.0 & 7, s));
            self.bytes.extend([reg | 4, scale << 6 | index << 3 | 5]);
            self.bytes.extend(mem.disp.to_le_bytes());
            return;
        };
        let (mode, small) = match mem.disp {
            0 if base.0 & 7 != 5 => (0, true),
            -128..=127 => (0x40, true),
            _ => (0x80, false),
        };
        if mem.index.is_some() || base.0 & 7 == 4 {
            let (index, scale) = mem.index.map_or((4, 0), |(i, s)| (i.0 & 7, s));
            self.bytes
                .extend([mode | reg | 4, scale << 6 | index << 3 | base.0 & 7]);
        } else {
            self.bytes.push(mode | reg | base.0 & 7);
        }
        match (mode, small) {
            (0, _) => {}
            (_, true) => self.bytes.push(mem.disp as u8),
            (_, false) => self.bytes.extend(mem.disp.to_le_bytes()),
        }
    }

    fn rex(&mut self, wide: bool, reg: u8, mem: Mem) {
        let high = |r: Option<Host>| r.map_or(0, |r| r.0 >> 3);
        let rex = 0x40
            | u8::from(wide) << 3
            | (reg >> 3) << 2
            | high(mem.index.map(|i| i.0)) << 1
            | high(mem.base);
        if rex != 0x40 {
            self.bytes.push(rex);
        }
    }

    fn op_mem(&mut self, wide: bool, opcode: &[u8], reg: u8, mem: Mem) {
        self.rex(wide, reg, mem);
        self.bytes.extend(opcode);
        self.modrm(reg, mem);
    }

    fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: Host, rm: Host) {
        self.bytes
            .push(0x40 | u8::from(wide) << 3 | (reg.0 >> 3) << 2 | rm.0 >> 3);
        self.bytes.extend(opcode);
        self.bytes.push(0xc0 | (reg.0 & 7) << 3 | rm.0 & 7);
    }

    pub(crate) fn load(&mut self, to: Host, from: Mem) {
        self.op_mem(true, &[0x8b], to.0, from);
    }
    pub(crate) fn load32(&mut self, to: Host, from: Mem) {
        self.op_mem(false, &[0x8b], to.0, from);
    }
    /// Zero-extends two bytes.
    pub(crate) fn load_zero16(&mut self, to: Host, from: Mem) {
        self.op_mem(false, &[0x0f, 0xb7], to.0, from);
    }
    pub(crate) fn store(&mut self, to: Mem, from: Host) {
        self.op_mem(true, &[0x89], from.0, to);
    }
    pub(crate) fn store32(&mut self, to: Mem, from: Host) {
        self.op_mem(false, &[0x89], from.0, to);
    }
    pub(crate) fn store16(&mut self, to: Mem, from: Host) {
        self.bytes.push(0x66);
        self.op_mem(false, &[0x89], from.0, to);
    }
    /// Stores a sign-extended 32-bit immediate as 64 bits.
    pub(crate) fn store_imm(&mut self, to: Mem, value: i32) {
        self.op_mem(true, &[0xc7], 0, to);
        self.bytes.extend(value.to_le_bytes());
    }
    pub(crate) fn store_imm32(&mut self, to: Mem, value: i32) {
        self.op_mem(false, &[0xc7], 0, to);
        self.bytes.extend(value.to_le_bytes());
    }
    pub(crate) fn store_imm16(&mut self, to: Mem, value: i16) {
        self.bytes.push(0x66);
        self.op_mem(false, &[0xc7], 0, to);
        self.bytes.extend(value.to_le_bytes());
    }
    pub(crate) fn lea(&mut self, to: Host, mem: Mem) {
        self.op_mem(true, &[0x8d], to.0, mem);
    }
    pub(crate) fn lea32(&mut self, to: Host, mem: Mem) {
        self.op_mem(false, &[0x8d], to.0, mem);
    }
    pub(crate) fn mov(&mut self, to: Host, from: Host) {
        if to != from {
            self.op_reg(true, &[0x89], from, to);
        }
    }
    /// Zero-extends bits 0 to 31.
    pub(crate) fn mov32(&mut self, to: Host, from: Host) {
        self.op_reg(false, &[0x89], from, to);
    }
    /// Replaces bits 0 to 15.
    pub(crate) fn mov16(&mut self, to: Host, from: Host) {
        self.bytes.push(0x66);
        self.op_reg(false, &[0x89], from, to);
    }
    /// Zero-extends bits 0 to 15.
    pub(crate) fn movzx16(&mut self, to: Host, from: Host) {
        self.op_reg(false, &[0x0f, 0xb7], to, from);
    }
    /// Sign-extends bits 0 to 31.
    pub(crate) fn movsx32(&mut self, to: Host, from: Host) {
        self.op_reg(true, &[0x63], to, from);
    }
    /// Sign-extends bits 0 to 15.
    pub(crate) fn movsx16(&mut self, to: Host, from: Host) {
        self.op_reg(true, &[0x0f, 0xbf], to, from);
    }
    /// Loads a constant, in the shortest form.
    pub(crate) fn mov_imm(&mut self, to: Host, value: u64) {
        let rex_b = to.0 >> 3;
        if value >> 32 == 0 {
            if rex_b != 0 {
                self.bytes.push(0x41);
            }
            self.bytes.push(0xb8 | to.0 & 7);
            self.bytes.extend((value as u32).to_le_bytes());
        } else if value as i64 >= i64::from(i32::MIN) && (value as i64) < 0 {
            self.bytes.extend([0x48 | rex_b, 0xc7, 0xc0 | to.0 & 7]);
            self.bytes.extend((value as i32).to_le_bytes());
        } else {
            self.bytes.extend([0x48 | rex_b, 0xb8 | to.0 & 7]);
            self.bytes.extend(value.to_le_bytes());
        }
    }

    /// Three-byte VEX prefix for map 0F38, W1, no length.
    fn vex_0f38(&mut self, pp: u8, reg: u8, vvvv: u8, mem: Mem) {
        let inverted = |r: u8| (!(r >> 3)) & 1;
        let index = mem.index.map_or(0, |i| i.0.0);
        let base = mem.base.map_or(0, |b| b.0);
        self.bytes.extend([
            0xc4,
            inverted(reg) << 7 | inverted(index) << 6 | inverted(base) << 5 | 2,
            0x80 | (!vvvv & 15) << 3 | pp,
        ]);
    }

    /// Gathers the bits of `from` that `mask` selects.
    pub(crate) fn pext(&mut self, to: Host, from: Host, mask: Mem) {
        self.vex_0f38(2, to.0, from.0, mask);
        self.bytes.push(0xf5);
        self.modrm(to.0, mask);
    }

    /// Scatters the low bits of `from` to where `mask` has ones.
    pub(crate) fn pdep(&mut self, to: Host, from: Host, mask: Mem) {
        self.vex_0f38(3, to.0, from.0, mask);
        self.bytes.push(0xf5);
        self.modrm(to.0, mask);
    }

    /// `to = from >> (count & 63)`, logical.
    pub(crate) fn shrx(&mut self, to: Host, from: Host, count: Host) {
        self.vex_0f38(3, to.0, count.0, Mem::base(from, 0));
        self.bytes
            .extend([0xf7, 0xc0 | (to.0 & 7) << 3 | from.0 & 7]);
    }

    /// `to = from >> (count & 63)`, arithmetic.
    pub(crate) fn sarx(&mut self, to: Host, from: Host, count: Host) {
        self.vex_0f38(2, to.0, count.0, Mem::base(from, 0));
        self.bytes
            .extend([0xf7, 0xc0 | (to.0 & 7) << 3 | from.0 & 7]);
    }

    /// `to = from` rotated right by a constant.
    pub(crate) fn rorx(&mut self, to: Host, from: Host, count: u8) {
        let inverted = |r: Host| (!(r.0 >> 3)) & 1;
        self.bytes.extend([
            0xc4,
            inverted(to) << 7 | 1 << 6 | inverted(from) << 5 | 3,
            0xfb,
            0xf0,
            0xc0 | (to.0 & 7) << 3 | from.0 & 7,
            count,
        ]);
    }

    /// Short jump back to an offset if ECX is zero.
    pub(crate) fn jecxz_back(&mut self, to: usize) {
        let relative = to as i64 - (self.bytes.len() as i64 + 3);
        let relative = i8::try_from(relative).expect("short jumps back span a block's entry");
        self.bytes.extend([0x67, 0xe3, relative as u8]);
    }

    /// Jump to a host address.
    pub(crate) fn jmp_to(&mut self, target: u64) {
        self.bytes.push(0xe9);
        let next = self.base + self.bytes.len() as u64 + 4;
        self.bytes
            .extend((target.wrapping_sub(next) as i32).to_le_bytes());
    }

    /// Jump to a place that is bound later.
    pub(crate) fn jmp(&mut self) -> Patch {
        self.bytes.extend([0xe9, 0, 0, 0, 0]);
        Patch(self.bytes.len() - 4)
    }

    /// Conditional jump (condition number as in the opcode) to a place that is bound later.
    pub(crate) fn jcc(&mut self, condition: u8) -> Patch {
        self.bytes.extend([0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Patch(self.bytes.len() - 4)
    }

    /// Short conditional jump to a place that is bound later.
    pub(crate) fn jcc_short(&mut self, condition: u8) -> ShortPatch {
        self.bytes.extend([0x70 | condition, 0]);
        ShortPatch(self.bytes.len() - 1)
    }

    /// Short jump if RCX is zero.
    pub(crate) fn jrcxz(&mut self) -> ShortPatch {
        self.bytes.extend([0xe3, 0]);
        ShortPatch(self.bytes.len() - 1)
    }

    pub(crate) fn jmp_short(&mut self) -> ShortPatch {
        self.bytes.extend([0xeb, 0]);
        ShortPatch(self.bytes.len() - 1)
    }

    /// Binds a jump to the next byte.
    pub(crate) fn bind(&mut self, patch: Patch) {
        let relative = (self.bytes.len() - patch.0 - 4) as i32;
        self.bytes[patch.0..patch.0 + 4].copy_from_slice(&relative.to_le_bytes());
    }

    /// Binds a short jump to the next byte.
    pub(crate) fn bind_short(&mut self, patch: ShortPatch) {
        let relative = self.bytes.len() - patch.0 - 1;
        assert!(relative < 128, "short jumps span one memory check");
        self.bytes[patch.0] = relative as u8;
    }

    pub(crate) fn jmp_mem(&mut self, target: Mem) {
        self.op_mem(false, &[0xff], 4, target);
    }

    /// AH = SF ZF AF PF CF, AL = OF.
    pub(crate) fn flags_to_ax(&mut self) {
        self.bytes.extend([0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// Inverse of [`Asm::flags_to_ax`].
    pub(crate) fn flags_from_ax(&mut self) {
        self.bytes.extend([0x04, 0x7f, 0x9e]);
    }

    /// PUSHFQ to the scratch below RSP and load it.
    pub(crate) fn flags_image(&mut self, to: Host) {
        self.bytes.push(0x9c);
        self.load(to, Mem::base(Host::RSP, 0));
        self.lea(Host::RSP, Mem::base(Host::RSP, 8));
    }

    /// MOVAPS between an XMM register and the state block.
    pub(crate) fn movaps_load(&mut self, xmm: u8, from: Mem) {
        self.op_mem(false, &[0x0f, 0x28], xmm, from);
    }
    pub(crate) fn movaps_store(&mut self, to: Mem, xmm: u8) {
        self.op_mem(false, &[0x0f, 0x29], xmm, to);
    }
    pub(crate) fn ldmxcsr(&mut self, from: Mem) {
        self.op_mem(false, &[0x0f, 0xae], 2, from);
    }
    pub(crate) fn stmxcsr(&mut self, to: Mem) {
        self.op_mem(false, &[0x0f, 0xae], 3, to);
    }
    pub(crate) fn push(&mut self, register: Host) {
        self.bytes
            .extend([0x40 | register.0 >> 3, 0x50 | register.0 & 7]);
    }
    pub(crate) fn pop(&mut self, register: Host) {
        self.bytes
            .extend([0x40 | register.0 >> 3, 0x58 | register.0 & 7]);
    }
    /// WAIT: raises a pending x87 exception.
    pub(crate) fn wait(&mut self) {
        self.bytes.push(0x9b);
    }
    pub(crate) fn ret(&mut self) {
        self.bytes.push(0xc3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    fn text(emit: impl FnOnce(&mut Asm)) -> String {
        let mut asm = Asm::new(0);
        emit(&mut asm);
        let mut decoder = Decoder::new(64, &asm.bytes, DecoderOptions::NONE);
        let (mut out, mut formatter) = (String::new(), IntelFormatter::new());
        while decoder.can_decode() {
            formatter.format(&decoder.decode(), &mut out);
            out.push(';');
        }
        out
    }

    #[test]
    fn emitted_forms_read_back_as_meant() {
        type Case = (fn(&mut Asm), &'static str);
        let cases: &[Case] = &[
            (|a| a.load(Host::R10, Mem::env(4)), "mov r10,[rsp+4];"),
            (|a| a.store(Mem::env(-124), Host::RAX), "mov [rsp-7Ch],rax;"),
            (
                |a| a.lea(Host::RCX, Mem::sum(Host::RCX, Host::R13, 7)),
                "lea rcx,[rcx+r13+7];",
            ),
            (
                |a| a.load(Host::RCX, Mem::table(0x1234, Host::R11)),
                "mov rcx,[rsp+r11*8+1234h];",
            ),
            (
                |a| a.pext(Host::R11, Host::RSI, Mem::env(52)),
                "pext r11,rsi,[rsp+34h];",
            ),
            (
                |a| a.pdep(Host::RCX, Host::R8, Mem::env(52)),
                "pdep rcx,r8,[rsp+34h];",
            ),
            (
                |a| a.shrx(Host::RCX, Host::RCX, Host::RSP),
                "shrx rcx,rcx,rsp;",
            ),
            (
                |a| a.sarx(Host::R11, Host::R15, Host::RCX),
                "sarx r11,r15,rcx;",
            ),
            (
                |a| a.store_imm(Mem::sum(Host::R10, Host::R11, 0), -2),
                "mov qword ptr [r10+r11],0FFFFFFFFFFFFFFFEh;",
            ),
            (|a| a.rorx(Host::RCX, Host::R9, 32), "rorx rcx,r9,20h;"),
            (|a| a.rorx(Host::R9, Host::RDI, 1), "rorx r9,rdi,1;"),
            (|a| a.jecxz_back(0), "jecxz 0;"),
            (|a| a.mov16(Host::R15, Host::R10), "mov r15w,r10w;"),
            (|a| a.movsx32(Host::RCX, Host::R9), "movsxd rcx,r9d;"),
            (|a| a.mov_imm(Host::R10, 5), "mov r10d,5;"),
            (
                |a| a.mov_imm(Host::R10, u64::MAX),
                "mov r10,0FFFFFFFFFFFFFFFFh;",
            ),
            (
                |a| {
                    a.lea(
                        Host::RAX,
                        Mem {
                            base: None,
                            index: Some((Host::R9, 2)),
                            disp: -4,
                        },
                    )
                },
                "lea rax,[r9*4-4];",
            ),
            (
                |a| a.load(Host::RAX, Mem::base(Host::R13, 0)),
                "mov rax,[r13];",
            ),
            (
                |a| a.movaps_store(Mem::env(0x200), 9),
                "movaps [rsp+200h],xmm9;",
            ),
        ];
        for (emit, expected) in cases {
            assert_eq!(text(emit), *expected);
        }
    }
}
