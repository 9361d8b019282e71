//! What processors do differently where the architecture leaves it open: undefined flags, approximations,
//! x87 functions, encodings that only some know. Guests see the results of the host they run on, so a
//! recording can only be simulated on a host that gives the same ones.
//!
//! [`Results::of_host`] executes every kind of such instructions here and sums each up in a number.

mod code;

pub use code::program;

/// Counts changes of the program: results of different versions cannot be compared.
pub const VERSION: u32 = 1;

/// One kind of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in a recording. Never changed.
    pub name: &'static str,
    /// What it is, to follow "differs in".
    pub what: &'static str,
}

const fn kind(name: &'static str, what: &'static str) -> Kind {
    Kind { name, what }
}

/// The kinds, in the order of the program's results.
pub const KINDS: [Kind; 16] = [
    kind("defined", "what every processor must do alike"),
    kind("multiplication", "undefined flags of MUL and IMUL"),
    kind("division", "undefined flags of DIV and IDIV"),
    kind(
        "shifts",
        "undefined flags and results of SHL, SHR, SAR, SHLD and SHRD",
    ),
    kind(
        "rotates",
        "undefined flags and results of ROL, ROR, RCL and RCR",
    ),
    kind(
        "bit-scans",
        "BSF and BSR: undefined flags, and what they leave for zero",
    ),
    kind("bit-tests", "undefined flags of BT, BTS, BTR and BTC"),
    kind("logic", "the undefined flag AF of AND, OR, XOR and TEST"),
    kind(
        "trailing-zeros",
        "TZCNT and LZCNT, which older processors take for BSF and BSR",
    ),
    kind(
        "register-halves",
        "BSWAP of 16 bits, and upper halves after 32-bit comparisons",
    ),
    kind("approximations", "RCPPS, RCPSS, RSQRTPS and RSQRTSS"),
    kind("dot-products", "DPPS and DPPD"),
    kind(
        "x87-functions",
        "FSIN, FCOS, FPTAN, FPATAN, F2XM1, FYL2X and FYL2XP1",
    ),
    kind(
        "x87-conditions",
        "undefined condition codes of the x87 unit",
    ),
    kind(
        "x87-pointers",
        "instruction and data pointers of the x87 unit",
    ),
    kind("mxcsr-mask", "the mask of MXCSR"),
];

/// The results of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Results {
    /// One number for each of [`KINDS`].
    pub numbers: [u64; KINDS.len()],
}

/// The host did not give the same results twice: its processors differ, or something is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this host's processors do not give the same results twice ({what})")]
pub struct Unsteady {
    /// Where they differ.
    pub what: &'static str,
}

impl Results {
    /// What this host does. Takes a few milliseconds.
    ///
    /// The selectors of the x87 pointers are lost when the kernel switches to another thread, so a
    /// result counts when it comes twice in a row.
    ///
    /// # Errors
    /// [`Unsteady`].
    pub fn of_host() -> Result<Self, Unsteady> {
        const TRIES: usize = 16;
        let mut last = Self::once();
        let mut what = "";
        for _ in 0..TRIES {
            let next = Self::once();
            match last.differing(&next).next() {
                None => return Ok(next),
                Some(kind) => what = kind.what,
            }
            last = next;
        }
        Err(Unsteady { what })
    }

    fn once() -> Self {
        Self {
            numbers: code::execute(),
        }
    }

    /// The kinds in which two processors differ.
    pub fn differing(&self, other: &Self) -> impl Iterator<Item = Kind> {
        let pairs: Vec<_> = self.numbers.into_iter().zip(other.numbers).collect();
        KINDS
            .into_iter()
            .zip(pairs)
            .filter(|(_, (one, other))| one != other)
            .map(|(kind, _)| kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Whatever is defined is the same on every processor; if this fails there, the measuring program
    /// has changed, and [`VERSION`] must.
    #[test]
    fn defined_results_are_those_of_every_processor() {
        let results = Results::of_host().unwrap();
        assert_eq!(results.numbers[0], 0xd6e8_5198_7c0c_ddf5);
    }

    #[test]
    fn every_kind_is_measured() {
        let results = Results::of_host().unwrap();
        let names: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        let numbers: BTreeSet<u64> = results.numbers.into_iter().collect();
        assert_eq!(numbers.len(), KINDS.len(), "{results:x?}");
        assert!(!numbers.contains(&0));
    }

    #[test]
    fn differences_are_named() {
        let here = Results::of_host().unwrap();
        assert_eq!(here.differing(&here).count(), 0);
        let mut other = here;
        other.numbers[3] ^= 1 << 63;
        let names: Vec<&str> = here.differing(&other).map(|kind| kind.name).collect();
        assert_eq!(names, ["shifts"]);
    }

    #[test]
    fn the_program_changes_nothing_of_its_caller() {
        // The x87 and SSE state is whole: floating-point arithmetic goes on as before.
        let before = (1..50).map(|n| 1.0 / f64::from(n)).sum::<f64>();
        Results::of_host().unwrap();
        let after = (1..50).map(|n| 1.0 / f64::from(n)).sum::<f64>();
        assert_eq!(before.to_bits(), after.to_bits());
        assert!(program().len() > 4096);
    }
}
