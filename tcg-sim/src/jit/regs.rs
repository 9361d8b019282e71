//! Where guest registers live while translated code runs.
//!
//! Nine of sixteen have the host register of the same name. RSP and RCX live elsewhere, since host RSP
//! addresses the state block and host RCX is what JRCXZ tests. R9, R10, R11, R14 and R15, which are used
//! little, live in the state block.

use super::asm::Host;
use super::layout::disp;
use iced_x86::Register;

/// Home of guest RSP.
pub(crate) const GUEST_RSP: Host = Host::R14;
/// Home of guest RCX.
pub(crate) const GUEST_RCX: Host = Host::R15;
/// Steps left: in memory, every block would wait for the block before to store it.
pub(crate) const BUDGET: Host = Host::R9;
/// First scratch register: linear addresses and branch targets.
pub(crate) const T0: Host = Host::R10;
/// Second scratch register: TLB index, then addend.
pub(crate) const T1: Host = Host::R11;

/// Home of a guest general-purpose register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// A host register.
    Register(Host),
    /// A quadword of the state block at this displacement.
    Block(i32),
}

/// Home of guest register `number` (encoding order).
pub(crate) fn home(number: usize) -> Home {
    match number {
        1 => Home::Register(GUEST_RCX),
        4 => Home::Register(GUEST_RSP),
        9 => Home::Block(disp!(r9)),
        10 => Home::Block(disp!(r10)),
        11 => Home::Block(disp!(r11)),
        14 => Home::Block(disp!(r14)),
        15 => Home::Block(disp!(r15)),
        same => Home::Register(Host(same as u8)),
    }
}

/// Number of a general-purpose register of any width.
pub(crate) fn number(register: Register) -> usize {
    register.full_register().number()
}

/// Whether this is AH, CH, DH or BH.
pub(crate) fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// The register of host `host` with the width (and high-byte position) of `like`.
pub(crate) fn resized(host: Host, like: Register) -> Register {
    let number = u32::from(host.0);
    if is_high_byte(like) {
        return Register::AH + number;
    }
    match like.size() {
        1 => match number {
            0..=3 => Register::AL + number,
            _ => Register::SPL + (number - 4),
        },
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resized_registers_keep_width_and_number() {
        assert_eq!(resized(Host::R10, Register::CL), Register::R10L);
        assert_eq!(resized(Host::RSI, Register::AL), Register::SIL);
        assert_eq!(resized(Host::RBX, Register::AL), Register::BL);
        assert_eq!(resized(Host::RCX, Register::CH), Register::CH);
        assert_eq!(resized(Host::R15, Register::CX), Register::R15W);
        assert_eq!(resized(Host::R9, Register::R11D), Register::R9D);
    }
}
