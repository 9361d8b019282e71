//! What lies below 1 MiB when the guest starts: everything that the loader makes itself.
//!
//! The first page stays zero (interrupt vectors and BIOS data of a machine without a BIOS). Linux
//! keeps the first 64 KiB to itself; the command line is copied before its memory is handed out, and
//! setup_data is reserved by the kernel.

use super::bzimage::{HEADER_START, Setup};
use super::error::BootError;
use crate::ram::Ram;
use crate::units::GuestPhys;
use std::ops::Range;

pub(super) const GDT: u64 = 0x1000;
pub(super) const BOOT_PARAMS: u64 = 0x7000;
/// The initial stack grows down from here; Linux makes its own at once.
pub(super) const STACK_TOP: u64 = 0x9000;
pub(super) const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
const SETUP_DATA: u64 = 0x3_0000;
/// Room for the command line with its final zero.
const COMMAND_LINE_ROOM: u64 = SETUP_DATA - COMMAND_LINE;
/// End of conventional memory as a BIOS with a 1 KiB extended data area reports it.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Kernels and initrds lie above this address.
pub(super) const LOW_END: u64 = 0x10_0000;
/// The page tables map this much, in 2 MiB pages, at its physical address.
const MAPPED_BYTES: u64 = 4 << 30;
const PAGE_BYTES_2M: u64 = 2 << 20;

/// Null, unused, 64-bit code (selector 0x10), data (0x18).
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Limit of the GDT: its last byte.
pub(super) const GDT_LIMIT: u16 = (GDT_ENTRIES.len() * 8 - 1) as u16;

/// Offsets in boot_params (Documentation/arch/x86/zero-page.rst).
mod zero_page {
    pub(super) const BYTES: usize = 4096;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const E820_TABLE: usize = 0x2d0;
}
/// "Undefined" in the list of boot loaders.
const LOADER_UNDEFINED: u8 = 0xff;
/// loadflags: the protected-mode kernel is at or above 1 MiB.
const LOADED_HIGH: u8 = 1;
const E820_RAM: u32 = 1;
/// setup_data type: a seed for the kernel's random number generator (Linux 6.0).
const SETUP_RNG_SEED: u32 = 9;

/// What boot_params tells the kernel.
pub(super) struct Parameters<'a> {
    pub(super) setup: &'a Setup,
    pub(super) command_line: &'a [u8],
    /// Where the initrd was put; empty without one.
    pub(super) initrd: Range<u64>,
    pub(super) rng_seed: &'a [u8; 32],
}

/// Writes GDT, page tables, command line, seed and boot_params.
pub(super) fn write(ram: &Ram, parameters: &Parameters<'_>) -> Result<(), BootError> {
    let gdt: Vec<u8> = GDT_ENTRIES.iter().flat_map(|e| e.to_le_bytes()).collect();
    ram.write(GuestPhys(GDT), &gdt)?;
    ram.write(GuestPhys(PAGE_TABLES), &page_tables())?;
    write_command_line(ram, parameters)?;
    ram.write(GuestPhys(SETUP_DATA), &seed_record(parameters.rng_seed))?;
    ram.write(
        GuestPhys(BOOT_PARAMS),
        &boot_params(ram.bytes(), parameters),
    )?;
    Ok(())
}

fn write_command_line(ram: &Ram, parameters: &Parameters<'_>) -> Result<(), BootError> {
    let line = parameters.command_line;
    let limit_bytes = parameters
        .setup
        .command_line_bytes
        .min(COMMAND_LINE_ROOM - 1);
    if line.len() as u64 > limit_bytes {
        return Err(BootError::CommandLineTooLong {
            bytes: line.len() as u64,
            limit_bytes,
        });
    }
    if let Some(offset) = line.iter().position(|b| *b == 0) {
        return Err(BootError::CommandLineZero(offset));
    }
    ram.write(GuestPhys(COMMAND_LINE), &[line, &[0]].concat())?;
    Ok(())
}

/// One top-level table, one directory-pointer table and four directories, in this order.
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let directories = MAPPED_BYTES >> 30;
    let table = |index: u64| (PAGE_TABLES + index * 4096) | PRESENT_WRITABLE;
    let mut entries = vec![0_u64; 512 * (2 + directories as usize)];
    entries[0] = table(1);
    for directory in 0..directories {
        entries[512 + directory as usize] = table(2 + directory);
    }
    for page in 0..MAPPED_BYTES / PAGE_BYTES_2M {
        entries[1024 + page as usize] = (page * PAGE_BYTES_2M) | LARGE | PRESENT_WRITABLE;
    }
    entries.iter().flat_map(|e| e.to_le_bytes()).collect()
}

/// struct setup_data: next, type, length, data.
fn seed_record(seed: &[u8; 32]) -> Vec<u8> {
    let mut record = 0_u64.to_le_bytes().to_vec();
    record.extend(SETUP_RNG_SEED.to_le_bytes());
    record.extend((seed.len() as u32).to_le_bytes());
    record.extend(seed);
    record
}

fn boot_params(ram_bytes: u64, parameters: &Parameters<'_>) -> Vec<u8> {
    let mut page = vec![0; zero_page::BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(HEADER_START as usize, &parameters.setup.header);
    put(zero_page::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    let flags = parameters.setup.header[zero_page::LOADFLAGS - HEADER_START as usize];
    put(zero_page::LOADFLAGS, &[flags | LOADED_HIGH]);
    let initrd = &parameters.initrd;
    put(
        zero_page::RAMDISK_IMAGE,
        &(initrd.start as u32).to_le_bytes(),
    );
    let initrd_bytes = (initrd.end - initrd.start) as u32;
    put(zero_page::RAMDISK_SIZE, &initrd_bytes.to_le_bytes());
    put(
        zero_page::CMD_LINE_PTR,
        &(COMMAND_LINE as u32).to_le_bytes(),
    );
    put(zero_page::SETUP_DATA, &SETUP_DATA.to_le_bytes());
    let map = [(0, CONVENTIONAL_END), (LOW_END, ram_bytes)];
    put(zero_page::E820_ENTRIES, &[map.len() as u8]);
    for (index, (start, end)) in map.into_iter().enumerate() {
        let mut entry = start.to_le_bytes().to_vec();
        entry.extend((end - start).to_le_bytes());
        entry.extend(E820_RAM.to_le_bytes());
        put(zero_page::E820_TABLE + index * entry.len(), &entry);
    }
    page
}
