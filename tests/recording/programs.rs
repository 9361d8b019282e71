//! Bare-metal guests in 64-bit mode that use a bit of everything: timer interrupts, page tables, user
//! mode, string loops, self-modifying code, port input, x87 and SSE. Random, or with every piece once.

use super::interrupts;
use super::{DMA_PORT, RANDOM_PORT, Rng};
use crate::guest::layout::sel;
use crate::guest::{Guest, asm, layout, pte, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::GuestPhys;
use std::ops::Range;

/// RAM that devices write to; the guests read it.
pub const DEVICE_WINDOW: Range<u64> = layout::FREE..layout::FREE + 0x20_0000;

const CALL_HANDLER: u64 = layout::CODE + 0xf100;
const ROUNDS: u64 = layout::DATA + 0xff08;
/// A linear page whose mapping the guest changes.
const REMAPPED: u64 = layout::DATA + 0xe000;
/// The two frames that it is mapped to.
const FRAMES: [u64; 2] = [layout::DATA + 0xc000, layout::DATA + 0xd000];
/// Bytes of data that pieces read and write.
const DATA_BYTES: u64 = 0xc000;
const USER_ROUTINE_BYTES: u64 = 0x100;

/// Prefixes of instructions.
const REP: [u8; 1] = [0xf3];
const LOCK: [u8; 1] = [0xf0];

/// Something for a guest to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Arithmetic,
    Memory,
    Loop,
    MemoryLoop,
    StringFill,
    StringCopy,
    StringCompare,
    SelfModifying,
    Remap,
    PortRead,
    PortString,
    Timestamp,
    DeviceWrite,
    ReadDevice,
    Halt,
    InterruptsOff,
    User,
    Fpu,
    Sse,
    Spin,
}

const PIECES: [Piece; 20] = [
    Piece::Arithmetic,
    Piece::Memory,
    Piece::Loop,
    Piece::MemoryLoop,
    Piece::StringFill,
    Piece::StringCopy,
    Piece::StringCompare,
    Piece::SelfModifying,
    Piece::Remap,
    Piece::PortRead,
    Piece::PortString,
    Piece::Timestamp,
    Piece::DeviceWrite,
    Piece::ReadDevice,
    Piece::Halt,
    Piece::InterruptsOff,
    Piece::User,
    Piece::Fpu,
    Piece::Sse,
    Piece::Spin,
];

/// A guest for the engine.
pub struct Program {
    guest: Guest,
}

impl Program {
    /// Every piece once, in a loop of `rounds` rounds, then off.
    pub fn everything(rounds: u32) -> Self {
        Self::build(&PIECES, 1, Some(rounds)).expect("the pieces assemble")
    }

    /// Random pieces in a loop. Half of the guests power off by themselves.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.below(16) + 4;
        let quiet = rng.below(4) == 0;
        let pieces: Vec<Piece> = (0..count)
            .map(|_| PIECES[rng.below(PIECES.len() as u64) as usize])
            .filter(|piece| !quiet || !piece.exits())
            .collect();
        let rounds = (rng.below(2) == 0).then(|| rng.below(40) as u32 + 5);
        Self::build(&pieces, seed, rounds).expect("the pieces assemble")
    }

    /// Random pieces that need no device, in an endless loop.
    pub fn quiet(seed: u64) -> Self {
        let pieces: Vec<Piece> = PIECES
            .into_iter()
            .filter(|piece| !piece.exits() && *piece != Piece::ReadDevice)
            .collect();
        Self::build(&pieces, seed, None).expect("the pieces assemble")
    }

    /// Puts the guest into RAM of [`layout::RAM_BYTES`]; returns the state to start in.
    pub fn load(&self, ram: &Ram) -> CpuState {
        for (index, page) in self.guest.ram().chunks(4096).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                let at = GuestPhys(4096 * index as u64);
                ram.write(at, page).expect("the guest fits its RAM");
            }
        }
        self.guest.state.clone()
    }

    fn build(pieces: &[Piece], seed: u64, rounds: Option<u32>) -> Result<Self, IcedError> {
        let mut builder = Builder {
            guest: Guest::new(),
            rng: Rng::new(seed ^ 0x5eed),
            user_routines: 0,
        };
        builder.handlers()?;
        builder.data();
        let mut a = CodeAssembler::new(64)?;
        builder.prologue(&mut a)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for piece in pieces {
            builder.piece(*piece, &mut a)?;
        }
        let mut last = a.create_label();
        asm!(a; inc(dword_ptr(ROUNDS)));
        if let Some(rounds) = rounds {
            asm!(a; cmp(dword_ptr(ROUNDS), rounds as i32); jae(last));
        }
        asm!(a; jmp(top); set_label(&mut last); cli(); hlt());
        let code = a.assemble(layout::CODE)?;
        assert!(
            code.len() as u64 <= interrupts::HANDLER - layout::CODE,
            "guest too large"
        );
        builder.guest.poke(layout::CODE, &code);
        Ok(Self {
            guest: builder.guest,
        })
    }
}

impl Piece {
    fn exits(self) -> bool {
        matches!(
            self,
            Self::PortRead
                | Self::PortString
                | Self::Timestamp
                | Self::DeviceWrite
                | Self::Halt
                | Self::InterruptsOff
        )
    }
}

struct Builder {
    guest: Guest,
    rng: Rng,
    user_routines: u64,
}

type Emitted = Result<(), IcedError>;

impl Builder {
    fn handlers(&mut self) -> Emitted {
        interrupts::install_handler(&mut self.guest)?;
        // The way back from user mode: RBX says where to, nothing on the stack is needed.
        self.guest.code_at(CALL_HANDLER, CALL_HANDLER, |a| {
            asm!(a; mov(rsp, layout::KERNEL_STACK); sti(); jmp(rbx));
            Ok(())
        })?;
        let gate = |target, access| tables::gate(target, sel::CODE, access, 0);
        self.guest.set_raw_gate(0x80, gate(CALL_HANDLER, 0xee));
        Ok(())
    }

    fn data(&mut self) {
        for at in (layout::DATA..layout::DATA + DATA_BYTES).step_by(8) {
            let word = self.rng.bits();
            self.guest.poke_u64(at, word);
        }
    }

    /// Interrupt controllers to vectors 0x20 and 0x28, the timer at a few microseconds.
    fn prologue(&mut self, a: &mut CodeAssembler) -> Emitted {
        let count = self.rng.below(20) as u16 + 4;
        interrupts::start_timer(a, count)?;
        asm!(a; sti());
        Ok(())
    }

    fn data_address(&mut self) -> u64 {
        layout::DATA + self.rng.below(DATA_BYTES - 0x2100)
    }

    fn number(&mut self, bound: u64) -> i32 {
        self.rng.below(bound) as i32 + 1
    }

    fn piece(&mut self, piece: Piece, a: &mut CodeAssembler) -> Emitted {
        match piece {
            Piece::Arithmetic => self.arithmetic(a),
            Piece::Memory => self.memory(a),
            Piece::Loop => self.counting_loop(a),
            Piece::MemoryLoop => self.memory_loop(a),
            Piece::StringFill | Piece::StringCopy | Piece::StringCompare => self.string(piece, a),
            Piece::SelfModifying => self_modifying(a, self.number(5)),
            Piece::Remap => self.remap(a),
            Piece::PortRead => self.port_read(a),
            Piece::PortString => self.port_string(a),
            Piece::Timestamp => {
                asm!(a; rdtsc(); xor(r8, rax); ror(r8, 7));
                Ok(())
            }
            Piece::DeviceWrite => {
                asm!(a; mov(edx, u32::from(DMA_PORT)); out(dx, eax));
                Ok(())
            }
            Piece::ReadDevice => self.read_device(a),
            Piece::Halt => {
                asm!(a; hlt());
                Ok(())
            }
            Piece::InterruptsOff => self.interrupts_off(a),
            Piece::User => self.user(a),
            Piece::Fpu => self.fpu(a),
            Piece::Sse => self.sse(a),
            Piece::Spin => self.spin(a),
        }
    }

    fn arithmetic(&mut self, a: &mut CodeAssembler) -> Emitted {
        let registers = [
            rax, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14,
        ];
        for _ in 0..self.number(12) {
            let to = registers[self.rng.below(13) as usize];
            let from = registers[self.rng.below(13) as usize];
            let immediate = self.rng.bits() as i32;
            match self.rng.below(10) {
                0 => a.add(to, from)?,
                1 => a.sbb(to, immediate)?,
                2 => a.xor(to, from)?,
                3 => a.imul_3(to, from, immediate)?,
                4 => a.lea(to, from + to * 4 + (immediate & 0xff))?,
                5 => a.ror(to, (immediate & 63) as u32)?,
                6 => a.adc(to, from)?,
                7 => a.bsf(to, from)?,
                8 => a.popcnt(to, from)?,
                _ => a.cmovb(to, from)?,
            }
        }
        Ok(())
    }

    fn memory(&mut self, a: &mut CodeAssembler) -> Emitted {
        let (from, to) = (self.data_address(), self.data_address());
        asm!(a;
            mov(rsi, from);
            mov(rdi, to);
            mov(rax, qword_ptr(rsi));
            add(qword_ptr(rdi), rax);
            push(qword_ptr(rsi + 8));
            pop(qword_ptr(rdi + 24));
            db(&LOCK); xadd(qword_ptr(rdi + 8), rax);
            adc(byte_ptr(rsi + 16), al));
        Ok(())
    }

    fn counting_loop(&mut self, a: &mut CodeAssembler) -> Emitted {
        let rounds = self.number(300);
        let mut top = a.create_label();
        asm!(a;
            mov(ecx, rounds);
            set_label(&mut top);
            imul_3(r9, r9, 1_103_515_245);
            add(r9, 12345);
            xor(r10, r9);
            dec(ecx);
            jne(top));
        Ok(())
    }

    /// Calls in a loop whose counter is in memory: registers repeat, memory does not.
    fn memory_loop(&mut self, a: &mut CodeAssembler) -> Emitted {
        let (rounds, counter) = (self.number(200), self.data_address());
        let (mut top, mut callee, mut over) =
            (a.create_label(), a.create_label(), a.create_label());
        asm!(a;
            mov(rsi, counter);
            mov(dword_ptr(rsi), rounds);
            jmp(over);
            set_label(&mut callee);
            xor(eax, eax);
            dec(dword_ptr(rsi));
            ret();
            set_label(&mut over);
            nop();
            set_label(&mut top);
            call(callee);
            cmp(dword_ptr(rsi), 0);
            mov(eax, 0);
            jne(top));
        Ok(())
    }

    fn string(&mut self, piece: Piece, a: &mut CodeAssembler) -> Emitted {
        let (from, to, count) = (self.data_address(), self.data_address(), self.number(400));
        asm!(a; mov(rsi, from); mov(rdi, to); mov(ecx, count));
        match (piece, self.rng.below(2)) {
            (Piece::StringFill, 0) => a.rep().stosb(),
            (Piece::StringFill, _) => a.rep().stosq(),
            (Piece::StringCopy, 0) => a.rep().movsb(),
            (Piece::StringCopy, _) => {
                asm!(a; std(); db(&REP); movsd(); cld());
                Ok(())
            }
            (_, 0) => a.repe().cmpsb(),
            (_, _) => a.repne().scasw(),
        }
    }

    /// Maps a page to the other of two frames, through the page table, with INVLPG.
    fn remap(&mut self, a: &mut CodeAssembler) -> Emitted {
        let slot = self.guest.leaf_slot(REMAPPED, crate::guest::Size::Kib4);
        let frame = FRAMES[self.rng.below(2) as usize] | pte::P | pte::RW;
        asm!(a;
            mov(rdi, REMAPPED);
            add(qword_ptr(rdi + 0x10), 3);
            mov(rsi, slot);
            mov(rax, frame);
            mov(qword_ptr(rsi), rax);
            invlpg(byte_ptr(rdi));
            add(qword_ptr(rdi + 0x18), 5);
            add(r12, qword_ptr(rdi + 0x10)));
        Ok(())
    }

    fn port_read(&mut self, a: &mut CodeAssembler) -> Emitted {
        asm!(a; mov(edx, u32::from(RANDOM_PORT)); in_(eax, dx); add(r13, rax); in_(al, 0x21));
        Ok(())
    }

    fn port_string(&mut self, a: &mut CodeAssembler) -> Emitted {
        let (to, count) = (self.data_address(), self.number(9));
        asm!(a;
            mov(edx, u32::from(RANDOM_PORT));
            mov(rdi, to);
            mov(ecx, count);
            db(&REP); insd();
            mov(rsi, to);
            mov(ecx, count);
            mov(edx, 0x80);
            db(&REP); outsb());
        Ok(())
    }

    fn read_device(&mut self, a: &mut CodeAssembler) -> Emitted {
        let at = DEVICE_WINDOW.start + self.rng.below(DEVICE_WINDOW.end - DEVICE_WINDOW.start - 64);
        asm!(a; mov(rsi, at); add(r14, qword_ptr(rsi)); xor(qword_ptr(rsi + 8), r14));
        Ok(())
    }

    fn interrupts_off(&mut self, a: &mut CodeAssembler) -> Emitted {
        let rounds = self.number(300);
        let (mut outer, mut inner) = (a.create_label(), a.create_label());
        asm!(a;
            cli();
            mov(edx, u32::from(RANDOM_PORT));
            mov(ebp, 8);
            set_label(&mut outer);
            in_(eax, dx);
            mov(ecx, rounds);
            set_label(&mut inner);
            add(r8, rax);
            ror(r8, 3);
            dec(ecx);
            jne(inner);
            dec(ebp);
            jne(outer);
            sti();
            add(r8, rcx));
        Ok(())
    }

    /// A routine at CPL 3 that ends in INT 0x80.
    fn user(&mut self, a: &mut CodeAssembler) -> Emitted {
        let at = layout::USER_CODE + USER_ROUTINE_BYTES * self.user_routines;
        // Later pieces share the last routine.
        if self.user_routines < 32 {
            self.user_routines += 1;
            self.user_routine(at)?;
        }
        let mut back = a.create_label();
        asm!(a;
            lea(rbx, qword_ptr(back));
            push(i32::from(sel::USER_DATA));
            mov(rax, layout::USER_STACK);
            push(rax);
            push(0x202);
            push(i32::from(sel::USER_CODE));
            mov(rax, at);
            push(rax);
            iretq();
            set_label(&mut back));
        Ok(())
    }

    fn user_routine(&mut self, at: u64) -> Emitted {
        let data = layout::USER_DATA + self.rng.below(0x8000);
        let (rounds, count) = (self.number(60), self.number(100));
        self.guest.code_at(at, at, |a| {
            let mut top = a.create_label();
            asm!(a;
                mov(rsi, data);
                mov(ebp, rounds);
                set_label(&mut top);
                push(rbp);
                add(qword_ptr(rsi), rbp);
                mov(rdi, data + 0x1000);
                mov(ecx, count);
                db(&REP); stosb();
                pop(rbp);
                dec(ebp);
                jne(top);
                int(0x80));
            Ok(())
        })
    }

    fn fpu(&mut self, a: &mut CodeAssembler) -> Emitted {
        let at = self.data_address();
        asm!(a;
            mov(rdi, at);
            fninit();
            fld(qword_ptr(rdi));
            fld1();
            fadd_2(st0, st1);
            fsqrt();
            fmulp(st1, st0);
            fstp(tword_ptr(rdi + 32)));
        Ok(())
    }

    fn sse(&mut self, a: &mut CodeAssembler) -> Emitted {
        let at = self.data_address();
        asm!(a;
            mov(rdi, at);
            movdqu(xmm1, xmmword_ptr(rdi));
            paddq(xmm2, xmm1);
            pshufb(xmm3, xmm2);
            mulsd(xmm4, xmm1);
            pxor(xmm5, xmm2);
            movdqu(xmmword_ptr(rdi + 16), xmm5));
        Ok(())
    }

    /// A loop in which only a register that is reset counts, with a pause.
    fn spin(&mut self, a: &mut CodeAssembler) -> Emitted {
        let rounds = self.number(400);
        let mut top = a.create_label();
        asm!(a;
            mov(ecx, rounds);
            set_label(&mut top);
            pause();
            loop_(top));
        Ok(())
    }
}

/// Changes the immediate of an instruction that follows in the same page.
pub(super) fn self_modifying(a: &mut CodeAssembler, rounds: i32) -> Emitted {
    let (mut patched, mut top) = (a.create_label(), a.create_label());
    asm!(a;
        mov(ecx, rounds);
        set_label(&mut top);
        lea(rdi, qword_ptr(patched));
        add(dword_ptr(rdi + 1), 0x1234567);
        set_label(&mut patched);
        mov(eax, 0x10);
        add(r11, rax);
        dec(ecx);
        jne(top));
    Ok(())
}
