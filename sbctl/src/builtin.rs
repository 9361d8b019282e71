//! A guest for hosts without a Linux kernel, and for tests: bare-metal, no operating system. It
//! works through memory at random, copies pages, reads the timer's counter, prints dots, takes timer
//! interrupts, and powers off after a number of them. It executes nothing that processors of different
//! vendors do differently (no instruction that leaves flags undefined), so that its recordings verify
//! everywhere.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

const IDT: u64 = 0x10_0000;
const IDTR: u64 = 0x10_0800;
const TICKS_LEFT: u64 = 0x10_0900;
const HANDLER: u64 = 0x10_1000;
const ENTRY: u64 = 0x10_2000;
const END: u64 = 0x10_3000;
/// 512 KiB that are changed at random and 512 KiB of zeros; where pages of them are copied to.
const TABLE: i32 = 0x40_0000;
const COPIES: i32 = 0x60_0000;
/// Selector of the 64-bit code segment that guests start with.
const CODE_SELECTOR: u16 = 0x10;
const TIMER_VECTOR: u8 = 0x20;
const TIMER_HZ: u64 = 1_193_182;

/// The guest as an ELF executable: `ticks` timer interrupts of `tick_ns` (up to 50 ms) each.
pub(crate) fn kernel(ticks: u32, tick_ns: u64) -> Result<Vec<u8>, IcedError> {
    let mut image = vec![0; (END - IDT) as usize];
    let mut put = |address: u64, bytes: &[u8]| {
        let at = (address - IDT) as usize;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(IDT + 16 * u64::from(TIMER_VECTOR), &interrupt_gate(HANDLER));
    let limit = 16 * (u16::from(TIMER_VECTOR) + 1) - 1;
    put(IDTR, &limit.to_le_bytes());
    put(IDTR + 2, &IDT.to_le_bytes());
    put(TICKS_LEFT, &ticks.to_le_bytes());
    put(HANDLER, &handler()?);
    let count = (tick_ns * TIMER_HZ / 1_000_000_000).clamp(2, 0xffff) as u16;
    put(ENTRY, &main(count)?);
    Ok(elf(&image, IDT, ENTRY))
}

fn interrupt_gate(handler: u64) -> [u8; 16] {
    let mut gate = [0; 16];
    gate[0..2].copy_from_slice(&(handler as u16).to_le_bytes());
    gate[2..4].copy_from_slice(&CODE_SELECTOR.to_le_bytes());
    gate[5] = 0x8e;
    gate[6..12].copy_from_slice(&(handler >> 16).to_le_bytes()[..6]);
    gate
}

/// An executable of one segment that is loaded to `address`, readable, writable and executable.
pub(crate) fn elf(image: &[u8], address: u64, entry: u64) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    // Loaders map whole pages: offset and address agree in their low bits.
    let offset = HEADERS.next_multiple_of(4096) + address % 4096;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| {
        values
            .iter()
            .for_each(|value| file.extend(value.to_le_bytes()));
    };
    // Executable, x86-64; version; entry, program headers, no section headers; flags.
    half(&mut file, &[2, 62, 1, 0]);
    for value in [entry, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    half(&mut file, &[0, 0, 64, 56, 1, 0, 0, 0]);
    // Load, readable, writable and executable; offset, addresses, sizes, alignment.
    half(&mut file, &[1, 0, 7, 0]);
    let bytes = image.len() as u64;
    for value in [offset, address, address, bytes, bytes, 4096] {
        file.extend(value.to_le_bytes());
    }
    file.resize(offset as usize, 0);
    file.extend_from_slice(image);
    file
}

fn handler() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.push(rax)?;
    a.dec(dword_ptr(TICKS_LEFT))?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.pop(rax)?;
    a.iretq()?;
    a.assemble(HANDLER)
}

fn main(timer_count: u16) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.lidt(ptr(IDTR))?;
    let [low, high] = timer_count.to_le_bytes();
    // Interrupt controllers with vectors from 0x20, only the timer's line open; the timer's rate.
    #[rustfmt::skip]
    let setup: [(i32, u8); 13] = [
        (0x20, 0x11), (0x21, TIMER_VECTOR), (0x21, 4), (0x21, 1), (0x21, 0xfe),
        (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1), (0xa1, 0xff),
        (0x43, 0x34), (0x40, low), (0x40, high),
    ];
    for (port, value) in setup {
        a.mov(al, i32::from(value))?;
        a.out(port, al)?;
    }
    a.mov(rbx, 0x1234_5678_9abc_def1_u64)?;
    a.mov(dx, 0x3f8)?;
    a.sti()?;
    let (mut round, mut change) = (a.create_label(), a.create_label());
    a.set_label(&mut round)?;
    a.mov(ecx, 2000)?;
    a.set_label(&mut change)?;
    a.lea(rbx, ptr(rbx + rbx * 4 + 0x3c6e_f35f))?;
    a.bswap(rbx)?;
    a.movzx(eax, bx)?;
    a.add(qword_ptr(rax * 8 + TABLE), rbx)?;
    a.dec(ecx)?;
    a.jne(change)?;
    copy_a_page(&mut a)?;
    read_the_timer(&mut a)?;
    a.mov(al, i32::from(b'.'))?;
    a.out(dx, al)?;
    a.cmp(dword_ptr(TICKS_LEFT), 0)?;
    a.jg(round)?;
    a.cli()?;
    a.mov(al, i32::from(b'\n'))?;
    a.out(dx, al)?;
    a.hlt()?;
    a.assemble(ENTRY)
}

fn copy_a_page(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.movzx(esi, bl)?;
    a.movzx(edi, bh)?;
    for register in [rsi, rdi] {
        // Times 4096 without an instruction that leaves flags undefined.
        for _ in 0..4 {
            a.lea(register, ptr(register * 8))?;
        }
    }
    a.add(rsi, TABLE)?;
    a.add(rdi, COPIES)?;
    a.mov(ecx, 512)?;
    a.cld()?;
    a.rep().movsq()
}

/// Latches and reads the counter: what a simulator can only know from the log.
fn read_the_timer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(al, 0)?;
    a.out(0x43, al)?;
    a.in_(al, 0x40)?;
    a.movzx(r10d, al)?;
    a.add(rbx, r10)?;
    a.in_(al, 0x40)?;
    a.movzx(r10d, al)?;
    a.add(rbx, r10)
}
