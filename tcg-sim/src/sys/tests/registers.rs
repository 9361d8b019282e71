//! Segments, control registers, MSRs, flags, ports and the rest.

use super::super::{finish_port_read, finish_timestamp};
use super::*;
use machine::state::{Activity, Shadow, cr0, efer};

fn msr(machine: &mut Machine, number: u32, value: u64) -> Verdict {
    machine.set(Gpr::Rcx, u64::from(number));
    machine.set(Gpr::Rax, value & 0xffff_ffff);
    machine.set(Gpr::Rdx, value >> 32);
    machine.run(&[0x0f, 0x30])
}

/// Selector for MOV DS, MOV SS and what becomes of it.
#[test]
fn segment_loads() {
    let ds: [u8; 2] = [0x8e, 0xd8];
    let ss: [u8; 2] = [0x8e, 0xd0];
    let cases: [(bool, [u8; 2], u16, Verdict); 13] = [
        (false, ds, 0, Ok(Outcome::Mode)),
        (false, ds, KERNEL_DS, Ok(Outcome::Mode)),
        (false, ds, USER_DS, Ok(Outcome::Mode)),
        (true, ds, KERNEL_DS, Err(Fault::gp(0x18))),
        (true, ds, CONFORMING, Ok(Outcome::Mode)),
        (false, ds, TSS_SELECTOR, Err(Fault::gp(0x40))),
        (false, ds, ABSENT, Err(Fault::np(0x78))),
        (false, ds, 0x80, Err(Fault::gp(0x80))),
        (false, ds, 0x0c, Err(Fault::gp(0x0c))),
        (false, ss, 0, Ok(Outcome::Mode)),
        (true, ss, 3, Err(Fault::GP0)),
        (false, ss, USER_DS, Err(Fault::gp(0x28))),
        (false, ss, ABSENT, Err(Fault::ss(0x78))),
    ];
    for (user, bytes, selector, expected) in cases {
        let mut machine = if user {
            Machine::user()
        } else {
            Machine::new()
        };
        machine.set(Gpr::Rax, u64::from(selector));
        assert_eq!(machine.run(&bytes), expected, "{bytes:02x?} {selector:#x}");
        let shadow = if bytes == ss && expected.is_ok() {
            Shadow::MovSs
        } else {
            Shadow::None
        };
        assert_eq!(machine.cpu.shadow, shadow);
    }
}

/// Of several in a row, every other one opens a shadow.
#[test]
fn a_load_of_ss_in_the_shadow_of_another_opens_none() {
    let mut machine = Machine::new();
    machine.set(Gpr::Rax, u64::from(KERNEL_DS));
    for shadow in [Shadow::MovSs, Shadow::None, Shadow::MovSs] {
        machine.run(&[0x8e, 0xd0]).unwrap();
        assert_eq!(machine.cpu.shadow, shadow);
    }
    machine.cpu.shadow = Shadow::Sti;
    machine.run(&[0x8e, 0xd0]).unwrap();
    assert_eq!(machine.cpu.shadow, Shadow::MovSs);
}

#[test]
fn loading_a_segment_sets_its_accessed_bit() {
    let mut machine = Machine::new();
    let address = GDT + u64::from(KERNEL_DS);
    machine.bus.poke_u64(address, DESCRIPTORS[3] & !(1 << 40));
    machine.set(Gpr::Rax, u64::from(KERNEL_DS));
    machine.run(&[0x8e, 0xd8]).unwrap();
    assert_eq!(machine.bus.peek_u64(address), DESCRIPTORS[3]);
    assert_eq!(machine.cpu.segs[Seg::Ds as usize].attributes, 0xc093);
}

#[test]
fn reading_segments_push_pop_and_far_pointers() {
    let mut machine = Machine::new();
    machine.set(Gpr::Rax, u64::MAX);
    machine.run(&[0x8c, 0xd8]).unwrap();
    assert_eq!(machine.get(Gpr::Rax), u64::from(KERNEL_DS));
    machine.run(&[0x0f, 0xa0]).unwrap();
    assert_eq!(machine.bus.peek_u64(STACK - 8), u64::from(KERNEL_DS));
    machine.bus.poke_u64(STACK - 8, u64::from(USER_DS));
    machine.run(&[0x0f, 0xa9]).unwrap();
    assert_eq!(machine.cpu.segs[Seg::Gs as usize].selector, USER_DS);
    assert_eq!(machine.get(Gpr::Rsp), STACK);
    machine.set(Gpr::Rbx, DATA);
    machine.bus.poke(DATA, &[1, 2, 3, 4, 0x18, 0]);
    machine.run(&[0x0f, 0xb4, 0x0b]).unwrap();
    assert_eq!(machine.get(Gpr::Rcx), 0x0403_0201);
    assert_eq!(machine.cpu.segs[Seg::Fs as usize].selector, KERNEL_DS);
}

/// LAR EAX, ECX / LSL EAX, ECX / VERR CX / VERW CX by selector, at CPL 3.
#[test]
fn selector_tests() {
    for (selector, lar, lsl, readable, writable) in [
        (0u16, None, None, false, false),
        (0x80, None, None, false, false),
        (KERNEL_DS, None, None, false, false),
        (
            USER_DS,
            Some(0x00cf_f300),
            Some(u64::from(u32::MAX)),
            true,
            true,
        ),
        (
            USER_CS,
            Some(0x00af_fb00),
            Some(u64::from(u32::MAX)),
            true,
            false,
        ),
        (
            CONFORMING,
            Some(0x00af_9f00),
            Some(u64::from(u32::MAX)),
            true,
            false,
        ),
        (GATE, Some(0x0000_ec00), None, false, false),
    ] {
        for flags in [0, rflags::OSZAPC] {
            let mut machine = Machine::user();
            machine.cpu.rflags |= flags;
            let mut check = |bytes: &[u8], expected: Option<u64>| {
                machine.set(Gpr::Rax, 0x55);
                machine.set(Gpr::Rcx, u64::from(selector));
                machine.run(bytes).unwrap();
                assert_eq!(
                    machine.get(Gpr::Rax),
                    expected.unwrap_or(0x55),
                    "{selector:#x}"
                );
                let zf = if expected.is_some() { rflags::ZF } else { 0 };
                let others = flags & !rflags::ZF;
                assert_eq!(
                    machine.cpu.rflags & rflags::OSZAPC,
                    others | zf,
                    "{selector:#x}"
                );
            };
            check(&[0x0f, 0x02, 0xc1], lar);
            check(&[0x0f, 0x03, 0xc1], lsl);
            check(&[0x0f, 0x00, 0xe1], readable.then_some(0x55));
            check(&[0x0f, 0x00, 0xe9], writable.then_some(0x55));
        }
    }
}

#[test]
fn descriptor_table_registers() {
    let mut machine = Machine::new();
    machine.set(Gpr::Rbx, DATA);
    machine.run(&[0x0f, 0x01, 0x03]).unwrap();
    let mut image = vec![0x7f, 0];
    image.extend(GDT.to_le_bytes());
    assert_eq!(machine.bus.peek(DATA, 10), image);
    machine.run(&[0x0f, 0x01, 0x1b]).unwrap();
    assert_eq!(machine.cpu.idtr, machine.cpu.gdtr);
    machine.bus.poke_u64(DATA + 2, 0x8000_0000_0000);
    assert_eq!(machine.run(&[0x0f, 0x01, 0x13]), Err(Fault::GP0));
    machine.set(Gpr::Rax, u64::from(TSS_SELECTOR));
    machine.run(&[0x0f, 0x00, 0xd8]).unwrap();
    assert_eq!(
        (machine.cpu.tr.attributes, machine.cpu.tr.limit),
        (0x8b, 0x7f)
    );
    assert_eq!(
        machine.run(&[0x0f, 0x00, 0xd8]),
        Err(Fault::gp(0x40)),
        "busy now"
    );
    machine.set(Gpr::Rax, u64::from(LDT_SELECTOR));
    machine.run(&[0x0f, 0x00, 0xd0]).unwrap();
    assert_eq!(
        (machine.cpu.ldtr.base, machine.cpu.ldtr.limit),
        (0x9000, 15)
    );
    assert_eq!(machine.run(&[0x0f, 0x00, 0xd8]), Err(Fault::gp(0x50)));
    machine.run(&[0x0f, 0x00, 0xc1]).unwrap();
    assert_eq!(machine.get(Gpr::Rcx), u64::from(LDT_SELECTOR));
}

/// MOV CRn, RAX: value relative to the current one, result.
#[test]
fn control_register_writes() {
    const SPACE: Outcome = Outcome::AddressSpace { globals: true };
    let cr0: [u8; 3] = [0x0f, 0x22, 0xc0];
    let cr3: [u8; 3] = [0x0f, 0x22, 0xd8];
    let cr4: [u8; 3] = [0x0f, 0x22, 0xe0];
    let old = Machine::new().cpu;
    let cases: [([u8; 3], u64, Verdict); 11] = [
        (cr0, old.cr0 | cr0::TS, Ok(Outcome::Mode)),
        (cr0, old.cr0 & !cr0::WP, Ok(SPACE)),
        (cr0, old.cr0 & !cr0::PG, Err(Fault::GP0)),
        (cr0, old.cr0 | cr0::NW, Err(Fault::GP0)),
        (cr0, old.cr0 | 1 << 32, Err(Fault::GP0)),
        (cr3, 0x1000, Ok(Outcome::AddressSpace { globals: false })),
        (cr3, 1 << 40, Err(Fault::GP0)),
        (cr4, old.cr4 & !super::cr4::PGE, Ok(SPACE)),
        (cr4, old.cr4 | super::cr4::TSD, Ok(Outcome::Mode)),
        (cr4, old.cr4 & !super::cr4::PAE, Err(Fault::GP0)),
        (cr4, old.cr4 | super::cr4::SMEP, Err(Fault::GP0)),
    ];
    for (bytes, value, expected) in cases {
        let mut machine = Machine::new();
        machine.set(Gpr::Rax, value);
        assert_eq!(machine.run(&bytes), expected, "{bytes:02x?} {value:#x}");
        machine.cpu.rip = CODE;
        let mut user = Machine::user();
        assert_eq!(user.run(&bytes), Err(Fault::GP0));
    }
}

#[test]
fn machine_status_word() {
    let mut machine = Machine::new();
    let before = machine.cpu.cr0;
    machine.set(Gpr::Rax, 8);
    machine.run(&[0x0f, 0x01, 0xf0]).unwrap();
    assert_eq!(machine.cpu.cr0, (before | cr0::TS) & !cr0::MP);
    machine.run(&[0x0f, 0x06]).unwrap();
    assert_eq!(machine.cpu.cr0, before & !cr0::MP);
    machine.run(&[0x48, 0x0f, 0x01, 0xe0]).unwrap();
    assert_eq!(machine.get(Gpr::Rax), machine.cpu.cr0);
}

/// MSR, value, expected result of WRMSR; what was accepted reads back.
#[test]
fn model_specific_registers() {
    let odd = 0x8000_0000_0000;
    let cases: [(u32, u64, Verdict); 17] = [
        (0xc000_0081, 0x1234_5678_9abc_def0, Ok(Outcome::Next)),
        (0xc000_0082, 0xffff_8000_0000_1234, Ok(Outcome::Next)),
        (0xc000_0082, odd, Err(Fault::GP0)),
        (0xc000_0100, 0x1000, Ok(Outcome::Next)),
        (0xc000_0101, odd, Err(Fault::GP0)),
        (0xc000_0102, u64::MAX, Ok(Outcome::Next)),
        (0xc000_0080, 0xd01, Ok(Outcome::Mode)),
        (
            0xc000_0080,
            0x501,
            Ok(Outcome::AddressSpace { globals: true }),
        ),
        (0xc000_0080, 0xc01, Err(Fault::GP0)),
        (0xc000_0080, 0x1d01, Err(Fault::GP0)),
        (0x277, 0x0007_0406_0007_0401, Ok(Outcome::Next)),
        (0x277, 2, Err(Fault::GP0)),
        (0x8b, 0, Ok(Outcome::Next)),
        (0x8b, 1, Err(Fault::GP0)),
        (0x1b, 0xfee0_0900, Err(Fault::GP0)),
        (0xc000_0103, 0, Err(Fault::GP0)),
        (0x10, 0, Err(Fault::GP0)),
    ];
    for (number, value, expected) in cases {
        let mut machine = Machine::new();
        assert_eq!(
            msr(&mut machine, number, value),
            expected,
            "{number:#x} {value:#x}"
        );
        if expected.is_ok() {
            machine.run(&[0x0f, 0x32]).unwrap();
            let read = machine.get(Gpr::Rdx) << 32 | machine.get(Gpr::Rax);
            assert_eq!(read, value, "{number:#x}");
        }
    }
    // What kernels touch on one maker's processors only: constants there, #GP on the other's.
    for (number, value, vendor) in [
        (0x1a0, 1, Maker::Intel),
        (0xc001_0010, 0, Maker::Amd),
        (0xc001_0015, 0, Maker::Amd),
        (0xc001_1029, 2, Maker::Amd),
    ] {
        for maker in [Maker::Intel, Maker::Amd] {
            let mut machine = Machine::new();
            machine.bus.vendor = maker;
            let expected = match maker == vendor {
                true => Ok(Outcome::Next),
                false => Err(Fault::GP0),
            };
            assert_eq!(msr(&mut machine, number, value), expected, "{number:#x}");
            assert_eq!(msr(&mut machine, number, value ^ 4), Err(Fault::GP0));
            machine.set(Gpr::Rcx, u64::from(number));
            assert_eq!(machine.run(&[0x0f, 0x32]), expected);
            let read = machine.get(Gpr::Rdx) << 32 | machine.get(Gpr::Rax);
            assert!(expected.is_err() || read == value, "{number:#x}");
        }
    }
    let mut machine = Machine::new();
    msr(&mut machine, 0x176, 0xffff_8000_1234_5678).unwrap();
    assert_eq!(
        machine.cpu.msrs.sysenter_eip, 0x1234_5678,
        "AMD keeps 32 bits"
    );
    assert_eq!(machine.cpu.msrs.efer & efer::LMA, efer::LMA);
    machine.set(Gpr::Rcx, 0x1b);
    assert_eq!(machine.run(&[0x0f, 0x32]), Err(Fault::GP0));
    assert_eq!(Machine::user().run(&[0x0f, 0x32]), Err(Fault::GP0));
}

/// CPL, IOPL, image, expected flags after POPFQ.
#[test]
fn popf_by_level() {
    let all = rflags::DEFINED & !(rflags::VM | rflags::RF | rflags::VIF | rflags::VIP);
    for (user, iopl, expected) in [
        (false, 0, all),
        (true, 0, all & !(rflags::IOPL | rflags::IF)),
        (true, rflags::IOPL, all),
    ] {
        let mut machine = if user {
            Machine::user()
        } else {
            Machine::new()
        };
        machine.cpu.rflags |= iopl;
        machine.stack(&[u64::MAX]);
        assert_eq!(machine.run(&[0x9d]), Ok(Outcome::Mode));
        assert_eq!(machine.cpu.rflags, expected, "user {user} iopl {iopl:#x}");
        machine.run(&[0x9c]).unwrap();
        assert_eq!(machine.bus.peek_u64(STACK), expected);
        machine.stack(&[0]);
        machine.run(&[0x66, 0x9d]).unwrap();
        let kept = if user && iopl == 0 { 0 } else { rflags::IF };
        let low = rflags::OSZAPC | rflags::TF | rflags::DF | rflags::NT | kept;
        let iopl_bits = if user { 0 } else { rflags::IOPL };
        assert_eq!(machine.cpu.rflags, expected & !(low | iopl_bits));
    }
}

#[test]
fn interrupt_flag_and_its_shadow() {
    let mut machine = Machine::new();
    machine.run(&[0xfb]).unwrap();
    assert_eq!(machine.cpu.shadow, Shadow::Sti);
    machine.run(&[0xfb]).unwrap();
    assert_eq!(
        machine.cpu.shadow,
        Shadow::None,
        "only the first STI shadows"
    );
    machine.run(&[0xfa]).unwrap();
    assert_eq!(machine.cpu.rflags & rflags::IF, 0);
    assert_eq!(Machine::user().run(&[0xfa]), Err(Fault::GP0));
    assert_eq!(
        Machine::new().run(&[0x0f, 0x01, 0xcb]),
        Err(Fault::UD),
        "STAC without SMAP"
    );
}

#[test]
fn port_permissions() {
    for (port, bytes, allowed) in [
        (4u16, &[0xec][..], true),
        (6, &[0xed], false),
        (4, &[0xed], true),
        (7, &[0xec], true),
        (8, &[0xec], false),
        (16, &[0xec], false),
        (24, &[0xec], false),
    ] {
        let mut machine = Machine::user();
        // Ports 16 to 23 lie in the last byte, which needs one more behind it.
        machine.set(Gpr::Rdx, u64::from(port));
        let result = machine.run(bytes);
        assert_eq!(result.is_ok(), allowed, "port {port}");
        let mut machine = Machine::user();
        machine.cpu.rflags |= rflags::IOPL;
        machine.set(Gpr::Rdx, u64::from(port));
        assert!(machine.run(bytes).is_ok());
    }
}

#[test]
fn port_reads_wait_and_complete() {
    for (bytes, size, expected) in [
        (&[0xe4u8, 0x70][..], 1, 0x1111_1111_1111_11dd),
        (&[0x66, 0xe5, 0x70], 2, 0x1111_1111_1111_ccdd),
        (&[0xe5, 0x70], 4, 0xaabb_ccdd),
    ] {
        let mut machine = Machine::new();
        machine.set(Gpr::Rax, 0x1111_1111_1111_1111);
        let waiting = machine.cpu.clone();
        assert_eq!(
            machine.run(bytes),
            Ok(Outcome::PortRead { port: 0x70, size })
        );
        assert_eq!(machine.cpu, waiting);
        let instr = machine.decode(bytes);
        finish_port_read(&instr, &mut machine.cpu, &mut machine.bus, 0xaabb_ccdd).unwrap();
        assert_eq!(machine.get(Gpr::Rax), expected);
        assert_eq!(machine.cpu.rip, CODE + bytes.len() as u64);
    }
}

#[test]
fn string_ports_go_element_by_element() {
    let mut machine = Machine::new();
    let (ins, outs): ([u8; 2], [u8; 2]) = ([0xf3, 0x6d], [0xf3, 0x6e]);
    machine.set(Gpr::Rdx, 0x60);
    machine.set(Gpr::Rdi, DATA);
    machine.set(Gpr::Rcx, 2);
    let instr = machine.decode(&ins);
    for (value, expected) in [(1, Outcome::RepPartial { done: 1 }), (2, Outcome::Next)] {
        assert_eq!(
            machine.run(&ins),
            Ok(Outcome::PortRead {
                port: 0x60,
                size: 4
            })
        );
        let outcome = finish_port_read(&instr, &mut machine.cpu, &mut machine.bus, value);
        assert_eq!(outcome, Ok(expected));
    }
    assert_eq!(machine.bus.peek_u64(DATA), 0x2_0000_0001);
    assert_eq!(
        (machine.get(Gpr::Rdi), machine.cpu.rip),
        (DATA + 8, CODE + 2)
    );
    machine.set(Gpr::Rsi, DATA);
    machine.set(Gpr::Rcx, 2);
    for (value, retired) in [(1, false), (0, true)] {
        let expected = Outcome::PortWrite {
            port: 0x60,
            size: 1,
            value,
            retired,
        };
        assert_eq!(machine.run(&outs), Ok(expected));
    }
    assert_eq!(
        (machine.get(Gpr::Rsi), machine.cpu.rip),
        (DATA + 2, CODE + 4)
    );
    machine.set(Gpr::Rcx, 1);
    machine.bus.protect(DATA, 5);
    machine.set(Gpr::Rdi, DATA);
    assert_eq!(
        machine.run(&ins),
        Err(Fault::page(DATA, 3)),
        "before the port is read"
    );
}

#[test]
fn identification_and_time() {
    let mut machine = Machine::user();
    machine.set(Gpr::Rax, 0xffff_ffff_8000_0008);
    machine.run(&[0x0f, 0xa2]).unwrap();
    assert_eq!(machine.get(Gpr::Rax), 0x3028);
    machine.cpu.rip = CODE;
    assert_eq!(machine.run(&[0x0f, 0x31]), Ok(Outcome::TimestampRead));
    let instr = machine.decode(&[0x0f, 0x31]);
    let outcome = finish_timestamp(&instr, &mut machine.cpu, &mut machine.bus, 0x1_0000_0002);
    assert_eq!(outcome, Outcome::Next);
    assert_eq!((machine.get(Gpr::Rdx), machine.get(Gpr::Rax)), (1, 2));
    machine.cpu.cr4 |= cr4::TSD;
    assert_eq!(machine.run(&[0x0f, 0x31]), Err(Fault::GP0));
    assert_eq!(
        machine.run(&[0x0f, 0x01, 0xf9]),
        Err(Fault::UD),
        "RDTSCP is hidden"
    );
    assert_eq!(machine.run(&[0x0f, 0x33]), Err(Fault::GP0), "RDPMC");
    assert_eq!(machine.run(&[0x0f, 0x01, 0xd0]), Err(Fault::UD), "XGETBV");
}

#[test]
fn halt_and_invlpg() {
    let mut machine = Machine::new();
    assert_eq!(machine.run(&[0xf4]), Ok(Outcome::Halt));
    assert_eq!(
        (machine.cpu.activity, machine.cpu.rip),
        (Activity::Halted, CODE + 1)
    );
    machine.set(Gpr::Rax, 0x9000_0000_0000);
    let va = 0x9000_0000_0000;
    assert_eq!(
        machine.run(&[0x0f, 0x01, 0x38]),
        Ok(Outcome::InvalidatePage { va })
    );
    assert_eq!(Machine::user().run(&[0xf4]), Err(Fault::GP0));
}

#[test]
fn enter_copies_the_display() {
    let mut machine = Machine::new();
    machine.set(Gpr::Rbp, DATA + 64);
    machine.bus.poke_u64(DATA + 56, 0xaaaa);
    machine.bus.poke_u64(DATA + 48, 0xbbbb);
    machine.run(&[0xc8, 0x20, 0x00, 0x03]).unwrap();
    let pushed: Vec<u64> = (1..5)
        .map(|n| machine.bus.peek_u64(STACK - 8 * n))
        .collect();
    assert_eq!(pushed, [DATA + 64, 0xaaaa, 0xbbbb, STACK - 8]);
    assert_eq!(machine.get(Gpr::Rsp), STACK - 32 - 0x20);
    assert_eq!(machine.get(Gpr::Rbp), STACK - 8);
    // The display overlaps what is being pushed: half of the old RBP.
    let mut machine = Machine::new();
    machine.set(Gpr::Rbp, STACK + 4);
    machine.bus.poke(STACK, &[0x11, 0x22, 0x33, 0x44]);
    machine.run(&[0xc8, 0, 0, 2]).unwrap();
    let top_of_rbp = (STACK + 4) >> 32;
    assert_eq!(
        machine.bus.peek_u64(STACK - 16),
        top_of_rbp | 0x4433_2211 << 32
    );
    let mut machine = Machine::new();
    machine.bus.protect(STACK - 8192, 5);
    let fault = Fault::page(STACK - 8 - 4096, 3);
    assert_eq!(
        machine.run(&[0xc8, 0x00, 0x10, 0x00]),
        Err(fault),
        "final RSP is probed"
    );
}

#[test]
fn alignment_checks_at_cpl3() {
    let mut machine = Machine::user();
    machine.cpu.cr0 |= cr0::AM;
    machine.cpu.rflags |= rflags::AC;
    machine.set(Gpr::Rsi, DATA + 1);
    assert_eq!(machine.run(&[0xad]), Err(Fault::AC));
    assert_eq!(machine.run(&[0xac]), Ok(Outcome::Next));
}

#[test]
fn rip_relative_operands_follow_rip_not_the_decoder() {
    let mut machine = Machine::new();
    let instr = machine.decode(&[0x0f, 0x01, 0x15, 0, 0x10, 0, 0]);
    machine.bus.poke(CODE + 0x5000 + 7 + 0x1000, &[0x37, 0]);
    machine.cpu.rip = CODE + 0x5000;
    let outcome = execute(&instr, &mut machine.cpu, &mut machine.bus, 1);
    assert_eq!(outcome, Ok(Outcome::Next));
    assert_eq!(machine.cpu.gdtr.limit, 0x37);
}
