//! What an engine did, in numbers: where its time may go.

use iced_x86::Mnemonic;

/// Declares the counters once: fields, names for reports, order.
macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// Counters of an engine's work, for reports. No guest can see them.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct EngineCounters {
            $($(#[$meta])* pub $name: u64,)*
            /// Instructions executed in Rust, by mnemonic number.
            executed: Vec<u64>,
        }

        impl EngineCounters {
            /// Every counter with its name, in the order of declaration.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Guest instructions translated.
    translated,
    /// Superblocks translated.
    blocks,
    /// Times all translations were dropped for want of code memory.
    cache_flushes,
    /// Times translated code was entered from Rust.
    entries,
    /// Memory accesses that took the slow path.
    slow_accesses,
    /// Of these: faults of the guest.
    slow_faults,
    /// Of these: across a page boundary.
    slow_crossing,
    /// Of these: outside RAM.
    slow_outside_ram,
    /// Of these: stores to a page table, which run alone.
    slow_table_stores,
    /// Of these: stores to bytes that were translated, which run alone.
    slow_code_stores,
    /// Of these: stores to a page with translations or tables elsewhere in it.
    slow_shared_stores,
    /// Of these: the address was cached (a stack slot, or an unaligned stack access).
    slow_cached,
    /// Page walks.
    walks,
    /// Instructions executed in Rust.
    executed_in_rust,
    /// Branch targets looked up in Rust.
    branch_misses,
    /// Direct transfers within a page looked up in Rust.
    gotos,
    /// Stays that ended with the budget.
    budget_ends,
    /// Instructions executed one at a time.
    single_steps,
    /// Exceptions and interrupts delivered.
    events,
    /// Changes of address space.
    space_switches,
    /// Of these: to one whose tables were not kept.
    space_misses,
    /// Of these: upper halves taken over from the space before.
    spaces_shared,
    /// Times all cached addresses of all spaces were dropped.
    tlb_flushes,
    /// Times all write tags were dropped.
    write_flushes,
    /// Times a range of pages was dropped.
    page_flushes,
    /// Times all cached branch targets were dropped.
    branch_flushes,
}

impl EngineCounters {
    pub(crate) fn count_executed(&mut self, mnemonic: Mnemonic) {
        self.executed_in_rust += 1;
        let index = mnemonic as usize;
        if index >= self.executed.len() {
            self.executed.resize(index + 1, 0);
        }
        self.executed[index] += 1;
    }

    /// Instructions executed in Rust by mnemonic, the most frequent first.
    pub fn executed_by_mnemonic(&self) -> Vec<(String, u64)> {
        let mut rows: Vec<(String, u64)> = Mnemonic::values()
            .zip(&self.executed)
            .filter(|(_, count)| **count != 0)
            .map(|(mnemonic, count)| (format!("{mnemonic:?}").to_lowercase(), *count))
            .collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mnemonics_are_counted_by_name_and_sorted() {
        let mut counters = EngineCounters::default();
        counters.count_executed(Mnemonic::Wrmsr);
        counters.count_executed(Mnemonic::Syscall);
        counters.count_executed(Mnemonic::Syscall);
        let rows = [("syscall".to_owned(), 2), ("wrmsr".to_owned(), 1)];
        assert_eq!(counters.executed_by_mnemonic(), rows);
        assert!(counters.rows().contains(&("executed_in_rust", 3)));
    }
}
