//! What is in a chunk.

use super::block;
use super::chunk::{Chunk, tag};
use super::wire::{Bytes, Wrong, direction};
use crate::instrument::facts::Branch;
use crate::instrument::{Counts, Direction};
use machine::units::{GuestPhys, PAGE_BYTES, Position, Steps};
use std::collections::HashMap;

/// An access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Steps and iterations completed before the step that makes it.
    pub at: Position,
    /// Linear address of the instruction; for a delivery, where it returns to.
    pub pc: u64,
    /// Privilege level at which the step began.
    pub cpl: u8,
    /// Linear address of the first byte.
    pub linear: u64,
    /// Guest-physical address of the first byte.
    pub physical: GuestPhys,
    /// Where its part in a second page starts, if it crosses into one.
    pub second: Option<GuestPhys>,
    /// Length.
    pub bytes: u16,
    /// What it does to memory.
    pub direction: Direction,
    /// Made by the processor itself to a descriptor table or task state.
    pub system: bool,
}

/// How an instruction transferred control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branched {
    /// It is no branch.
    No,
    /// A conditional branch that was not taken.
    NotTaken,
    /// A branch that was taken.
    Taken,
}

/// What was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The step that it is, or that it belongs to.
    pub at: Position,
    /// Where it returns to.
    pub pc: u64,
    /// Privilege level before it.
    pub cpl: u8,
    /// Its vector.
    pub vector: u8,
    /// An exception, else an external interrupt.
    pub exception: bool,
}

/// One thing that happened. The accesses of an instruction, of iterations or of a delivery come
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// An access to memory.
    Access(Access),
    /// Iterations of a REP instruction are complete.
    Iterations(u64),
    /// An instruction retired.
    Instruction {
        /// The step that it is.
        at: Position,
        /// Its linear address.
        pc: u64,
        /// Privilege level at which it began.
        cpl: u8,
        /// Whether it transferred control.
        branch: Branched,
    },
    /// An exception or interrupt was delivered.
    Delivery(Delivered),
}

impl Item {
    /// Adds it to counts: what the `count` instrument would have said.
    pub fn count(&self, counts: &mut Counts) {
        match self {
            Self::Access(access) => {
                let accesses = match access.system {
                    true => &mut counts.system,
                    false => &mut counts.data,
                };
                accesses.note(access.direction, access.bytes.into(), 1);
            }
            Self::Iterations(iterations) => counts.rep_iterations += iterations,
            Self::Instruction { cpl, branch, .. } => {
                counts.instructions[usize::from(*cpl)] += 1;
                counts.branches += u64::from(*branch != Branched::No);
                counts.branches_taken += u64::from(*branch == Branched::Taken);
            }
            Self::Delivery(delivered) => {
                counts.exceptions += u64::from(delivered.exception);
                counts.interrupts += u64::from(!delivered.exception);
            }
        }
    }
}

/// What a record that is being read gives one after the other.
#[derive(Clone, Debug)]
enum State<'a> {
    Between,
    Run {
        block: usize,
        insn: usize,
        to: usize,
        access: usize,
        taken: bool,
    },
    Given {
        left: u16,
        then: Then,
    },
    Elements {
        operands: Bytes<'a>,
        count: u8,
        operand: u8,
        index: u32,
        iterations: u32,
        backward: bool,
    },
}

/// What follows the accesses that a record gives.
#[derive(Clone, Copy, Debug)]
enum Then {
    Instruction(Branched),
    Iterations(u32),
    Delivery {
        vector: u8,
        exception: bool,
        step: bool,
    },
}

/// Everything in a chunk, in order. Made by [`Chunk::items`].
#[derive(Clone, Debug)]
pub struct Items<'a> {
    chunk: &'a Chunk,
    records: Bytes<'a>,
    state: State<'a>,
    address: usize,
    map: usize,
    frames: HashMap<u64, u64>,
    page: u64,
    space: u64,
    at: Position,
    /// The step that a debug trap belongs to.
    last: Position,
    pc: u64,
    cpl: u8,
}

impl<'a> Items<'a> {
    pub(super) fn new(chunk: &'a Chunk) -> Self {
        Self {
            chunk,
            records: Bytes(&chunk.records),
            state: State::Between,
            address: 0,
            map: 0,
            frames: HashMap::new(),
            page: 0,
            space: 0,
            at: chunk.start,
            last: chunk.start,
            pc: 0,
            cpl: 0,
        }
    }

    /// The address space that the last item was met in: CR3.
    pub fn space(&self) -> u64 {
        self.space
    }

    pub(super) fn step(&mut self) -> Result<Option<Item>, Wrong> {
        loop {
            match &mut self.state {
                State::Between if self.records.is_empty() => return Ok(None),
                State::Between => self.record()?,
                State::Run { insn, to, .. } if insn == to => self.state = State::Between,
                State::Run { .. } => return self.in_run().map(Some),
                State::Given { left: 0, then } => {
                    let then = *then;
                    self.state = State::Between;
                    return Ok(Some(self.complete(then)));
                }
                State::Given { left, .. } => {
                    *left -= 1;
                    return self.given().map(Some);
                }
                State::Elements { .. } => return self.in_elements().map(Some),
            }
        }
    }

    /// Whether everything was used and ends where the chunk says.
    pub(super) fn at_end(&self) -> Result<(), Wrong> {
        if self.address != self.chunk.addresses.len() {
            return Err("more addresses than accesses");
        }
        if self.at != self.chunk.end {
            return Err("it ends elsewhere than its header says");
        }
        Ok(())
    }

    fn record(&mut self) -> Result<(), Wrong> {
        let records = &mut self.records;
        match records.u8()? {
            tag::RUN => {
                let (from, to, taken) = (records.u8()?, records.u8()?, records.u8()?);
                let block = records.u32()? as usize;
                self.begin_run(block, from.into(), to.into(), taken)?;
            }
            tag::PAGE => self.page = records.u64()?,
            tag::SPACE => {
                self.space = records.u64()?;
                self.frames.clear();
            }
            tag::INSTRUCTION => {
                let flags = records.u8()?;
                let taken = flags >> 4 & 1 != 0;
                let branch = match block::branch(flags >> 2 & 3)? {
                    None => Branched::No,
                    Some(Branch::Conditional) if !taken => Branched::NotTaken,
                    Some(_) => Branched::Taken,
                };
                self.begin_given(flags, Then::Instruction(branch))?;
            }
            tag::ITERATIONS => {
                let flags = records.u8()?;
                let iterations = records.u32()?;
                self.begin_given(flags, Then::Iterations(iterations))?;
            }
            tag::ELEMENTS => self.begin_elements()?,
            tag::DELIVERY => {
                let (flags, vector) = (records.u8()?, records.u8()?);
                let then = Then::Delivery {
                    vector,
                    exception: flags >> 2 & 1 != 0,
                    step: flags >> 3 & 1 != 0,
                };
                self.begin_given(flags, then)?;
            }
            _ => return Err("unknown record"),
        }
        Ok(())
    }

    fn begin_run(&mut self, block: usize, from: usize, to: usize, taken: u8) -> Result<(), Wrong> {
        let facts = self.chunk.blocks.get(block).ok_or("unknown block")?;
        if from > to || to > facts.insns.len() || taken > 1 {
            return Err("no run of its block");
        }
        self.cpl = facts.cpl;
        self.state = State::Run {
            block,
            insn: from,
            to,
            access: facts.accesses_before(from),
            taken: taken != 0,
        };
        Ok(())
    }

    fn in_run(&mut self) -> Result<Item, Wrong> {
        let State::Run {
            block,
            insn,
            to,
            access,
            taken,
        } = &mut self.state
        else {
            unreachable!("the caller looked")
        };
        let facts = &self.chunk.blocks[*block];
        let fact = facts.insns[*insn];
        self.pc = self.page.wrapping_add(fact.offset.into());
        if *access < facts.accesses_before(*insn + 1) {
            let made = facts.accesses[*access];
            *access += 1;
            return self.addressed(made.bytes, made.direction);
        }
        *insn += 1;
        let branch = match fact.branch {
            None => Branched::No,
            Some(Branch::Always) => Branched::Taken,
            Some(Branch::Conditional) if *taken && insn == to => Branched::Taken,
            Some(Branch::Conditional) => Branched::NotTaken,
        };
        Ok(self.retired(branch))
    }

    fn addressed(&mut self, bytes: u8, direction: Direction) -> Result<Item, Wrong> {
        let index = self.address;
        let linear = *self.chunk.addresses.get(index).ok_or("too few addresses")?;
        while let Some(map) = self.chunk.maps.get(self.map)
            && map.at as usize <= index
        {
            self.frames.insert(map.page, map.frame);
            self.map += 1;
        }
        self.address += 1;
        let frame = self.frames.get(&(linear / PAGE_BYTES));
        let frame = *frame.ok_or("a page without a mapping")?;
        let physical = frame.checked_mul(PAGE_BYTES).ok_or("no frame")?;
        Ok(Item::Access(Access {
            at: self.at,
            pc: self.pc,
            cpl: self.cpl,
            linear,
            physical: GuestPhys(physical + linear % PAGE_BYTES),
            second: None,
            bytes: bytes.into(),
            direction,
            system: false,
        }))
    }

    fn begin_given(&mut self, flags: u8, then: Then) -> Result<(), Wrong> {
        self.cpl = flags & 3;
        self.pc = self.records.u64()?;
        self.state = State::Given {
            left: self.records.u16()?,
            then,
        };
        Ok(())
    }

    fn given(&mut self) -> Result<Item, Wrong> {
        let records = &mut self.records;
        let flags = records.u8()?;
        let bytes = records.u16()?;
        let (linear, physical) = (records.u64()?, records.u64()?);
        let second = match flags >> 3 & 1 {
            0 => None,
            _ => Some(GuestPhys(records.u64()?)),
        };
        let at = match self.state {
            State::Given {
                then: Then::Delivery { step: false, .. },
                ..
            } => self.last,
            _ => self.at,
        };
        Ok(Item::Access(Access {
            at,
            pc: self.pc,
            cpl: self.cpl,
            linear,
            physical: GuestPhys(physical),
            second,
            bytes,
            direction: direction(flags & 3)?,
            system: flags >> 2 & 1 != 0,
        }))
    }

    fn complete(&mut self, then: Then) -> Item {
        match then {
            Then::Instruction(branch) => self.retired(branch),
            Then::Iterations(iterations) => self.iterated(iterations),
            Then::Delivery {
                vector,
                exception,
                step,
            } => {
                let at = if step { self.at } else { self.last };
                if step {
                    self.next_step();
                }
                Item::Delivery(Delivered {
                    at,
                    pc: self.pc,
                    cpl: self.cpl,
                    vector,
                    exception,
                })
            }
        }
    }

    fn retired(&mut self, branch: Branched) -> Item {
        let at = self.at;
        self.next_step();
        Item::Instruction {
            at,
            pc: self.pc,
            cpl: self.cpl,
            branch,
        }
    }

    fn iterated(&mut self, iterations: u32) -> Item {
        let sum = self.at.rep_iterations.wrapping_add(iterations.into());
        self.at.rep_iterations = sum;
        Item::Iterations(iterations.into())
    }

    fn next_step(&mut self) {
        self.last = self.at;
        self.at = Position {
            steps: Steps(self.at.steps.0.wrapping_add(1)),
            rep_iterations: 0,
        };
    }

    fn begin_elements(&mut self) -> Result<(), Wrong> {
        let records = &mut self.records;
        let flags = records.u8()?;
        let iterations = records.u32()?;
        self.pc = records.u64()?;
        self.cpl = flags & 3;
        let count = flags >> 3;
        if count == 0 || count > 2 || iterations == 0 {
            return Err("no run of string elements");
        }
        self.state = State::Elements {
            operands: Bytes(records.take(18 * usize::from(count))?),
            count,
            operand: 0,
            index: 0,
            iterations,
            backward: flags >> 2 & 1 != 0,
        };
        Ok(())
    }

    fn in_elements(&mut self) -> Result<Item, Wrong> {
        let State::Elements {
            operands,
            count,
            operand,
            index,
            iterations,
            backward,
        } = &mut self.state
        else {
            unreachable!("the caller looked")
        };
        if operand == count {
            // The accesses of one iteration are complete.
            *operand = 0;
            *index += 1;
            if index == iterations {
                self.state = State::Between;
            }
            return Ok(self.iterated(1));
        }
        let mut bytes = Bytes(&operands.0[18 * usize::from(*operand)..]);
        *operand += 1;
        let (size, code) = (bytes.u8()?, bytes.u8()?);
        let (va, gpa) = (bytes.u64()?, bytes.u64()?);
        let distance = u64::from(*index) * u64::from(size);
        let moved = |from: u64| match backward {
            true => from.wrapping_sub(distance),
            false => from.wrapping_add(distance),
        };
        Ok(Item::Access(Access {
            at: self.at,
            pc: self.pc,
            cpl: self.cpl,
            linear: moved(va),
            physical: GuestPhys(moved(gpa)),
            second: None,
            bytes: size.into(),
            direction: direction(code)?,
            system: false,
        }))
    }
}

impl Iterator for Items<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        self.step()
            .expect("chunks are validated when they are read")
    }
}
