//! The user-visible register state of one logical CPU, as a sequence starts and ends with it.

/// The legacy FXSAVE image (64-bit form), 512 bytes; bytes 416 to 511 are not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FxImage(pub [u8; 512]);

impl Default for FxImage {
    /// The state after FNINIT with all SSE exceptions masked.
    fn default() -> Self {
        let mut image = Self([0; 512]);
        image.set_u16(0, 0x37f);
        image.set_mxcsr(0x1f80);
        image
    }
}

impl FxImage {
    /// Bytes that are state.
    pub const STATE_BYTES: usize = 416;

    /// The image with zeros in place of what is not state: MXCSR_MASK, the tail, and the upper 48 bits
    /// of each x87 register.
    pub fn state(mut self) -> Self {
        self.0[5] = 0;
        self.0[28..32].fill(0);
        for register in self.0[32..160].chunks_exact_mut(16) {
            register[10..].fill(0);
        }
        self.0[Self::STATE_BYTES..].fill(0);
        self
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.0[offset], self.0[offset + 1]])
    }
    fn set_u16(&mut self, offset: usize, value: u16) {
        self.0[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }
    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.0[offset..offset + 8].try_into().expect("8 bytes"))
    }
    fn u128(&self, offset: usize) -> u128 {
        u128::from_le_bytes(self.0[offset..offset + 16].try_into().expect("16 bytes"))
    }
    /// Control word.
    pub fn fcw(&self) -> u16 {
        self.u16(0)
    }
    /// Sets the control word.
    pub fn set_fcw(&mut self, value: u16) {
        self.set_u16(0, value);
    }
    /// Status word.
    pub fn fsw(&self) -> u16 {
        self.u16(2)
    }
    /// Sets the status word.
    pub fn set_fsw(&mut self, value: u16) {
        self.set_u16(2, value);
    }
    /// Abridged tag word; a set bit is a register in use.
    pub fn ftw(&self) -> u8 {
        self.0[4]
    }
    /// Sets the abridged tag word.
    pub fn set_ftw(&mut self, value: u8) {
        self.0[4] = value;
    }
    /// Last opcode, 11 bits.
    pub fn fop(&self) -> u16 {
        self.u16(6)
    }
    /// Sets the last opcode.
    pub fn set_fop(&mut self, value: u16) {
        self.set_u16(6, value);
    }
    /// Last instruction pointer.
    pub fn fip(&self) -> u64 {
        self.u64(8)
    }
    /// Sets the last instruction pointer.
    pub fn set_fip(&mut self, value: u64) {
        self.0[8..16].copy_from_slice(&value.to_le_bytes());
    }
    /// Last data pointer.
    pub fn fdp(&self) -> u64 {
        self.u64(16)
    }
    /// Sets the last data pointer.
    pub fn set_fdp(&mut self, value: u64) {
        self.0[16..24].copy_from_slice(&value.to_le_bytes());
    }
    /// SSE control and status.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.0[24..28].try_into().expect("4 bytes"))
    }
    /// Sets SSE control and status.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.0[24..28].copy_from_slice(&value.to_le_bytes());
    }
    /// ST(`index`), 80 bits.
    pub fn st(&self, index: usize) -> u128 {
        self.u128(32 + index * 16) & ((1 << 80) - 1)
    }
    /// Sets ST(`index`), 80 bits.
    pub fn set_st(&mut self, index: usize, value: u128) {
        let bytes = (value & ((1 << 80) - 1)).to_le_bytes();
        self.0[32 + index * 16..48 + index * 16].copy_from_slice(&bytes);
    }
    /// XMM`index`.
    pub fn xmm(&self, index: usize) -> u128 {
        self.u128(160 + index * 16)
    }
    /// Sets XMM`index`.
    pub fn set_xmm(&mut self, index: usize, value: u128) {
        self.0[160 + index * 16..176 + index * 16].copy_from_slice(&value.to_le_bytes());
    }
}

/// All registers that a program at privilege level 3 can see or change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// In encoding order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Next instruction.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// ES, CS, SS, DS, FS, GS selectors. A sequence always starts with those of a 64-bit process.
    pub selectors: [u16; 6],
    /// x87, MMX and SSE.
    pub fpu: FxImage,
}

/// Selectors a sequence starts with: those of a 64-bit process under Linux.
pub const START_SELECTORS: [u16; 6] = [0, 0x33, 0x2b, 0, 0, 0];

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An exception or software interrupt.
    Exception {
        /// Vector.
        vector: u8,
        /// Error code; 0 where the vector has none.
        error: u64,
        /// CR2 for a page fault, else 0.
        cr2: u64,
    },
    /// It executed SYSCALL, SYSENTER or INT 0x80: nothing the two sides could be compared in.
    Syscall,
    /// It did not end in time.
    Endless,
}

/// The state a sequence ended in, but for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// Registers as the exception frame or the signal frame shows them.
    pub registers: Registers,
}
