//! Accessed and dirty bits of page tables, which hardware may set before the access that needs them is done,
//! or for one that never is.
//!
//! A processor that runs ahead sets accessed bits on paths that it gives up (SDM vol. 3, 4.8), in
//! tables that the guest's own accesses need not reach. One that walked the tables for a write has set the dirty bit, too; if
//! the write then meets a fault of the host's, an interrupt may come before it is tried again. And a
//! translation that it remembers sets no bit that the guest has cleared meanwhile. So in recordings of
//! hardware an entry may differ from the simulator's in its accessed bit, and may have a dirty bit that the simulator
//! has not set yet.

use super::ReplayVcpu;
use machine::ram::{PageBytes, Ram, RamError};
use machine::units::{Gfn, GuestPhys, PAGE_BYTES};
use std::collections::BTreeSet;

const PRESENT: u64 = 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Whether a recorded entry of a page table is the simulated one but for bits as described above.
pub(super) fn is_same_entry(recorded: u64, simulated: u64) -> bool {
    let differing = recorded ^ simulated;
    let late = simulated & !recorded & DIRTY;
    differing == 0 || (differing & !(ACCESSED | DIRTY) == 0 && late == 0 && recorded & PRESENT != 0)
}

/// How many entries differ in no more than such bits; none if others do.
pub(super) fn early_entries(recorded: &PageBytes, simulated: &PageBytes) -> Option<u64> {
    let mut early = 0;
    for (recorded, simulated) in entries(recorded).zip(entries(simulated)) {
        if !is_same_entry(recorded, simulated) {
            return None;
        }
        early += u64::from(recorded != simulated);
    }
    Some(early)
}

/// Whether the frame is a page table: walked as one, or to be reached from one that translation started
/// from.
pub(super) fn is_table(vcpu: &impl ReplayVcpu, ram: &Ram, gfn: Gfn) -> Result<bool, RamError> {
    Ok(vcpu.walked(gfn) || reachable(ram, vcpu.root_tables())?.contains(&gfn))
}

/// The tables below four-level roots, these included.
fn reachable(ram: &Ram, roots: BTreeSet<Gfn>) -> Result<BTreeSet<Gfn>, RamError> {
    let mut all = roots.clone();
    let mut level = roots;
    for _ in 0..3 {
        let mut below = BTreeSet::new();
        for table in level {
            let mut page = [0; PAGE_BYTES as usize];
            ram.read(table.base(), &mut page)?;
            let present = entries(&page).filter(|entry| entry & (PRESENT | LARGE) == PRESENT);
            let tables = present.map(|entry| GuestPhys(entry & FRAME));
            below.extend(
                tables
                    .filter(|at| ram.contains(*at, PAGE_BYTES))
                    .map(GuestPhys::gfn),
            );
        }
        all.extend(&below);
        level = below;
    }
    Ok(all)
}

fn entries(page: &PageBytes) -> impl Iterator<Item = u64> {
    let (entries, _) = page.as_chunks();
    entries.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accessed_bits_may_differ_and_dirty_bits_may_be_early_in_entries_that_are_present() {
        let rows = [
            (0x1007, 0x1007, true),
            (0x1027, 0x1007, true),
            (0x1007, 0x1027, true),
            (0x1067, 0x1007, true),
            (0x1047, 0x1027, true),
            // The simulator wrote what hardware did not.
            (0x1027, 0x1067, false),
            (0x1007, 0x1047, false),
            // Not an entry that hardware walks.
            (0x1026, 0x1006, false),
            (0x1027, 0x1006, false),
            (0x1007, 0x1003, false),
            (0x2027, 0x1027, false),
        ];
        for (recorded, simulated, same) in rows {
            let what = format!("{recorded:#x} and {simulated:#x}");
            assert_eq!(is_same_entry(recorded, simulated), same, "{what}");
            let page = |entry: u64| {
                let mut page = [0; PAGE_BYTES as usize];
                page[8..16].copy_from_slice(&entry.to_le_bytes());
                page
            };
            let expected = same.then_some(u64::from(recorded != simulated));
            let found = early_entries(&page(recorded), &page(simulated));
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn tables_are_found_from_their_root() {
        let ram = Ram::new(16 << 12).expect("RAM is small");
        let put = |at: u64, entry: u64| ram.write(GuestPhys(at), &entry.to_le_bytes());
        for (at, entry) in [
            (0x1000, 0x2003),
            (0x1ff8, 0x3003),
            (0x2000, 0x4003),
            // A large page, one that is not there, one beyond RAM, and a page.
            (0x2008, 0x83),
            (0x3000, 0x5002),
            (0x3008, 0x10_0000_0003),
            (0x4000, 0x6003),
            (0x6000, 0x7003),
        ] {
            put(at, entry).expect("it is in RAM");
        }
        let found = reachable(&ram, BTreeSet::from([Gfn(1)])).expect("all in RAM");
        assert_eq!(found, [1, 2, 3, 4, 6].map(Gfn).into());
    }
}
