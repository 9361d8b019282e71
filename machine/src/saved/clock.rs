//! The saved virtual clock.

use crate::saved::codec::saved;

saved! {
    /// Either clock.
    SavedClock {
        /// 0 instruction clock, 1 host clock.
        kind: u8,
        /// Rate of the instruction clock; 0 for the host clock.
        steps_per_second: u64,
        /// Instruction clock: idle time jumped over. Host clock: virtual time when saved.
        base_ns: u64,
    }
}
