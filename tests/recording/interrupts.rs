//! Timer interrupts of bare-metal guests.

use crate::guest::layout::sel;
use crate::guest::{Guest, asm, layout, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const VECTOR: u8 = 0x20;
/// Where the handler lies; code of guests ends before.
pub(super) const HANDLER: u64 = layout::CODE + 0xf000;
/// A quadword that counts interrupts.
const TICKS: u64 = layout::DATA + 0xff00;

/// Puts a handler into the guest that counts, ends the interrupt and returns.
pub(super) fn install_handler(guest: &mut Guest) -> Result<(), IcedError> {
    guest.code_at(HANDLER, HANDLER, |a| {
        asm!(a;
            push(rax);
            inc(qword_ptr(TICKS));
            mov(al, 0x20);
            out(0x20, al);
            pop(rax);
            iretq());
        Ok(())
    })?;
    guest.set_raw_gate(VECTOR, tables::gate(HANDLER, sel::CODE, 0x8e, 0));
    Ok(())
}

/// Emits what sets the interrupt controllers to vectors 0x20 and 0x28 and makes the timer tick every
/// `count` of its clocks.
pub(super) fn start_timer(a: &mut CodeAssembler, count: u16) -> Result<(), IcedError> {
    let [low, high] = count.to_le_bytes();
    let writes: [(u8, u8); 13] = [
        (0x20, 0x11),
        (0x21, VECTOR),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xfe),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0xa1, 0xff),
        (0x43, 0x34),
        (0x40, low),
        (0x40, high),
    ];
    for (port, value) in writes {
        asm!(a; mov(al, u32::from(value)); out(i32::from(port), al));
    }
    Ok(())
}
