//! The saved CPUID table.

use crate::cpuid::{CpuidEntry, CpuidTable};
use crate::saved::codec::saved;
use crate::saved::{InvalidSaved, require};

saved! {
    /// One answer.
    SavedCpuidEntry {
        /// Input EAX.
        leaf: u32,
        /// Input ECX, 0 where it does not matter.
        subleaf: u32,
        /// Whether `subleaf` matters.
        has_subleaves: bool,
        /// EAX, EBX, ECX, EDX.
        registers: [u32; 4],
    }
}

saved! {
    /// All answers.
    SavedCpuid {
        /// In ascending order of (leaf, subleaf).
        entries: Vec<SavedCpuidEntry>,
    }
}

impl CpuidTable {
    /// The saved form.
    pub fn save(&self) -> SavedCpuid {
        let Self { entries } = self;
        let entry = |entry: &CpuidEntry| {
            let CpuidEntry {
                leaf,
                subleaf,
                has_subleaves,
                registers,
            } = *entry;
            SavedCpuidEntry {
                leaf,
                subleaf,
                has_subleaves,
                registers,
            }
        };
        SavedCpuid {
            entries: entries.iter().map(entry).collect(),
        }
    }

    /// The saved table.
    ///
    /// # Errors
    /// [`InvalidSaved`] for entries that are not in ascending order.
    pub fn restore(saved: &SavedCpuid) -> Result<Self, InvalidSaved> {
        let key = |entry: &SavedCpuidEntry| (entry.leaf, entry.subleaf);
        let ascending = saved.entries.is_sorted_by(|a, b| key(a) < key(b));
        require(ascending, "order of the CPUID table")?;
        let entry = |entry: &SavedCpuidEntry| CpuidEntry {
            leaf: entry.leaf,
            subleaf: entry.subleaf,
            has_subleaves: entry.has_subleaves,
            registers: entry.registers,
        };
        Ok(Self {
            entries: saved.entries.iter().map(entry).collect(),
        })
    }
}
