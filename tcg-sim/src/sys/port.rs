//! IN, OUT, INS, OUTS (SDM vol. 1, 18.5; vol. 2 there). One element per call.

use super::context::{Context, check_canonical, mask};
use super::string::{Shape, is_repeated};
use super::{AccessKind, Fault, Outcome};
use crate::sys::context::Place;
use iced_x86::{Code, OpKind, Register};
use machine::state::Gpr;

/// Offset of the I/O map base in a 64-bit TSS.
const IO_MAP_BASE: u64 = 0x66;

/// Whether the current level may use `size` ports from `port`: by IOPL or by the TSS's bitmap.
fn check_permission(ctx: &mut Context, port: u16, size: usize) -> Result<(), Fault> {
    if ctx.cpl() <= ctx.iopl() {
        return Ok(());
    }
    let tr = ctx.cpu.tr;
    if !tr.present() || u64::from(tr.limit) < IO_MAP_BASE + 1 {
        return Err(Fault::GP0);
    }
    let map = read_u16(ctx, tr.base.wrapping_add(IO_MAP_BASE))?;
    let offset = u64::from(map) + u64::from(port / 8);
    // Two bytes are read always, so the map needs a byte behind its last (SDM vol. 1, 18.5.2).
    if offset + 1 > u64::from(tr.limit) {
        return Err(Fault::GP0);
    }
    let bits = read_u16(ctx, tr.base.wrapping_add(offset))? >> (port % 8);
    if bits & ((1 << size) - 1) != 0 {
        return Err(Fault::GP0);
    }
    Ok(())
}

fn read_u16(ctx: &mut Context, va: u64) -> Result<u16, Fault> {
    check_canonical(Place { stack: false, va }, 2)?;
    let mut bytes = [0; 2];
    ctx.bus.read(ctx.cpu, va, &mut bytes, AccessKind::System)?;
    Ok(u16::from_le_bytes(bytes))
}

/// The port operand: DX or an immediate.
fn port_operand(ctx: &Context, index: u32) -> u16 {
    match ctx.instr.op_kind(index) {
        OpKind::Immediate8 => u16::from(ctx.instr.immediate8()),
        _ => ctx.register(Register::DX) as u16,
    }
}

/// IN, up to the read.
pub(super) fn input(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = ctx.instr.op0_register().size();
    let port = port_operand(ctx, 1);
    check_permission(ctx, port, size)?;
    Ok(Outcome::PortRead {
        port,
        size: size as u8,
    })
}

/// OUT.
pub(super) fn output(ctx: &mut Context) -> Result<Outcome, Fault> {
    let register = ctx.instr.op1_register();
    let port = port_operand(ctx, 0);
    check_permission(ctx, port, register.size())?;
    Ok(Outcome::PortWrite {
        port,
        size: register.size() as u8,
        value: ctx.register(register) as u32,
        retired: true,
    })
}

/// Bytes of an element of INS or OUTS.
fn element_size(ctx: &Context) -> usize {
    match ctx.instr.code() {
        Code::Insb_m8_DX | Code::Outsb_DX_m8 => 1,
        Code::Insw_m16_DX | Code::Outsw_DX_m16 => 2,
        _ => 4,
    }
}

/// One element of INS, up to the read.
pub(super) fn input_string(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = element_size(ctx);
    let shape = Shape::of(ctx, size);
    let port = ctx.register(Register::DX) as u16;
    check_permission(ctx, port, size)?;
    if is_repeated(ctx.instr) && shape.counter(ctx) == 0 {
        return Ok(Outcome::Next);
    }
    let destination = shape.destination(ctx);
    ctx.admit(Register::ES, true)?;
    ctx.check(destination, size, size)?;
    ctx.bus
        .prepare_write(ctx.cpu, destination.va, size, AccessKind::Data)?;
    Ok(Outcome::PortRead {
        port,
        size: size as u8,
    })
}

/// One element of OUTS.
pub(super) fn output_string(ctx: &mut Context) -> Result<Outcome, Fault> {
    let size = element_size(ctx);
    let shape = Shape::of(ctx, size);
    let port = ctx.register(Register::DX) as u16;
    check_permission(ctx, port, size)?;
    let repeated = is_repeated(ctx.instr);
    if repeated && shape.counter(ctx) == 0 {
        return Ok(Outcome::Next);
    }
    ctx.admit(ctx.instr.memory_segment(), false)?;
    let value = ctx.load(shape.source(ctx), size)?;
    shape.advance(ctx, Gpr::Rsi, 1);
    if repeated {
        shape.count_down(ctx, 1);
    }
    Ok(Outcome::PortWrite {
        port,
        size: size as u8,
        value: value as u32,
        retired: !repeated || shape.counter(ctx) == 0,
    })
}

/// Stores what the port gave: IN retires, an element of REP INS leaves the rest.
pub(super) fn finish(ctx: &mut Context, value: u32) -> Result<Outcome, Fault> {
    if ctx.instr.op0_kind() == OpKind::Register {
        let register = ctx.instr.op0_register();
        ctx.set_register(register, u64::from(value));
        return Ok(Outcome::Next);
    }
    let size = element_size(ctx);
    let shape = Shape::of(ctx, size);
    ctx.store(shape.destination(ctx), size, u64::from(value) & mask(size))?;
    shape.advance(ctx, Gpr::Rdi, 1);
    if !is_repeated(ctx.instr) {
        return Ok(Outcome::Next);
    }
    shape.count_down(ctx, 1);
    if shape.counter(ctx) == 0 {
        Ok(Outcome::Next)
    } else {
        Ok(Outcome::RepPartial { done: 1 })
    }
}
