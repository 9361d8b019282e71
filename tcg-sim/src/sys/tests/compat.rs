//! Compatibility mode: the ways in and out, and what only it has.

use super::*;
use crate::sys::vector;
use machine::state::efer;

const HIGH: u64 = 0xffff_8000_0000_0000;

/// At CPL 3 in the 32-bit code segment.
fn user32() -> Machine {
    let mut machine = Machine::user();
    machine.cpu.segs[Seg::Cs as usize] = Segment {
        selector: CODE32 | 3,
        attributes: 0xc0fb,
        limit: u32::MAX,
        base: 0,
    };
    machine
}

#[test]
fn iret_enters_with_32_bit_registers() {
    let mut machine = Machine::new();
    let cs = u64::from(CODE32 | 3);
    machine.stack(&[0x1_0000_9000, cs, 2, 0x5_0003_1000, u64::from(USER_DS)]);
    assert_eq!(machine.run(&[0x48, 0xcf]), Ok(Outcome::Mode));
    assert_eq!((machine.cpu.rip, machine.get(Gpr::Rsp)), (0x9000, 0x3_1000));
    assert!(!machine.cpu.segs[Seg::Cs as usize].long_mode());
}

#[test]
fn far_transfers_change_the_mode_and_back() {
    let mut machine = user32();
    // LJMP USER_CS:9000.
    let jump = [0xea, 0x00, 0x90, 0, 0, USER_CS as u8, 0];
    assert_eq!(machine.run(&jump), Ok(Outcome::Mode));
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (0x9000, 3));
    assert!(machine.cpu.segs[Seg::Cs as usize].long_mode());
    // RETF with 32-bit slots.
    let rsp = machine.get(Gpr::Rsp);
    machine.stack(&[0xa000 | u64::from(CODE32 | 3) << 32]);
    assert_eq!(machine.run(&[0xcb]), Ok(Outcome::Mode));
    assert_eq!((machine.cpu.rip, machine.get(Gpr::Rsp)), (0xa000, rsp + 8));
    assert!(!machine.cpu.segs[Seg::Cs as usize].long_mode());
    // IRETD to the same level pops three slots.
    machine.stack(&[0xb000 | u64::from(CODE32 | 3) << 32, 0x202]);
    assert_eq!(machine.run(&[0xcf]), Ok(Outcome::Mode));
    assert_eq!((machine.cpu.rip, machine.get(Gpr::Rsp)), (0xb000, rsp + 20));
}

#[test]
fn fast_system_calls_are_the_vendors() {
    for vendor in [Maker::Amd, Maker::Intel] {
        let mut machine = user32();
        machine.bus.vendor = vendor;
        let msrs = &mut machine.cpu.msrs;
        (msrs.lstar, msrs.cstar) = (HIGH + 0x1000, HIGH + 0x2000);
        (msrs.sysenter_cs, msrs.sysenter_eip) = (u64::from(KERNEL_CS), HIGH + 0x3000);
        msrs.efer |= efer::SCE;
        let amd = vendor == Maker::Amd;
        let undefined = Err(Fault::UD);
        let expected = if amd { Ok(Outcome::Mode) } else { undefined };
        assert_eq!(machine.run(&[0x0f, 0x05]), expected);
        if amd {
            assert_eq!(machine.cpu.rip, HIGH + 0x2000);
            assert_eq!(machine.get(Gpr::Rcx), CODE + 2);
            continue;
        }
        assert_eq!(machine.run(&[0x0f, 0x34]), Ok(Outcome::Mode));
        assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (HIGH + 0x3000, 0));
    }
}

#[test]
fn sysret_and_sysexit_return_to_32_bit_code() {
    let mut machine = Machine::new();
    machine.bus.vendor = Maker::Intel;
    machine.cpu.msrs.efer |= efer::SCE;
    machine.cpu.msrs.star = u64::from(CODE32 | 3) << 48;
    machine.cpu.msrs.sysenter_cs = u64::from(CODE32) - 16;
    machine.set(Gpr::Rcx, 0x1_0000_9000);
    machine.set(Gpr::Rdx, 0x1_0000_a000);
    machine.set(Gpr::R11, 0x202);
    let mut other = Machine::new();
    other.cpu = machine.cpu.clone();
    other.bus.vendor = Maker::Intel;
    assert_eq!(machine.run(&[0x0f, 0x07]), Ok(Outcome::Mode));
    assert_eq!(other.run(&[0x0f, 0x35]), Ok(Outcome::Mode));
    assert_eq!((machine.cpu.rip, other.cpu.rip), (0x9000, 0xa000));
    assert_eq!(other.get(Gpr::Rsp), 0x9000);
    for cpu in [&machine.cpu, &other.cpu] {
        let code = cpu.segs[Seg::Cs as usize];
        assert_eq!((code.selector, cpu.cpl()), (CODE32 | 3, 3));
        assert!(!code.long_mode() && code.default_32());
    }
}

#[test]
fn pushed_selectors_take_two_or_four_bytes() {
    for (vendor, expected) in [(Maker::Intel, 0xaaaa_002b), (Maker::Amd, 0x2b)] {
        let mut machine = user32();
        machine.bus.vendor = vendor;
        machine.cpu.segs[Seg::Ds as usize].selector = USER_DS;
        machine.set(Gpr::Rsp, STACK + 4);
        machine.stack(&[0]);
        machine.bus.poke_u64(STACK, 0xaaaa_aaaa);
        assert_eq!(machine.run(&[0x1e]), Ok(Outcome::Next));
        assert_eq!(machine.get(Gpr::Rsp), STACK);
        assert_eq!(
            machine.bus.peek_u64(STACK) & 0xffff_ffff,
            expected,
            "{vendor:?}"
        );
    }
}

#[test]
fn pusha_and_popa_are_inverse_but_for_the_stack_pointer() {
    let mut machine = user32();
    for (register, value) in [(Gpr::Rax, 1), (Gpr::Rcx, 2), (Gpr::Rbp, 3), (Gpr::Rdi, 4)] {
        machine.set(register, value);
    }
    let before = machine.cpu.gpr;
    assert_eq!(machine.run(&[0x60]), Ok(Outcome::Next));
    assert_eq!(machine.get(Gpr::Rsp), before[Gpr::Rsp as usize] - 32);
    let slot = machine.bus.peek_u64(machine.get(Gpr::Rsp) + 12) as u32;
    assert_eq!(u64::from(slot), before[Gpr::Rsp as usize]);
    for register in [Gpr::Rax, Gpr::Rcx, Gpr::Rbp, Gpr::Rdi] {
        machine.set(register, 0);
    }
    assert_eq!(machine.run(&[0x61]), Ok(Outcome::Next));
    assert_eq!(machine.cpu.gpr, before);
}

/// AX and whether CF and AF are set, before and after.
#[test]
fn decimal_arithmetic() {
    let daa = [0x27];
    let cases: [(&[u8], u64, bool, u64, bool); 8] = [
        (&daa, 0x1f, false, 0x25, false),
        (&daa, 0x9a, false, 0x00, true),
        (&daa, 0x45, true, 0xab, true),
        (&[0x2f], 0x23, true, 0xbd, true),
        (&[0x37], 0x010b, false, 0x0201, true),
        (&[0x3f], 0x020b, false, 0x0105, true),
        (&[0xd4, 10], 0x00f7, false, 0x1807, false),
        (&[0xd5, 10], 0x0502, false, 0x0034, false),
    ];
    for (bytes, before, flags, after, carry) in cases {
        let mut machine = user32();
        let both = rflags::CF | rflags::AF;
        machine.cpu.rflags |= if flags { both } else { 0 };
        machine.set(Gpr::Rax, before);
        assert_eq!(machine.run(bytes), Ok(Outcome::Next));
        assert_eq!(machine.get(Gpr::Rax), after, "{bytes:02x?} {before:#x}");
        assert_eq!(
            machine.cpu.rflags & rflags::CF != 0,
            carry,
            "{bytes:02x?} {before:#x}"
        );
    }
    assert_eq!(user32().run(&[0xd4, 0]), Err(Fault::plain(vector::DE)));
}

#[test]
fn bound_into_and_arpl() {
    for (index, expected) in [
        (5_u32, Ok(Outcome::Next)),
        (-5_i32 as u32, Ok(Outcome::Next)),
        (6, Err(Fault::plain(vector::BR))),
        (-6_i32 as u32, Err(Fault::plain(vector::BR))),
    ] {
        let mut machine = user32();
        machine
            .bus
            .poke_u64(DATA, u64::from(-5_i32 as u32) | 5 << 32);
        machine.set(Gpr::Rbx, DATA);
        machine.set(Gpr::Rax, u64::from(index));
        assert_eq!(machine.run(&[0x62, 0x03]), expected, "{index:#x}");
    }
    let mut machine = user32();
    assert_eq!(machine.run(&[0xce]), Ok(Outcome::Next));
    assert_eq!(machine.cpu.rip, CODE + 1);
    machine.set(Gpr::Rax, 0xffff_0028);
    machine.set(Gpr::Rcx, 3);
    assert_eq!(machine.run(&[0x63, 0xc8]), Ok(Outcome::Next));
    assert_eq!(machine.get(Gpr::Rax), 0xffff_002b);
    assert_ne!(machine.cpu.rflags & rflags::ZF, 0);
}
