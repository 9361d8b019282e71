//! The static facts of blocks in a chunk.

use super::wire::{Bytes, Wrong, direction, direction_code};
use crate::instrument::Direction;
use crate::instrument::facts::Branch;

/// Most instructions of a block.
const INSNS_MAX: usize = 255;

/// A block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TracedBlock {
    pub(crate) cpl: u8,
    pub(crate) insns: Vec<TracedInsn>,
    pub(crate) accesses: Vec<TracedAccess>,
}

/// An instruction of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TracedInsn {
    /// From the start of the page.
    pub(crate) offset: u16,
    pub(crate) branch: Option<Branch>,
    /// Index of its first access.
    pub(crate) first_access: u16,
}

/// An access of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TracedAccess {
    pub(crate) bytes: u8,
    pub(crate) direction: Direction,
}

impl TracedBlock {
    /// The accesses of the first `insns` instructions.
    pub(crate) fn accesses_before(&self, insns: usize) -> usize {
        self.insns
            .get(insns)
            .map_or(self.accesses.len(), |insn| usize::from(insn.first_access))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.cpl, self.insns.len() as u8]);
        for (index, insn) in self.insns.iter().enumerate() {
            let first = usize::from(insn.first_access);
            let accesses = &self.accesses[first..self.accesses_before(index + 1)];
            out.extend(insn.offset.to_le_bytes());
            out.extend([branch_code(insn.branch), accesses.len() as u8]);
            for access in accesses {
                out.extend([access.bytes, direction_code(access.direction)]);
            }
        }
    }

    pub(super) fn decode(bytes: &mut Bytes<'_>) -> Result<Self, Wrong> {
        let cpl = bytes.u8()?;
        if cpl > 3 {
            return Err("unknown privilege level");
        }
        let mut block = Self {
            cpl,
            ..Self::default()
        };
        let insns = usize::from(bytes.u8()?);
        debug_assert!(insns <= INSNS_MAX);
        for _ in 0..insns {
            let offset = bytes.u16()?;
            let branch = branch(bytes.u8()?)?;
            let first_access = block.accesses.len() as u16;
            block.insns.push(TracedInsn {
                offset,
                branch,
                first_access,
            });
            for _ in 0..bytes.u8()? {
                block.accesses.push(TracedAccess {
                    bytes: bytes.u8()?,
                    direction: direction(bytes.u8()?)?,
                });
            }
        }
        Ok(block)
    }
}

pub(super) fn branch_code(branch: Option<Branch>) -> u8 {
    match branch {
        None => 0,
        Some(Branch::Conditional) => 1,
        Some(Branch::Always) => 2,
    }
}

pub(super) fn branch(code: u8) -> Result<Option<Branch>, Wrong> {
    match code {
        0 => Ok(None),
        1 => Ok(Some(Branch::Conditional)),
        2 => Ok(Some(Branch::Always)),
        _ => Err("unknown kind of branch"),
    }
}
