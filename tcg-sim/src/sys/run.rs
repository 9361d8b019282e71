//! Runs of elements in host memory, for the string instructions. The pointers come from
//! [`super::SysBus::host_run`] for exactly `count * size` bytes, lowest byte first.
#![expect(
    unsafe_code,
    reason = "string instructions move whole runs through host pointers"
)]

/// Elements of a run in the order in which they are processed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elements {
    /// Bytes of an element: 1, 2, 4 or 8.
    pub(super) size: usize,
    /// Number of elements.
    pub(super) count: usize,
    /// Highest address first (DF set).
    pub(super) backward: bool,
}

impl Elements {
    fn bytes(self) -> usize {
        self.size * self.count
    }

    /// Byte offset of the `index`-th element processed; the element lies inside the run.
    fn offset(self, index: usize) -> usize {
        assert!(index < self.count, "element of the run");
        let position = if self.backward {
            self.count - 1 - index
        } else {
            index
        };
        position * self.size
    }
}

/// The `index`-th element processed, zero-extended.
pub(super) fn load(run: *const u8, index: usize, elements: Elements) -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: `host_run` vouches for count * size readable bytes, and `offset` stays inside them.
    unsafe {
        let element = run.add(elements.offset(index));
        element.copy_to_nonoverlapping(bytes.as_mut_ptr(), elements.size.min(8));
    }
    u64::from_le_bytes(bytes)
}

/// What a run is compared with: another run, or the same value each time.
#[derive(Clone, Copy)]
pub(super) enum Other {
    /// A run of the same elements.
    Run(*const u8),
    /// A value as wide as an element.
    Value(u64),
}

/// The first element processed that equals the other one, or with `equal` false the first that does not.
pub(super) fn find(run: *const u8, other: Other, elements: Elements, equal: bool) -> Option<usize> {
    match elements.size {
        1 => find_sized(run, other, elements, equal, |value| value as u8),
        2 => find_sized(run, other, elements, equal, |value| value as u16),
        4 => find_sized(run, other, elements, equal, |value| value as u32),
        _ => find_sized(run, other, elements, equal, |value| value),
    }
}

/// As many elements are looked at together, in vectors.
const STRIDE: usize = 32;

fn find_sized<T: Copy + Eq>(
    run: *const u8,
    other: Other,
    elements: Elements,
    equal: bool,
    narrow: impl Fn(u64) -> T,
) -> Option<usize> {
    let count = elements.count;
    let wanted = |index: usize| {
        // SAFETY: `host_run` vouches for `count` readable elements of each run, and `index` is below.
        let get = |run: *const u8| unsafe { run.cast::<T>().add(index).read_unaligned() };
        let other = match other {
            Other::Run(other) => get(other),
            Other::Value(value) => narrow(value),
        };
        (get(run) == other) == equal
    };
    if elements.backward {
        return (0..count).find(|index| wanted(count - 1 - index));
    }
    let any_wanted = |stride: &usize| {
        // SAFETY: as above, of all elements of a whole stride.
        let get =
            |run: *const u8| unsafe { run.cast::<[T; STRIDE]>().add(*stride).read_unaligned() };
        let others = match other {
            Other::Run(other) => get(other),
            Other::Value(value) => [narrow(value); STRIDE],
        };
        match count_equal(&get(run), &others) {
            0 => !equal,
            STRIDE => equal,
            _ => true,
        }
    };
    let strides = count / STRIDE;
    let first = (0..strides).find(any_wanted).unwrap_or(strides);
    (first * STRIDE..count).find(|index| wanted(*index))
}

/// Not inlined: alone the loop becomes vector code, inside its callers it did not.
#[inline(never)]
fn count_equal<T: Copy + Eq>(a: &[T; STRIDE], b: &[T; STRIDE]) -> usize {
    let equal = a.iter().zip(b).map(|(a, b)| u8::from(a == b));
    equal.sum::<u8>().into()
}

fn store(run: *mut u8, index: usize, elements: Elements, value: u64) {
    let bytes = value.to_le_bytes();
    // SAFETY: `host_run` vouches for count * size writable bytes, and `offset` stays inside them.
    unsafe {
        let element = run.add(elements.offset(index));
        element.copy_from_nonoverlapping(bytes.as_ptr(), elements.size.min(8));
    }
}

/// Sets every element.
pub(super) fn fill(to: *mut u8, value: u64, elements: Elements) {
    if elements.size == 1 {
        // SAFETY: `host_run` vouches for count * size writable bytes.
        unsafe { to.write_bytes(value as u8, elements.bytes()) };
        return;
    }
    for index in 0..elements.count {
        store(to, index, elements, value);
    }
}

/// Copies element by element. Where runs overlap, elements see what earlier ones stored.
pub(super) fn copy(from: *const u8, to: *mut u8, elements: Elements) {
    let (source, target) = (from as usize, to as usize);
    let disjoint = source.abs_diff(target) >= elements.bytes();
    // Moving away from what is still to be read equals a move through a buffer.
    let retreats = if elements.backward {
        target > source
    } else {
        target < source
    };
    if disjoint || retreats {
        // SAFETY: `host_run` vouches for both runs; `copy_to` allows overlap.
        unsafe { from.copy_to(to, elements.bytes()) };
        return;
    }
    for index in 0..elements.count {
        let value = load(from, index, elements);
        store(to, index, elements, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_end_where_looking_at_each_element_ends() {
        for (size, count, backward) in [
            (1, 200, false),
            (1, 67, true),
            (2, 100, false),
            (4, 70, false),
            (4, 40, true),
            (8, 65, false),
        ] {
            let elements = Elements {
                size,
                count,
                backward,
            };
            for place in 0..count {
                let (zeros, mut run) = (vec![0_u8; size * count], vec![0_u8; size * count]);
                run[place * size + size - 1] = 0x80;
                let special = 0x80_u64 << (8 * (size - 1));
                let expected = if backward { count - 1 - place } else { place };
                let at = run.as_ptr();
                assert_eq!(load(at, expected, elements), special);
                let found = [
                    find(at, Other::Run(zeros.as_ptr()), elements, false),
                    find(at, Other::Value(0), elements, false),
                    find(at, Other::Value(special), elements, true),
                ];
                assert_eq!(found, [Some(expected); 3], "{elements:?} {place}");
                assert_eq!(find(at, Other::Run(at), elements, false), None);
                assert_eq!(find(at, Other::Value(1), elements, true), None);
            }
        }
    }
}
