//! A chunk: a stretch of a run that can be read alone.

use super::block::{TracedBlock, branch_code};
use super::items::Items;
use super::wire::{Bytes, Wrong, direction_code};
use crate::instrument::Direction;
use crate::instrument::facts::Branch;
use machine::units::{Position, Steps};

/// Tags of records.
pub(super) mod tag {
    pub(crate) const RUN: u8 = 1;
    pub(crate) const PAGE: u8 = 2;
    pub(crate) const SPACE: u8 = 3;
    pub(crate) const INSTRUCTION: u8 = 4;
    pub(crate) const ITERATIONS: u8 = 5;
    pub(crate) const ELEMENTS: u8 = 6;
    pub(crate) const DELIVERY: u8 = 7;
}

/// A page starts to mean a frame, from an address of the chunk on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Index of the address.
    pub(super) at: u32,
    /// Linear page number.
    pub(super) page: u64,
    /// Physical frame number.
    pub(super) frame: u64,
}

/// A stretch of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    pub(super) start: Position,
    pub(super) end: Position,
    pub(super) accesses: u64,
    pub(super) blocks: Vec<TracedBlock>,
    pub(super) maps: Vec<Map>,
    pub(super) records: Vec<u8>,
    pub(super) addresses: Vec<u64>,
}

/// A chunk that was damaged in a way that its checksum does not show, or not made by this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of a memory trace is damaged: {0}")]
pub struct Damaged(pub(super) &'static str);

impl Chunk {
    /// Where it begins.
    pub fn start(&self) -> Position {
        self.start
    }

    /// Where it ends, which is where the next one of the same interval begins.
    pub fn end(&self) -> Position {
        self.end
    }

    /// How many accesses it holds.
    pub fn accesses(&self) -> u64 {
        self.accesses
    }

    /// What happened, in order.
    pub fn items(&self) -> Items<'_> {
        Items::new(self)
    }

    /// The bytes that are stored, before compression.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut blocks = Vec::new();
        self.blocks
            .iter()
            .for_each(|block| block.encode(&mut blocks));
        let mut out = Vec::with_capacity(
            20 + blocks.len()
                + 20 * self.maps.len()
                + self.records.len()
                + 8 * self.addresses.len(),
        );
        for length in [
            self.blocks.len(),
            blocks.len(),
            self.maps.len(),
            self.records.len(),
            self.addresses.len(),
        ] {
            out.extend((length as u32).to_le_bytes());
        }
        out.extend(blocks);
        for Map { at, page, frame } in &self.maps {
            out.extend(at.to_le_bytes());
            out.extend(page.to_le_bytes());
            out.extend(frame.to_le_bytes());
        }
        out.extend(&self.records);
        for address in &self.addresses {
            out.extend(address.to_le_bytes());
        }
        out
    }

    /// Reads what [`Chunk::encode`] gave.
    ///
    /// # Errors
    /// [`Damaged`].
    pub(super) fn decode(
        bytes: &[u8],
        (start, end): (Position, Position),
        accesses: u64,
    ) -> Result<Self, Damaged> {
        let chunk = Self::parse(bytes, start, end, accesses).map_err(Damaged)?;
        chunk.validate().map_err(Damaged)?;
        Ok(chunk)
    }

    fn parse(bytes: &[u8], start: Position, end: Position, accesses: u64) -> Result<Self, Wrong> {
        let mut bytes = Bytes(bytes);
        let mut lengths = [0; 5];
        for length in &mut lengths {
            *length = bytes.u32()? as usize;
        }
        let [blocks, block_bytes, maps, record_bytes, addresses] = lengths;
        let mut table = Bytes(bytes.take(block_bytes)?);
        let blocks: Vec<_> = (0..blocks)
            .map_while(|_| (!table.is_empty()).then(|| TracedBlock::decode(&mut table)))
            .collect::<Result<_, _>>()?;
        let mut map_bytes = Bytes(bytes.take(maps.checked_mul(20).ok_or("too many mappings")?)?);
        let mut map = || {
            Ok(Map {
                at: map_bytes.u32()?,
                page: map_bytes.u64()?,
                frame: map_bytes.u64()?,
            })
        };
        let maps = (0..maps).map(|_| map()).collect::<Result<_, Wrong>>()?;
        let records = bytes.take(record_bytes)?.to_vec();
        let address_bytes = bytes.take(addresses.checked_mul(8).ok_or("too many addresses")?)?;
        let addresses = address_bytes
            .chunks_exact(8)
            .map(|address| u64::from_le_bytes(address.try_into().expect("eight bytes at a time")));
        if !bytes.is_empty() {
            return Err("bytes behind the addresses");
        }
        Ok(Self {
            start,
            end,
            accesses,
            blocks,
            maps,
            records,
            addresses: addresses.collect(),
        })
    }

    /// Walks all records once, so that no reader meets one that makes no sense.
    fn validate(&self) -> Result<(), Wrong> {
        let mut items = self.items();
        let mut accesses = 0;
        while let Some(item) = items.step()? {
            accesses += u64::from(matches!(item, super::Item::Access(_)));
            if accesses > self.accesses {
                break;
            }
        }
        if accesses != self.accesses {
            return Err("another number of accesses than its header says");
        }
        items.at_end()
    }
}

/// An access whose address is given in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) va: u64,
    pub(crate) gpa: u64,
    /// Where its part in a second page starts.
    pub(crate) second: Option<u64>,
    pub(crate) bytes: u16,
    pub(crate) direction: Direction,
    pub(crate) system: bool,
}

/// One operand of a run of string elements inside a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunOperand {
    pub(crate) va: u64,
    pub(crate) gpa: u64,
    pub(crate) bytes: u8,
    pub(crate) direction: Direction,
}

/// A run of string elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) iterations: u32,
    pub(crate) backward: bool,
    pub(crate) operands: [Option<RunOperand>; 2],
}

/// Writes the records of a chunk.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder(pub(super) Chunk);

impl ChunkBuilder {
    pub(crate) fn new(start: Position) -> Self {
        Self(Chunk {
            start,
            end: start,
            ..Chunk::default()
        })
    }

    pub(crate) fn position(&self) -> Position {
        self.0.end
    }

    pub(crate) fn addresses(&self) -> usize {
        self.0.addresses.len()
    }

    pub(crate) fn record_bytes(&self) -> usize {
        self.0.records.len()
    }

    pub(crate) fn finish(self) -> Chunk {
        self.0
    }

    pub(crate) fn block(&mut self, block: TracedBlock) -> u32 {
        self.0.blocks.push(block);
        self.0.blocks.len() as u32 - 1
    }

    /// A page is a frame from the address on that comes `ahead` of the next.
    pub(crate) fn map(&mut self, page: u64, frame: u64, ahead: usize) {
        let at = (self.0.addresses.len() + ahead) as u32;
        self.0.maps.push(Map { at, page, frame });
    }

    pub(crate) fn addresses_of(&mut self, addresses: impl ExactSizeIterator<Item = u64>) {
        self.0.accesses += addresses.len() as u64;
        self.0.addresses.extend(addresses);
    }

    /// Instructions `from..to` of a block, whose addresses were given already; `taken` if the last is
    /// a conditional branch that was taken.
    pub(crate) fn run(&mut self, block: u32, from: u8, to: u8, taken: bool) {
        let [a, b, c, d] = block.to_le_bytes();
        let record = [tag::RUN, from, to, taken.into(), a, b, c, d];
        self.0.records.extend_from_slice(&record);
        self.steps(u64::from(to - from));
    }

    fn steps(&mut self, steps: u64) {
        if steps != 0 {
            self.0.end = Position::at(self.0.end.steps.0 + steps);
        }
    }

    pub(crate) fn page(&mut self, base: u64) {
        self.0.records.push(tag::PAGE);
        self.0.records.extend(base.to_le_bytes());
    }

    pub(crate) fn space(&mut self, cr3: u64) {
        self.0.records.push(tag::SPACE);
        self.0.records.extend(cr3.to_le_bytes());
    }

    /// An instruction that ran alone or in Rust retired.
    pub(crate) fn instruction(
        &mut self,
        (pc, cpl): (u64, u8),
        branch: Option<Branch>,
        taken: bool,
        accesses: &[Given],
    ) {
        let flags = cpl | branch_code(branch) << 2 | u8::from(taken) << 4;
        self.0.records.extend([tag::INSTRUCTION, flags]);
        self.given(pc, accesses);
        self.steps(1);
    }

    /// Iterations of an instruction are complete.
    pub(crate) fn iterations(&mut self, (pc, cpl): (u64, u8), count: u64, accesses: &[Given]) {
        self.0.records.extend([tag::ITERATIONS, cpl]);
        self.0.records.extend((count as u32).to_le_bytes());
        self.given(pc, accesses);
        self.0.end.rep_iterations += count;
    }

    fn given(&mut self, pc: u64, accesses: &[Given]) {
        let out = &mut self.0.records;
        out.extend(pc.to_le_bytes());
        out.extend((accesses.len() as u16).to_le_bytes());
        for access in accesses {
            let flags = direction_code(access.direction)
                | u8::from(access.system) << 2
                | u8::from(access.second.is_some()) << 3;
            out.push(flags);
            out.extend(access.bytes.to_le_bytes());
            out.extend(access.va.to_le_bytes());
            out.extend(access.gpa.to_le_bytes());
            out.extend(access.second.into_iter().flat_map(u64::to_le_bytes));
        }
        self.0.accesses += accesses.len() as u64;
    }

    pub(crate) fn elements(&mut self, (pc, cpl): (u64, u8), run: &Run) {
        let operands = run.operands.iter().flatten();
        let out = &mut self.0.records;
        let count = operands.clone().count();
        let flags = cpl | u8::from(run.backward) << 2 | (count as u8) << 3;
        out.extend([tag::ELEMENTS, flags]);
        out.extend(run.iterations.to_le_bytes());
        out.extend(pc.to_le_bytes());
        for operand in operands {
            out.extend([operand.bytes, direction_code(operand.direction)]);
            out.extend(operand.va.to_le_bytes());
            out.extend(operand.gpa.to_le_bytes());
        }
        self.0.accesses += u64::from(run.iterations) * count as u64;
        self.0.end.rep_iterations += u64::from(run.iterations);
    }

    /// An exception or interrupt was delivered; `step` if it takes one of its own.
    pub(crate) fn delivery(
        &mut self,
        (pc, cpl): (u64, u8),
        (vector, exception, step): (u8, bool, bool),
        accesses: &[Given],
    ) {
        let flags = cpl | u8::from(exception) << 2 | u8::from(step) << 3;
        self.0.records.extend([tag::DELIVERY, flags, vector]);
        self.given(pc, accesses);
        self.steps(step.into());
    }

    /// Nothing of it is worth keeping.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.start == self.0.end && self.0.accesses == 0
    }
}

/// A position that an encoder wrote.
pub(super) fn position(bytes: &mut Bytes<'_>) -> Result<Position, Wrong> {
    Ok(Position {
        steps: Steps(bytes.u64()?),
        rep_iterations: bytes.u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::block::{TracedAccess, TracedInsn};
    use super::*;

    /// A chunk with a record of every kind.
    fn sample() -> Chunk {
        let mut builder = ChunkBuilder::new(Position::at(5));
        builder.space(0x3000);
        builder.page(0x40_0000);
        let block = builder.block(TracedBlock {
            cpl: 3,
            insns: vec![
                TracedInsn {
                    offset: 0x10,
                    branch: None,
                    first_access: 0,
                },
                TracedInsn {
                    offset: 0x13,
                    branch: Some(Branch::Conditional),
                    first_access: 1,
                },
            ],
            accesses: vec![TracedAccess {
                bytes: 8,
                direction: Direction::Update,
            }],
        });
        builder.map(0x60, 0x70, 0);
        builder.addresses_of([0x6_0008].into_iter());
        builder.run(block, 0, 2, true);
        let given = |second| Given {
            va: 0x6_0ffc,
            gpa: 0x7_0ffc,
            second,
            bytes: 8,
            direction: Direction::Write,
            system: second.is_none(),
        };
        let crossing = given(Some(0x1000));
        builder.elements(
            (0x40_0020, 3),
            &Run {
                iterations: 2,
                backward: true,
                operands: [
                    Some(RunOperand {
                        va: 0x6_0010,
                        gpa: 0x7_0010,
                        bytes: 4,
                        direction: Direction::Read,
                    }),
                    None,
                ],
            },
        );
        builder.iterations((0x40_0020, 3), 1, &[crossing]);
        builder.instruction((0x40_0020, 3), Some(Branch::Always), true, &[]);
        builder.delivery((0x40_0022, 3), (14, true, true), &[given(None)]);
        builder.finish()
    }

    #[test]
    fn the_encoding_is_that_of_the_format_page() {
        #[rustfmt::skip]
        let expected: Vec<u8> = [
            // Lengths: blocks, block table, mappings, records, addresses.
            &[1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 145, 0, 0, 0, 1, 0, 0, 0][..],
            // Level 3, two instructions: an update of 8 bytes; a conditional branch.
            &[3, 2, 0x10, 0, 0, 1, 8, 2, 0x13, 0, 1, 0],
            // Address 0 on: page 0x60 is frame 0x70.
            &[0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0, 0, 0x70, 0, 0, 0, 0, 0, 0, 0],
            &[3, 0, 0x30, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0x40, 0, 0, 0, 0, 0],
            &[1, 0, 2, 1, 0, 0, 0, 0],
            &[6, 0b1111, 2, 0, 0, 0, 0x20, 0, 0x40, 0, 0, 0, 0, 0,
              4, 0, 0x10, 0, 6, 0, 0, 0, 0, 0, 0x10, 0, 7, 0, 0, 0, 0, 0],
            &[5, 3, 1, 0, 0, 0, 0x20, 0, 0x40, 0, 0, 0, 0, 0, 1, 0,
              0b1001, 8, 0, 0xfc, 0x0f, 6, 0, 0, 0, 0, 0, 0xfc, 0x0f, 7, 0, 0, 0, 0, 0,
              0, 0x10, 0, 0, 0, 0, 0, 0],
            &[4, 0b1_1011, 0x20, 0, 0x40, 0, 0, 0, 0, 0, 0, 0],
            &[7, 0b1111, 14, 0x22, 0, 0x40, 0, 0, 0, 0, 0, 1, 0,
              0b101, 8, 0, 0xfc, 0x0f, 6, 0, 0, 0, 0, 0, 0xfc, 0x0f, 7, 0, 0, 0, 0, 0],
            &[8, 0, 6, 0, 0, 0, 0, 0],
        ]
        .concat();
        let chunk = sample();
        assert_eq!(chunk.encode(), expected);
        assert_eq!((chunk.end(), chunk.accesses()), (Position::at(9), 5));
        let ends = (chunk.start, chunk.end);
        assert_eq!(Chunk::decode(&expected, ends, 5), Ok(chunk));
    }

    #[test]
    fn damage_is_an_error_or_another_chunk_and_never_a_panic() {
        let chunk = sample();
        let whole = chunk.encode();
        let ends = (chunk.start, chunk.end);
        let read = |bytes: &[u8]| match Chunk::decode(bytes, ends, 5) {
            Ok(chunk) => chunk.items().count(),
            Err(_) => 0,
        };
        let mut refused = 0;
        for at in 0..whole.len() {
            assert_eq!(read(&whole[..at]), 0, "cut at {at}");
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                refused += u32::from(read(&damaged) == 0);
            }
        }
        assert!(refused > 500, "{refused} of {}", 8 * whole.len());
    }
}
