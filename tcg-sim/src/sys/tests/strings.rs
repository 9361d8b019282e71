//! String instructions: every path against a byte-wise model.

use super::*;

const PAGE: u64 = 4096;

fn fill(machine: &mut Machine, address: u64, len: u64) {
    for index in 0..len {
        machine.bus.poke(address + index, &[(index * 7 + 3) as u8]);
    }
}

/// REP MOVS by the book: one element after the other.
fn model_movs(ram: &mut [u8], from: u64, to: u64, size: u64, count: u64, backward: bool) {
    for n in 0..count {
        let offset = if backward {
            (n * size).wrapping_neg()
        } else {
            n * size
        };
        for byte in read_all(ram, from.wrapping_add(offset), size)
            .into_iter()
            .enumerate()
        {
            ram[to.wrapping_add(offset) as usize + byte.0] = byte.1;
        }
    }
}

fn read_all(ram: &[u8], address: u64, size: u64) -> Vec<u8> {
    ram[address as usize..(address + size) as usize].to_vec()
}

#[test]
fn rep_movs_with_every_overlap_direction_and_path() {
    let forms: [(&[u8], u64); 3] = [
        (&[0xf3, 0xa4], 1),
        (&[0xf3, 0xa5], 4),
        (&[0xf3, 0x48, 0xa5], 8),
    ];
    for (bytes, size) in forms {
        for distance in [-4099i64, -9, -8, -3, -1, 0, 1, 3, 4, 8, 9, 13, 4096, 5000] {
            for (backward, direct) in [(false, true), (false, false), (true, true), (true, false)] {
                let mut machine = Machine::new();
                machine.bus.direct = direct;
                let (from, count) = (DATA + 3 * PAGE - 50, 700);
                let to = from.wrapping_add_signed(distance);
                fill(&mut machine, DATA, 6 * PAGE);
                let mut expected = machine.bus.ram[DATA as usize..].to_vec();
                let (f, t) = (from - DATA, to - DATA);
                model_movs(&mut expected, f, t, size, count, backward);
                machine.set(Gpr::Rsi, from);
                machine.set(Gpr::Rdi, to);
                machine.set(Gpr::Rcx, count);
                if backward {
                    machine.cpu.rflags |= rflags::DF;
                }
                assert_eq!(machine.run(bytes), Ok(Outcome::Next));
                assert!(
                    machine.bus.ram[DATA as usize..] == expected,
                    "size {size} distance {distance} backward {backward} direct {direct}"
                );
                let moved = count * size;
                let end = if backward { from - moved } else { from + moved };
                assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rcx)), (end, 0));
            }
        }
    }
}

#[test]
fn limits_are_exact_and_resumable() {
    for direct in [false, true] {
        let mut machine = Machine::new();
        machine.bus.direct = direct;
        machine.set(Gpr::Rdi, DATA + PAGE - 5);
        machine.set(Gpr::Rcx, 20);
        machine.set(Gpr::Rax, 0x5a);
        for (max, done, left) in [(1, 1, 19), (7, 7, 12), (11, 11, 1)] {
            let outcome = machine.run_limited(&[0xf3, 0xaa], max);
            assert_eq!(outcome, Ok(Outcome::RepPartial { done }));
            assert_eq!((machine.get(Gpr::Rcx), machine.cpu.rip), (left, CODE));
        }
        assert_eq!(machine.run_limited(&[0xf3, 0xaa], 1), Ok(Outcome::Next));
        assert_eq!(machine.cpu.rip, CODE + 2);
        assert_eq!(machine.bus.peek(DATA + PAGE - 6, 22)[..2], [0, 0x5a]);
        assert_eq!(machine.bus.peek(DATA + PAGE + 14, 2), [0x5a, 0]);
    }
}

#[test]
fn a_fault_in_the_middle_leaves_the_completed_iterations() {
    for direct in [false, true] {
        let mut machine = Machine::new();
        machine.bus.direct = direct;
        machine.bus.protect(DATA + PAGE, 5);
        machine.set(Gpr::Rsi, STACK);
        machine.set(Gpr::Rdi, DATA + PAGE - 24);
        machine.set(Gpr::Rcx, 10);
        let fault = machine
            .run_limited(&[0xf3, 0x48, 0xa5], u64::MAX)
            .unwrap_err();
        assert_eq!(fault, Fault::page(DATA + PAGE, 3));
        assert_eq!(machine.get(Gpr::Rcx), 7);
        assert_eq!(machine.get(Gpr::Rsi), STACK + 24);
        assert_eq!(machine.get(Gpr::Rdi), DATA + PAGE);
        assert_eq!(machine.cpu.rip, CODE);
    }
}

#[test]
fn an_element_across_pages_is_stored_whole_or_not_at_all() {
    let mut machine = Machine::new();
    machine.bus.protect(DATA + PAGE, 5);
    machine.set(Gpr::Rdi, DATA + PAGE - 4);
    machine.set(Gpr::Rax, u64::MAX);
    assert_eq!(machine.run(&[0x48, 0xab]), Err(Fault::page(DATA + PAGE, 3)));
    assert_eq!(machine.bus.peek(DATA + PAGE - 4, 4), [0; 4]);
}

#[test]
fn zero_count_touches_nothing() {
    with_flags(|mut machine, flags| {
        machine.set(Gpr::Rdi, 0x8000_0000_0000);
        machine.set(Gpr::Rsi, 0x8000_0000_0000);
        assert_eq!(machine.run(&[0xf3, 0xa6]), Ok(Outcome::Next));
        assert_eq!(machine.cpu.rflags & rflags::OSZAPC, flags);
    });
}

/// Flags of a - b as the host computes them, by size.
#[test]
fn comparison_flags() {
    use rflags::{AF, CF, OF, PF, SF, ZF};
    for (a, b, expected) in [
        (0x00u8, 0x00u8, ZF | PF),
        (0x00, 0x01, CF | PF | AF | SF),
        (0x80, 0x01, OF | AF),
        (0x7f, 0xff, OF | CF | SF),
        (0x10, 0x01, AF | PF),
        (0x05, 0x02, PF),
    ] {
        with_flags(|mut machine, _| {
            machine.set(Gpr::Rax, 0x1234_5600 | u64::from(a));
            machine.set(Gpr::Rdi, DATA);
            machine.bus.poke(DATA, &[b]);
            assert_eq!(machine.run(&[0xae]), Ok(Outcome::Next));
            assert_eq!(
                machine.cpu.rflags & rflags::OSZAPC,
                expected,
                "{a:#x} {b:#x}"
            );
            assert_eq!(machine.get(Gpr::Rdi), DATA + 1);
        });
    }
}

#[test]
fn scas_and_cmps_stop_where_they_should() {
    for direct in [false, true] {
        let mut machine = Machine::new();
        machine.bus.direct = direct;
        machine.bus.poke(DATA + 100, &[9]);
        machine.set(Gpr::Rdi, DATA);
        machine.set(Gpr::Rcx, 1000);
        machine.set(Gpr::Rax, 9);
        assert_eq!(machine.run(&[0xf2, 0xae]), Ok(Outcome::Next));
        assert_eq!(
            (machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)),
            (DATA + 101, 899)
        );
        machine.cpu.rip = CODE;
        machine.set(Gpr::Rsi, DATA + PAGE);
        machine.set(Gpr::Rdi, DATA);
        assert_eq!(machine.run(&[0xf3, 0x66, 0xa7]), Ok(Outcome::Next));
        assert_eq!(
            (machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)),
            (DATA + 102, 848)
        );
    }
}

#[test]
fn lods_keeps_or_clears_the_upper_half() {
    for (bytes, expected) in [
        (&[0xacu8][..], 0x1111_1111_1111_11aa),
        (&[0x66, 0xad], 0x1111_1111_1111_bbaa),
        (&[0xad], 0xddcc_bbaa),
        (&[0xf3, 0xad], 0x4433_2211),
    ] {
        let mut machine = Machine::new();
        machine
            .bus
            .poke(DATA, &[0xaa, 0xbb, 0xcc, 0xdd, 0x11, 0x22, 0x33, 0x44]);
        machine.set(Gpr::Rax, 0x1111_1111_1111_1111);
        machine.set(Gpr::Rcx, 2);
        machine.set(Gpr::Rsi, DATA);
        assert_eq!(machine.run(bytes), Ok(Outcome::Next));
        assert_eq!(machine.get(Gpr::Rax), expected, "{bytes:02x?}");
    }
}

#[test]
fn address_size_prefix_truncates_pointers_and_counter() {
    let mut machine = Machine::new();
    machine.set(Gpr::Rdi, 0xffff_ffff_0000_0000 | DATA);
    machine.set(Gpr::Rcx, 0xffff_ffff_0000_0003);
    assert_eq!(machine.run(&[0x67, 0xf3, 0xaa]), Ok(Outcome::Next));
    assert_eq!(
        (machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)),
        (DATA + 3, 0)
    );
}

#[test]
fn segment_bases_and_canonical_checks() {
    let mut machine = Machine::new();
    machine.cpu.segs[Seg::Fs as usize].base = 0x100;
    machine.bus.poke(DATA + 0x100, &[0x77]);
    machine.set(Gpr::Rsi, DATA);
    assert_eq!(machine.run(&[0x64, 0xac]), Ok(Outcome::Next));
    assert_eq!(machine.get(Gpr::Rax), 0x77);
    machine.set(Gpr::Rsi, 0x7fff_ffff_ffff);
    assert_eq!(machine.run(&[0x66, 0xad]), Err(Fault::GP0));
}
