//! The memory that the test program and the executing process share.

use crate::differential::image::IMAGES;
use crate::differential::layout::{CODE_BYTES, DATA_BYTES, IMAGE_BYTES};
use crate::differential::registers::{End, FxImage, Outcome, Registers};

/// Linear address of the arena in the executing process: no edge value, in reach of no pointer that
/// a sequence computes from the addresses it knows.
pub(super) const BASE: u64 = 0x3b7a_31c9_4000;

/// Offset of the memory contents that sequences start over, without the code.
pub(super) const IMAGES_OFFSET: usize = 4096;

/// Offset of the first slot.
pub(super) const SLOTS_OFFSET: usize = IMAGES_OFFSET + IMAGES as usize * DATA_BYTES;

/// Start of the arena. Each counter has a cache line of its own.
#[repr(C, align(64))]
pub(super) struct Header {
    /// Number of batches asked for; a futex.
    pub(super) request: u32,
    _pad0: [u32; 15],
    /// Number of batches done; a futex.
    pub(super) done: u32,
    _pad1: [u32; 15],
    /// Slots in the current batch.
    pub(super) count: u64,
}

/// What the signal handler stores.
#[repr(C, align(64))]
pub(super) struct RawOutcome {
    /// Signal number.
    pub(super) signal: u64,
    /// ES, DS, FS, GS selectors, FS base, GS base.
    pub(super) segments: [u64; 6],
    /// The kernel's `struct sigcontext` up to the pointer to the FPU state.
    pub(super) context: [u64; 24],
    /// FXSAVE image at the start of the FPU state.
    pub(super) fpu: FxImage,
}

/// One sequence and its result.
#[repr(C, align(4096))]
pub(super) struct Slot {
    /// Registers to start with.
    pub(super) start: Registers,
    /// Result.
    pub(super) raw: RawOutcome,
    /// Number of the memory image to start with.
    pub(super) image: u64,
    /// Code to start with.
    pub(super) code: [u8; CODE_BYTES],
    /// Memory image at the end.
    pub(super) memory_out: [u8; IMAGE_BYTES],
}

/// Position in `struct sigcontext` of each register in encoding order.
const GPR_INDEX: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];

impl RawOutcome {
    /// The outcome in the terms of the architecture.
    pub(super) fn decode(&self) -> Outcome {
        let context = &self.context;
        let vector = context[20] as u8;
        let end = match self.signal as i32 {
            libc::SIGSYS => End::Syscall,
            super::runtime::TICK_SIGNAL | super::runtime::SLOW_TICK_SIGNAL => End::Endless,
            _ => End::Exception {
                vector,
                error: if has_error_code(vector) {
                    context[19]
                } else {
                    0
                },
                cr2: if vector == 14 { context[22] } else { 0 },
            },
        };
        let selector = |at: usize| self.segments[at] as u16;
        Outcome {
            end,
            registers: Registers {
                gpr: GPR_INDEX.map(|at| context[at]),
                rip: context[16],
                rflags: context[17],
                fs_base: self.segments[4],
                gs_base: self.segments[5],
                selectors: [
                    selector(0),
                    context[18] as u16,
                    (context[18] >> 48) as u16,
                    selector(1),
                    selector(2),
                    selector(3),
                ],
                fpu: self.fpu.state(),
            },
        }
    }
}

/// Whether an exception pushes an error code (SDM vol. 3, 6.15).
pub(crate) fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
