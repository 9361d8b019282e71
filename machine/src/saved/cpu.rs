//! The saved vCPU: components, each with its length, under two bitmaps. One bitmap is ours, the other
//! numbers components as XCR0 does, so that wider vectors become further components.

use crate::saved::codec::{Code, DecodeError, Decoder, saved};

/// Bits of the first bitmap: general, segments, control, MSRs, execution.
pub const CORE_COMPONENTS: u64 = 0x1f;
/// Bit of the first bitmap that is set only if the component says something: held breakpoints.
pub const HELD_COMPONENT: u64 = 0x20;
/// Bits of the second bitmap, numbered as in XCR0: x87 and SSE.
pub const XSTATE_COMPONENTS: u64 = 0x3;

saved! {
    /// Component 0: general-purpose registers.
    SavedGeneral {
        /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
        gpr: [u64; 16],
        /// RIP.
        rip: u64,
        /// RFLAGS.
        rflags: u64,
    }
}

saved! {
    /// A segment register.
    SavedSegment {
        /// Selector.
        selector: u16,
        /// Descriptor bits 40 to 55, those of the limit zero.
        attributes: u16,
        /// Limit in bytes.
        limit: u32,
        /// Base.
        base: u64,
    }
}

saved! {
    /// GDTR or IDTR.
    SavedTable {
        /// Base.
        base: u64,
        /// Limit in bytes.
        limit: u16,
    }
}

saved! {
    /// Component 1: segmentation.
    SavedSegments {
        /// ES, CS, SS, DS, FS, GS.
        segs: [SavedSegment; 6],
        /// LDTR.
        ldtr: SavedSegment,
        /// TR.
        tr: SavedSegment,
        /// GDTR.
        gdtr: SavedTable,
        /// IDTR.
        idtr: SavedTable,
    }
}

saved! {
    /// Component 2: control and debug registers.
    SavedControl {
        /// CR0.
        cr0: u64,
        /// CR2.
        cr2: u64,
        /// CR3.
        cr3: u64,
        /// CR4.
        cr4: u64,
        /// CR8.
        cr8: u64,
        /// XCR0.
        xcr0: u64,
        /// DR0 to DR3.
        dr: [u64; 4],
        /// DR6.
        dr6: u64,
        /// DR7.
        dr7: u64,
    }
}

saved! {
    /// Component 3: model-specific registers.
    SavedMsrs {
        /// IA32_EFER.
        efer: u64,
        /// IA32_STAR.
        star: u64,
        /// IA32_LSTAR.
        lstar: u64,
        /// IA32_CSTAR.
        cstar: u64,
        /// IA32_FMASK.
        sfmask: u64,
        /// IA32_KERNEL_GS_BASE.
        kernel_gs_base: u64,
        /// IA32_SYSENTER_CS.
        sysenter_cs: u64,
        /// IA32_SYSENTER_ESP.
        sysenter_esp: u64,
        /// IA32_SYSENTER_EIP.
        sysenter_eip: u64,
        /// IA32_PAT.
        pat: u64,
        /// IA32_TSC_AUX.
        tsc_aux: u64,
    }
}

saved! {
    /// Component 4: what happens at the next boundary.
    SavedExecution {
        /// Interrupt shadow: 0 none, 1 STI, 2 MOV SS.
        shadow: u8,
        /// 0 running, 1 halted, 2 shut down.
        activity: u8,
    }
}

saved! {
    /// Component 5, only where it is not zero: what a shadow holds back.
    SavedHeld {
        /// Data breakpoints that MOV SS or POP SS hit, as in bits 0 to 3 of DR6.
        breakpoints: u8,
    }
}

saved! {
    /// XCR0 component 0: x87.
    SavedX87 {
        /// Control word.
        fcw: u16,
        /// Status word.
        fsw: u16,
        /// Abridged tag word.
        ftw: u8,
        /// Last opcode.
        fop: u16,
        /// Last instruction pointer.
        fip: u64,
        /// Last data pointer.
        fdp: u64,
        /// Selector of `fip`.
        fcs: u16,
        /// Selector of `fdp`.
        fds: u16,
        /// ST(0) to ST(7), 80 bits each in 16 bytes.
        st: [u128; 8],
    }
}

saved! {
    /// XCR0 component 1: SSE.
    SavedSse {
        /// MXCSR.
        mxcsr: u32,
        /// XMM0 to XMM15.
        xmm: [u128; 16],
    }
}

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "one field per component, named as its type")]
pub struct SavedCpu {
    pub general: SavedGeneral,
    pub segments: SavedSegments,
    pub control: SavedControl,
    pub msrs: SavedMsrs,
    pub execution: SavedExecution,
    pub held: SavedHeld,
    pub x87: SavedX87,
    pub sse: SavedSse,
}

/// Writes a component: its length (u32), then its bytes.
fn put(component: &impl Code, into: &mut Vec<u8>) {
    let start = into.len();
    0_u32.encode(into);
    component.encode(into);
    let length = into.len() - start - size_of::<u32>();
    let length = u32::try_from(length).expect("components have a few hundred bytes");
    into[start..start + size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
}

/// Reads a component, whose length must be what its fields need.
fn take<T: Code>(from: &mut Decoder<'_>) -> Result<T, DecodeError> {
    let length = u32::decode(from)?;
    let mut inner = Decoder::at(from.offset(), from.bytes(length as usize)?);
    let component = T::decode(&mut inner)?;
    inner.finish()?;
    Ok(component)
}

/// Reads the component of held breakpoints, which is there only if it is not zero.
fn held(from: &mut Decoder<'_>, there: bool) -> Result<SavedHeld, DecodeError> {
    if !there {
        return Ok(SavedHeld { breakpoints: 0 });
    }
    let offset = from.offset();
    let held: SavedHeld = take(from)?;
    match held.breakpoints {
        0 => Err(DecodeError::Value {
            offset,
            what: "held breakpoints",
        }),
        _ => Ok(held),
    }
}

/// Reads a bitmap of components, all of which must be known and, but for `optional` ones, there.
fn bitmap(from: &mut Decoder<'_>, expected: u64, optional: u64) -> Result<u64, DecodeError> {
    let found = u64::decode(from)?;
    if found & !optional == expected {
        Ok(found)
    } else {
        Err(DecodeError::Components { found, expected })
    }
}

impl Code for SavedCpu {
    fn encode(&self, into: &mut Vec<u8>) {
        let Self {
            general,
            segments,
            control,
            msrs,
            execution,
            held,
            x87,
            sse,
        } = self;
        let holds = held.breakpoints != 0;
        let held_bit = if holds { HELD_COMPONENT } else { 0 };
        (CORE_COMPONENTS | held_bit).encode(into);
        XSTATE_COMPONENTS.encode(into);
        put(general, into);
        put(segments, into);
        put(control, into);
        put(msrs, into);
        put(execution, into);
        if holds {
            put(held, into);
        }
        put(x87, into);
        put(sse, into);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let core = bitmap(from, CORE_COMPONENTS, HELD_COMPONENT)?;
        bitmap(from, XSTATE_COMPONENTS, 0)?;
        Ok(Self {
            general: take(from)?,
            segments: take(from)?,
            control: take(from)?,
            msrs: take(from)?,
            execution: take(from)?,
            held: held(from, core & HELD_COMPONENT != 0)?,
            x87: take(from)?,
            sse: take(from)?,
        })
    }
}
