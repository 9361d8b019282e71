//! The x87 unit while translated code runs: its registers are the host's. XMM and MXCSR are saved by
//! the gates; the x87 pointers are emulated, since the host's name host code.
#![expect(unsafe_code, reason = "saves and restores host FPU state")]

use super::host::X87Rules;
use crate::jit::layout::{Core, FxArea, LAST_X87_MEMORY};
use machine::state::FpuState;
use std::arch::asm;

/// Exception summary: an unmasked exception waits.
const ES: u16 = 0x80;
/// Exception flags of the status word, masks of the control word.
const EXCEPTIONS: u16 = 0x3f;

/// Loads the guest's FPU, MXCSR and XMM into the state block and the host's x87 registers.
pub(crate) fn enter(core: &mut Core, fpu: &FpuState) {
    core.xmm = fpu.xmm;
    core.mxcsr = fpu.mxcsr;
    (core.fpu_ip, core.fpu_dp, core.fpu_op) = (fpu.fip, fpu.fdp, u64::from(fpu.fop));
    (core.fpu_cs, core.fpu_ds) = (u64::from(fpu.fcs), u64::from(fpu.fds));
    core.fpu_last_op = 0;
    let image = image(fpu);
    // SAFETY: the image is 16-byte aligned and its MXCSR is the default; the vector registers count as
    // clobbered.
    unsafe {
        asm!(
            "fxrstor64 [{}]", in(reg) image.0.as_ptr(), options(nostack),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        )
    };
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

/// Makes the operand and opcode of the last x87 instruction visible if it has raised an unmasked
/// exception. Must come before whatever clears an exception or masks it; no other instruction of the
/// unit executes while one waits.
pub(crate) fn settle(core: &mut Core) {
    let last = std::mem::take(&mut core.fpu_last_op);
    if last == 0 || !exception_waits() {
        return;
    }
    core.fpu_op = last & 0x7ff;
    if last & LAST_X87_MEMORY != 0 {
        core.fpu_dp = core.fpu_last_dp;
    }
}

/// Copies the guest's FPU, MXCSR and XMM out. The host's x87 registers keep the guest's state.
pub(crate) fn snapshot(core: &mut Core, fpu: &mut FpuState) {
    settle(core);
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
    (fpu.fcs, fpu.fds) = (core.fpu_cs as u16, core.fpu_ds as u16);
    fpu.mxcsr = core.mxcsr;
    fpu.xmm = core.xmm;
}

/// The x87 unit before an instruction that may have to be undone.
#[derive(Clone, Copy)]
pub(crate) struct X87Snapshot {
    registers: [u8; IMAGE_BYTES],
    /// Everything else of the unit: pointers, selectors, opcode, last instruction.
    pointers: [u64; 7],
}

impl X87Snapshot {
    /// Copies the host's x87 registers and the guest's pointers.
    pub(crate) fn take(core: &Core) -> Self {
        let mut registers = [0; IMAGE_BYTES];
        let at = registers.as_mut_ptr();
        // SAFETY: the buffer holds the longest image; FRSTOR puts back what FNSAVE cleared, and no
        // exception waits that it could raise.
        unsafe { asm!("fnsave [{0}]", "frstor [{0}]", in(reg) at, options(nostack)) };
        Self {
            registers,
            pointers: [
                core.fpu_ip,
                core.fpu_dp,
                core.fpu_op,
                core.fpu_cs,
                core.fpu_ds,
                core.fpu_last_dp,
                core.fpu_last_op,
            ],
        }
    }

    /// Puts everything back; an exception that came since is forgotten.
    pub(crate) fn restore(&self, core: &mut Core) {
        let at = self.registers.as_ptr();
        // SAFETY: the image is whole; FNCLEX keeps FRSTOR from raising what waits.
        unsafe { asm!("fnclex", "frstor [{}]", in(reg) at, options(nostack)) };
        [
            core.fpu_ip,
            core.fpu_dp,
            core.fpu_op,
            core.fpu_cs,
            core.fpu_ds,
            core.fpu_last_dp,
            core.fpu_last_op,
        ] = self.pointers;
    }
}

/// Clears the top of the x87 stack and, with `tags`, marks all registers as in use: what MMX
/// instructions do first. The registers stay where they are. No exception may wait.
pub(crate) fn enter_mmx(tags: bool) {
    const TOP: u16 = 7 << 11;
    let mut environment = [0u16; 14];
    // SAFETY: the buffer holds the environment's 28 bytes.
    unsafe { asm!("fnstenv [{}]", in(reg) environment.as_mut_ptr(), options(nostack)) };
    environment[2] &= !TOP;
    if tags {
        environment[4] = 0;
    }
    // SAFETY: as above; no exception waits.
    unsafe { asm!("fldenv [{}]", in(reg) environment.as_ptr(), options(nostack)) };
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

/// What FXSAVE writes; `wide` for REX.W. Where [`X87Rules::lazy_fxsave`] leaves the pointers out, they
/// are zeros.
pub(crate) fn fxsave_image(fpu: &FpuState, wide: bool, rules: X87Rules) -> [u8; 512] {
    let mut bytes = image(fpu).0;
    if !rules.lazy_fxsave || fpu.fsw & ES != 0 {
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
    rules: X87Rules,
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
    // ES is made from the flags and masks, whatever the image says.
    let waits = u16_at(2) & !u16_at(0) & EXCEPTIONS != 0;
    if !rules.lazy_fxsave || waits {
        fpu.fop = u16_at(6) & 0x7ff;
        if wide {
            (fpu.fip, fpu.fdp) = (rules.instruction_pointer(u64_at(8)), u64_at(16));
        } else {
            (fpu.fip, fpu.fdp) = (u64::from(u32_at(8)), u64::from(u32_at(16)));
            if !rules.no_selectors {
                (fpu.fcs, fpu.fds) = (u16_at(12), u16_at(20));
            }
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
    rules: X87Rules,
) {
    settle(core);
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
            clear_pointers(core);
        }
    } else {
        load_pointers(buffer, short, core, rules);
    }
}

fn store_pointers(buffer: &mut [u8; IMAGE_BYTES], short: bool, core: &Core) {
    if short {
        buffer[6..8].copy_from_slice(&(core.fpu_ip as u16).to_le_bytes());
        buffer[8..10].copy_from_slice(&(core.fpu_cs as u16).to_le_bytes());
        buffer[10..12].copy_from_slice(&(core.fpu_dp as u16).to_le_bytes());
        buffer[12..14].copy_from_slice(&(core.fpu_ds as u16).to_le_bytes());
    } else {
        buffer[12..16].copy_from_slice(&(core.fpu_ip as u32).to_le_bytes());
        buffer[16..18].copy_from_slice(&(core.fpu_cs as u16).to_le_bytes());
        buffer[18..20].copy_from_slice(&(core.fpu_op as u16).to_le_bytes());
        buffer[20..24].copy_from_slice(&(core.fpu_dp as u32).to_le_bytes());
        buffer[24..26].copy_from_slice(&(core.fpu_ds as u16).to_le_bytes());
    }
}

fn load_pointers(buffer: &[u8; IMAGE_BYTES], short: bool, core: &mut Core, rules: X87Rules) {
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([buffer[at], buffer[at + 1]]));
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    if short {
        (core.fpu_ip, core.fpu_dp, core.fpu_op) = (u16_at(6), u16_at(10), 0);
    } else {
        (core.fpu_ip, core.fpu_dp, core.fpu_op) = (u32_at(12), u32_at(20), u16_at(18) & 0x7ff);
    }
    if !rules.no_selectors {
        let at = if short { (8, 12) } else { (16, 24) };
        (core.fpu_cs, core.fpu_ds) = (u16_at(at.0), u16_at(at.1));
    }
}

fn clear_pointers(core: &mut Core) {
    (core.fpu_ip, core.fpu_dp, core.fpu_op) = (0, 0, 0);
    (core.fpu_cs, core.fpu_ds, core.fpu_last_op) = (0, 0, 0);
}

/// FNINIT.
pub(crate) fn initialise(core: &mut Core) {
    leave();
    clear_pointers(core);
}

/// FNCLEX.
pub(crate) fn clear_exceptions(core: &mut Core) {
    settle(core);
    // SAFETY: FNCLEX takes no operands and changes the x87 status word only.
    unsafe { asm!("fnclex", options(nomem, nostack)) };
}
