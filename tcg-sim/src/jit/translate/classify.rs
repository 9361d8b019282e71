//! Which part of the translator deals with an instruction.

use super::string;
use crate::jit::mode::Mode;
use crate::sys;
use crate::sys::Maker;
use crate::sys::fpu::{self, FpuClass};
use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use machine::state::Seg;

/// The ways of translating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// No effect on guest state.
    Nothing,
    /// Re-encoded with its registers renamed.
    Native,
    /// As `Native`, and the x87 pointers are kept.
    X87,
    /// Executed in Rust; `ends` if it practically always leaves the block.
    Execute {
        ends: bool,
    },
    Lea,
    /// MOVS, STOS, LODS that may run natively.
    String,
    BitString,
    MaskedMove,
    /// CLD, STD, CLI.
    Flag,
    SwapGs,
    PushFlags,
    Push,
    Pop,
    Leave,
    Call,
    CallIndirect,
    Return,
    Jump,
    JumpIndirect,
    Condition,
    CountBranch,
}

impl Class {
    /// Whether a superblock ends behind it.
    pub(super) fn ends_block(self) -> bool {
        matches!(
            self,
            Self::Execute { ends: true }
                | Self::Call
                | Self::CallIndirect
                | Self::Return
                | Self::Jump
                | Self::JumpIndirect
        )
    }
}

const EXECUTE: Class = Class::Execute { ends: false };
const EXECUTE_LAST: Class = Class::Execute { ends: true };

/// Decides how to translate.
pub(super) fn classify(instruction: &Instruction, mode: Mode, vendor: Maker) -> Class {
    if is_undefined(instruction, vendor) || mode.has_odd_code() {
        return EXECUTE_LAST;
    }
    let class = regular_class(instruction, mode);
    let may_be_odd = matches!(
        class,
        Class::Nothing | Class::Native | Class::X87 | Class::MaskedMove
    );
    match may_be_odd || odd_segment(instruction, mode).is_none() {
        true => class,
        false => EXECUTE_LAST,
    }
}

/// How to translate where no segment is odd. Translations of [`Class::Native`], [`Class::X87`] and
/// [`Class::MaskedMove`] have accesses through odd segments looked at by Rust.
fn regular_class(instruction: &Instruction, mode: Mode) -> Class {
    if let Some(class) = by_mnemonic(instruction, mode) {
        return class;
    }
    if string::shape(instruction).is_some() {
        return Class::String;
    }
    if touches_segments(instruction)
        || sys::handles(instruction)
        || instruction.is_privileged()
        || instruction.is_string_instruction()
    {
        return EXECUTE;
    }
    if unit_is_off(instruction, mode) {
        return EXECUTE_LAST;
    }
    if is_x87(instruction) {
        Class::X87
    } else {
        Class::Native
    }
}

fn by_mnemonic(instruction: &Instruction, mode: Mode) -> Option<Class> {
    use Mnemonic as M;
    if instruction.op0_kind() == OpKind::NearBranch16 {
        return Some(EXECUTE_LAST);
    }
    Some(match instruction.mnemonic() {
        M::Nop | M::Pause | M::Endbr64 | M::Endbr32 | M::Reservednop => Class::Nothing,
        M::Prefetch
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Cldemote
        | M::Rdsspd
        | M::Rdsspq => Class::Nothing,
        M::Lea => Class::Lea,
        M::Bt | M::Btc | M::Btr | M::Bts
            if instruction.op0_kind() == OpKind::Memory
                && instruction.op1_kind() == OpKind::Register =>
        {
            Class::BitString
        }
        M::Maskmovq | M::Maskmovdqu if !unit_is_off(instruction, mode) => Class::MaskedMove,
        M::Cld | M::Std => Class::Flag,
        M::Swapgs if mode.cpl() == 0 => Class::SwapGs,
        M::Cli if mode.io_privilege() => Class::Flag,
        M::Pushfq if mode.io_privilege() || mode.cpl() == 3 => Class::PushFlags,
        M::Push => push_class(instruction),
        M::Pop => push_class(instruction).map_pop(),
        M::Leave if matches!(instruction.code(), Code::Leaveq | Code::Leaved) => Class::Leave,
        M::Call | M::Jmp | M::Ret => return transfer(instruction),
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => Class::CountBranch,
        _ if instruction.flow_control() == FlowControl::ConditionalBranch => {
            match instruction.op0_kind() {
                OpKind::NearBranch64 | OpKind::NearBranch32 => Class::Condition,
                _ => EXECUTE_LAST,
            }
        }
        M::Iret
        | M::Iretd
        | M::Iretq
        | M::Syscall
        | M::Sysret
        | M::Sysretq
        | M::Sysenter
        | M::Sysexit
        | M::Sysexitq
        | M::Int
        | M::Int1
        | M::Int3
        | M::Into
        | M::Hlt
        | M::Sti
        | M::Ud0
        | M::Ud1
        | M::Ud2
        | M::Rsm
        | M::Retf
        | M::Swapgs
        | M::Stac
        | M::Clac => EXECUTE_LAST,
        M::Cpuid
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdpmc
        | M::Rdmsr
        | M::Wrmsr
        | M::In
        | M::Out
        | M::Enter
        | M::Leave
        | M::Xlatb
        | M::Pushf
        | M::Pushfd
        | M::Pushfq
        | M::Popf
        | M::Popfd
        | M::Popfq
        | M::Pusha
        | M::Pushad
        | M::Popa
        | M::Popad
        | M::Aaa
        | M::Aas
        | M::Aam
        | M::Aad
        | M::Daa
        | M::Das
        | M::Salc
        | M::Bound
        | M::Arpl
        | M::Lds
        | M::Les
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lss
        | M::Lfs
        | M::Lgs
        | M::Clflush
        | M::Clflushopt
        | M::Clwb
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Fnstenv
        | M::Fstenv
        | M::Fldenv
        | M::Fnsave
        | M::Fsave
        | M::Frstor
        | M::Fninit
        | M::Fnclex
        | M::Fclex
        | M::Finit
        | M::Monitor
        | M::Mwait
        | M::Cli
        | M::Xgetbv
        | M::Xsetbv => EXECUTE,
        _ => return None,
    })
}

impl Class {
    fn map_pop(self) -> Self {
        if self == Self::Push { Self::Pop } else { self }
    }
}

/// PUSH and POP of general-purpose registers, memory and immediates; 64- and 16-bit.
fn push_class(instruction: &Instruction) -> Class {
    let segment = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register();
    if segment { EXECUTE } else { Class::Push }
}

fn transfer(instruction: &Instruction) -> Option<Class> {
    Some(match instruction.code() {
        Code::Call_rel32_64 | Code::Call_rel32_32 => Class::Call,
        Code::Call_rm64 | Code::Call_rm32 => Class::CallIndirect,
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => {
            Class::Jump
        }
        Code::Jmp_rm64 | Code::Jmp_rm32 => Class::JumpIndirect,
        Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16 => Class::Return,
        _ => EXECUTE_LAST,
    })
}

fn touches_segments(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|op| {
        instruction.op_kind(op) == OpKind::Register && {
            let register = instruction.op_register(op);
            register.is_segment_register()
                || register.is_cr()
                || register.is_dr()
                || register.is_tr()
        }
    })
}

/// Whether the instruction is one of the x87 unit.
pub(super) fn is_x87(instruction: &Instruction) -> bool {
    use FpuClass as F;
    matches!(fpu::classify(instruction), F::X87 | F::X87NoWait | F::Wait)
}

/// Whether CR0 or CR4 forbid the instruction: Rust then raises the fault.
fn unit_is_off(instruction: &Instruction, mode: Mode) -> bool {
    let (cr0, cr4) = mode.unit_controls();
    fpu::mode_fault(fpu::classify(instruction), cr0, cr4).is_some()
}

/// The segment register through which an instruction accesses memory and which does not allow that, and
/// whether it writes.
pub(crate) fn odd_segment(instruction: &Instruction, mode: Mode) -> Option<(Seg, bool)> {
    let prefixed = matches!(
        instruction.segment_prefix(),
        Register::CS | Register::FS | Register::GS
    );
    if !mode.is_compat() || !(prefixed || mode.has_odd_plain_segment()) {
        return None;
    }
    let mut infos = InstructionInfoFactory::new();
    let used = infos.info(instruction).used_memory();
    used.iter().find_map(|memory| {
        use OpAccess as A;
        let segment = segment_of(memory.segment())?;
        // What these do later is looked at then: ARPL may not write, FXSAVE reports misalignment before.
        let may_write = !matches!(instruction.mnemonic(), Mnemonic::Arpl | Mnemonic::Fxsave);
        let writes = match memory.access() {
            A::None | A::NoMemAccess => return None,
            A::Read | A::CondRead => false,
            A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite => may_write,
        };
        mode.is_odd(segment, writes).then_some((segment, writes))
    })
}

/// Which segment register this is.
pub(crate) fn segment_of(register: Register) -> Option<Seg> {
    Some(match register {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::DS => Seg::Ds,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        _ => return None,
    })
}

/// Whether the guest gets #UD whatever its privilege.
pub(crate) fn is_undefined(instruction: &Instruction, vendor: Maker) -> bool {
    instruction.is_invalid()
        || !executes_natively_or_is_ours(instruction)
        || is_shadow_stack(instruction)
        || vendor == Maker::Amd && is_prefetch_of_register(instruction)
}

/// CET instructions but those that are NOPs where CET is off, as here.
fn is_shadow_stack(instruction: &Instruction) -> bool {
    let reads = matches!(instruction.mnemonic(), Mnemonic::Rdsspd | Mnemonic::Rdsspq);
    !reads && instruction.cpuid_features().contains(&CpuidFeature::CET_SS)
}

/// 0F 0D with a register operand: #UD on AMD, a NOP on Intel.
fn is_prefetch_of_register(instruction: &Instruction) -> bool {
    matches!(
        instruction.code(),
        Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
    ) && instruction.op0_kind() == OpKind::Register
}

/// Whether the host may execute the instruction for the guest or Rust knows it. Everything that a
/// hypervisor could hide is undefined; what hardware executes regardless of CPUID stays as it is.
fn executes_natively_or_is_ours(instruction: &Instruction) -> bool {
    let vectors = (0..instruction.op_count()).any(|op| {
        instruction.op_kind(op) == OpKind::Register && {
            let register = instruction.op_register(op);
            register.is_vector_register() || register.is_k() || register == Register::None
        }
    });
    match instruction.code().op_code().encoding() {
        EncodingKind::Legacy => {}
        // VEX instructions on general-purpose registers cannot be disabled; on vectors they need
        // CR4.OSXSAVE, which the CPU model does not offer.
        EncodingKind::VEX if !vectors => {}
        _ => return false,
    }
    instruction.cpuid_features().iter().all(|feature| {
        use CpuidFeature as F;
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::X64
                | F::INTEL8086_ONLY
                | F::INTEL286_ONLY
                | F::INTEL386_ONLY
                | F::FPU
                | F::FPU287
                | F::FPU287XL_ONLY
                | F::FPU387
                | F::FPU387SL_ONLY
                | F::MMX
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::SSE4A
                | F::CX8
                | F::CMPXCHG16B
                | F::CMOV
                | F::POPCNT
                | F::LZCNT
                | F::BMI1
                | F::BMI2
                | F::ADX
                | F::MOVBE
                | F::AES
                | F::PCLMULQDQ
                | F::SHA
                | F::FXSR
                | F::CLFSH
                | F::CLFLUSHOPT
                | F::CLWB
                | F::CLDEMOTE
                | F::MULTIBYTENOP
                | F::PAUSE
                | F::PREFETCHW
                | F::D3NOW
                | F::PREFETCHWT1
                | F::CET_IBT
                | F::CET_SS
                | F::RDPMC
                | F::MSR
                | F::TSC
                | F::RDTSCP
                | F::CPUID
                | F::SYSCALL
                | F::SEP
                | F::UDBG
                | F::SMAP
                | F::MONITOR
        )
    }) && !is_3dnow(instruction)
}

fn is_3dnow(instruction: &Instruction) -> bool {
    instruction.code().op_code().encoding() == EncodingKind::D3NOW
}
