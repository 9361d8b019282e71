//! The x87 unit while translated code runs: its registers are the host's. XMM and MXCSR are saved by
//! the gates; the x87 pointers are emulated, since the host's name host code.
#![expect(unsafe_code, reason = "saves and restores host FPU state")]

use crate::jit::layout::{Core, FxArea};
use machine::state::FpuState;
use std::arch::asm;

/// Exception summary: an unmasked exception waits.
const ES: u16 = 0x80;

/// Loads the guest's FPU, MXCSR and XMM into the state block and the host's x87 registers.
pub(crate) fn enter(core: &mut Core, fpu: &FpuState) {
    core.xmm = fpu.xmm;
    core.mxcsr = fpu.mxcsr;
    (core.fpu_ip, core.fpu_dp, core.fpu_op) = (fpu.fip, fpu.fdp, u64::from(fpu.fop));
    let image = image(fpu);
    // SAFETY: the image is 16-byte aligned and its MXCSR is the default.
    unsafe { asm!("fxrstor64 [{}]", in(reg) image.0.as_ptr(), options(nostack)) };
}

/// An FXSAVE64 image of the x87 part, with the default MXCSR.
fn image(fpu: &FpuState) -> FxArea {
    let mut image = FxArea([0; 512]);
    let bytes = &mut image.0;
    bytes[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    bytes[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    bytes[4] = fpu.ftw;
    bytes[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    for (slot, value) in bytes[32..160].chunks_mut(16).zip(fpu.st) {
        slot[..10].copy_from_slice(&value.to_le_bytes()[..10]);
    }
    image
}

/// Copies the guest's FPU, MXCSR and XMM out. The host's x87 registers keep the guest's state.
pub(crate) fn snapshot(core: &Core, fpu: &mut FpuState) {
    let mut image = FxArea([0; 512]);
    // SAFETY: the image is 16-byte aligned and 512 bytes long.
    unsafe { asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack)) };
    let bytes = &image.0;
    fpu.fcw = u16::from_le_bytes([bytes[0], bytes[1]]);
    fpu.fsw = u16::from_le_bytes([bytes[2], bytes[3]]);
    fpu.ftw = bytes[4];
    for (slot, value) in bytes[32..160].chunks(16).zip(&mut fpu.st) {
        let mut wide = [0; 16];
        wide[..10].copy_from_slice(&slot[..10]);
        *value = u128::from_le_bytes(wide);
    }
    fpu.fop = core.fpu_op as u16;
    (fpu.fip, fpu.fdp) = (core.fpu_ip, core.fpu_dp);
    fpu.mxcsr = core.mxcsr;
    fpu.xmm = core.xmm;
}

/// Gives the host its x87 registers back as the ABI wants them.
pub(crate) fn leave() {
    // SAFETY: FNINIT takes no operands; Rust code expects an empty x87 stack.
    unsafe { asm!("fninit", options(nomem, nostack)) };
}

/// MXCSR bits that may be set on this host (FXSAVE, bytes 28 to 31; 0 there stands for 0xffbf).
pub(crate) fn mxcsr_mask() -> u32 {
    let mut image = FxArea([0; 512]);
    // SAFETY: the image is 16-byte aligned and 512 bytes long.
    unsafe { asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack)) };
    match u32::from_le_bytes([image.0[28], image.0[29], image.0[30], image.0[31]]) {
        0 => 0xffbf,
        mask => mask,
    }
}

/// What FXSAVE writes; `wide` for REX.W. AMD writes the pointers only while an unmasked exception
/// waits and zeros else (APM vol. 5, FXSAVE); that is the recording host's rule.
pub(crate) fn fxsave_image(fpu: &FpuState, wide: bool, amd: bool) -> [u8; 512] {
    let mut bytes = image(fpu).0;
    if !amd || fpu.fsw & ES != 0 {
        bytes[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
        if wide {
            bytes[8..16].copy_from_slice(&fpu.fip.to_le_bytes());
            bytes[16..24].copy_from_slice(&fpu.fdp.to_le_bytes());
        } else {
            bytes[8..12].copy_from_slice(&(fpu.fip as u32).to_le_bytes());
            bytes[12..14].copy_from_slice(&fpu.fcs.to_le_bytes());
            bytes[16..20].copy_from_slice(&(fpu.fdp as u32).to_le_bytes());
            bytes[20..22].copy_from_slice(&fpu.fds.to_le_bytes());
        }
    }
    bytes[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    bytes[28..32].copy_from_slice(&mxcsr_mask().to_le_bytes());
    for (slot, value) in bytes[160..416].chunks_mut(16).zip(fpu.xmm) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Bytes that FXSAVE leaves alone: reserved and software-available ones.
pub(crate) const FXSAVE_WRITTEN: usize = 416;

/// Replaces the FPU state from an FXRSTOR image; false if MXCSR has bits the host does not know.
pub(crate) fn load_fxsave_image(
    fpu: &mut FpuState,
    bytes: &[u8; 512],
    wide: bool,
    amd: bool,
) -> bool {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let mxcsr = u32_at(24);
    if mxcsr & !mxcsr_mask() != 0 {
        return false;
    }
    let image = FxArea(*bytes);
    fpu.mxcsr = mxcsr;
    (fpu.fcw, fpu.fsw, fpu.ftw) = (u16_at(0), u16_at(2), image.0[4]);
    for (slot, value) in bytes[32..160].chunks(16).zip(&mut fpu.st) {
        let mut wide_value = [0; 16];
        wide_value[..10].copy_from_slice(&slot[..10]);
        *value = u128::from_le_bytes(wide_value);
    }
    for (slot, value) in bytes[160..416].chunks(16).zip(&mut fpu.xmm) {
        let mut lanes = [0; 16];
        lanes.copy_from_slice(slot);
        *value = u128::from_le_bytes(lanes);
    }
    if !amd || u16_at(2) & ES != 0 {
        fpu.fop = u16_at(6) & 0x7ff;
        if wide {
            (fpu.fip, fpu.fdp) = (u64_at(8), u64_at(16));
        } else {
            (fpu.fip, fpu.fdp) = (u64::from(u32_at(8)), u64::from(u32_at(16)));
        }
    }
    true
}

/// What FNSTENV, FLDENV, FNSAVE and FRSTOR do to the host's x87 registers. The environment comes
/// first in each image: 28 bytes, or 14 with an operand-size prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// FNSTENV.
    StoreEnvironment,
    /// FLDENV.
    LoadEnvironment,
    /// FNSAVE.
    Save,
    /// FRSTOR.
    Restore,
}

/// Longest image in bytes.
pub(crate) const IMAGE_BYTES: usize = 108;

impl Image {
    /// Length in bytes.
    pub(crate) fn bytes(self, short: bool) -> usize {
        let environment = if short { 14 } else { 28 };
        match self {
            Self::StoreEnvironment | Self::LoadEnvironment => environment,
            Self::Save | Self::Restore => environment + 80,
        }
    }

    /// Whether the guest's memory is written.
    pub(crate) fn stores(self) -> bool {
        matches!(self, Self::StoreEnvironment | Self::Save)
    }
}

/// Whether an unmasked x87 exception waits in the host's registers.
pub(crate) fn exception_waits() -> bool {
    let mut status: u16;
    // SAFETY: FNSTSW only writes AX.
    unsafe { asm!("fnstsw ax", out("ax") status, options(nomem, nostack)) };
    status & ES != 0
}

/// Runs the instruction on the host's x87 registers and `buffer`. The pointers in the image are the
/// guest's. No exception may wait before a load.
pub(crate) fn run_image(
    operation: Image,
    short: bool,
    buffer: &mut [u8; IMAGE_BYTES],
    core: &mut Core,
) {
    let at = buffer.as_mut_ptr();
    // SAFETY: the buffer holds the longest image; loads raise nothing since no exception waits.
    unsafe {
        match (operation, short) {
            (Image::StoreEnvironment, false) => asm!("fnstenv [{}]", in(reg) at, options(nostack)),
            (Image::StoreEnvironment, true) => {
                asm!(".byte 0x66", "fnstenv [{}]", in(reg) at, options(nostack))
            }
            (Image::LoadEnvironment, false) => asm!("fldenv [{}]", in(reg) at, options(nostack)),
            (Image::LoadEnvironment, true) => {
                asm!(".byte 0x66", "fldenv [{}]", in(reg) at, options(nostack))
            }
            (Image::Save, false) => asm!("fnsave [{}]", in(reg) at, options(nostack)),
            (Image::Save, true) => asm!(".byte 0x66", "fnsave [{}]", in(reg) at, options(nostack)),
            (Image::Restore, false) => asm!("frstor [{}]", in(reg) at, options(nostack)),
            (Image::Restore, true) => {
                asm!(".byte 0x66", "frstor [{}]", in(reg) at, options(nostack))
            }
        }
    }
    if operation.stores() {
        store_pointers(buffer, short, core);
        if operation == Image::Save {
            (core.fpu_ip, core.fpu_dp, core.fpu_op) = (0, 0, 0);
        }
    } else {
        load_pointers(buffer, short, core);
    }
}

fn store_pointers(buffer: &mut [u8; IMAGE_BYTES], short: bool, core: &Core) {
    if short {
        buffer[6..8].copy_from_slice(&(core.fpu_ip as u16).to_le_bytes());
        buffer[8..10].fill(0);
        buffer[10..12].copy_from_slice(&(core.fpu_dp as u16).to_le_bytes());
        buffer[12..14].fill(0);
    } else {
        buffer[12..16].copy_from_slice(&(core.fpu_ip as u32).to_le_bytes());
        buffer[16..18].fill(0);
        buffer[18..20].copy_from_slice(&(core.fpu_op as u16).to_le_bytes());
        buffer[20..24].copy_from_slice(&(core.fpu_dp as u32).to_le_bytes());
        buffer[24..26].fill(0);
    }
}

fn load_pointers(buffer: &[u8; IMAGE_BYTES], short: bool, core: &mut Core) {
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([buffer[at], buffer[at + 1]]));
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    if short {
        (core.fpu_ip, core.fpu_dp, core.fpu_op) = (u16_at(6), u16_at(10), 0);
    } else {
        (core.fpu_ip, core.fpu_dp, core.fpu_op) = (u32_at(12), u32_at(20), u16_at(18) & 0x7ff);
    }
}

/// FNINIT.
pub(crate) fn initialise(core: &mut Core) {
    leave();
    (core.fpu_ip, core.fpu_dp, core.fpu_op) = (0, 0, 0);
}
