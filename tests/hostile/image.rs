//! The guest that bytes become: a small RAM with everything a CPU needs, and things it should not
//! trust.

use crate::guest::tables::{descriptor, gate, system_descriptor};
use machine::state::{CpuState, DescriptorTable, Seg, Segment, cr0, cr4, efer};

/// RAM in bytes.
pub const RAM_BYTES: usize = 64 << 12;
/// Global descriptor table.
const GDT: u64 = 0x0000;
/// 64-bit TSS with an open I/O bitmap for the low ports.
const TSS: u64 = 0x0800;
/// Interrupt descriptor table.
const IDT: u64 = 0x1000;
/// Page-map level 4, and the three tables below it.
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const DIRECTORY: u64 = 0x4000;
const TABLE: u64 = 0x5000;
/// Handlers, one of 16 bytes a vector.
const HANDLERS: u64 = 0x6000;
/// Top of the stack of CPL 0.
const KERNEL_STACK: u64 = 0x9000;
/// Tops of two interrupt stacks.
const INTERRUPT_STACKS: [u64; 2] = [0xa000, 0xb000];
/// Top of the stack of CPL 3.
const USER_STACK: u64 = 0xd000;
/// Where the bytes lie: they run from [`CODE`] + 0xe00 on, across a page boundary.
pub const CODE: u64 = 0x1_0000;
/// First byte that runs.
pub const ENTRY: u64 = CODE + 0xe00;
/// Most bytes of code.
pub const CODE_BYTES: usize = 0x400;
/// Data for both levels.
const DATA: u64 = 0x2_0000;

/// Addresses that guests like to have in registers.
pub const ADDRESSES: [u64; 25] = [
    DATA,
    DATA + 0xffc,
    DATA + 0x1ff9,
    CODE + 0xe00,
    CODE + 0xe08,
    CODE + 0xff8,
    USER_STACK - 64,
    KERNEL_STACK - 64,
    PML4,
    PML4 + 0xf68,
    TABLE + 0x80,
    TABLE + 0x100,
    DIRECTORY,
    GDT + 0x30,
    IDT + 0xd0,
    TSS + 4,
    0x4_0000,
    0x60_0100,
    0x7f_f000,
    0x7fff_ffff_fff8,
    0x8000_0000_0000,
    0xffff_ffff_ffff_fff8,
    0xffff_f6fb_7dbe_d000,
    0xffff_8000_0002_0000,
    0,
];

/// Level 4 slot whose entry is the level 4 table itself.
const RECURSIVE: u64 = 0x1ed;

/// The initial state and RAM of a guest.
pub struct Image {
    /// State.
    pub state: CpuState,
    /// RAM.
    pub ram: Vec<u8>,
}

/// A reader of fuzz input that never runs out: behind the end it reads zeros.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// The next quadword.
    pub fn quad(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

fn put(ram: &mut [u8], at: u64, value: u64) {
    ram[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
}

/// Builds the guest. The first bytes choose level, flags, registers and traps, the rest is code.
pub fn build(input: &mut Bytes<'_>) -> Image {
    let mut ram = vec![0; RAM_BYTES];
    let choices = input.byte();
    let odd = input.byte();
    let user = choices & 1 != 0;
    tables(&mut ram);
    pages(&mut ram, odd);
    handlers(&mut ram, choices & 2 != 0);
    let state = state(&ram, user, choices, input);
    Image { state, ram }
}

/// Puts the code in.
pub fn load_code(image: &mut Image, code: &[u8]) {
    let length = code.len().min(CODE_BYTES);
    image.ram[ENTRY as usize..][..length].copy_from_slice(&code[..length]);
}

fn tables(ram: &mut [u8]) {
    let tss = system_descriptor(TSS, 0x67 + 0x20, 0x8b);
    let gdt = [
        0,
        descriptor(0, 0xf_ffff, 0x9b, 0xc),
        descriptor(0, 0xf_ffff, 0x9b, 0xa),
        descriptor(0, 0xf_ffff, 0x93, 0xc),
        descriptor(0, 0xf_ffff, 0xfb, 0xc),
        descriptor(0, 0xf_ffff, 0xf3, 0xc),
        descriptor(0, 0xf_ffff, 0xfb, 0xa),
        descriptor(0, 0xf_ffff, 0x9f, 0xa),
        tss[0],
        tss[1],
    ];
    for (index, raw) in gdt.into_iter().enumerate() {
        put(ram, GDT + index as u64 * 8, raw);
    }
    // A call gate of DPL 3, and an LDT that is the GDT.
    for (index, raw) in gate(HANDLERS, 0x10, 0xec, 0).into_iter().enumerate() {
        put(ram, GDT + 0x50 + index as u64 * 8, raw);
    }
    for (index, raw) in system_descriptor(GDT, 0x7f, 0xe2).into_iter().enumerate() {
        put(ram, GDT + 0x60 + index as u64 * 8, raw);
    }
    put(ram, TSS + 4, KERNEL_STACK);
    put(ram, TSS + 0x24, INTERRUPT_STACKS[0]);
    put(ram, TSS + 0x2c, INTERRUPT_STACKS[1]);
    ram[(TSS + 0x66) as usize..][..2].copy_from_slice(&0x68u16.to_le_bytes());
    for vector in 0..=255u64 {
        // #DF and #SS have stacks of their own; every fourth gate is open to CPL 3.
        let ist = match vector {
            8 => 1,
            12 => 2,
            _ => 0,
        };
        let dpl = if vector % 4 == 3 { 0x60 } else { 0 };
        let raw = gate(HANDLERS + vector * 16, 0x10, 0x8e | dpl, ist);
        put(ram, IDT + vector * 16, raw[0]);
        put(ram, IDT + vector * 16 + 8, raw[1]);
    }
}

/// All of RAM at its own address, at the top of the lower half's first entry and in the upper half;
/// some pages that lead out of RAM, and a level 4 entry that leads to itself.
fn pages(ram: &mut [u8], odd: u8) {
    const ALL: u64 = 7;
    put(ram, PML4, PDPT | ALL);
    put(ram, PML4 + 0x100 * 8, PDPT | ALL);
    put(ram, PML4 + RECURSIVE * 8, PML4 | ALL);
    // Tables outside RAM.
    put(ram, PML4 + 0x80 * 8, 0x10_0000_0000 | ALL);
    put(ram, PDPT, DIRECTORY | ALL);
    put(ram, DIRECTORY, TABLE | ALL);
    // All of RAM by a large page, and a directory entry that is the level 4 table.
    put(ram, DIRECTORY + 8, 0x80 | ALL);
    put(ram, DIRECTORY + 16, PML4 | ALL);
    // Absent memory by a large page: not larger, or a string instruction spends minutes in it.
    put(ram, DIRECTORY + 24, 0x7_0000_0000 | 0x80 | ALL);
    for page in 0..RAM_BYTES as u64 >> 12 {
        let address = page << 12;
        let supervisor = address < 0xb000 && odd & 1 != 0;
        let bits = if supervisor { 3 } else { ALL };
        put(ram, TABLE + page * 8, address | bits);
    }
    // Behind RAM: absent memory, the page behind the last, a page by another name, read-only code.
    let behind = TABLE + (RAM_BYTES as u64 >> 12) * 8;
    put(ram, behind, 0x1_0000_0000 | ALL);
    put(ram, behind + 8, RAM_BYTES as u64 | ALL);
    put(ram, behind + 16, (CODE + 0x1000) | ALL);
    put(ram, behind + 24, CODE | 5);
    if odd & 2 != 0 {
        put(ram, TABLE + ((DATA + 0x1000) >> 12) * 8, 0);
    }
    if odd & 4 != 0 {
        put(ram, TABLE + (DATA >> 12) * 8, DATA | ALL | 1 << 63);
    }
    put(ram, TABLE + 0x1ff * 8, DATA | 5);
}

/// Handlers that step over the byte that faulted, or return to it.
fn handlers(ram: &mut [u8], retry: bool) {
    for vector in 0..=255u64 {
        let mut code: Vec<u8> = Vec::new();
        if crate::guest::WITH_ERROR_CODE.contains(&(vector as u8)) {
            // ADD RSP, 8.
            code.extend([0x48, 0x83, 0xc4, 8]);
        }
        if !retry {
            // INC QWORD [RSP].
            code.extend([0x48, 0xff, 0x04, 0x24]);
        }
        code.extend([0x48, 0xcf]);
        ram[(HANDLERS + vector * 16) as usize..][..code.len()].copy_from_slice(&code);
    }
}

/// A segment register as loading it from the image's GDT leaves it.
fn segment(ram: &[u8], selector: u16) -> Segment {
    let at = (GDT + u64::from(selector & !7)) as usize;
    let raw = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| ram[at + i]));
    crate::guest::tables::loaded(selector, [raw(at), raw(at + 8)])
}

fn state(ram: &[u8], user: bool, choices: u8, input: &mut Bytes<'_>) -> CpuState {
    let (code, data, stack) = if user {
        (0x33, 0x2b, USER_STACK - 0x200)
    } else {
        (0x10, 0x18, KERNEL_STACK - 0x200)
    };
    let mut state = CpuState::long_mode(ENTRY, stack, PML4);
    for register in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        state.segs[register as usize] = segment(ram, data);
    }
    state.segs[Seg::Cs as usize] = segment(ram, code);
    state.tr = segment(ram, 0x40);
    state.ldtr = segment(ram, 0x60);
    state.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x7f,
    };
    state.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    let msrs = &mut state.msrs;
    msrs.efer |= efer::SCE;
    msrs.star = 0x10 << 32 | 0x23 << 48;
    (msrs.lstar, msrs.kernel_gs_base) = (HANDLERS + 0x300, DATA);
    if choices & 4 != 0 {
        state.rflags |= 0x100;
    }
    if choices & 8 != 0 {
        state.rflags |= 0x4_0000;
        state.cr0 |= cr0::AM;
    }
    if choices & 16 != 0 {
        (state.dr[0], state.dr[1]) = (DATA, ENTRY + 9);
        state.dr7 |= 0xf_0000 | 0xa;
    }
    if choices & 32 != 0 {
        state.cr4 |= cr4::SMAP | cr4::SMEP;
    }
    if choices & 64 != 0 {
        state.rflags |= 0x3200;
    }
    registers(&mut state, input);
    state
}

fn registers(state: &mut CpuState, input: &mut Bytes<'_>) {
    for index in 0..16 {
        let choice = input.byte();
        let value = match choice {
            0..=191 => ADDRESSES[usize::from(choice) % ADDRESSES.len()],
            192..=223 => u64::from(choice) - 192,
            _ => input.quad(),
        };
        if index != 4 {
            state.gpr[index] = value;
        }
    }
    // Loops over a counter stay short.
    state.gpr[1] &= 0xffff;
}
