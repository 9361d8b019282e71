//! What is said about a divergence.

use crate::mmu::{Access, AccessType, Paging, PhysMem, probe};
use crate::replay::RegisterDifference;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use machine::ram::Ram;
use machine::state::{CpuState, Seg};
use machine::units::{GuestPhys, PAGE_BYTES, Position};
use std::fmt;

/// A way to execute beside that of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One instruction a block, every access checked in Rust.
    OneInstruction,
    /// Blocks, with nothing translated or cached at the start of the window.
    Cold,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneInstruction => "one-instruction blocks",
            Self::Cold => "blocks from a cold start",
        })
    }
}

/// The first step that the ways do not execute alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstDifference {
    /// Where the instruction begins; up to here all agree.
    pub step: Position,
    /// Its address.
    pub rip: u64,
    /// Bytes there.
    pub bytes: Vec<u8>,
    /// The instruction in Intel's notation.
    pub instruction: String,
    /// Registers after the step: expected is what one-instruction blocks give, found is what blocks give.
    pub registers: Vec<RegisterDifference>,
    /// Guest-physical address of the first byte that differs after the step.
    pub address: Option<u64>,
    /// How one of the ways left what the devices did.
    pub strayed: Option<String>,
}

/// The ways of executing a window do not end in the same state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// First and last position of the window.
    pub window: (Position, Position),
    /// The other ways had all instruments; without any they had come to the state of the run.
    pub instrumented: bool,
    /// The first step at which the two other ways differ from each other.
    pub first: Option<FirstDifference>,
    /// The other ways agree; the run itself, which started warm, came elsewhere.
    pub run_alone: bool,
    /// Where the run stands alone: registers at the window's end, found is the run's.
    pub registers: Vec<RegisterDifference>,
    /// Where the run stands alone: guest-physical address of the first byte that differs.
    pub page: Option<u64>,
}

impl std::error::Error for Divergence {}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = self.window;
        write!(
            f,
            "the engine differs from itself between {start} and {end}"
        )?;
        if self.instrumented {
            f.write_str(" (with instruments only)")?;
        }
        let Some(first) = &self.first else {
            write!(
                f,
                "; started cold at {start}, blocks and one-instruction blocks agree, and the run came \
                 elsewhere"
            )?;
            return put(f, &self.registers, self.page);
        };
        write!(
            f,
            "; first at {} in {} at RIP {:#x} (bytes {:02x?})",
            first.step, first.instruction, first.rip, first.bytes
        )?;
        if let Some(strayed) = &first.strayed {
            write!(f, "; {strayed}")?;
        }
        put(f, &first.registers, first.address)
    }
}

fn put(
    f: &mut fmt::Formatter<'_>,
    registers: &[RegisterDifference],
    address: Option<u64>,
) -> fmt::Result {
    for register in registers {
        write!(f, "; {register}")?;
    }
    match address {
        Some(address) => write!(f, "; memory differs first at {}", GuestPhys(address)),
        None => Ok(()),
    }
}

/// RAM that is only looked at.
struct Looked<'a>(&'a Ram);

impl PhysMem for Looked<'_> {
    fn read_u64(&mut self, address: GuestPhys) -> u64 {
        let mut bytes = [0xff; 8];
        // What is not RAM reads as ones.
        let _ = self.0.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn update_u64(&mut self, _: GuestPhys, _: u64) {}
}

/// Bytes and text of the instruction at RIP, as far as they can be read.
pub(super) fn instruction_at(ram: &Ram, cpu: &CpuState) -> (Vec<u8>, String) {
    let mut bytes = Vec::new();
    let paging = Paging::of(cpu);
    for rip in (0..15).map(|offset| cpu.rip.wrapping_add(offset)) {
        let access = Access::at_cpl(AccessType::Fetch, cpu.cpl());
        let Ok(mapping) = probe(&mut Looked(ram), &paging, rip, access) else {
            break;
        };
        let mut byte = [0];
        let at = GuestPhys(mapping.gpa.gfn().base().0 + rip % PAGE_BYTES);
        if ram.read(at, &mut byte).is_err() {
            break;
        }
        bytes.extend(byte);
    }
    let bitness = if cpu.segs[Seg::Cs as usize].long_mode() {
        64
    } else {
        32
    };
    let instruction = Decoder::with_ip(bitness, &bytes, cpu.rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    IntelFormatter::new().format(&instruction, &mut text);
    bytes.truncate(instruction.len().max(1));
    (bytes, text)
}
