//! Instructions that 64-bit mode does not have: decimal and ASCII arithmetic, BOUND, ARPL, PUSHA, POPA
//! (SDM vol. 2 there). Flags that the manuals leave undefined are those of Intel's processors.

use super::context::{Context, mask};
use super::fault::vector;
use super::{AccessKind, Fault, Outcome};
use iced_x86::{Mnemonic, Register};
use machine::state::{Gpr, rflags};

const EIGHT: [Gpr; 8] = [
    Gpr::Rax,
    Gpr::Rcx,
    Gpr::Rdx,
    Gpr::Rbx,
    Gpr::Rsp,
    Gpr::Rbp,
    Gpr::Rsi,
    Gpr::Rdi,
];

fn slot_size(ctx: &Context) -> usize {
    match ctx.instr.mnemonic() {
        Mnemonic::Pushad | Mnemonic::Popad => 4,
        _ => 2,
    }
}

/// PUSHA, PUSHAD: the stack pointer pushed is the one before.
pub(super) fn push_all(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = slot_size(ctx);
    let bottom = ctx.narrowed(ctx.gpr(Gpr::Rsp).wrapping_sub(8 * size as u64));
    let mut bytes = [0; 32];
    for (slot, register) in bytes.chunks_mut(size).zip(EIGHT.into_iter().rev()) {
        slot.copy_from_slice(&ctx.gpr(register).to_le_bytes()[..size]);
    }
    let place = Context::stack_place(bottom);
    ctx.check(place, 8 * size, size)?;
    let bytes = &bytes[..8 * size];
    ctx.bus
        .write_slots(ctx.cpu, place.va, bytes, size, AccessKind::Data)?;
    ctx.set_stack_pointer(bottom);
    Ok(Outcome::Next)
}

/// POPA, POPAD: the slot of the stack pointer is skipped.
pub(super) fn pop_all(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = slot_size(ctx);
    let mut slots = [0; 8];
    for (index, slot) in slots.iter_mut().enumerate() {
        *slot = ctx.peek((index * size) as u64, size)?;
    }
    for (value, register) in slots.into_iter().zip(EIGHT.into_iter().rev()) {
        if register != Gpr::Rsp {
            let kept = if size == 2 {
                ctx.gpr(register) & !mask(2)
            } else {
                0
            };
            ctx.set_gpr(register, kept | value);
        }
    }
    let top = ctx.gpr(Gpr::Rsp).wrapping_add(8 * size as u64);
    ctx.set_stack_pointer(top);
    Ok(Outcome::Next)
}

fn set_result_flags(ctx: &mut Context, result: u64) {
    ctx.set_flag(rflags::SF, result & 0x80 != 0);
    ctx.set_flag(rflags::ZF, result & 0xff == 0);
    ctx.set_flag(rflags::PF, (result as u8).count_ones().is_multiple_of(2));
}

/// AAA, AAS. OF, SF, ZF and PF are undefined.
pub(super) fn ascii_adjust(ctx: &mut Context) -> Result<Outcome, Fault> {
    let ax = ctx.register(Register::AX);
    let adjust = ax & 0xf > 9 || ctx.cpu.rflags & rflags::AF != 0;
    let add = ctx.instr.mnemonic() == Mnemonic::Aaa;
    let adjusted = match (adjust, add) {
        (false, _) => ax,
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
    };
    ctx.set_register(Register::AX, adjusted & 0xff0f);
    ctx.set_flag(rflags::AF, adjust);
    ctx.set_flag(rflags::CF, adjust);
    set_result_flags(ctx, adjusted & 0xf);
    ctx.set_flag(rflags::OF, false);
    Ok(Outcome::Next)
}

/// DAA, DAS. OF is undefined.
pub(super) fn decimal_adjust(ctx: &mut Context) -> Result<Outcome, Fault> {
    let old = ctx.register(Register::AL);
    let (carry, half) = (
        ctx.cpu.rflags & rflags::CF != 0,
        ctx.cpu.rflags & rflags::AF != 0,
    );
    let low = old & 0xf > 9 || half;
    let high = old > 0x99 || carry;
    let correction = u64::from(low) * 6 + u64::from(high) * 0x60;
    let add = ctx.instr.mnemonic() == Mnemonic::Daa;
    let new = match add {
        true => old.wrapping_add(correction),
        false => old.wrapping_sub(correction),
    } & 0xff;
    // DAS also carries where the low correction borrows.
    let borrowed = !add && low && old < 6;
    ctx.set_register(Register::AL, new);
    ctx.set_flag(rflags::CF, high || borrowed);
    ctx.set_flag(rflags::AF, low);
    set_result_flags(ctx, new);
    ctx.set_flag(rflags::OF, false);
    Ok(Outcome::Next)
}

/// AAM. OF, AF and CF are undefined.
pub(super) fn ascii_multiply(ctx: &mut Context) -> Result<Outcome, Fault> {
    let base = u64::from(ctx.instr.immediate8());
    if base == 0 {
        return Err(Fault::plain(vector::DE));
    }
    let al = ctx.register(Register::AL);
    ctx.set_register(Register::AX, ((al / base) << 8) | (al % base));
    set_result_flags(ctx, al % base);
    clear_undefined(ctx);
    Ok(Outcome::Next)
}

/// AAD. OF, AF and CF are undefined: those of the addition.
pub(super) fn ascii_divide(ctx: &mut Context) -> Result<Outcome, Fault> {
    let base = u64::from(ctx.instr.immediate8());
    let ax = ctx.register(Register::AX);
    let (low, tens) = (ax & 0xff, ((ax >> 8) * base) & 0xff);
    let value = (low + tens) & 0xff;
    ctx.set_register(Register::AX, value);
    set_result_flags(ctx, value);
    ctx.set_flag(rflags::CF, low + tens > 0xff);
    ctx.set_flag(rflags::AF, (low ^ tens ^ value) & 0x10 != 0);
    ctx.set_flag(rflags::OF, (low ^ value) & (tens ^ value) & 0x80 != 0);
    Ok(Outcome::Next)
}

fn clear_undefined(ctx: &mut Context) {
    for flag in [rflags::OF, rflags::AF, rflags::CF] {
        ctx.set_flag(flag, false);
    }
}

/// SALC: AL becomes all ones or zero as CF is (APM vol. 3 leaves it out; sandpile.org, 32-bit opcodes).
pub(super) fn set_al(ctx: &mut Context) -> Result<Outcome, Fault> {
    let ones = ctx.cpu.rflags & rflags::CF != 0;
    ctx.set_register(Register::AL, if ones { 0xff } else { 0 });
    Ok(Outcome::Next)
}

/// BOUND: #BR unless a signed index is inside two signed bounds.
pub(super) fn bound(ctx: &mut Context) -> Result<Outcome, Fault> {
    let register = ctx.instr.op0_register();
    let size = register.size();
    let signed = |value: u64| match size {
        2 => i64::from(value as i16),
        _ => i64::from(value as i32),
    };
    let index = signed(ctx.register(register));
    let place = ctx.place();
    let lower = ctx.load(place, size)?;
    let second = super::context::Place {
        va: ctx.narrowed(place.va.wrapping_add(size as u64)),
        ..place
    };
    let upper = ctx.load(second, size)?;
    if index < signed(lower) || index > signed(upper) {
        return Err(Fault::plain(vector::BR));
    }
    Ok(Outcome::Next)
}

/// ARPL: raises the RPL of a selector to that of another.
pub(super) fn arpl(ctx: &mut Context) -> Result<Outcome, Fault> {
    let (destination, source) = (
        ctx.read_operand(0, 2)? & 0xffff,
        ctx.register(ctx.instr.op1_register()),
    );
    let raise = destination & 3 < source & 3;
    if raise {
        let value = destination & !3 | source & 3;
        match ctx.instr.op_kind(0) {
            iced_x86::OpKind::Register => {
                let register = ctx.instr.op0_register().full_register32();
                let kept = ctx.register(register) & !0xffff;
                ctx.set_register(register, kept | value);
            }
            _ => {
                ctx.admit(ctx.instr.memory_segment(), true)?;
                ctx.write_operand(0, 2, value)?;
            }
        }
    }
    ctx.set_flag(rflags::ZF, raise);
    Ok(Outcome::Next)
}
