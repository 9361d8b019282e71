//! Little-endian numbers in byte strings.

/// Why bytes are not what they should be.
pub(super) type Wrong = &'static str;

/// Reads a byte string from front to back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], Wrong> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or("cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("cut off")?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Wrong> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Wrong> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Wrong> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Wrong> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(super) fn direction(code: u8) -> Result<crate::instrument::Direction, Wrong> {
    use crate::instrument::Direction as D;
    match code {
        0 => Ok(D::Read),
        1 => Ok(D::Write),
        2 => Ok(D::Update),
        _ => Err("unknown direction of an access"),
    }
}

pub(super) fn direction_code(direction: crate::instrument::Direction) -> u8 {
    use crate::instrument::Direction as D;
    match direction {
        D::Read => 0,
        D::Write => 1,
        D::Update => 2,
    }
}
