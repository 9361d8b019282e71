//! Bytes in and out: fixed little-endian integers, LEB128 varints, bounds always checked.

use crate::error::FormatError;

/// A cursor over untrusted bytes.
pub(crate) struct Input<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `count` bytes.
    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        if count > self.remaining() {
            return Err(FormatError::Truncated {
                offset: self.position,
                needed: count,
                available: self.remaining(),
            });
        }
        let out = &self.bytes[self.position..self.position + count];
        self.position += count;
        Ok(out)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A LEB128 integer of at most 10 bytes.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("varint"))
    }

    /// A varint that must fit in 32 bits.
    #[inline]
    pub(crate) fn varint32(&mut self) -> Result<u32, FormatError> {
        u32::try_from(self.varint()?).map_err(|_| self.malformed("32-bit varint"))
    }

    /// A count of things that take at least `unit` bytes each in what remains.
    pub(crate) fn count(&mut self, unit: usize) -> Result<usize, FormatError> {
        let count = self.varint()?;
        if count > (self.remaining() / unit.max(1)) as u64 {
            return Err(self.malformed("count"));
        }
        Ok(count as usize)
    }

    /// A varint length and that many bytes.
    pub(crate) fn block(&mut self) -> Result<&'a [u8], FormatError> {
        let length = self.count(1)?;
        self.take(length)
    }

    /// A length and that many bytes of UTF-8.
    pub(crate) fn text(&mut self) -> Result<&'a str, FormatError> {
        let offset = self.position;
        std::str::from_utf8(self.block()?).map_err(|_| FormatError::Malformed {
            what: "text",
            offset,
        })
    }

    /// Refuses bytes left over.
    pub(crate) fn finish(self) -> Result<(), FormatError> {
        if self.remaining() > 0 {
            return Err(self.malformed("end"));
        }
        Ok(())
    }

    pub(crate) fn malformed(&self, what: &'static str) -> FormatError {
        FormatError::Malformed {
            what,
            offset: self.position,
        }
    }
}

/// Appends to a byte vector what [`Input`] reads.
pub(crate) trait Output {
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_varint(&mut self, value: u64);
    fn put_block(&mut self, bytes: &[u8]);
}

impl Output for Vec<u8> {
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    #[inline]
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn put_block(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }
}

/// Maps signed to unsigned so that small magnitudes stay small.
#[inline]
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Undoes [`zigzag`].
#[inline]
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            bytes.put_varint(zigzag(signed));
            let mut input = Input::new(&bytes);
            prop_assert_eq!(input.varint().unwrap(), value);
            prop_assert_eq!(unzigzag(input.varint().unwrap()), signed);
            prop_assert!(input.finish().is_ok());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut input = Input::new(&bytes);
            while input.varint().is_ok() {}
            let _ = Input::new(&bytes).block();
            let _ = Input::new(&bytes).text();
        }
    }
}
