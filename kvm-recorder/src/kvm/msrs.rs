//! Model-specific registers: which KVM keeps for the guest, and how accesses to all others end.
//!
//! With the user-space filter, KVM answers only for registers that are state of the CPU model. Reads of
//! the time stamp counter come out as events. Everything else is answered here as the engine answers it:
//! a constant of the vendor, or #GP(0). Without the filter (before Linux 5.10) KVM answers for whatever it
//! knows, which a replay cannot repeat.

use super::error::{KvmError, setup};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use machine::cpuid::Maker;
use machine::msr::{constant, number};
use machine::state::{self, CpuState};

/// An MSR that is state of the CPU model and has no other name in KVM's register files.
pub(super) struct Row {
    pub(super) index: u32,
    pub(super) field: fn(&mut state::Msrs) -> &mut u64,
}

/// The registers to get and set. TSC_AUX is not among them: the CPU model has no instruction that
/// reads it.
pub(super) const ROWS: [Row; 9] = [
    Row {
        index: number::STAR,
        field: |m| &mut m.star,
    },
    Row {
        index: number::LSTAR,
        field: |m| &mut m.lstar,
    },
    Row {
        index: number::CSTAR,
        field: |m| &mut m.cstar,
    },
    Row {
        index: number::SFMASK,
        field: |m| &mut m.sfmask,
    },
    Row {
        index: number::KERNEL_GS_BASE,
        field: |m| &mut m.kernel_gs_base,
    },
    Row {
        index: number::SYSENTER_CS,
        field: |m| &mut m.sysenter_cs,
    },
    Row {
        index: number::SYSENTER_ESP,
        field: |m| &mut m.sysenter_esp,
    },
    Row {
        index: number::SYSENTER_EIP,
        field: |m| &mut m.sysenter_eip,
    },
    Row {
        index: number::PAT,
        field: |m| &mut m.pat,
    },
];

/// The registers with their values.
pub fn to_msrs(state: &CpuState) -> Msrs {
    let mut values = state.msrs;
    let entries = ROWS.map(|row| kvm_msr_entry {
        index: row.index,
        data: *(row.field)(&mut values),
        ..Default::default()
    });
    Msrs::from_entries(&entries).expect("the rows are few")
}

/// What KVM answers for besides [`ROWS`]: these are in its other register files.
const ELSEWHERE: [u32; 3] = [number::EFER, number::FS_BASE, number::GS_BASE];

/// Ranges of the filter: first register and how many.
const RANGES: [(u32, u32); 3] = [(0x174, 8), (0x270, 16), (0xc000_0080, 0x88)];

/// Makes accesses to all registers but those of the model come out.
pub(super) fn filter(vm: &VmFd) -> Result<(), KvmError> {
    let reasons =
        KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
    let mut enable = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    enable.args[0] = reasons.into();
    vm.enable_cap(&enable)
        .map_err(setup("asking for exits on MSR accesses"))?;
    let bitmaps = RANGES.map(|(base, count)| bitmap(base, count));
    let ranges: Vec<MsrFilterRange<'_>> = RANGES
        .iter()
        .zip(&bitmaps)
        .map(|((base, msr_count), bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: *base,
            msr_count: *msr_count,
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
        .map_err(setup("setting the MSR filter"))
}

/// Bit *n*: KVM answers for register `base + n`. The kernel reads whole words.
fn bitmap(base: u32, count: u32) -> Vec<u8> {
    let mut bits = vec![0; 8 * count.div_ceil(64) as usize];
    let known = ROWS.iter().map(|row| row.index).chain(ELSEWHERE);
    for offset in known.filter_map(|index| index.checked_sub(base)) {
        if offset < count {
            bits[offset as usize / 8] |= 1 << (offset % 8);
        }
    }
    bits
}

/// How an access that came out ends. Reads of the time stamp counter are not for here.
pub(super) fn answer(maker: Maker, index: u32, written: Option<u64>) -> Option<u64> {
    let value = constant(maker, index)?;
    match written {
        Some(written) if written != value => None,
        _ => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_lets_exactly_the_model_through() {
        let mut allowed = Vec::new();
        for (base, count) in RANGES {
            let bits = bitmap(base, count);
            let in_range = (0..count).filter(|n| bits[*n as usize / 8] >> (n % 8) & 1 != 0);
            allowed.extend(in_range.map(|n| base + n));
        }
        let mut model: Vec<u32> = ROWS.iter().map(|row| row.index).chain(ELSEWHERE).collect();
        model.sort_unstable();
        assert_eq!(allowed, model);
    }

    #[test]
    fn constants_take_their_own_value_and_the_rest_faults() {
        assert_eq!(answer(Maker::Intel, number::MISC_ENABLE, None), Some(1));
        assert_eq!(answer(Maker::Intel, number::MISC_ENABLE, Some(1)), Some(1));
        assert_eq!(answer(Maker::Intel, number::MISC_ENABLE, Some(2)), None);
        assert_eq!(answer(Maker::Amd, number::MISC_ENABLE, None), None);
        assert_eq!(answer(Maker::Amd, 0x1b, None), None);
    }
}
