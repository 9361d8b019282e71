//! The instruction at which a vCPU stands.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{GuestPhys, PAGE_BYTES};
use serde::Serialize;
use std::fmt;
use tcg_sim::mmu::{Access, AccessType, Paging, PhysMem, probe};

/// The longest instruction.
const LONGEST: u64 = 15;

/// An instruction of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Instruction {
    /// Since the start of the interval: instructions that ran before it.
    pub(super) after_instructions: u64,
    /// Hexadecimal.
    pub(super) rip: String,
    /// Hexadecimal.
    bytes: String,
    text: String,
}

/// Looks at page tables without changing them.
struct Tables<'a>(&'a Ram);

impl PhysMem for Tables<'_> {
    fn read_u64(&mut self, address: GuestPhys) -> u64 {
        let mut bytes = [0xff; 8];
        // Outside of RAM there are ones.
        let _ = self.0.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn update_u64(&mut self, _: GuestPhys, _: u64) {}
}

impl Instruction {
    /// The instruction at RIP.
    pub(super) fn at(cpu: &CpuState, ram: &Ram, after_instructions: u64) -> Self {
        let bytes = fetch(cpu, ram);
        let mut decoder = Decoder::with_ip(64, &bytes, cpu.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let mut text = String::new();
        IntelFormatter::new().format(&instruction, &mut text);
        let length = instruction.len().min(bytes.len());
        Self {
            after_instructions,
            rip: format!("{:#x}", cpu.rip),
            bytes: bytes[..length]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            text,
        }
    }
}

/// The bytes from RIP on, as many as are mapped.
fn fetch(cpu: &CpuState, ram: &Ram) -> Vec<u8> {
    let paging = Paging::of(cpu);
    let access = Access::at_cpl(AccessType::Fetch, cpu.cpl());
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < LONGEST {
        let address = cpu.rip.wrapping_add(bytes.len() as u64);
        let Ok(mapping) = probe(&mut Tables(ram), &paging, address, access) else {
            break;
        };
        let here = (PAGE_BYTES - address % PAGE_BYTES).min(LONGEST - bytes.len() as u64);
        let mut piece = vec![0; here as usize];
        if ram.read(mapping.gpa, &mut piece).is_err() {
            break;
        }
        bytes.extend(piece);
    }
    bytes
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            after_instructions,
            rip,
            bytes,
            text,
        } = self;
        write!(
            f,
            "{text} ({bytes}) at RIP {rip}, after {after_instructions} instructions"
        )
    }
}
