//! The FPU's state as XSAVE images and as KVM's older form.
//!
//! The XSAVE form is preferred because it says which components are in their initial state: the older
//! form shows the memory behind them, which may be stale.

use kvm_bindings::{kvm_fpu, kvm_xsave};
use machine::state::FpuState;

/// Offsets in the legacy area, 64-bit form (SDM vol. 1, 10.5.1).
mod at {
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST: usize = 32;
    pub(super) const XMM: usize = 160;
    /// XSTATE_BV of the header behind it.
    pub(super) const COMPONENTS: usize = 512;
}

const X87: u64 = 1;
const SSE: u64 = 2;

/// Bytes of a register in the image, of which x87 registers use ten.
const SLOT: usize = 16;

/// What is not in the image, AVX say, is in its initial state.
pub(super) fn to_xsave(fpu: &FpuState) -> kvm_xsave {
    let mut image = Image([0; 4096]);
    image.put(at::FCW, &fpu.fcw.to_le_bytes());
    image.put(at::FSW, &fpu.fsw.to_le_bytes());
    image.put(at::FTW, &[fpu.ftw]);
    image.put(at::FOP, &fpu.fop.to_le_bytes());
    image.put(at::FIP, &fpu.fip.to_le_bytes());
    image.put(at::FDP, &fpu.fdp.to_le_bytes());
    image.put(at::MXCSR, &fpu.mxcsr.to_le_bytes());
    for (index, register) in fpu.st.iter().enumerate() {
        image.put(at::ST + SLOT * index, &register.to_le_bytes());
    }
    for (index, register) in fpu.xmm.iter().enumerate() {
        image.put(at::XMM + SLOT * index, &register.to_le_bytes());
    }
    image.put(at::COMPONENTS, &(X87 | SSE).to_le_bytes());
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(image.0.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    xsave
}

/// Selectors of the pointers are not in the 64-bit form: they are lost to a guest whenever the host
/// switches tasks, so they count as zero (and processors since 2013 store zero).
pub(super) fn from_xsave(xsave: &kvm_xsave) -> FpuState {
    let mut image = Image([0; 4096]);
    for (bytes, word) in image.0.chunks_exact_mut(4).zip(xsave.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let components = u64::from_le_bytes(image.get(at::COMPONENTS));
    let mut fpu = FpuState::default();
    if components & X87 != 0 {
        fpu.fcw = u16::from_le_bytes(image.get(at::FCW));
        fpu.fsw = u16::from_le_bytes(image.get(at::FSW));
        fpu.ftw = image.get::<1>(at::FTW)[0];
        fpu.fop = u16::from_le_bytes(image.get(at::FOP));
        fpu.fip = u64::from_le_bytes(image.get(at::FIP));
        fpu.fdp = u64::from_le_bytes(image.get(at::FDP));
        fpu.st = std::array::from_fn(|n| st(image.get(at::ST + SLOT * n)));
    }
    if components & SSE != 0 {
        fpu.mxcsr = u32::from_le_bytes(image.get(at::MXCSR));
        fpu.xmm = std::array::from_fn(|n| u128::from_le_bytes(image.get(at::XMM + SLOT * n)));
    }
    fpu
}

/// The older form.
pub fn to_fpu(fpu: &FpuState) -> kvm_fpu {
    kvm_fpu {
        fpr: fpu.st.map(u128::to_le_bytes),
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftwx: fpu.ftw,
        last_opcode: fpu.fop,
        last_ip: fpu.fip,
        last_dp: fpu.fdp,
        xmm: fpu.xmm.map(u128::to_le_bytes),
        mxcsr: fpu.mxcsr,
        ..Default::default()
    }
}

pub(super) fn from_fpu(fpu: &kvm_fpu) -> FpuState {
    FpuState {
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftw: fpu.ftwx,
        fop: fpu.last_opcode,
        fip: fpu.last_ip,
        fdp: fpu.last_dp,
        fcs: 0,
        fds: 0,
        st: fpu.fpr.map(st),
        mxcsr: fpu.mxcsr,
        xmm: fpu.xmm.map(u128::from_le_bytes),
    }
}

/// The upper six bytes of a slot are reserved.
fn st(slot: [u8; SLOT]) -> u128 {
    u128::from_le_bytes(slot) & ((1 << 80) - 1)
}

/// An XSAVE area.
struct Image([u8; 4096]);

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self.0[at + n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FpuState {
        FpuState {
            fcw: 0x27f,
            fsw: 0x3800,
            ftw: 0x81,
            fop: 0x5ab,
            fip: 0x1234_5678_9abc,
            fdp: 0xffff_8000_0000_1234,
            fcs: 0,
            fds: 0,
            st: std::array::from_fn(|n| 1 << (70 + n) | 3),
            mxcsr: 0x1fa0,
            xmm: std::array::from_fn(|n| u128::MAX << n),
        }
    }

    #[test]
    fn both_forms_hold_everything() {
        assert_eq!(from_xsave(&to_xsave(&sample())), sample());
        assert_eq!(from_fpu(&to_fpu(&sample())), sample());
    }

    #[test]
    fn components_in_their_initial_state_have_no_stale_values() {
        let mut xsave = to_xsave(&sample());
        xsave.region[at::COMPONENTS / 4] = SSE as u32;
        let fpu = from_xsave(&xsave);
        assert_eq!((fpu.fcw, fpu.st), (0x37f, [0; 8]));
        assert_eq!(fpu.xmm, sample().xmm);
        xsave.region[at::COMPONENTS / 4] = 0;
        assert_eq!(from_xsave(&xsave), FpuState::default());
    }
}
