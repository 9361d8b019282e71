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
