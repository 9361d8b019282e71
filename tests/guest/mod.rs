//! A builder of bare-metal guests in 64-bit mode.
//!
//! [`Guest`] lays out a RAM image (page tables, GDT, LDT, TSS with interrupt stacks, IDT with a stub
//! for each vector) and the CPU state that goes with it. The stubs record every event in RAM and
//! then do what the case chose ([`Action`]); the finishing code stores the registers and writes to
//! [`layout::EXIT_PORT`]. The same RAM runs on any `machine::vcpu::Vcpu` and, entered through
//! [`boot::rom`], on QEMU.

pub mod boot;
pub mod layout;
mod outcome;
mod paging;
mod stubs;
pub mod tables;

pub use outcome::{End, EventRecord, FinalState, Outcome};
pub use paging::{Size, pte};
pub use stubs::WITH_ERROR_CODE;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use layout::sel;
use machine::state::{CpuState, DescriptorTable, Gpr, Seg, Segment};

/// Emits several instructions: `asm!(a; mov(rax, rbx); ret();)` is `a.mov(rax, rbx)?; a.ret()?;`.
#[macro_export]
macro_rules! guest_asm {
    ($a:expr; $($($op:ident($($arg:expr),* $(,)?)).+);* $(;)?) => {
        $( $a.$($op($($arg),*)).+?; )*
    };
}
pub use guest_asm as asm;

/// What the handler does after it recorded an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stores the registers and ends the case; what happens where no action is given.
    Finish,
    /// Returns to the interrupted program.
    Resume,
    /// Returns to this many bytes after the pushed RIP.
    Skip(u64),
    /// Returns with the pushed RIP replaced.
    Goto(u64),
    /// Abandons the interrupted program and goes on at CPL 0 at this address, with the initial kernel
    /// stack and the interrupted program's other registers.
    Land(u64),
    /// Calls this address at CPL 0 (R8 points at vector, error code and frame; RAX, RCX, RDX, RBX,
    /// RSI, RDI, R8 and R9 are free), then returns to the interrupted program.
    Call(u64),
}

impl Action {
    const RESUME: u64 = 1;
    const SKIP: u64 = 2;
    const GOTO: u64 = 3;
    const LAND: u64 = 4;
    const CALL: u64 = 5;

    fn encode(self) -> [u64; 2] {
        match self {
            Self::Finish => [0, 0],
            Self::Resume => [Self::RESUME, 0],
            Self::Skip(bytes) => [Self::SKIP, bytes],
            Self::Goto(to) => [Self::GOTO, to],
            Self::Land(to) => [Self::LAND, to],
            Self::Call(to) => [Self::CALL, to],
        }
    }
}

/// A guest under construction.
#[derive(Clone)]
pub struct Guest {
    ram: Vec<u8>,
    next_table: u64,
    /// The initial CPU state. Selectors are loaded from the GDT of the image when it is built for
    /// QEMU: change both.
    pub state: CpuState,
    /// Memory to report at the end: name, address, bytes.
    pub watched: Vec<(String, u64, usize)>,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// The default guest: CPL 0 at [`layout::CODE`], stack [`layout::KERNEL_STACK`], interrupts off,
    /// the I/O bitmap denies everything, all gates DPL 0 interrupt gates but 3, 4 and 0x80 (DPL 3).
    pub fn new() -> Self {
        let mut guest = Self {
            ram: vec![0; layout::RAM_BYTES as usize],
            next_table: layout::TABLES,
            state: CpuState::long_mode(layout::CODE, layout::KERNEL_STACK, layout::PML4),
            watched: Vec::new(),
        };
        guest.default_map();
        guest.default_tables();
        guest
            .default_code()
            .expect("the fixed code of every guest assembles");
        guest.default_state();
        guest
    }

    fn default_tables(&mut self) {
        for (selector, raw) in tables::standard_gdt() {
            self.poke_u64(layout::GDT + u64::from(selector), raw);
        }
        for vector in 0..=255 {
            let access = if matches!(vector, 3 | 4 | 0x80) {
                0xee
            } else {
                0x8e
            };
            self.set_gate(vector, access, 0);
        }
        self.poke_u64(layout::TSS + 4, layout::KERNEL_STACK);
        for n in 1..=7 {
            let top = layout::IST + n * layout::IST_BYTES;
            self.poke_u64(layout::TSS + 0x24 + (n - 1) * 8, top);
        }
        self.poke(layout::TSS + 0x66, &0x68u16.to_le_bytes());
        self.poke(layout::IO_BITMAP, &[0xff; 0x2001]);
    }

    fn default_code(&mut self) -> Result<(), IcedError> {
        for vector in 0..=255 {
            let code = stubs::stub(vector)?;
            self.poke(
                layout::STUBS + u64::from(vector) * layout::STUB_BYTES,
                &code,
            );
        }
        let (handler, finish) = (stubs::handler()?, stubs::finish()?);
        self.poke(layout::HANDLER, &handler);
        self.poke(layout::FINISH, &finish);
        Ok(())
    }

    fn default_state(&mut self) {
        self.state.gdtr = DescriptorTable {
            base: layout::GDT,
            limit: layout::GDT_BYTES as u16 - 1,
        };
        self.state.idtr = DescriptorTable {
            base: layout::IDT,
            limit: 0xfff,
        };
        self.state.tr = self.segment(sel::TSS);
        self.state.ldtr = self.segment(sel::LDT);
        for index in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            self.state.segs[index as usize] = self.segment(sel::DATA);
        }
        self.state.segs[Seg::Cs as usize] = self.segment(sel::CODE);
        self.state.msrs.star = u64::from(sel::CODE) << 32 | 0x23 << 48;
        self.state.msrs.sysenter_cs = u64::from(sel::CODE);
    }

    /// The segment that loading `selector` from the GDT gives.
    pub fn segment(&self, selector: u16) -> Segment {
        let at = layout::GDT + u64::from(selector & !7);
        tables::loaded(selector, [self.peek_u64(at), self.peek_u64(at + 8)])
    }

    /// Replaces one gate of the IDT by one to the vector's stub.
    pub fn set_gate(&mut self, vector: u8, access: u8, ist: u8) {
        let stub = layout::STUBS + u64::from(vector) * layout::STUB_BYTES;
        self.set_raw_gate(vector, tables::gate(stub, sel::CODE, access, ist));
    }

    /// Makes a vector end the case without a record of the event.
    pub fn finish_on(&mut self, vector: u8) {
        let raw = tables::gate(layout::FINISH, sel::CODE, 0x8e, 0);
        self.set_raw_gate(vector, raw);
    }

    /// Replaces one gate of the IDT.
    pub fn set_raw_gate(&mut self, vector: u8, raw: [u64; 2]) {
        let at = layout::IDT + u64::from(vector) * 16;
        self.poke_u64(at, raw[0]);
        self.poke_u64(at + 8, raw[1]);
    }

    /// Writes a descriptor into the GDT.
    pub fn set_descriptor(&mut self, selector: u16, raw: u64) {
        self.poke_u64(layout::GDT + u64::from(selector & !7), raw);
    }

    /// Writes bytes into the image.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.ram[address as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a quadword into the image.
    pub fn poke_u64(&mut self, address: u64, value: u64) {
        self.poke(address, &value.to_le_bytes());
    }

    /// A quadword of the image.
    pub fn peek_u64(&self, address: u64) -> u64 {
        read_u64(&self.ram, address)
    }

    /// The image.
    pub fn ram(&self) -> &[u8] {
        &self.ram
    }

    /// What to do after the first, second, ... event.
    pub fn actions(&mut self, actions: &[Action]) {
        for (index, action) in actions.iter().enumerate() {
            let [kind, argument] = action.encode();
            let at = layout::ACTIONS + index as u64 * 16;
            self.poke_u64(at, kind);
            self.poke_u64(at + 8, argument);
        }
    }

    /// Reports this memory at the end of the case.
    pub fn watch(&mut self, name: &str, address: u64, bytes: usize) {
        self.watched.push((name.to_owned(), address, bytes));
    }

    /// Assembles code to run at linear address `va` and places it at guest-physical `pa`.
    ///
    /// # Errors
    /// What the assembler reports, and what `emit` does.
    pub fn code_at(
        &mut self,
        va: u64,
        pa: u64,
        emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let mut assembler = CodeAssembler::new(64)?;
        emit(&mut assembler)?;
        let bytes = assembler.assemble(va)?;
        self.poke(pa, &bytes);
        Ok(())
    }

    /// Code at CPL 0, at [`layout::CODE`], followed by a jump to the finishing code.
    ///
    /// # Errors
    /// As [`Guest::code_at`].
    pub fn code(
        &mut self,
        emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        self.code_at(layout::CODE, layout::CODE, |a| {
            emit(a)?;
            a.jmp(layout::FINISH)
        })
    }

    /// Code at CPL 3, at [`layout::USER_CODE`], followed by HLT: the #GP(0) ends the case unless
    /// there is an action for it.
    ///
    /// # Errors
    /// As [`Guest::code_at`].
    pub fn user_code(
        &mut self,
        emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        self.code_at(layout::USER_CODE, layout::USER_CODE, |a| {
            emit(a)?;
            a.hlt()
        })
    }

    /// Starts at CPL 3 at [`layout::USER_CODE`] instead of at CPL 0.
    pub fn start_in_user(&mut self) {
        self.state.rip = layout::USER_CODE;
        self.state.gpr[Gpr::Rsp as usize] = layout::USER_STACK;
        for index in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            self.state.segs[index as usize] = self.segment(sel::USER_DATA);
        }
        self.state.segs[Seg::Cs as usize] = self.segment(sel::USER_CODE);
    }
}

pub(crate) fn read_u64(ram: &[u8], address: u64) -> u64 {
    let bytes = ram[address as usize..][..8]
        .try_into()
        .expect("a slice of eight bytes");
    u64::from_le_bytes(bytes)
}
