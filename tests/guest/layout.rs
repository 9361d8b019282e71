//! Where things lie in a test guest. Addresses are guest-physical and, by the default page tables,
//! linear ones as well.

/// RAM of a test guest in bytes. The range 0xa0000..0x100000 is a hole on PC machines: unused.
pub const RAM_BYTES: u64 = 8 << 20;

/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Bytes of the GDT that its limit covers.
pub const GDT_BYTES: u64 = 0x400;
/// Local descriptor table.
pub const LDT: u64 = 0x1800;
/// Bytes of the LDT that its limit covers.
pub const LDT_BYTES: u64 = 0x80;
/// Interrupt descriptor table, 256 gates.
pub const IDT: u64 = 0x2000;
/// 64-bit TSS; the I/O permission bitmap follows at [`IO_BITMAP`].
pub const TSS: u64 = 0x3000;
/// I/O permission bitmap, 8193 bytes.
pub const IO_BITMAP: u64 = TSS + 0x68;
/// Number of events recorded so far.
pub const EVENT_COUNT: u64 = 0x6000;
/// What to do after each event: (kind, argument) pairs of quadwords.
pub const ACTIONS: u64 = 0x6100;
/// How many actions there is room for.
pub const ACTION_SLOTS: u64 = 64;
/// Where the finishing code leaves the registers.
pub const FINAL: u64 = 0x7000;
/// Code that brings a QEMU guest from reset into the initial state.
pub const TRAMPOLINE: u64 = 0x8000;
/// 256 interrupt stubs of [`STUB_BYTES`] each.
pub const STUBS: u64 = 0x9000;
/// Spacing of the stubs.
pub const STUB_BYTES: u64 = 16;
/// The common handler that records an event.
pub const HANDLER: u64 = 0xa000;
/// The finishing code: stores the registers, then writes to [`EXIT_PORT`].
pub const FINISH: u64 = 0xb000;
/// Recorded events, [`EVENT_BYTES`] each.
pub const EVENTS: u64 = 0x10000;
/// Size of one recorded event.
pub const EVENT_BYTES: u64 = 128;
/// Events after which the handler finishes the case on its own.
pub const EVENT_LIMIT: u64 = 500;
/// Initial stack pointer at CPL 0, also RSP0 of the TSS.
pub const KERNEL_STACK: u64 = 0x26000;
/// Top of interrupt stack `n` (1 to 7) is `IST + n * IST_BYTES`.
pub const IST: u64 = 0x26000;
/// Size of one interrupt stack.
pub const IST_BYTES: u64 = 0x1000;
/// Top of the stack of the finishing code.
pub const FINISH_STACK: u64 = 0x20000 + 0x1000;
/// Top of the stack at CPL 3 (user pages below).
pub const USER_STACK: u64 = 0x5f000;
/// Page-map level 4 of the initial address space.
pub const PML4: u64 = 0x30000;
/// First frame for further page tables; the last is below [`CODE`].
pub const TABLES: u64 = 0x31000;
/// Code at CPL 0, 64 KiB.
pub const CODE: u64 = 0x40000;
/// Code at CPL 3, user pages up to [`DATA`].
pub const USER_CODE: u64 = 0x50000;
/// Data for CPL 0, 64 KiB.
pub const DATA: u64 = 0x60000;
/// Data for CPL 3, user pages, 64 KiB.
pub const USER_DATA: u64 = 0x70000;
/// First byte after the user data.
pub const USER_END: u64 = 0x80000;
/// First byte that nothing uses, mapped by 2 MiB supervisor pages up to the end of RAM.
pub const FREE: u64 = 0x20_0000;

/// A byte written here ends the case.
pub const EXIT_PORT: u16 = 0xf4;
/// The value that the finishing code writes.
pub const EXIT_VALUE: u8 = 0x10;

/// Selectors of the GDT that every guest has.
pub mod sel {
    /// 64-bit code, DPL 0.
    pub const CODE: u16 = 0x10;
    /// Data, DPL 0.
    pub const DATA: u16 = 0x18;
    /// 32-bit code, DPL 3 (SYSRET to compatibility mode).
    pub const USER_CODE32: u16 = 0x20 | 3;
    /// Data, DPL 3.
    pub const USER_DATA: u16 = 0x28 | 3;
    /// 64-bit code, DPL 3.
    pub const USER_CODE: u16 = 0x30 | 3;
    /// Data, DPL 3, where SYSEXIT expects it.
    pub const USER_DATA_SYSEXIT: u16 = 0x38 | 3;
    /// TSS, 16 bytes.
    pub const TSS: u16 = 0x40;
    /// LDT, 16 bytes.
    pub const LDT: u16 = 0x50;
    /// First selector that the case may fill.
    pub const FREE: u16 = 0x80;
}
