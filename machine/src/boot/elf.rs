//! An x86-64 ELF executable as a kernel.

use super::error::BootError;
use super::field::{slice, u8_at, u16_at, u32_at, u64_at};
use super::layout::LOW_END;
use crate::ram::Ram;
use crate::units::GuestPhys;
use std::ops::Range;

const CLASS: u64 = 4;
const DATA: u64 = 5;
const TYPE: u64 = 16;
const MACHINE: u64 = 18;
const ENTRY: u64 = 24;
const PHOFF: u64 = 32;
const PHENTSIZE: u64 = 54;
const PHNUM: u64 = 56;
const PROGRAM_HEADER_BYTES: u64 = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

/// A checked ELF file.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    segments: Vec<LoadSegment<'a>>,
    /// Guest-physical address of the first instruction.
    pub(super) entry: u64,
    /// From the first byte of the lowest segment to the end of the highest.
    pub(super) range: Range<u64>,
}

#[derive(Debug)]
struct LoadSegment<'a> {
    content: &'a [u8],
    memory: Range<u64>,
}

/// Whether `image` begins like an ELF file.
pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// Names of the machines that people are most likely to have kernels for.
fn machine_name(machine: u16) -> String {
    match machine {
        2 | 43 => "SPARC".into(),
        3 => "32-bit x86".into(),
        8 => "MIPS".into(),
        20 => "32-bit PowerPC".into(),
        21 => "64-bit PowerPC".into(),
        22 => "s390".into(),
        40 => "32-bit Arm".into(),
        183 => "64-bit Arm".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("ELF machine {other}"),
    }
}

fn check_identity(image: &[u8]) -> Result<(), BootError> {
    let what = "the ELF header";
    // Big-endian files have the machine number the other way round.
    let machine = match u8_at(image, DATA, what)? {
        LITTLE_ENDIAN => u16_at(image, MACHINE, what)?,
        _ => u16_at(image, MACHINE, what)?.swap_bytes(),
    };
    if machine != EM_X86_64 {
        return Err(BootError::Architecture(machine_name(machine)));
    }
    let class = u8_at(image, CLASS, what)?;
    if class != CLASS_64 {
        return Err(BootError::Architecture("the 32-bit x32 interface".into()));
    }
    match u16_at(image, TYPE, what)? {
        ET_EXEC | ET_DYN => Ok(()),
        other => Err(BootError::Elf {
            what: "not an executable; ELF type",
            value: u64::from(other),
        }),
    }
}

/// Checks `image` and finds what is to be loaded.
pub(super) fn parse(image: &[u8]) -> Result<Elf<'_>, BootError> {
    let what = "the ELF header";
    check_identity(image)?;
    let entry = u64_at(image, ENTRY, what)?;
    let table = u64_at(image, PHOFF, what)?;
    let entry_bytes = u64::from(u16_at(image, PHENTSIZE, what)?);
    let count = u64::from(u16_at(image, PHNUM, what)?);
    if entry_bytes < PROGRAM_HEADER_BYTES {
        return Err(BootError::Elf {
            what: "size of a program header",
            value: entry_bytes,
        });
    }
    slice(image, table, entry_bytes * count, "the program headers")?;
    let mut segments = Vec::new();
    for index in 0..count {
        segments.extend(load_segment(image, table + index * entry_bytes)?);
    }
    let start = segments.iter().map(|s| s.memory.start).min();
    let end = segments.iter().map(|s| s.memory.end).max();
    let (Some(start), Some(end)) = (start, end) else {
        return Err(BootError::Elf {
            what: "no loadable segment; number of program headers",
            value: count,
        });
    };
    if !segments.iter().any(|s| s.memory.contains(&entry)) {
        return Err(BootError::Elf {
            what: "entry point in no segment's physical range",
            value: entry,
        });
    }
    Ok(Elf {
        segments,
        entry,
        range: start..end,
    })
}

/// The segment whose program header is at `offset`, unless there is nothing to load.
fn load_segment(image: &[u8], offset: u64) -> Result<Option<LoadSegment<'_>>, BootError> {
    let what = "the program headers";
    let file_offset = u64_at(image, offset + 8, what)?;
    let address = u64_at(image, offset + 24, what)?;
    let file_bytes = u64_at(image, offset + 32, what)?;
    let memory_bytes = u64_at(image, offset + 40, what)?;
    if u32_at(image, offset, what)? != PT_LOAD || memory_bytes == 0 {
        return Ok(None);
    }
    if file_bytes > memory_bytes {
        return Err(BootError::Elf {
            what: "a segment larger in the file than in memory",
            value: file_bytes,
        });
    }
    if address < LOW_END {
        return Err(BootError::Elf {
            what: "a segment below 1 MiB",
            value: address,
        });
    }
    let Some(end) = address.checked_add(memory_bytes) else {
        return Err(BootError::Elf {
            what: "a segment that wraps around; its size",
            value: memory_bytes,
        });
    };
    Ok(Some(LoadSegment {
        content: slice(image, file_offset, file_bytes, "a segment")?,
        memory: address..end,
    }))
}

/// What a file would say of raw code at `address`.
pub(super) fn flat(image: &[u8], address: u64) -> Result<Elf<'_>, BootError> {
    let what = match address.checked_add(image.len() as u64) {
        _ if image.is_empty() => "no code; its address",
        None => "code that wraps around; its address",
        Some(_) if address < LOW_END => "code below 1 MiB",
        Some(end) => {
            let memory = address..end;
            return Ok(Elf {
                segments: vec![LoadSegment {
                    content: image,
                    memory: memory.clone(),
                }],
                entry: address,
                range: memory,
            });
        }
    };
    Err(BootError::Elf {
        what,
        value: address,
    })
}

impl Elf<'_> {
    /// Writes all segments. What a segment has in memory beyond the file stays as it is: RAM is
    /// zero when it is new.
    pub(super) fn load(&self, ram: &Ram) -> Result<(), BootError> {
        for segment in &self.segments {
            if segment.memory.end > ram.bytes() {
                return Err(BootError::TooLargeForRam {
                    what: "the kernel",
                    end_bytes: segment.memory.end,
                    ram_bytes: ram.bytes(),
                });
            }
            ram.write(GuestPhys(segment.memory.start), segment.content)?;
        }
        Ok(())
    }
}
