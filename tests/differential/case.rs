//! A sequence with the state it starts in: everything that a comparison needs.

use super::image::{self, Images};
use super::layout::{CODE, CODE_BYTES, IMAGE_BYTES};
use super::registers::Registers;

/// A sequence and its starting state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Registers; RIP is the address of the first instruction, inside [`CODE`].
    pub start: Registers,
    /// Number of the memory image, see [`Images`].
    pub image: u8,
    /// Linear address of `code`, inside [`CODE`].
    pub code_at: u64,
    /// Machine code; the rest of [`CODE`] holds breakpoints.
    pub code: Vec<u8>,
    /// Offsets in `code` where the instructions begin, in order.
    pub instructions: Vec<usize>,
}

impl Case {
    /// Writes the whole memory image that the sequence starts over.
    pub fn fill(&self, images: &Images, memory: &mut [u8; IMAGE_BYTES]) {
        memory.copy_from_slice(images.get(self.image));
        let code = memory.first_chunk_mut().expect("an image begins with code");
        self.fill_code(code);
    }

    /// Writes the part of it that is [`CODE`].
    pub fn fill_code(&self, code: &mut [u8; CODE_BYTES]) {
        code.fill(image::BREAKPOINT);
        let at = (self.code_at - CODE.base) as usize;
        code[at..at + self.code.len()].copy_from_slice(&self.code);
    }

    /// Linear address after the last byte of code.
    pub fn code_end(&self) -> u64 {
        self.code_at + self.code.len() as u64
    }

    /// Whether the code lies inside its region.
    pub fn fits(&self) -> bool {
        self.code_at >= CODE.base && self.code_end() <= CODE.end()
    }
}
