//! The end state of an interval against the checkpoint.

use super::registers::{RegisterDifference, differences};
use super::tables::early_entries;
use super::{Interval, ReplayError};
use machine::checkpoint::CheckpointSource;
use machine::ram::{PageBytes, Ram, RamError};
use machine::state::CpuState;
use machine::units::{Gfn, GuestPhys, PAGE_BYTES};
use replay_log::Observation;
use std::collections::BTreeSet;

/// What differs at the end.
#[derive(Default)]
pub(super) struct EndState {
    /// The first difference, expected and actual: a register, else the lowest byte of RAM.
    pub(super) first: Option<(Observation, Observation)>,
    pub(super) registers: Vec<RegisterDifference>,
    pub(super) frames: Vec<Gfn>,
    pub(super) frames_compared: u64,
    /// Entries of page tables that differ as hardware may make them.
    pub(super) early_entries: u64,
}

/// Compares registers, and every page that was written by the simulator (`written`) or that the
/// recorder says may have changed. `is_table` says of which frames hardware may have set bits early.
pub(super) fn end_state(
    interval: &Interval,
    ram: &Ram,
    source: &dyn CheckpointSource,
    (cpu, mut written): (&CpuState, BTreeSet<Gfn>),
    mut is_table: impl FnMut(Gfn) -> Result<bool, RamError>,
) -> Result<EndState, ReplayError> {
    let end = &*interval.end;
    written.extend(&end.changed);
    let mut found = EndState {
        registers: differences(&end.cpu, cpu),
        frames_compared: written.len() as u64,
        ..EndState::default()
    };
    found.first = found.registers.first().map(|register| {
        let observation = |value| Observation::Register {
            name: register.name.clone(),
            value,
        };
        (observation(register.expected), observation(register.actual))
    });
    let (mut expected, mut actual) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
    for gfn in written {
        source.page(end.number, gfn, &mut expected)?;
        ram.read(gfn.base(), &mut actual)?;
        if expected == actual {
            continue;
        }
        match early_entries(&expected, &actual) {
            Some(entries) if is_table(gfn)? => found.early_entries += entries,
            _ => {
                found.frames.push(gfn);
                found
                    .first
                    .get_or_insert_with(|| first_bytes(gfn, &expected, &actual));
            }
        }
    }
    Ok(found)
}

/// The quadword with the first byte that differs.
pub(super) fn first_bytes(
    gfn: Gfn,
    expected: &PageBytes,
    actual: &PageBytes,
) -> (Observation, Observation) {
    let pairs = expected.chunks_exact(8).zip(actual.chunks_exact(8));
    let (index, (expected, actual)) = pairs
        .enumerate()
        .find(|(_, (expected, actual))| expected != actual)
        .expect("the pages differ");
    let address = GuestPhys(gfn.base().0 + 8 * index as u64);
    let observation = |bytes: &[u8]| Observation::Memory {
        address,
        bytes: bytes.to_vec(),
    };
    (observation(expected), observation(actual))
}
