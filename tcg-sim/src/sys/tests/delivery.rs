//! Delivery through the IDT.

use super::super::{Event, EventKind, TripleFault, deliver, vector};
use super::*;
use machine::state::{Activity, Shadow};

fn frame(machine: &Machine, slots: usize) -> Vec<u64> {
    let rsp = machine.get(Gpr::Rsp);
    (0..slots as u64)
        .map(|n| machine.bus.peek_u64(rsp + n * 8))
        .collect()
}

#[test]
fn interrupt_at_cpl0_stays_on_the_aligned_stack() {
    with_flags(|mut machine, flags| {
        machine.cpu.rflags |= rflags::IF | rflags::TF | rflags::NT | rflags::AC;
        machine.cpu.activity = Activity::Halted;
        machine.cpu.shadow = Shadow::Sti;
        let old = machine.cpu.rflags;
        machine.set(Gpr::Rsp, STACK - 3);
        deliver(&mut machine.cpu, &mut machine.bus, Event::external(0x30)).unwrap();
        assert_eq!(machine.get(Gpr::Rsp), STACK - 16 - 40);
        assert_eq!(
            frame(&machine, 5),
            [
                CODE,
                u64::from(KERNEL_CS),
                old,
                STACK - 3,
                u64::from(KERNEL_DS)
            ]
        );
        assert_eq!(machine.cpu.rip, handler_of(0x30));
        assert_eq!(machine.cpu.rflags, flags | rflags::FIXED | rflags::AC);
        assert_eq!(machine.cpu.segs[Seg::Ss as usize].selector, KERNEL_DS);
        assert_eq!(
            (machine.cpu.activity, machine.cpu.shadow),
            (Activity::Running, Shadow::None)
        );
    });
}

#[test]
fn fault_from_user_switches_stack_and_pushes_rf() {
    let mut machine = Machine::user();
    let flags = machine.cpu.rflags;
    let event = Event::fault(Fault::page(0x1234, 6));
    deliver(&mut machine.cpu, &mut machine.bus, event).unwrap();
    assert_eq!(machine.get(Gpr::Rsp), KERNEL_STACK - 48);
    assert_eq!(
        frame(&machine, 6),
        [
            6,
            CODE,
            u64::from(USER_CS),
            flags | rflags::RF,
            STACK,
            u64::from(USER_DS)
        ]
    );
    assert_eq!((machine.cpu.cr2, machine.cpu.cpl()), (0x1234, 0));
    let ss = machine.cpu.segs[Seg::Ss as usize];
    assert_eq!((ss.selector, ss.present()), (0, false));
    assert_eq!(machine.cpu.segs[Seg::Cs as usize].selector, KERNEL_CS);
}

#[test]
fn ist_without_level_change_keeps_ss() {
    let mut machine = Machine::new();
    let event = Event::fault(Fault::with_error(vector::DF, 0));
    deliver(&mut machine.cpu, &mut machine.bus, event).unwrap();
    assert_eq!(machine.get(Gpr::Rsp), IST1 - 48);
    assert_eq!(machine.cpu.segs[Seg::Ss as usize].selector, KERNEL_DS);
}

#[test]
fn trap_gates_leave_if() {
    let mut machine = Machine::new();
    machine.cpu.rflags |= rflags::IF;
    machine
        .bus
        .poke_u64(IDT + 3 * 16, gate(0x9000, KERNEL_CS, 0xef, 0));
    machine.run(&[0xcc]).unwrap();
    assert_ne!(machine.cpu.rflags & rflags::IF, 0);
    assert_eq!(frame(&machine, 1), [CODE + 1]);
}

/// The fault behind a failing software interrupt from CPL 3, by what is wrong.
#[test]
fn software_interrupts_from_user() {
    type Prepare = fn(&mut Machine);
    let cases: [(&str, Prepare, &[u8], Verdict); 9] = [
        ("allowed", |_| {}, &[0xcd, 0x80], Ok(Outcome::Mode)),
        ("breakpoint", |_| {}, &[0xcc], Ok(Outcome::Mode)),
        (
            "gate DPL",
            |_| {},
            &[0xcd, 0x30],
            Err(Fault::gp(0x30 * 8 + 2)),
        ),
        ("INT1 ignores DPL", |_| {}, &[0xf1], Ok(Outcome::Mode)),
        (
            "limit",
            |m| m.cpu.idtr.limit = 0x80e,
            &[0xcd, 0x80],
            Err(Fault::gp(0x402)),
        ),
        (
            "not present",
            |m| {
                m.bus
                    .poke_u64(IDT + 0x800, gate(0x9000, KERNEL_CS, 0x6e, 0))
            },
            &[0xcd, 0x80],
            Err(Fault::np(0x402)),
        ),
        (
            "null CS",
            |m| m.bus.poke_u64(IDT + 0x800, gate(0x9000, 3, 0xee, 0)),
            &[0xcd, 0x80],
            Err(Fault::GP0),
        ),
        (
            "32-bit CS",
            |m| m.bus.poke_u64(IDT + 0x800, gate(0x9000, CODE32, 0xee, 0)),
            &[0xcd, 0x80],
            Err(Fault::gp(u32::from(CODE32))),
        ),
        (
            "TSS limit",
            |m| m.cpu.tr.limit = 10,
            &[0xcd, 0x80],
            Err(Fault::ts(u32::from(TSS_SELECTOR))),
        ),
    ];
    for (name, prepare, bytes, expected) in cases {
        let mut machine = Machine::user();
        prepare(&mut machine);
        assert_eq!(machine.run(bytes), expected, "{name}");
    }
}

#[test]
fn conforming_handler_keeps_the_level() {
    let mut machine = Machine::user();
    machine
        .bus
        .poke_u64(IDT + 0x800, gate(0x9000, CONFORMING, 0xee, 0));
    machine.run(&[0xcd, 0x80]).unwrap();
    assert_eq!(machine.cpu.cpl(), 3);
    assert_eq!(machine.cpu.segs[Seg::Cs as usize].selector, CONFORMING | 3);
    assert_eq!(machine.get(Gpr::Rsp), STACK - 40);
}

#[test]
fn non_canonical_stack_from_the_tss_is_ss_with_ext() {
    let mut machine = Machine::user();
    machine.bus.poke_u64(TSS + 4, 0x9000_0000_0000);
    // #SS meets the same stack; the double fault has one of its own.
    deliver(&mut machine.cpu, &mut machine.bus, Event::external(0x30)).unwrap();
    assert_eq!(machine.cpu.rip, handler_of(vector::DF));
    let mut machine = Machine::user();
    machine.bus.poke_u64(TSS + 4, 0x9000_0000_0000);
    machine
        .bus
        .poke_u64(IDT + 12 * 16, gate(0x9000, KERNEL_CS, 0x8e, 1));
    deliver(&mut machine.cpu, &mut machine.bus, Event::external(0x30)).unwrap();
    assert_eq!((machine.cpu.rip, frame(&machine, 1)[0]), (0x9000, 1));
}

/// First event, the gates that are absent, the vector that runs in the end.
#[test]
fn double_fault_table() {
    let pf = Fault::page(0x1000, 0);
    let cases: [(Event, &[u8], Option<u8>); 8] = [
        (Event::external(0x30), &[0x30], Some(vector::NP)),
        (Event::fault(Fault::UD), &[vector::UD], Some(vector::NP)),
        (Event::fault(Fault::GP0), &[vector::GP], Some(vector::DF)),
        (Event::fault(pf), &[vector::PF], Some(vector::DF)),
        (
            Event::fault(Fault::plain(vector::DE)),
            &[vector::DE],
            Some(vector::DF),
        ),
        (Event::external(0x30), &[0x30, vector::NP], Some(vector::DF)),
        (Event::fault(Fault::GP0), &[vector::GP, vector::DF], None),
        (Event::external(0x30), &[0x30, vector::NP, vector::DF], None),
    ];
    for (event, absent, expected) in cases {
        let mut machine = Machine::new();
        for vector in absent {
            machine
                .bus
                .poke_u64(IDT + u64::from(*vector) * 16, gate(0, KERNEL_CS, 0x0e, 0));
        }
        let result = deliver(&mut machine.cpu, &mut machine.bus, event);
        match expected {
            Some(vector) => {
                assert_eq!(result.map(|event| event.fault.vector), Ok(vector));
                assert_eq!(machine.cpu.rip, handler_of(vector), "{event:?}");
            }
            None => {
                assert_eq!(result, Err(TripleFault));
                assert_eq!(machine.cpu.activity, Activity::Shutdown);
            }
        }
    }
}

#[test]
fn contributory_then_page_fault_is_serial_and_page_then_page_is_double() {
    for (first, double) in [(Fault::GP0, false), (Fault::page(0x55, 0), true)] {
        let mut machine = Machine::user();
        // The kernel stack is gone; #PF and #DF have their own.
        machine.bus.protect(KERNEL_STACK - 4096, 0);
        if !double {
            machine
                .bus
                .poke_u64(IDT + 14 * 16, gate(handler_of(14), KERNEL_CS, 0x8e, 1));
        }
        deliver(&mut machine.cpu, &mut machine.bus, Event::fault(first)).unwrap();
        let vector = if double { vector::DF } else { vector::PF };
        assert_eq!(machine.cpu.rip, handler_of(vector));
        // SS is pushed first.
        assert_eq!(machine.cpu.cr2, KERNEL_STACK - 8);
    }
}

#[test]
fn ext_bit_is_set_for_events_and_clear_for_software() {
    for (kind, ext) in [
        (EventKind::External { mid_rep: false }, 1),
        (EventKind::PrivilegedSoftware, 1),
        (EventKind::Software, 0),
    ] {
        let mut machine = Machine::new();
        machine
            .bus
            .poke_u64(IDT + 0x30 * 16, gate(0, KERNEL_CS, 0x0e, 0));
        let fault = Fault::plain(0x30);
        deliver(&mut machine.cpu, &mut machine.bus, Event { kind, fault }).unwrap();
        assert_eq!(machine.cpu.rip, handler_of(vector::NP));
        assert_eq!(frame(&machine, 1), [0x30 * 8 + 2 + ext], "{kind:?}");
    }
}
