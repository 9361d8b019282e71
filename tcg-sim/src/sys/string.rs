//! MOVS, STOS, LODS, SCAS and CMPS, with and without REP (SDM vol. 2, REP; vol. 1, 7.3.9).
//!
//! Iterations are exact: registers are updated after each (or after each chunk that cannot fault),
//! so that a fault or the limit leaves what the completed iterations left. A chunk covers what both
//! operands have inside one page.

use super::context::{Context, Place, mask};
use super::{Fault, Maker, Outcome, StringOperand, StringRun, run};
use crate::instrument::Direction;
use crate::mmu::is_canonical;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use machine::state::{Gpr, cr0, rflags};

/// Which family.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

/// When a repetition ends before the counter does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Once,
    Counted,
    WhileEqual,
    WhileDifferent,
}

/// What stays the same over all iterations.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of an element.
    pub(super) size: usize,
    /// Bytes of RCX, RSI and RDI that count: 2, 4 or 8.
    address: usize,
    /// Base of the source segment.
    source_base: u64,
    /// DF.
    backward: bool,
}

impl Shape {
    pub(super) fn of(ctx: &Context, size: usize) -> Self {
        Self {
            size,
            address: ctx.address_size(),
            source_base: ctx.segment_base(ctx.instr.memory_segment()),
            backward: ctx.cpu.rflags & rflags::DF != 0,
        }
    }

    fn pointer(&self, ctx: &Context, register: Gpr) -> u64 {
        ctx.gpr(register) & mask(self.address)
    }

    pub(super) fn source(&self, ctx: &Context) -> Place {
        Place {
            // An SS prefix has no effect in 64-bit mode.
            stack: ctx.is_compat() && ctx.instr.memory_segment() == Register::SS,
            va: ctx.narrowed(self.source_base.wrapping_add(self.pointer(ctx, Gpr::Rsi))),
        }
    }

    pub(super) fn destination(&self, ctx: &Context) -> Place {
        Place {
            stack: false,
            va: self.pointer(ctx, Gpr::Rdi),
        }
    }

    /// Moves a pointer register by `n` elements.
    pub(super) fn advance(&self, ctx: &mut Context, register: Gpr, n: u64) {
        let bytes = n.wrapping_mul(self.size as u64);
        let old = ctx.gpr(register);
        let new = if self.backward {
            old.wrapping_sub(bytes)
        } else {
            old.wrapping_add(bytes)
        };
        self.set(ctx, register, new);
    }

    /// Replaces the part of a register that counts: 16 bits leave the rest, 32 bits clear it.
    fn set(&self, ctx: &mut Context, register: Gpr, value: u64) {
        let kept = match self.address {
            2 => ctx.gpr(register) & !mask(2),
            _ => 0,
        };
        ctx.set_gpr(register, kept | value & mask(self.address));
    }

    pub(super) fn counter(&self, ctx: &Context) -> u64 {
        self.pointer(ctx, Gpr::Rcx)
    }

    pub(super) fn count_down(&self, ctx: &mut Context, n: u64) {
        let left = self.counter(ctx).wrapping_sub(n);
        self.set(ctx, Gpr::Rcx, left);
    }

    /// Intel makes 32-bit registers of a repetition 64 bits wide before the first iteration, which may
    /// fault or not be there: the counter, and of MOVS and STOS the pointers.
    fn truncate(&self, ctx: &mut Context, kind: Kind) {
        let registers: &[Gpr] = match kind {
            Kind::Movs => &[Gpr::Rcx, Gpr::Rsi, Gpr::Rdi],
            Kind::Stos => &[Gpr::Rcx, Gpr::Rdi],
            _ => &[Gpr::Rcx],
        };
        for register in registers {
            let value = self.pointer(ctx, *register);
            ctx.set_gpr(*register, value);
        }
    }

    /// Whether the element stored last lies over the instruction.
    fn stored_over_itself(&self, ctx: &mut Context, kind: Kind) -> bool {
        if !matches!(kind, Kind::Movs | Kind::Stos) {
            return false;
        }
        let bytes = self.size as u64;
        let behind = self.pointer(ctx, Gpr::Rdi);
        let va = if self.backward {
            behind.wrapping_add(bytes)
        } else {
            behind.wrapping_sub(bytes)
        };
        let length = ctx.instr.len();
        ctx.bus
            .hits_instruction(ctx.cpu, va & mask(self.address), self.size, length)
    }

    /// Elements from `va` in the direction of travel whose bytes all lie in the page of `va`.
    fn elements_in_page(&self, va: u64) -> u64 {
        let (size, offset) = (self.size as u64, va & 0xfff);
        match (self.backward, offset + size <= 4096) {
            (_, false) => 0,
            (false, _) => (4096 - offset) / size,
            (true, _) => offset / size + 1,
        }
    }

    /// Lowest byte of `n` elements from `va` in the direction of travel.
    fn lowest(&self, va: u64, n: u64) -> u64 {
        if self.backward {
            va.wrapping_sub((n - 1) * self.size as u64)
        } else {
            va
        }
    }
}

/// Whether a REP, REPE or REPNE prefix repeats this string instruction.
pub(super) fn is_repeated(instr: &Instruction) -> bool {
    instr.has_rep_prefix() || instr.has_repne_prefix()
}

fn kind_of(instr: &Instruction) -> Kind {
    match instr.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => Kind::Movs,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Kind::Stos,
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Kind::Lods,
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => Kind::Scas,
        _ => Kind::Cmps,
    }
}

fn repeat_of(instr: &Instruction, kind: Kind) -> Repeat {
    match (kind, instr.has_rep_prefix(), instr.has_repne_prefix()) {
        (_, false, false) => Repeat::Once,
        (Kind::Scas | Kind::Cmps, true, _) => Repeat::WhileEqual,
        (Kind::Scas | Kind::Cmps, _, true) => Repeat::WhileDifferent,
        _ => Repeat::Counted,
    }
}

/// Whether an instruction is one of this family (MOVSD and CMPSD are also SSE mnemonics).
pub(super) fn is_string(instr: &Instruction) -> bool {
    let memory = |kind| {
        matches!(
            kind,
            OpKind::MemorySegRSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegSI
                | OpKind::MemoryESRDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESDI
        )
    };
    memory(instr.op0_kind()) || memory(instr.op1_kind())
}

/// Executes one string instruction, at most `max` iterations.
pub(super) fn execute(ctx: &mut Context, max: u64) -> Result<Outcome, Fault> {
    let kind = kind_of(ctx.instr);
    let repeat = repeat_of(ctx.instr, kind);
    let shape = Shape::of(ctx, ctx.instr.memory_size().size());
    if repeat == Repeat::Once {
        element(ctx, kind, shape)?;
        return Ok(Outcome::Next);
    }
    if shape.address == 4 && ctx.bus.vendor() == Maker::Intel {
        shape.truncate(ctx, kind);
    }
    let mut done = 0;
    loop {
        let left = shape.counter(ctx);
        if left == 0 {
            return Ok(Outcome::Next);
        }
        if done == max {
            return Ok(Outcome::RepPartial { done });
        }
        let budget = left.min(max - done);
        let n = match chunk(ctx, kind, repeat, shape, budget) {
            0 => {
                element(ctx, kind, shape)?;
                ctx.bus.iterated(1, None);
                1
            }
            n => n,
        };
        shape.count_down(ctx, n);
        done += n;
        let equal = ctx.cpu.rflags & rflags::ZF != 0;
        match repeat {
            Repeat::WhileEqual if !equal => return Ok(Outcome::Next),
            Repeat::WhileDifferent if equal => return Ok(Outcome::Next),
            _ => {}
        }
        // The instruction may be another one now: it is fetched anew, as hardware does.
        let stale = n == 1 && (ctx.bus.is_stale() || shape.stored_over_itself(ctx, kind));
        if stale && shape.counter(ctx) != 0 {
            return Ok(Outcome::RepPartial { done });
        }
    }
}

/// One iteration through the bus, RCX apart.
fn element(ctx: &mut Context, kind: Kind, shape: Shape) -> Result<(), Fault> {
    let size = shape.size;
    let (source, destination) = (shape.source(ctx), shape.destination(ctx));
    let accumulator = ctx.gpr(Gpr::Rax) & mask(size);
    let from_source = |ctx: &mut Context| {
        ctx.admit(ctx.instr.memory_segment(), false)?;
        ctx.load(source, size)
    };
    let from_destination = |ctx: &mut Context| {
        ctx.admit(Register::ES, false)?;
        ctx.load(destination, size)
    };
    let to_destination = |ctx: &mut Context, value| {
        ctx.admit(Register::ES, true)?;
        ctx.store(destination, size, value)
    };
    match kind {
        Kind::Movs => {
            let value = from_source(ctx)?;
            to_destination(ctx, value)?;
        }
        Kind::Stos => to_destination(ctx, accumulator)?,
        Kind::Lods => {
            let value = from_source(ctx)?;
            set_accumulator(ctx, size, value);
        }
        Kind::Scas => {
            let value = from_destination(ctx)?;
            compare_flags(ctx, size, accumulator, value);
        }
        Kind::Cmps => {
            // Which faults first is not architectural: Intel reads ES:RDI first.
            let early = match ctx.bus.vendor() {
                Maker::Intel => Some(from_destination(ctx)?),
                Maker::Amd => None,
            };
            let first = from_source(ctx)?;
            let second = match early {
                Some(second) => second,
                None => from_destination(ctx)?,
            };
            compare_flags(ctx, size, first, second);
        }
    }
    step(ctx, kind, shape, 1);
    Ok(())
}

/// Moves the pointers that a family uses.
fn step(ctx: &mut Context, kind: Kind, shape: Shape, n: u64) {
    if matches!(kind, Kind::Movs | Kind::Lods | Kind::Cmps) {
        shape.advance(ctx, Gpr::Rsi, n);
    }
    if kind != Kind::Lods {
        shape.advance(ctx, Gpr::Rdi, n);
    }
}

fn set_accumulator(ctx: &mut Context, size: usize, value: u64) {
    let old = ctx.gpr(Gpr::Rax);
    let new = if size >= 4 {
        value
    } else {
        (old & !mask(size)) | value
    };
    ctx.set_gpr(Gpr::Rax, new);
}

/// The six arithmetic flags of `a - b`.
pub(super) fn compare_flags(ctx: &mut Context, size: usize, a: u64, b: u64) {
    let sign = 1u64 << (size * 8 - 1);
    let difference = a.wrapping_sub(b) & mask(size);
    ctx.set_flag(rflags::CF, a < b);
    ctx.set_flag(
        rflags::PF,
        (difference as u8).count_ones().is_multiple_of(2),
    );
    ctx.set_flag(rflags::AF, (a ^ b ^ difference) & 0x10 != 0);
    ctx.set_flag(rflags::ZF, difference == 0);
    ctx.set_flag(rflags::SF, difference & sign != 0);
    ctx.set_flag(rflags::OF, (a ^ b) & (a ^ difference) & sign != 0);
}

/// Up to `budget` iterations on host memory; returns how many were done, 0 where only the bus can.
/// A chunk that faults does so in its first element, which the bus shall find out: the fault is then
/// that of the element's access, not of the chunk's.
fn chunk(ctx: &mut Context, kind: Kind, repeat: Repeat, shape: Shape, budget: u64) -> u64 {
    let uses_source = kind != Kind::Stos && kind != Kind::Scas;
    let uses_destination = kind != Kind::Lods;
    let (source, destination) = (shape.source(ctx).va, shape.destination(ctx).va);
    let mut n = budget;
    let written = matches!(kind, Kind::Movs | Kind::Stos);
    let operands = [
        (uses_source, source, ctx.instr.memory_segment(), false),
        (uses_destination, destination, Register::ES, written),
    ];
    for (used, va, segment, writes) in operands {
        if used {
            if ctx.admit(segment, writes).is_err() {
                return 0;
            }
            n = n.min(shape.elements_in_page(va));
            if !is_canonical(va) {
                return 0;
            }
        }
    }
    // Misaligned elements may have to fault, and the last element of a page leaves no chunk.
    let alignment_checks = ctx.cpu.cr0 & cr0::AM != 0 && ctx.cpu.rflags & rflags::AC != 0;
    if n < 2 || alignment_checks {
        return 0;
    }
    // Pointers wrap at 4 GiB (or 64 KiB) between pages only, so a chunk inside a page never wraps.
    let bytes = n as usize * shape.size;
    let mut from = None;
    if uses_source {
        let lowest = shape.lowest(source, n);
        from = ctx
            .bus
            .host_run(ctx.cpu, lowest, bytes, false)
            .ok()
            .flatten();
        if from.is_none() {
            return 0;
        }
    }
    let mut to = None;
    if uses_destination {
        let lowest = shape.lowest(destination, n);
        to = ctx
            .bus
            .host_run(ctx.cpu, lowest, bytes, written)
            .ok()
            .flatten();
        let length = ctx.instr.len();
        let rewrites = written && ctx.bus.hits_instruction(ctx.cpu, lowest, bytes, length);
        if to.is_none() || rewrites {
            return 0;
        }
    }
    // Some iteration changes what the instruction is: not known which.
    if ctx.bus.is_stale() {
        return 0;
    }
    let elements = run::Elements {
        size: shape.size,
        count: n as usize,
        backward: shape.backward,
    };
    let done = perform(ctx, kind, repeat, elements, (from, to));
    let operand = |va, direction| StringOperand {
        va,
        bytes: shape.size as u8,
        direction,
    };
    let direction = if written {
        Direction::Write
    } else {
        Direction::Read
    };
    let run = StringRun {
        operands: [
            uses_source.then(|| operand(source, Direction::Read)),
            uses_destination.then(|| operand(destination, direction)),
        ],
        backward: shape.backward,
    };
    ctx.bus.iterated(done, Some(&run));
    step(ctx, kind, shape, done);
    done
}

/// Does the iterations of a chunk and returns their number: fewer where a comparison ends them.
fn perform(
    ctx: &mut Context,
    kind: Kind,
    repeat: Repeat,
    elements: run::Elements,
    pointers: (Option<*mut u8>, Option<*mut u8>),
) -> u64 {
    let size = elements.size;
    let accumulator = ctx.gpr(Gpr::Rax) & mask(size);
    match (kind, pointers) {
        (Kind::Movs, (Some(from), Some(to))) => run::copy(from, to, elements),
        (Kind::Stos, (_, Some(to))) => run::fill(to, accumulator, elements),
        (Kind::Lods, (Some(from), _)) => {
            let value = run::load(from, elements.count - 1, elements);
            set_accumulator(ctx, size, value);
        }
        (Kind::Scas, (_, Some(to))) => {
            let other = run::Other::Value(accumulator);
            return compare(ctx, repeat, elements, to, other);
        }
        (Kind::Cmps, (Some(from), Some(to))) => {
            return compare(ctx, repeat, elements, to, run::Other::Run(from));
        }
        _ => unreachable!("a chunk has the pointers its family uses"),
    }
    elements.count as u64
}

/// Compares elements until the repetition ends; flags are those of the last comparison, of the other
/// operand with the run at `second`.
fn compare(
    ctx: &mut Context,
    repeat: Repeat,
    elements: run::Elements,
    second: *const u8,
    first: run::Other,
) -> u64 {
    let ends_when_equal = repeat != Repeat::WhileEqual;
    let last = run::find(second, first, elements, ends_when_equal).unwrap_or(elements.count - 1);
    let minuend = match first {
        run::Other::Run(run) => run::load(run, last, elements),
        run::Other::Value(value) => value,
    };
    let subtrahend = run::load(second, last, elements);
    compare_flags(ctx, elements.size, minuend, subtrahend);
    last as u64 + 1
}
