//! From planned instructions to bytes at an address.

use super::super::forms::{Kind, instruction_allowed, is_vector_encoding, kind};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Encoder, Instruction, OpKind};
use std::cell::RefCell;

/// Decoder options for the vendor of the recording host. AMD and Intel read a few encodings
/// differently in 64-bit mode (near branches with an operand-size prefix, for example).
pub(crate) fn decoder_options() -> u32 {
    static AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let amd = *AMD.get_or_init(|| super::super::vendor::Vendor::of_host().is_amd());
    if amd {
        DecoderOptions::AMD
    } else {
        DecoderOptions::NONE
    }
}

/// What in an instruction depends on where another item ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The target of a near branch.
    Branch,
    /// A RIP-relative or absolute memory operand.
    Memory,
    /// A 32-bit immediate that holds the address.
    Immediate,
}

/// A reference to the item at `index` (one past the last: the end), `delta` bytes in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reference {
    pub(super) place: Place,
    pub(super) index: usize,
    pub(super) delta: u64,
}

/// One instruction, or bytes that are meant not to be one.
#[derive(Clone, Debug)]
pub(super) struct Item {
    prefixes: Vec<u8>,
    instruction: Instruction,
    reference: Option<Reference>,
    /// Encoding at some address; its length does not depend on the address.
    bytes: Vec<u8>,
    /// `bytes` are those at any address, or there is no encoding at any.
    anywhere: bool,
    /// The bytes come from nowhere else.
    fixed: bool,
    /// The item that a transfer to this one goes to instead.
    pub(super) enter_at: Option<usize>,
}

/// Where instructions are encoded to learn their length: everything is in reach of it.
const TRIAL: u64 = 0x1000_0000;

impl Item {
    pub(super) fn new(instruction: Instruction, prefixes: &[u8]) -> Self {
        let mut item = Self {
            prefixes: prefixes.to_vec(),
            instruction,
            reference: None,
            bytes: Vec::new(),
            anywhere: false,
            fixed: false,
            enter_at: None,
        };
        item.encode(TRIAL);
        item.anywhere =
            !item.instruction.is_ip_rel_memory_operand() && !is_near_branch(&instruction);
        item
    }

    /// An item that refers to another one, which may not exist yet.
    pub(super) fn referring(mut instruction: Instruction, reference: Reference) -> Self {
        set_reference(&mut instruction, reference.place, TRIAL);
        let mut item = Self::new(instruction, &[]);
        item.reference = Some(reference);
        item.anywhere = false;
        item
    }

    /// Bytes as they are, if a sequence may execute them and they do not branch.
    pub(super) fn raw(bytes: Vec<u8>) -> Option<Self> {
        let mut decoder = Decoder::with_ip(64, &bytes, TRIAL, decoder_options());
        let decoded = decoder.decode();
        // What needs more bytes would become whatever the following ones make of it.
        let whole = decoder.last_error() != DecoderError::NoMoreBytes;
        let length_fits =
            whole && (decoded.code() == Code::INVALID || decoded.len() == bytes.len());
        let harmless = decoded.code() == Code::INVALID
            || matches!(kind(decoded.code()), Kind::Plain | Kind::Terminal);
        let item = Self {
            prefixes: Vec::new(),
            instruction: decoded,
            reference: None,
            bytes,
            anywhere: true,
            fixed: true,
            enter_at: None,
        };
        let vector = is_vector_encoding(&item.bytes, 64);
        (length_fits && harmless && !vector && item.is_allowed()).then_some(item)
    }

    /// Bytes of a near branch, as they are.
    pub(super) fn raw_transfer(bytes: Vec<u8>) -> Option<Self> {
        let decoded = decode(&bytes, TRIAL);
        (decoded.code() != Code::INVALID && decoded.len() == bytes.len()).then_some(Self {
            prefixes: Vec::new(),
            instruction: decoded,
            reference: None,
            bytes,
            anywhere: true,
            fixed: true,
            enter_at: None,
        })
    }

    pub(super) fn length(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether moving the item leaves its bytes as they are.
    pub(super) fn is_position_independent(&self) -> bool {
        self.reference.is_none() && !self.instruction.is_ip_rel_memory_operand()
    }

    /// What the processor will see, if it is an instruction.
    pub(super) fn instruction(&self) -> Option<Instruction> {
        (self.instruction.code() != Code::INVALID).then_some(self.instruction)
    }

    /// Whether it could be encoded to something that a sequence may execute and, apart from prefixes
    /// that change the meaning, to what was planned.
    pub(super) fn is_allowed(&self) -> bool {
        if self.bytes.is_empty() || self.bytes.len() > 15 {
            return false;
        }
        let decoded = decode(&self.bytes, TRIAL);
        let same = decoded.code() == self.instruction.code() && decoded.len() == self.bytes.len();
        let becomes_branch = decoded.code() != Code::INVALID
            && !matches!(kind(decoded.code()), Kind::Plain | Kind::Terminal);
        instruction_allowed(&decoded)
            && (same || (!becomes_branch && decoded.len() <= self.bytes.len()))
    }

    /// Returns whether the instruction can be encoded there.
    fn encode(&mut self, at: u64) -> bool {
        if self.fixed || self.anywhere {
            return !self.bytes.is_empty();
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(&self.prefixes);
        ENCODER.with_borrow_mut(|encoder| {
            encoder.set_buffer(std::mem::take(&mut self.bytes));
            let done = encoder.encode(&self.instruction, at + self.prefixes.len() as u64);
            self.bytes = encoder.take_buffer();
            if done.is_err() {
                self.bytes.clear();
            }
            done.is_ok()
        })
    }
}

thread_local! {
    /// Making one costs as much as encoding.
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new(64));
}

fn is_near_branch(instruction: &Instruction) -> bool {
    matches!(
        instruction.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
}

fn set_reference(instruction: &mut Instruction, place: Place, address: u64) {
    match place {
        Place::Branch => instruction.set_near_branch64(address),
        Place::Memory => instruction.set_memory_displacement64(address),
        Place::Immediate => instruction.set_immediate32(address as u32),
    }
}

/// Decodes one instruction.
pub(super) fn decode(bytes: &[u8], at: u64) -> Instruction {
    Decoder::with_ip(64, bytes, at, decoder_options()).decode()
}

/// Lays the items out from `at` and resolves references. None if a branch does not reach, or if what
/// execution could enter in the middle of an instruction must not run.
pub(super) fn assemble(items: &mut [Item], at: u64) -> Option<(Vec<u8>, Vec<usize>)> {
    let mut starts = Vec::with_capacity(items.len() + 1);
    let mut next = 0;
    for item in items.iter() {
        starts.push(next);
        next += item.length();
    }
    starts.push(next);
    let mut entries: Vec<usize> = items
        .iter()
        .enumerate()
        .map(|(index, item)| item.enter_at.unwrap_or(index))
        .collect();
    entries.push(items.len());
    let mut code = Vec::with_capacity(next);
    let mut inside = Vec::new();
    for (index, item) in items.iter_mut().enumerate() {
        let length = item.length();
        if let Some(reference) = item.reference {
            let mut index = reference.index.min(starts.len() - 1);
            if reference.place != Place::Memory {
                index = entries[index];
            }
            let target = starts[index] as u64 + reference.delta;
            set_reference(&mut item.instruction, reference.place, at + target);
            if reference.delta > 0 && reference.place != Place::Memory {
                inside.push(target as usize);
            }
        }
        if !item.encode(at + starts[index] as u64) || item.length() != length {
            return None;
        }
        code.extend_from_slice(&item.bytes);
    }
    let harmless = inside
        .into_iter()
        .all(|from| falls_into_step(&code, from, at, &starts));
    starts.pop();
    harmless.then_some((code, starts))
}

/// Whether execution from `from` runs only allowed, branch-free instructions until it is at the start
/// of an item.
fn falls_into_step(code: &[u8], mut from: usize, at: u64, starts: &[usize]) -> bool {
    while starts.binary_search(&from).is_err() {
        let Some(bytes) = code.get(from..) else {
            return true;
        };
        let decoded = decode(bytes, at + from as u64);
        if decoded.code() == Code::INVALID {
            return true;
        }
        if !instruction_allowed(&decoded)
            || !matches!(kind(decoded.code()), Kind::Plain | Kind::Terminal)
        {
            return false;
        }
        from += decoded.len();
    }
    true
}
