//! IN and OUT: IOPL and the bitmap of the TSS.

use super::super::case;
use super::{Case, at_level};
use crate::guest::{Guest, asm, layout as at, layout::sel, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Opens ports in the bitmap.
fn open(g: &mut Guest, ports: std::ops::Range<u64>) {
    for port in ports {
        let byte = at::IO_BITMAP + port / 8;
        let old = g.ram()[byte as usize];
        g.poke(byte, &[old & !(1 << (port % 8))]);
    }
}

fn touch(g: &mut Guest, port: u32, size: u64) -> Result<(), IcedError> {
    g.start_in_user();
    g.user_code(|a| {
        asm!(a; mov(edx, port); mov(eax, 0););
        match size {
            1 => a.out(dx, al)?,
            2 => a.out(dx, ax)?,
            _ => a.out(dx, eax)?,
        }
        asm!(a; mov(ecx, 1););
        Ok(())
    })
}

pub(super) fn cases(cases: &mut Vec<Case>) {
    for size in [1u64, 2, 4] {
        for (name, first, count, port) in [
            ("closed", 0u64, 0u64, 0x80u32),
            ("open", 0x80, 4, 0x80),
            ("one_of_them", 0x80, 1, 0x80),
            ("across_bytes", 0x86, 4, 0x86),
            ("across_bytes_half", 0x86, 2, 0x86),
            ("last_port", 0xffff, 1, 0xffff),
        ] {
            cases.push(case(format!("bitmap_{name}_{size}"), move |g| {
                open(g, first..first + count);
                touch(g, port, size)
            }));
        }
        cases.push(case(format!("iopl3_{size}"), move |g| {
            g.state.rflags |= 3 << 12;
            touch(g, 0x80, size)
        }));
        cases.push(case(format!("iopl2_{size}"), move |g| {
            g.state.rflags |= 2 << 12;
            touch(g, 0x80, size)
        }));
    }
    // The map's base and the TSS's limit.
    for (name, base, limit) in [
        ("map_outside", 0xffffu16, 0x2068u32),
        ("limit_at_map_byte", 0x68, 0x68 + 0x10),
        ("limit_behind_map_byte", 0x68, 0x68 + 0x11),
        ("no_room_for_base", 0x68, 0x66),
        ("room_for_base_only", 0x68, 0x67),
    ] {
        cases.push(case(format!("tss_{name}"), move |g| {
            open(g, 0x80..0x88);
            g.poke(at::TSS + 0x66, &base.to_le_bytes());
            let raw = tables::system_descriptor(at::TSS, limit, 0x8b);
            g.set_descriptor(sel::TSS, raw[0]);
            g.set_descriptor(sel::TSS + 8, raw[1]);
            g.state.tr = g.segment(sel::TSS);
            touch(g, 0x80, 1)
        }));
    }
    for user in [false, true] {
        cases.push(case(format!("in_sizes_user{user}"), move |g| {
            open(g, 0x80..0x90);
            at_level(g, user, |a| {
                asm!(a; mov(rax, -1i64); mov(rbx, rax); in_(al, 0x80); mov(rcx, rax););
                asm!(a; mov(rax, rbx); mov(edx, 0x80); in_(eax, dx); mov(rsi, rax); xor(eax, eax););
                Ok(())
            })
        }));
    }
}
