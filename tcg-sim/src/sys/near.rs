//! Near transfers with an operand-size prefix, as all processors execute them in compatibility mode and
//! AMD's in 64-bit mode, too (APM vol. 3, "near transfers"): RIP is truncated to 16 bits, CALL pushes and
//! RET pops 2 bytes. Intel ignores the prefix in 64-bit mode, and the decoder does not make these forms
//! for it.

use super::context::{Context, mask};
use super::{Fault, Outcome};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use machine::state::{Gpr, rflags};

/// Bytes of the operand.
const SIZE: usize = 2;

/// Whether the instruction is one of these forms.
pub(super) fn is_narrow(instr: &Instruction) -> bool {
    use iced_x86::Code as C;
    instr.op0_kind() == OpKind::NearBranch16
        || matches!(
            instr.code(),
            C::Call_rm16 | C::Jmp_rm16 | C::Retnw | C::Retnw_imm16
        )
}

/// JMP, CALL, RET, Jcc, LOOPcc, JRCXZ.
pub(super) fn transfer(ctx: &mut Context) -> Result<Outcome, Fault> {
    let sequential = ctx.next_rip();
    let target = match ctx.instr.mnemonic() {
        Mnemonic::Ret => return ret(ctx),
        Mnemonic::Call => {
            let target = target(ctx)?;
            ctx.push(SIZE, sequential)?;
            Some(target)
        }
        Mnemonic::Jmp => Some(target(ctx)?),
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => counted(ctx)?,
        Mnemonic::Jrcxz | Mnemonic::Jecxz | Mnemonic::Jcxz => {
            let zero = ctx.gpr(Gpr::Rcx) & mask(counter_bytes(ctx.instr)) == 0;
            zero.then(|| target(ctx)).transpose()?
        }
        _ => holds(ctx.instr, ctx.cpu.rflags)
            .then(|| target(ctx))
            .transpose()?,
    };
    ctx.cpu.rip = target.unwrap_or(sequential);
    Ok(Outcome::Mode)
}

fn ret(ctx: &mut Context) -> Result<Outcome, Fault> {
    let extra = match ctx.instr.op_count() {
        0 => 0,
        _ => u64::from(ctx.instr.immediate16()),
    };
    ctx.cpu.rip = ctx.peek(0, SIZE)?;
    let rsp = ctx.gpr(Gpr::Rsp).wrapping_add(SIZE as u64 + extra);
    ctx.set_stack_pointer(rsp);
    Ok(Outcome::Mode)
}

/// The target, which never is non-canonical.
fn target(ctx: &mut Context) -> Result<u64, Fault> {
    if ctx.instr.op0_kind() != OpKind::NearBranch16 {
        return ctx.read_operand(0, SIZE);
    }
    // Relative to where the instruction is now, not to where it was decoded.
    let moved = ctx.next_rip().wrapping_sub(ctx.instr.next_ip());
    Ok(u64::from(ctx.instr.near_branch16()).wrapping_add(moved) & mask(SIZE))
}

/// LOOP and its conditional kin; a counter of 32 bits clears the upper half.
fn counted(ctx: &mut Context) -> Result<Option<u64>, Fault> {
    let counter = match counter_bytes(ctx.instr) {
        2 => Register::CX,
        4 => Register::ECX,
        _ => Register::RCX,
    };
    let left = ctx.register(counter).wrapping_sub(1) & mask(counter.size());
    ctx.set_register(counter, left);
    let equal = ctx.cpu.rflags & rflags::ZF != 0;
    let wanted = match ctx.instr.mnemonic() {
        Mnemonic::Loope => equal,
        Mnemonic::Loopne => !equal,
        _ => true,
    };
    (left != 0 && wanted).then(|| target(ctx)).transpose()
}

fn counter_bytes(instr: &Instruction) -> usize {
    use iced_x86::Code as C;
    match instr.code() {
        C::Loop_rel8_16_CX | C::Loope_rel8_16_CX | C::Loopne_rel8_16_CX | C::Jcxz_rel8_16 => 2,
        C::Loop_rel8_16_ECX | C::Loope_rel8_16_ECX | C::Loopne_rel8_16_ECX | C::Jecxz_rel8_16 => 4,
        _ => 8,
    }
}

/// Whether the condition of a Jcc holds.
fn holds(instr: &Instruction, flags: u64) -> bool {
    use iced_x86::ConditionCode as C;
    let set = |flag: u64| flags & flag != 0;
    let less = set(rflags::SF) != set(rflags::OF);
    match instr.condition_code() {
        C::o => set(rflags::OF),
        C::no => !set(rflags::OF),
        C::b => set(rflags::CF),
        C::ae => !set(rflags::CF),
        C::e => set(rflags::ZF),
        C::ne => !set(rflags::ZF),
        C::be => set(rflags::CF) || set(rflags::ZF),
        C::a => !set(rflags::CF) && !set(rflags::ZF),
        C::s => set(rflags::SF),
        C::ns => !set(rflags::SF),
        C::p => set(rflags::PF),
        C::np => !set(rflags::PF),
        C::l => less,
        C::ge => !less,
        C::le => less || set(rflags::ZF),
        C::g => !less && !set(rflags::ZF),
        C::None => false,
    }
}
