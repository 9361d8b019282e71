//! Blobs: saved state with a header that says what it is, outside of any serialiser.

use crate::saved::clock::SavedClock;
use crate::saved::codec::{Code, DecodeError, Decoder};
use crate::saved::cpu::SavedCpu;
use crate::saved::cpuid::SavedCpuid;
use crate::saved::devices::SavedBoard;

/// The first bytes of every blob.
pub const MAGIC: [u8; 8] = *b"SBSTATE\0";

/// Bytes before the payload: magic, kind (u16), version (u16), payload length (u32).
pub const HEADER_BYTES: usize = 16;

/// A saved type that is stored as a blob of its own.
///
/// One state has one encoding, so blobs can be compared and hashed as they are.
pub trait Blob: Code {
    /// Tells the kinds apart.
    const KIND: u16;
    /// Version of the payload. A change of the payload's layout is a new version.
    const VERSION: u16;

    /// The blob.
    fn to_blob(&self) -> Vec<u8> {
        let mut blob = MAGIC.to_vec();
        Self::KIND.encode(&mut blob);
        Self::VERSION.encode(&mut blob);
        0_u32.encode(&mut blob);
        self.encode(&mut blob);
        let length = u32::try_from(blob.len() - HEADER_BYTES).expect("saved state is small");
        blob[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        blob
    }

    /// The content of a blob, which must fill `blob` exactly.
    ///
    /// # Errors
    /// [`DecodeError`] for anything but what [`Blob::to_blob`] writes; never a panic.
    fn from_blob(blob: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(blob);
        let magic = <[u8; 8]>::decode(&mut decoder)?;
        if magic != MAGIC {
            return Err(DecodeError::Magic { found: magic });
        }
        let kind = u16::decode(&mut decoder)?;
        if kind != Self::KIND {
            return Err(DecodeError::Kind {
                expected: Self::KIND,
                found: kind,
            });
        }
        let version = u16::decode(&mut decoder)?;
        if version != Self::VERSION {
            return Err(DecodeError::Version {
                found: version,
                supported: Self::VERSION,
            });
        }
        let length = u32::decode(&mut decoder)? as usize;
        let mut payload = Decoder::at(decoder.offset(), decoder.bytes(length)?);
        decoder.finish()?;
        let value = Self::decode(&mut payload)?;
        payload.finish()?;
        Ok(value)
    }
}

impl Blob for SavedCpu {
    const KIND: u16 = 1;
    const VERSION: u16 = 1;
}

impl Blob for SavedBoard {
    const KIND: u16 = 2;
    const VERSION: u16 = 1;
}

impl Blob for SavedClock {
    const KIND: u16 = 3;
    const VERSION: u16 = 1;
}

impl Blob for SavedCpuid {
    const KIND: u16 = 4;
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use crate::clock::{DEFAULT_STEPS_PER_SECOND, InsnClock, Moment, VirtualClock};
    use crate::cpuid::CpuidTable;
    use crate::state::{Activity, CpuState, Shadow};
    use crate::units::{Port, VirtualNanos};
    use proptest::prelude::*;
    use std::fmt::Debug;

    /// A state in which no two fields are equal, so that mixed-up fields show.
    fn distinct_cpu() -> CpuState {
        let mut next = 0x1111_u64;
        let mut fresh = || {
            next = next.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            next
        };
        let mut state = CpuState::default();
        state.gpr.fill_with(&mut fresh);
        state.segs.iter_mut().for_each(|segment| {
            segment.selector = fresh() as u16;
            segment.attributes = fresh() as u16;
            segment.limit = fresh() as u32;
            segment.base = fresh();
        });
        (state.ldtr, state.tr) = (state.segs[3], state.segs[4]);
        state.ldtr.base = fresh();
        state.tr.base = fresh();
        for table in [&mut state.gdtr, &mut state.idtr] {
            table.base = fresh();
            table.limit = fresh() as u16;
        }
        let msrs = &mut state.msrs;
        for register in [
            &mut state.rip,
            &mut state.rflags,
            &mut state.cr0,
            &mut state.cr2,
            &mut state.cr3,
            &mut state.cr4,
            &mut state.cr8,
            &mut state.xcr0,
            &mut state.dr6,
            &mut state.dr7,
            &mut msrs.efer,
            &mut msrs.star,
            &mut msrs.lstar,
            &mut msrs.cstar,
            &mut msrs.sfmask,
            &mut msrs.kernel_gs_base,
            &mut msrs.sysenter_cs,
            &mut msrs.sysenter_esp,
            &mut msrs.sysenter_eip,
            &mut msrs.pat,
            &mut msrs.tsc_aux,
            &mut state.fpu.fip,
            &mut state.fpu.fdp,
        ] {
            *register = fresh();
        }
        state.dr.fill_with(&mut fresh);
        let fpu = &mut state.fpu;
        for register in [
            &mut fpu.fcw,
            &mut fpu.fsw,
            &mut fpu.fop,
            &mut fpu.fcs,
            &mut fpu.fds,
        ] {
            *register = fresh() as u16;
        }
        fpu.ftw = fresh() as u8;
        fpu.mxcsr = fresh() as u32;
        fpu.st.fill_with(|| u128::from(fresh()) << 40);
        fpu.xmm.fill_with(|| u128::from(fresh()) << 64 | 5);
        state.shadow = Shadow::MovSs;
        state.activity = Activity::Halted;
        state
    }

    fn used_board() -> Board {
        let mut board = Board::new(64 << 20, 1_000_000_000);
        let now = VirtualNanos(123_456_789);
        for (port, value) in [(0x3fa, 0x81), (0x43, 0x34), (0x40, 0x12), (0x64, 0x60)] {
            let _ = board.port_write(Port(port), 1, value, now);
        }
        board.console_input(b"input", now);
        board
    }

    fn blobs() -> Vec<Vec<u8>> {
        let clock = VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND));
        vec![
            distinct_cpu().save().to_blob(),
            used_board().save().to_blob(),
            clock.save(Moment::default()).to_blob(),
            CpuidTable::x86_64_v2().save().to_blob(),
        ]
    }

    /// Decodes a blob as each kind and, where that works, restores, uses and saves it.
    fn try_everything(blob: &[u8]) {
        fn canonical<T: Blob + PartialEq + Debug>(blob: &[u8]) -> Option<T> {
            let saved = T::from_blob(blob).ok()?;
            assert_eq!(saved.to_blob(), blob, "a second encoding of one state");
            Some(saved)
        }
        if let Some(saved) = canonical::<SavedCpu>(blob)
            && let Ok(state) = CpuState::restore(&saved)
        {
            assert_eq!(state.save(), saved);
            let _ = state.validate();
        }
        if let Some(saved) = canonical::<SavedClock>(blob)
            && let Ok(clock) = VirtualClock::restore(&saved)
        {
            assert_eq!(clock.save(Moment::default()), saved);
            clock.run_limit(Some(clock.now(Moment::default())));
        }
        if let Some(saved) = canonical::<SavedCpuid>(blob)
            && let Ok(table) = CpuidTable::restore(&saved)
        {
            assert_eq!(table.save(), saved);
        }
        if let Some(saved) = canonical::<SavedBoard>(blob)
            && let Ok(mut board) = Board::restore(&saved)
        {
            assert_eq!(board.save(), saved);
            use_board(&mut board);
        }
    }

    fn use_board(board: &mut Board) {
        for _ in 0..4 {
            let now = board.next_deadline().unwrap_or(VirtualNanos(u64::MAX));
            board.advance(now);
            let _ = board.acknowledge();
            for port in [0x40, 0x41, 0x42, 0x61, 0x60, 0x64, 0x71, 0x3f8, 0x3fa, 0x20] {
                board.port_read(Port(port), 1, now);
                let _ = board.port_write(Port(port), 1, 0x8f, now);
            }
        }
    }

    #[test]
    fn every_state_survives_its_blob() {
        let blobs = blobs();
        let cpu = SavedCpu::from_blob(&blobs[0]).unwrap();
        assert_eq!(CpuState::restore(&cpu), Ok(distinct_cpu()));
        let board = SavedBoard::from_blob(&blobs[1]).unwrap();
        assert_eq!(Board::restore(&board), Ok(used_board()));
        let cpuid = SavedCpuid::from_blob(&blobs[3]).unwrap();
        assert_eq!(CpuidTable::restore(&cpuid), Ok(CpuidTable::x86_64_v2()));
        blobs.iter().for_each(|blob| try_everything(blob));
    }

    /// The lengths in `docs/format/machine-state.md`.
    #[test]
    fn blobs_have_the_documented_sizes() {
        let lengths: Vec<usize> = blobs().iter().map(Vec::len).collect();
        let cpu = 16 + 16 + 7 * 4 + 144 + (8 * 16 + 2 * 10) + 96 + 88 + 2 + 155 + 260;
        assert_eq!(
            (lengths[0], lengths[2], lengths[3]),
            (cpu, 33, 16 + 4 + 9 * 25)
        );
        let empty = Board::new(1 << 20, 0).save();
        assert_eq!(empty.pic.chips.len() * 16, encoded(&empty.pic));
        assert_eq!(encoded(&empty.cmos), 151);
        assert_eq!(encoded(&empty.uart), 32);
        assert_eq!(encoded(&empty.keyboard), 41);
    }

    /// The files are never rewritten; a new version adds its own (`docs/format/machine-state.md`).
    #[test]
    fn version_1_files_are_read_and_written_unchanged() {
        let files: [&[u8]; 4] = [
            include_bytes!("../../fixtures/state-v1-cpu.bin"),
            include_bytes!("../../fixtures/state-v1-board.bin"),
            include_bytes!("../../fixtures/state-v1-clock.bin"),
            include_bytes!("../../fixtures/state-v1-cpuid.bin"),
        ];
        let cpu = SavedCpu::from_blob(files[0]).unwrap();
        assert_eq!(CpuState::restore(&cpu), Ok(distinct_cpu()));
        let board = Board::restore(&SavedBoard::from_blob(files[1]).unwrap()).unwrap();
        assert_eq!(board.save().to_blob(), files[1]);
        let clock = VirtualClock::restore(&SavedClock::from_blob(files[2]).unwrap()).unwrap();
        assert_eq!(clock.save(Moment::default()).to_blob(), files[2]);
        let table = CpuidTable::restore(&SavedCpuid::from_blob(files[3]).unwrap()).unwrap();
        assert_eq!(table.save().to_blob(), files[3]);
    }

    fn encoded(value: &impl Code) -> usize {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        bytes.len()
    }

    #[test]
    fn every_truncation_and_extension_is_an_error() {
        for blob in blobs() {
            for end in 0..blob.len() {
                let cut = &blob[..end];
                assert!(SavedCpu::from_blob(cut).is_err());
                assert!(SavedBoard::from_blob(cut).is_err());
                assert!(SavedClock::from_blob(cut).is_err());
                assert!(SavedCpuid::from_blob(cut).is_err());
                // Also with a header that agrees with the cut.
                let mut cut = cut.to_vec();
                if let Some(length) = cut.get_mut(12..16) {
                    length.copy_from_slice(&((end - 16) as u32).to_le_bytes());
                    assert!(SavedCpu::from_blob(&cut).is_err());
                    assert!(SavedBoard::from_blob(&cut).is_err());
                    assert!(SavedClock::from_blob(&cut).is_err());
                    assert!(SavedCpuid::from_blob(&cut).is_err());
                }
            }
            let longer = [&blob[..], &[0]].concat();
            assert!(SavedCpu::from_blob(&longer).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error_or_another_canonical_state() {
        for mut blob in blobs() {
            for bit in 0..blob.len() * 8 {
                blob[bit / 8] ^= 1 << (bit % 8);
                try_everything(&blob);
                blob[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn other_versions_kinds_and_components_are_refused_with_advice() {
        let mut blob = distinct_cpu().save().to_blob();
        assert_eq!(
            SavedBoard::from_blob(&blob),
            Err(DecodeError::Kind {
                expected: 2,
                found: 1
            })
        );
        blob[16] |= 0x40;
        let error = SavedCpu::from_blob(&blob).unwrap_err();
        assert!(matches!(error, DecodeError::Components { found: 0x5f, .. }));
        assert!(error.to_string().contains("record again"));
        blob[10] = 2;
        let error = SavedCpu::from_blob(&blob).unwrap_err();
        assert!(matches!(error, DecodeError::Version { found: 2, .. }));
        assert!(error.to_string().contains("record again"));
        blob[0] = 0;
        let error = SavedCpu::from_blob(&blob).unwrap_err();
        assert!(matches!(error, DecodeError::Magic { .. }));
    }

    #[test]
    fn held_breakpoints_are_a_component_only_where_there_are_any() {
        let mut state = distinct_cpu();
        let plain = state.save().to_blob();
        state.held_breakpoints = 5;
        let held = state.save().to_blob();
        // A length and a byte more.
        assert_eq!((held.len(), held[16]), (plain.len() + 5, plain[16] | 0x20));
        let saved = SavedCpu::from_blob(&held).unwrap();
        assert_eq!(CpuState::restore(&saved).unwrap(), state);
        let mut none = held.clone();
        let at = held.windows(5).position(|w| w == [1, 0, 0, 0, 5]).unwrap();
        none[at + 4] = 0;
        assert!(
            SavedCpu::from_blob(&none).is_err(),
            "a second encoding of a plain state"
        );
    }

    proptest! {
        #[test]
        fn random_payloads_never_panic(
            kind in 1_u16..=4,
            payload in prop::collection::vec(any::<u8>(), 0..1500),
        ) {
            let mut blob = MAGIC.to_vec();
            kind.encode(&mut blob);
            1_u16.encode(&mut blob);
            (payload.len() as u32).encode(&mut blob);
            blob.extend(payload);
            try_everything(&blob);
        }

        #[test]
        fn damaged_boards_never_panic(
            damage in prop::collection::vec((16_usize..400, any::<u8>()), 1..12),
        ) {
            let mut blob = used_board().save().to_blob();
            for (at, value) in damage {
                let at = 16 + at % (blob.len() - 16);
                blob[at] = value;
            }
            try_everything(&blob);
        }
    }
}
