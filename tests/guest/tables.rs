//! Descriptors: GDT, LDT, IDT and TSS of a test guest.

use super::layout::{self, sel};
use machine::state::Segment;

/// A code or data descriptor. `access` is byte 5 (P, DPL, S, type), `flags` the high nibble of byte 6
/// (G, D/B, L, AVL).
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags) << 52
        | (base >> 24) << 56
}

/// A 16-byte system descriptor (TSS or LDT).
pub fn system_descriptor(base: u64, limit: u32, access: u8) -> [u64; 2] {
    [descriptor(base as u32, limit, access, 0), base >> 32]
}

/// A 16-byte gate: `access` is P, DPL and type (0xe interrupt, 0xf trap, 0xc call).
pub fn gate(target: u64, selector: u16, access: u8, ist: u8) -> [u64; 2] {
    let low = (target & 0xffff)
        | u64::from(selector) << 16
        | u64::from(ist) << 32
        | u64::from(access) << 40
        | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

/// The hidden part that loading `selector` with descriptor `raw` (first 8 bytes) gives.
pub fn loaded(selector: u16, raw: [u64; 2]) -> Segment {
    let attributes = (raw[0] >> 40 & 0xf0ff) as u16;
    let system = attributes & 0x10 == 0;
    let limit = (raw[0] & 0xffff | raw[0] >> 32 & 0xf_0000) as u32;
    let base = raw[0] >> 16 & 0xff_ffff | (raw[0] >> 56) << 24;
    Segment {
        selector,
        attributes,
        limit: if attributes & 0x8000 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        base: if system { base | raw[1] << 32 } else { base },
    }
}

/// The descriptors every guest has: (selector without RPL, quadword). Accessed bits are set.
pub(super) fn standard_gdt() -> Vec<(u16, u64)> {
    let flat = 0xf_ffff;
    let tss = system_descriptor(layout::TSS, 0x67 + 0x2001, 0x8b);
    let ldt = system_descriptor(layout::LDT, layout::LDT_BYTES as u32 - 1, 0x82);
    vec![
        (0x08, descriptor(0, flat, 0x9b, 0xc)),
        (sel::CODE, descriptor(0, flat, 0x9b, 0xa)),
        (sel::DATA, descriptor(0, flat, 0x93, 0xc)),
        (sel::USER_CODE32 & !3, descriptor(0, flat, 0xfb, 0xc)),
        (sel::USER_DATA & !3, descriptor(0, flat, 0xf3, 0xc)),
        (sel::USER_CODE & !3, descriptor(0, flat, 0xfb, 0xa)),
        (sel::USER_DATA_SYSEXIT & !3, descriptor(0, flat, 0xf3, 0xc)),
        (sel::TSS, tss[0]),
        (sel::TSS + 8, tss[1]),
        (sel::LDT, ldt[0]),
        (sel::LDT + 8, ldt[1]),
    ]
}
