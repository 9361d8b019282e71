//! Which mode bits forbid x87, MMX and SSE instructions (SDM vol. 3, table 2-2 and 13.1; vol. 2A,
//! tables 2-18 to 2-21).
//!
//! | class | CR0.EM | CR0.TS | CR4.OSFXSR = 0 | pending x87 exception |
//! |---|---|---|---|---|
//! | x87, no wait form | #NM | #NM | - | - |
//! | x87 | #NM | #NM | - | #MF |
//! | WAIT | - | #NM if CR0.MP | - | #MF |
//! | FXSAVE, FXRSTOR | #NM | #NM | - | - |
//! | MMX | #UD | #NM | - | #MF |
//! | SSE | #UD | #NM | #UD | - |
//! | SSE with MMX operands | #UD | #NM | #UD | #MF |
//! | everything else | - | - | - | - |
//!
//! #UD comes before #NM, #NM before #MF. #MF needs CR0.NE; without it the pending exception would
//! be reported through a line that this machine does not have.

use super::{Fault, vector};
use iced_x86::{CpuidFeature, Instruction, Mnemonic, Register};
use machine::state::{CpuState, cr0, cr4};

/// Rows of the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpuClass {
    /// Touches no such state: also PAUSE, fences, MOVNTI, PREFETCH, CRC32, POPCNT.
    None,
    /// x87 control instructions that do not look at pending exceptions (FNINIT, FNSTSW, ...).
    X87NoWait,
    /// Other x87 instructions, FNOP included.
    X87,
    /// WAIT.
    Wait,
    /// FXSAVE and FXRSTOR.
    Fxsave,
    /// MMX registers only.
    Mmx,
    /// XMM registers or MXCSR.
    Sse,
    /// XMM and MMX registers (conversions, MOVQ2DQ, MOVDQ2Q).
    SseMmx,
}

impl FpuClass {
    /// Whether instructions of the class look at pending x87 exceptions.
    pub fn waits(self) -> bool {
        matches!(self, Self::X87 | Self::Wait | Self::Mmx | Self::SseMmx)
    }
}

/// FSW.ES: an unmasked exception is pending.
const FSW_ES: u16 = 1 << 7;

/// The class of an instruction; a fact of its encoding.
pub fn classify(instr: &Instruction) -> FpuClass {
    use Mnemonic as M;
    match instr.mnemonic() {
        M::Wait => return FpuClass::Wait,
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => return FpuClass::Fxsave,
        M::Fninit
        | M::Fnclex
        | M::Fnstcw
        | M::Fnstsw
        | M::Fnstenv
        | M::Fnsave
        | M::Fneni
        | M::Fndisi
        | M::Fnsetpm => return FpuClass::X87NoWait,
        M::Ldmxcsr | M::Stmxcsr => return FpuClass::Sse,
        M::Emms | M::Maskmovq | M::Movntq => return FpuClass::Mmx,
        M::Movnti
        | M::Sfence
        | M::Lfence
        | M::Mfence
        | M::Pause
        | M::Clflush
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Crc32
        | M::Popcnt => return FpuClass::None,
        // From memory they do not touch the x87 state (SDM vol. 2, CVTPI2PD; CVTPI2PS likewise on
        // family 6 model 207).
        M::Cvtpi2ps | M::Cvtpi2pd if !has_register(instr, Register::is_mm) => {
            return FpuClass::Sse;
        }
        M::Cvtpi2ps | M::Cvtpi2pd => return FpuClass::SseMmx,
        M::Fisttp => return FpuClass::X87,
        _ => {}
    }
    match (
        has_register(instr, Register::is_mm),
        has_register(instr, Register::is_xmm),
    ) {
        (true, true) => FpuClass::SseMmx,
        (true, false) => FpuClass::Mmx,
        (false, true) => FpuClass::Sse,
        (false, false) if is_x87(instr) => FpuClass::X87,
        _ => FpuClass::None,
    }
}

fn has_register(instr: &Instruction, test: fn(Register) -> bool) -> bool {
    (0..instr.op_count()).any(|i| test(instr.op_register(i)))
}

fn is_x87(instr: &Instruction) -> bool {
    instr.cpuid_features().iter().any(|f| {
        matches!(
            f,
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387
        )
    })
}

/// The fault that mode bits raise before an instruction of a class: all that a translation may
/// decide once per mode. A pending exception is [`pending`]'s.
pub fn mode_fault(class: FpuClass, cr0_value: u64, cr4_value: u64) -> Option<Fault> {
    use FpuClass::{Fxsave, Mmx, None as Unaffected, Sse, SseMmx, Wait, X87, X87NoWait};
    let em = cr0_value & cr0::EM != 0;
    let ts = cr0_value & cr0::TS != 0;
    let osfxsr = cr4_value & cr4::OSFXSR != 0;
    let undefined = match class {
        Mmx => em,
        Sse | SseMmx => em || !osfxsr,
        _ => false,
    };
    let unavailable = match class {
        Unaffected => false,
        Wait => ts && cr0_value & cr0::MP != 0,
        X87 | X87NoWait | Fxsave => em || ts,
        Mmx | Sse | SseMmx => ts,
    };
    if undefined {
        Some(Fault::UD)
    } else {
        unavailable.then_some(Fault::NM)
    }
}

/// #MF where an instruction of a class meets a pending x87 exception.
pub fn pending(class: FpuClass, cpu: &CpuState) -> Option<Fault> {
    let reported = cpu.cr0 & cr0::NE != 0 && cpu.fpu.fsw & FSW_ES != 0;
    (class.waits() && reported).then_some(Fault::plain(vector::MF))
}

/// The fault that an x87, MMX or SSE instruction raises before it executes, if any.
pub fn fpu_fault(instr: &Instruction, cpu: &CpuState) -> Option<Fault> {
    let class = classify(instr);
    mode_fault(class, cpu.cr0, cpu.cr4).or_else(|| pending(class, cpu))
}
