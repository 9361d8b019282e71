//! Segment and system descriptors in guest memory (SDM vol. 3, 3.4.5, 3.5, 5.8; APM vol. 2, 4.7, 4.8).

use super::context::Place;
use super::context::check_canonical;
use super::{AccessKind, Fault, SysBus};
use machine::state::{CpuState, Seg, Segment};

/// A selector and how much of it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selector(pub(super) u16);

impl Selector {
    pub(super) fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
    pub(super) fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
    pub(super) fn is_local(self) -> bool {
        self.0 & 4 != 0
    }
    /// As an error code: without RPL.
    pub(super) fn error(self) -> u32 {
        u32::from(self.0 & !3)
    }
    fn offset(self) -> u64 {
        u64::from(self.0 & !7)
    }
}

/// System descriptor types in long mode.
pub(super) mod system_type {
    pub(crate) const LDT: u8 = 2;
    pub(crate) const TSS_AVAILABLE: u8 = 9;
    pub(crate) const TSS_BUSY: u8 = 0xb;
    pub(crate) const CALL_GATE: u8 = 0xc;
    pub(crate) const INTERRUPT_GATE: u8 = 0xe;
    pub(crate) const TRAP_GATE: u8 = 0xf;
}

/// The low quadword of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(pub(super) u64);

impl Descriptor {
    /// Attributes in the form of [`Segment::attributes`].
    pub(super) fn attributes(self) -> u16 {
        ((self.0 >> 40) & 0xf0ff) as u16
    }
    pub(super) fn kind(self) -> u8 {
        ((self.0 >> 40) & 0xf) as u8
    }
    /// S: code or data.
    pub(super) fn is_segment(self) -> bool {
        self.0 & (1 << 44) != 0
    }
    pub(super) fn dpl(self) -> u8 {
        ((self.0 >> 45) & 3) as u8
    }
    pub(super) fn present(self) -> bool {
        self.0 & (1 << 47) != 0
    }
    pub(super) fn is_code(self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }
    pub(super) fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }
    /// Data, or readable code.
    pub(super) fn is_readable(self) -> bool {
        self.is_segment() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }
    pub(super) fn is_writable_data(self) -> bool {
        self.is_segment() && self.kind() & 0xa == 2
    }
    /// CS.L.
    pub(super) fn is_long(self) -> bool {
        self.0 & (1 << 53) != 0
    }
    /// CS.D.
    pub(super) fn is_default_32(self) -> bool {
        self.0 & (1 << 54) != 0
    }
    /// Limit in bytes.
    pub(super) fn limit(self) -> u32 {
        let raw = ((self.0 & 0xffff) | ((self.0 >> 32) & 0xf_0000)) as u32;
        if self.0 & (1 << 55) != 0 {
            (raw << 12) | 0xfff
        } else {
            raw
        }
    }
    pub(super) fn base(self) -> u64 {
        ((self.0 >> 16) & 0xff_ffff) | ((self.0 >> 32) & 0xff00_0000)
    }

    /// The segment register that loading this descriptor gives; its accessed bit is set.
    pub(super) fn segment(self, selector: Selector) -> Segment {
        Segment {
            selector: selector.0,
            attributes: self.attributes() | u16::from(self.is_segment()),
            limit: self.limit(),
            base: self.base(),
        }
    }
}

/// A null selector in SS or a data segment register: unusable. `dpl` is the CPL for SS, else 0.
pub(super) fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment {
        selector,
        attributes: u16::from(dpl) << 5,
        limit: 0,
        base: 0,
    }
}

/// Linear address of `len` bytes of the descriptor that a selector names, or `None` outside the
/// table.
fn locate(cpu: &CpuState, selector: Selector, len: u64) -> Option<u64> {
    let (base, limit) = if selector.is_local() {
        if !cpu.ldtr.present() {
            return None;
        }
        (cpu.ldtr.base, u64::from(cpu.ldtr.limit))
    } else {
        (cpu.gdtr.base, u64::from(cpu.gdtr.limit))
    };
    let end = selector.offset() + len - 1;
    (end <= limit).then(|| base.wrapping_add(selector.offset()))
}

/// Reads a quadword of a system structure.
pub(super) fn read_system(cpu: &CpuState, bus: &mut dyn SysBus, va: u64) -> Result<u64, Fault> {
    check_canonical(Place { stack: false, va }, 8)?;
    let mut bytes = [0; 8];
    bus.read(cpu, va, &mut bytes, AccessKind::System)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Reads the 8-byte descriptor of a selector; `None` outside the table.
///
/// # Errors
/// The page fault of the read.
pub(super) fn read(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    selector: Selector,
) -> Result<Option<Descriptor>, Fault> {
    match locate(cpu, selector, 8) {
        Some(va) => Ok(Some(Descriptor(read_system(cpu, bus, va)?))),
        None => Ok(None),
    }
}

/// Reads the 16-byte system descriptor of a selector; `None` outside the table.
///
/// # Errors
/// The page fault of the read.
pub(super) fn read_wide(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    selector: Selector,
) -> Result<Option<(Descriptor, u64)>, Fault> {
    match locate(cpu, selector, 16) {
        Some(va) => {
            let low = read_system(cpu, bus, va)?;
            let high = read_system(cpu, bus, va.wrapping_add(8))?;
            Ok(Some((Descriptor(low), high)))
        }
        None => Ok(None),
    }
}

/// Sets type bits in the descriptor of a selector: accessed (1) or, of a TSS, busy (2).
///
/// # Errors
/// The page fault of the write, with nothing changed.
pub(super) fn mark(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    selector: Selector,
    descriptor: Descriptor,
    bit: u8,
) -> Result<(), Fault> {
    if descriptor.kind() & bit != 0 {
        return Ok(());
    }
    let Some(va) = locate(cpu, selector, 8) else {
        return Ok(());
    };
    let byte = ((descriptor.0 >> 40) as u8) | bit;
    bus.write(cpu, va.wrapping_add(5), &[byte], AccessKind::System)
}

/// Checks a stack segment selector for a privilege level and reads its descriptor. `None` stands for
/// a null selector, which only 64-bit code below CPL 3 may have (SDM vol. 2, MOV; vol. 3, 5.7).
///
/// # Errors
/// #GP(0), #GP(selector), #SS(selector) or a page fault.
pub(super) fn stack_descriptor(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    selector: Selector,
    cpl: u8,
) -> Result<Option<Descriptor>, Fault> {
    let error = selector.error();
    if selector.is_null() {
        if cpl == 3 || selector.rpl() != cpl {
            return Err(Fault::GP0);
        }
        return Ok(None);
    }
    let descriptor = read(cpu, bus, selector)?.ok_or(Fault::gp(error))?;
    if selector.rpl() != cpl || !descriptor.is_writable_data() || descriptor.dpl() != cpl {
        return Err(Fault::gp(error));
    }
    if !descriptor.present() {
        return Err(Fault::ss(error));
    }
    Ok(Some(descriptor))
}

/// Checks a selector for ES, DS, FS or GS and reads its descriptor; `None` for a null selector.
///
/// # Errors
/// #GP(selector), #NP(selector) or a page fault.
pub(super) fn data_descriptor(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    selector: Selector,
) -> Result<Option<Descriptor>, Fault> {
    if selector.is_null() {
        return Ok(None);
    }
    let error = selector.error();
    let descriptor = read(cpu, bus, selector)?.ok_or(Fault::gp(error))?;
    let privileged = descriptor.dpl() < selector.rpl().max(cpu.cpl());
    if !descriptor.is_readable() || (privileged && !descriptor.is_conforming()) {
        return Err(Fault::gp(error));
    }
    if !descriptor.present() {
        return Err(Fault::np(error));
    }
    Ok(Some(descriptor))
}

/// Loads a segment register other than CS (SDM vol. 2, MOV and "Loading a segment register").
///
/// # Errors
/// As [`stack_descriptor`] and [`data_descriptor`]; the register is unchanged then.
pub(super) fn load_segment(
    cpu: &mut CpuState,
    bus: &mut dyn SysBus,
    register: Seg,
    selector: Selector,
) -> Result<(), Fault> {
    let (descriptor, null_dpl) = if register == Seg::Ss {
        let cpl = cpu.cpl();
        (stack_descriptor(cpu, bus, selector, cpl)?, cpl)
    } else {
        (data_descriptor(cpu, bus, selector)?, 0)
    };
    cpu.segs[register as usize] = match descriptor {
        Some(descriptor) => {
            mark(cpu, bus, selector, descriptor, 1)?;
            descriptor.segment(selector)
        }
        None => null_segment(selector.0, null_dpl),
    };
    Ok(())
}

/// Reads a stack pointer from the 64-bit TSS: `slot` n is RSPn (0 to 2), `slot` 3 + n is ISTn (1 to
/// 7). `ext` is the EXT bit of error codes.
///
/// # Errors
/// #TS(TR selector) beyond the limit, or a page fault.
pub(super) fn tss_stack(
    cpu: &CpuState,
    bus: &mut dyn SysBus,
    slot: u64,
    ext: u32,
) -> Result<u64, Fault> {
    let offset = 4 + 8 * slot;
    if offset + 7 > u64::from(cpu.tr.limit) {
        return Err(Fault::ts(Selector(cpu.tr.selector).error() | ext));
    }
    read_system(cpu, bus, cpu.tr.base.wrapping_add(offset))
}
