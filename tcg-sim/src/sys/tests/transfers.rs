//! Far transfers, IRET, SYSCALL and their kin.

use super::super::Maker;
use super::*;

const IRETQ: [u8; 2] = [0x48, 0xcf];
/// Far JMP and CALL through [RAX], m16:32.
const JMP: [u8; 2] = [0xff, 0x28];
const CALL: [u8; 2] = [0xff, 0x18];

fn pointer(machine: &mut Machine, selector: u16, offset: u32) {
    machine.set(Gpr::Rax, DATA);
    machine.bus.poke(DATA, &offset.to_le_bytes());
    machine.bus.poke(DATA + 4, &selector.to_le_bytes());
}

#[test]
fn iret_to_user_and_its_flags() {
    with_flags(|mut machine, _| {
        let flags = rflags::IF | rflags::IOPL | rflags::RF | rflags::CF | rflags::FIXED;
        machine.cpu.segs[Seg::Ds as usize].attributes = 0xc093;
        machine.stack(&[
            0x9000,
            u64::from(USER_CS),
            flags,
            0x31000,
            u64::from(USER_DS),
        ]);
        assert_eq!(machine.run(&IRETQ), Ok(Outcome::Mode));
        assert_eq!((machine.cpu.rip, machine.cpu.rflags), (0x9000, flags));
        assert_eq!((machine.get(Gpr::Rsp), machine.cpu.cpl()), (0x31000, 3));
        let ds = machine.cpu.segs[Seg::Ds as usize];
        assert_eq!(
            (ds.selector, ds.present()),
            (0, false),
            "inner segments are dropped"
        );
    });
}

#[test]
fn iret_at_cpl3_changes_neither_iopl_nor_if() {
    let mut machine = Machine::user();
    machine.cpu.rflags |= rflags::IF;
    machine.stack(&[
        0x9000,
        u64::from(USER_CS),
        rflags::IOPL,
        0x31000,
        u64::from(USER_DS),
    ]);
    assert_eq!(machine.run(&IRETQ), Ok(Outcome::Mode));
    assert_eq!(machine.cpu.rflags, rflags::IF | rflags::FIXED);
}

/// RIP, CS, SS and what IRETQ at CPL 0 makes of them.
#[test]
fn iret_checks() {
    let cases: [(u64, u16, u16, Result<Outcome, Fault>); 11] = [
        (0x9000, KERNEL_CS, KERNEL_DS, Ok(Outcome::Mode)),
        (0x9000, KERNEL_CS, 0, Ok(Outcome::Mode)),
        (0x9000, 0, KERNEL_DS, Err(Fault::GP0)),
        (0x9000, 0x80, KERNEL_DS, Err(Fault::gp(0x80))),
        (0x9000, KERNEL_DS, KERNEL_DS, Err(Fault::gp(0x18))),
        (0x9000, KERNEL_CS | 3, USER_DS, Err(Fault::gp(0x10))),
        (0x9000, USER_CS, 0, Err(Fault::GP0)),
        (0x9000, USER_CS, KERNEL_DS, Err(Fault::gp(0x18))),
        (0x9000, KERNEL_CS, ABSENT, Err(Fault::ss(0x78))),
        (0x8000_0000_0000, USER_CS, USER_DS, Err(Fault::GP0)),
        (0x9000, CODE32 | 3, USER_DS, Ok(Outcome::Mode)),
    ];
    for (rip, cs, ss, expected) in cases {
        let mut machine = Machine::new();
        machine.stack(&[rip, u64::from(cs), 2, 0x31000, u64::from(ss)]);
        assert_eq!(machine.run(&IRETQ), expected, "CS {cs:#x} SS {ss:#x}");
    }
    let mut machine = Machine::new();
    machine.cpu.rflags |= rflags::NT;
    assert_eq!(machine.run(&IRETQ), Err(Fault::GP0));
}

#[test]
fn an_iret_that_faults_on_its_stack_changes_nothing() {
    let mut machine = Machine::new();
    machine.set(Gpr::Rsp, STACK - 16);
    machine.bus.protect(STACK, 0);
    assert_eq!(machine.run(&IRETQ), Err(Fault::page(STACK, 0)));
}

#[test]
fn far_jump_and_call_checks() {
    let cases: [(u16, Result<Outcome, Fault>); 7] = [
        (KERNEL_CS, Ok(Outcome::Mode)),
        (CONFORMING, Ok(Outcome::Mode)),
        (0, Err(Fault::GP0)),
        (USER_CS, Err(Fault::gp(0x30))),
        (KERNEL_DS, Err(Fault::gp(0x18))),
        (TSS_SELECTOR, Err(Fault::gp(0x40))),
        (0x88, Err(Fault::gp(0x88))),
    ];
    for (selector, expected) in cases {
        for bytes in [JMP, CALL] {
            let mut machine = Machine::new();
            pointer(&mut machine, selector, 0x9000);
            assert_eq!(machine.run(&bytes), expected, "{selector:#x}");
            if expected.is_ok() {
                assert_eq!(machine.cpu.rip, 0x9000);
            }
        }
    }
}

#[test]
fn far_call_and_return_at_one_level() {
    let mut machine = Machine::new();
    pointer(&mut machine, KERNEL_CS, 0x9000);
    machine.run(&CALL).unwrap();
    assert_eq!(machine.get(Gpr::Rsp), STACK - 8);
    assert_eq!(
        machine.bus.peek_u64(STACK - 8),
        u64::from(KERNEL_CS) << 32 | (CODE + 2)
    );
    machine.run(&[0xca, 0x10, 0x00]).unwrap();
    assert_eq!(
        (machine.cpu.rip, machine.get(Gpr::Rsp)),
        (CODE + 2, STACK + 16)
    );
}

#[test]
fn call_gate_goes_in_and_far_return_comes_out() {
    let mut machine = Machine::user();
    pointer(&mut machine, GATE | 3, 0x1111_1111);
    machine.run(&CALL).unwrap();
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (0x8800, 0));
    assert_eq!(machine.get(Gpr::Rsp), KERNEL_STACK - 32);
    let frame: Vec<u64> = (0..4)
        .map(|n| machine.bus.peek_u64(KERNEL_STACK - 32 + n * 8))
        .collect();
    assert_eq!(
        frame,
        [CODE + 2, u64::from(USER_CS), STACK, u64::from(USER_DS)]
    );
    machine.run(&[0x48, 0xcb]).unwrap();
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (CODE + 2, 3));
    assert_eq!(machine.get(Gpr::Rsp), STACK);
    assert_eq!(machine.cpu.segs[Seg::Ss as usize].selector, USER_DS);
}

#[test]
fn call_gates_check_dpl_presence_and_upper_half() {
    let base = GDT + u64::from(GATE);
    let good = DESCRIPTORS[12];
    let cases = [
        (good & !(3 << 45), 0, Fault::gp(0x60)),
        (good & !(1 << 47), 0, Fault::np(0x60)),
        (good, 1 << 40, Fault::gp(0x60)),
        (good & !0xffff_0000, 0, Fault::GP0),
        (good, 0x8000, Fault::GP0),
    ];
    for (low, high, fault) in cases {
        let mut machine = Machine::user();
        machine.bus.poke_u64(base, low);
        machine.bus.poke_u64(base + 8, high);
        pointer(&mut machine, GATE | 3, 0);
        assert_eq!(machine.run(&CALL), Err(fault), "{low:#x} {high:#x}");
    }
    let mut machine = Machine::user();
    pointer(&mut machine, GATE | 3, 0);
    assert_eq!(
        machine.run(&JMP),
        Err(Fault::gp(0x10)),
        "a jump never changes the level"
    );
}

fn with_star(mut machine: Machine) -> Machine {
    machine.cpu.msrs.star = 0x0023_0010 << 32;
    machine.cpu.msrs.lstar = 0x9000;
    machine.cpu.msrs.sfmask = rflags::IF | rflags::DF;
    machine
}

#[test]
fn syscall_and_sysret() {
    let mut machine = with_star(Machine::user());
    machine.cpu.rflags |= rflags::IF | rflags::OSZAPC | rflags::RF;
    let flags = machine.cpu.rflags & !rflags::RF;
    machine.run(&[0x0f, 0x05]).unwrap();
    assert_eq!(
        (machine.get(Gpr::Rcx), machine.get(Gpr::R11)),
        (CODE + 2, flags)
    );
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (0x9000, 0));
    assert_eq!(machine.cpu.rflags, flags & !rflags::IF);
    assert_eq!(machine.cpu.segs[Seg::Cs as usize].selector, KERNEL_CS);
    assert_eq!(machine.cpu.segs[Seg::Ss as usize].selector, KERNEL_DS);
    machine.run(&[0x48, 0x0f, 0x07]).unwrap();
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (CODE + 2, 3));
    assert_eq!(machine.cpu.rflags, flags);
    assert_eq!(machine.cpu.segs[Seg::Cs as usize].selector, USER_CS);
    assert_eq!(machine.cpu.segs[Seg::Ss as usize].selector, USER_DS);
}

#[test]
fn sysret_follows_the_vendor() {
    for (vendor, expected) in [
        (Maker::Amd, Ok(Outcome::Mode)),
        (Maker::Intel, Err(Fault::GP0)),
    ] {
        let mut machine = with_star(Machine::new());
        machine.bus.vendor = vendor;
        machine.set(Gpr::Rcx, 0x8000_0000_0000);
        assert_eq!(machine.run(&[0x48, 0x0f, 0x07]), expected);
        // The hidden part of a null SS stays unusable on AMD.
        let mut machine = with_star(Machine::new());
        machine.bus.vendor = vendor;
        machine.cpu.segs[Seg::Ss as usize] = Segment::default();
        machine.run(&[0x48, 0x0f, 0x07]).unwrap();
        let ss = machine.cpu.segs[Seg::Ss as usize];
        assert_eq!((ss.dpl(), ss.present()), (3, vendor == Maker::Intel));
    }
    assert_eq!(
        with_star(Machine::user()).run(&[0x48, 0x0f, 0x07]),
        Err(Fault::GP0)
    );
    let mut off = Machine::new();
    off.cpu.msrs.efer &= !1;
    assert_eq!(off.run(&[0x0f, 0x05]), Err(Fault::UD));
}

#[test]
fn sysenter_is_undefined_on_amd() {
    let mut machine = Machine::user();
    machine.cpu.msrs.sysenter_cs = 0x10;
    machine.cpu.msrs.sysenter_eip = 0x9000;
    machine.cpu.msrs.sysenter_esp = KERNEL_STACK;
    assert_eq!(machine.run(&[0x0f, 0x34]), Err(Fault::UD));
    machine.bus.vendor = Maker::Intel;
    machine.run(&[0x0f, 0x34]).unwrap();
    assert_eq!(
        (machine.cpu.rip, machine.get(Gpr::Rsp)),
        (0x9000, KERNEL_STACK)
    );
    machine.set(Gpr::Rcx, STACK);
    machine.set(Gpr::Rdx, 0xa000);
    machine.run(&[0x48, 0x0f, 0x35]).unwrap();
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (0xa000, 3));
}
