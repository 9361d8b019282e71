//! Guest-linear to guest-physical, looking only: no accessed bit is set.

use machine::ram::Ram;
use machine::state::{CpuState, cr0, cr4, efer};
use machine::units::GuestPhys;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Where `linear` lies, if it is mapped to RAM by four- or five-level tables, or if paging is off.
/// Permissions do not matter here.
pub(crate) fn translate(ram: &Ram, cpu: &CpuState, linear: u64) -> Option<GuestPhys> {
    let found = if cpu.cr0 & cr0::PG == 0 {
        linear
    } else if cpu.msrs.efer & efer::LMA == 0 {
        return None;
    } else {
        long_mode(ram, cpu, linear)?
    };
    ram.contains(GuestPhys(found), 1).then_some(GuestPhys(found))
}

/// SDM vol. 3, 4.5.
fn long_mode(ram: &Ram, cpu: &CpuState, linear: u64) -> Option<u64> {
    let levels = if cpu.cr4 & cr4::LA57 == 0 { 4 } else { 5 };
    let mut table = cpu.cr3 & FRAME;
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = linear >> shift & 0x1ff;
        let mut entry = [0; 8];
        ram.read(GuestPhys(table + 8 * index), &mut entry).ok()?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 {
            return None;
        }
        let is_page = level == 1 || (level <= 3 && entry & LARGE != 0);
        if is_page {
            let offset_mask = (1 << shift) - 1;
            return Some(entry & FRAME & !offset_mask | linear & offset_mask);
        }
        table = entry & FRAME;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_every_size_are_found_and_holes_are_not() {
        let ram = Ram::new(64 << 12).unwrap();
        let put = |at: u64, entry: u64| ram.write(GuestPhys(at), &entry.to_le_bytes()).unwrap();
        put(0x1000, 0x2003);
        put(0x2000, 0x3003);
        put(0x2008, 0x83);
        put(0x3000, 0x4003);
        put(0x3008, 0x83);
        put(0x4008, 0x8000_0000_0000_5003);
        let cpu = CpuState::long_mode(0, 0, 0x1000);
        let rows = [
            (0x1234, Some(0x5234)),
            (0x0234, None),
            (0x20_0000 + 0x3_0456, Some(0x3_0456)),
            (0x4000_0000 + 0x3_0456, Some(0x3_0456)),
            (0x8000_0000, None),
            (0x20_0000 + 0x10_0000, None),
        ];
        for (linear, expected) in rows {
            assert_eq!(translate(&ram, &cpu, linear), expected.map(GuestPhys), "{linear:#x}");
        }
    }
}
