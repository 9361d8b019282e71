//! Debug registers, breakpoints, single-step, and the FPU's mode bits.

use super::super::fpu::{FpuClass, classify, mode_fault};
use super::super::{Event, debug, deliver, fpu_fault, vector};
use super::*;
use machine::state::{Shadow, cr0};

#[test]
fn debug_registers() {
    let mut machine = Machine::new();
    machine.set(Gpr::Rax, 0xffff_ffff);
    machine.run(&[0x0f, 0x23, 0xf0]).unwrap();
    assert_eq!(machine.cpu.dr6, 0xffff_efff);
    machine.set(Gpr::Rax, 0xffff_dfff);
    machine.run(&[0x0f, 0x23, 0xf8]).unwrap();
    assert_eq!(machine.cpu.dr7, 0xffff_07ff);
    machine.run(&[0x0f, 0x21, 0xe9]).unwrap();
    assert_eq!(machine.get(Gpr::Rcx), 0xffff_07ff, "DR5 is DR7");
    machine.cpu.cr4 |= cr4::DE;
    assert_eq!(machine.run(&[0x0f, 0x21, 0xe9]), Err(Fault::UD));
    machine.set(Gpr::Rax, 1 << 32);
    assert_eq!(machine.run(&[0x0f, 0x23, 0xf8]), Err(Fault::GP0));
    machine.cpu.dr7 |= 1 << 13;
    assert_eq!(machine.run(&[0x0f, 0x21, 0xc1]), Err(Fault::debug(1 << 13)));
    assert_eq!(Machine::user().run(&[0x0f, 0x21, 0xc1]), Err(Fault::GP0));
}

#[test]
fn delivery_of_db_updates_dr6_and_dr7() {
    let mut machine = Machine::new();
    machine.cpu.dr6 |= 3;
    machine.cpu.dr7 |= 1 << 13;
    let event = Event::trap(Fault::debug(debug::DR6_BS | 4));
    deliver(&mut machine.cpu, &mut machine.bus, event).unwrap();
    assert_eq!(machine.cpu.dr6, 0xffff_0ff0 | debug::DR6_BS | 4);
    assert_eq!(machine.cpu.dr7, 0x400);
}

/// DR7 control nibble (R/W, LEN), DR0, access, hit.
#[test]
fn data_breakpoints() {
    for (control, address, va, len, write, hit) in [
        (0b0001u64, 0x1000u64, 0x1000u64, 1u64, true, true),
        (0b0001, 0x1000, 0x1000, 1, false, false),
        (0b0011, 0x1000, 0x1000, 1, false, true),
        (0b0011, 0x1000, 0x0ffd, 4, false, true),
        (0b0011, 0x1000, 0x0ffc, 4, false, false),
        (0b0111, 0x1001, 0x1000, 1, false, true),
        (0b1111, 0x1000, 0x1003, 1, true, true),
        (0b1111, 0x1000, 0x1004, 1, true, false),
        (0b1011, 0x1004, 0x1000, 1, true, true),
        (0b0000, 0x1000, 0x1000, 1, true, false),
    ] {
        let mut cpu = CpuState::default();
        cpu.dr[0] = address;
        cpu.dr7 = 0x401 | control << 16;
        let expected = u64::from(hit);
        assert_eq!(
            debug::data_hits(&cpu, va, len, write),
            expected,
            "{control:#b} {va:#x}"
        );
        cpu.dr7 &= !1;
        assert_eq!(debug::data_hits(&cpu, va, len, write), 0, "disabled");
    }
}

#[test]
fn instruction_and_port_breakpoints() {
    let mut cpu = CpuState {
        rip: 0x1000,
        ..CpuState::default()
    };
    cpu.dr[1] = 0x1000;
    cpu.dr7 = 0x408;
    assert_eq!(
        debug::instruction_breakpoint(&cpu, Maker::Amd),
        Some(Fault::debug(2))
    );
    cpu.shadow = Shadow::MovSs;
    assert_eq!(debug::instruction_breakpoint(&cpu, Maker::Intel), None);
    cpu.rflags |= rflags::RF;
    assert_eq!(debug::instruction_breakpoint(&cpu, Maker::Amd), None);
    cpu.dr[1] = 0x60;
    cpu.dr7 |= 0b0110 << 20;
    assert_eq!(debug::port_hits(&cpu, 0x61, 1), 0, "needs CR4.DE");
    cpu.cr4 |= cr4::DE;
    assert_eq!(debug::port_hits(&cpu, 0x61, 1), 2);
    assert_eq!(debug::port_hits(&cpu, 0x62, 1), 0);
}

#[test]
fn traps_of_one_boundary_are_one_event() {
    let mut cpu = CpuState::default();
    assert_eq!(debug::trap(&cpu, 0, false, false), None);
    let event = debug::trap(&cpu, 1, true, false).unwrap();
    assert_eq!(event, Event::trap(Fault::debug(debug::DR6_BS | 1)));
    cpu.shadow = Shadow::MovSs;
    assert_eq!(debug::trap(&cpu, 1, true, false), None);
}

#[test]
fn single_step_after_syscall_and_int_goes_by_the_new_flags() {
    let mut machine = Machine::new();
    machine.cpu.rflags |= rflags::TF;
    for (bytes, expected) in [
        (&[0x90u8][..], true),
        (&[0x0f, 0x05], true),
        (&[0xcc], false),
    ] {
        let instr = machine.decode(bytes);
        assert_eq!(debug::single_steps(&instr, true, &machine.cpu), expected);
    }
    machine.cpu.rflags &= !rflags::TF;
    let syscall = machine.decode(&[0x0f, 0x05]);
    assert!(!debug::single_steps(&syscall, true, &machine.cpu));
}

#[test]
fn rf_is_cleared_by_retirement_and_kept_by_faults() {
    let mut machine = Machine::new();
    machine.cpu.rflags |= rflags::RF;
    machine.set(Gpr::Rcx, 0x1b);
    machine.run(&[0x0f, 0x32]).unwrap_err();
    assert_ne!(machine.cpu.rflags & rflags::RF, 0);
    machine.run(&[0x0f, 0xa2]).unwrap();
    assert_eq!(machine.cpu.rflags & rflags::RF, 0);
}

#[test]
fn fpu_classes() {
    use FpuClass::*;
    for (bytes, class) in [
        (&[0xd8u8, 0xc1][..], X87),
        (&[0xdb, 0xe3], X87NoWait),
        (&[0xd9, 0xd0], X87),
        (&[0x9b], Wait),
        (&[0x0f, 0xae, 0x00], Fxsave),
        (&[0x0f, 0xfc, 0xc1], Mmx),
        (&[0x0f, 0x77], Mmx),
        (&[0x0f, 0x38, 0x00, 0xc1], Mmx),
        (&[0x0f, 0x58, 0xc1], Sse),
        (&[0x0f, 0xae, 0x10], Sse),
        (&[0x0f, 0x2a, 0xc1], SseMmx),
        (&[0x66, 0x0f, 0x2a, 0x00], Sse),
        (&[0xf3, 0x0f, 0xd6, 0xc1], SseMmx),
        (&[0x0f, 0xc3, 0x08], None),
        (&[0xf3, 0x90], None),
        (&[0x0f, 0x18, 0x08], None),
        (&[0xf3, 0x0f, 0xb8, 0xc1], None),
        (&[0x48, 0x01, 0xc8], None),
        (&[0x0f, 0x40, 0xc1], None),
        (&[0xdf, 0x08], X87),
    ] {
        assert_eq!(
            classify(&Machine::new().decode(bytes)),
            class,
            "{bytes:02x?}"
        );
    }
}

/// Class; faults with EM, TS, TS and MP, no OSFXSR, pending exception.
#[test]
fn fpu_mode_table() {
    use FpuClass::*;
    let (ud, nm) = (Some(Fault::UD), Some(Fault::NM));
    let no = Option::<Fault>::None;
    for (class, em, ts, ts_mp, no_fxsr) in [
        (None, no, no, no, no),
        (X87NoWait, nm, nm, nm, no),
        (X87, nm, nm, nm, no),
        (Wait, no, no, nm, no),
        (Fxsave, nm, nm, nm, no),
        (Mmx, ud, nm, nm, no),
        (Sse, ud, nm, nm, ud),
        (SseMmx, ud, nm, nm, ud),
    ] {
        let fxsr = cr4::OSFXSR;
        assert_eq!(mode_fault(class, cr0::EM, fxsr), em, "{class:?}");
        assert_eq!(mode_fault(class, cr0::TS, fxsr), ts, "{class:?}");
        assert_eq!(
            mode_fault(class, cr0::TS | cr0::MP, fxsr),
            ts_mp,
            "{class:?}"
        );
        assert_eq!(mode_fault(class, 0, 0), no_fxsr, "{class:?}");
    }
    let mut machine = Machine::new();
    machine.cpu.fpu.fsw = 0x80;
    let (fadd, fninit) = (machine.decode(&[0xd8, 0xc1]), machine.decode(&[0xdb, 0xe3]));
    assert_eq!(
        fpu_fault(&fadd, &machine.cpu),
        Some(Fault::plain(vector::MF))
    );
    assert_eq!(fpu_fault(&fninit, &machine.cpu), no);
}

#[test]
fn rf_in_the_frame_of_db() {
    for (dr6, pushed) in [(1, 0), (1 << 13, rflags::RF)] {
        let mut machine = Machine::new();
        let event = Event::fault(Fault::debug(dr6));
        deliver(&mut machine.cpu, &mut machine.bus, event).unwrap();
        let flags = machine.bus.peek_u64(machine.get(Gpr::Rsp) + 16);
        assert_eq!(flags & rflags::RF, pushed, "DR6 {dr6:#x}");
    }
}
