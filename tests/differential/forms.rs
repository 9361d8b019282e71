//! Which instruction forms belong to the CPU model, and which of them a sequence may contain.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderError, EncodingKind, Instruction, Mnemonic,
    OpCodeOperandKind,
};

/// CPUID features of the model x86-64-v2, in the decoder's names. `LZCNT` and `BMI1` stand for the
/// legacy encodings of LZCNT and TZCNT, which hardware executes whatever the table says, and the CET
/// ones for encodings that are NOPs where CET is off.
const FEATURES: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::BMI1,
    CpuidFeature::LZCNT,
    CpuidFeature::CET_IBT,
    CpuidFeature::CLFSH,
    CpuidFeature::CMOV,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::CX8,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FXSR,
    CpuidFeature::MMX,
    CpuidFeature::MSR,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::POPCNT,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::TSC,
];

/// Mnemonics that cannot be compared with a process of the host's kernel: system calls, what a
/// kernel emulates for user mode (SGDT and the like under UMIP), CPUID, which shows the host's
/// table, and what traps to a hypervisor.
const EXCLUDED: &[Mnemonic] = &[
    Mnemonic::Cpuid,
    Mnemonic::Syscall,
    Mnemonic::Sysenter,
    Mnemonic::Sysexit,
    Mnemonic::Sysret,
    Mnemonic::Sysexitq,
    Mnemonic::Sysretq,
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Sldt,
    Mnemonic::Str,
    Mnemonic::Smsw,
    Mnemonic::Rsm,
    Mnemonic::Rdpmc,
];

/// How a sequence uses a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes on with the next instruction, if its operands are good.
    Plain,
    /// Near branch with a target in the instruction.
    Branch,
    /// Near call, return or jump through a register, memory or the stack.
    Indirect,
    /// Far transfer.
    Far,
    /// Ends the sequence at privilege level 3 whatever its operands are.
    Terminal,
}

/// Whether a decoded or planned form may be executed by a sequence.
pub fn allowed(code: Code) -> bool {
    let op = code.op_code();
    op.is_instruction()
        && !op.fwait()
        && op.mode64()
        && op.encoding() == EncodingKind::Legacy
        && code.cpuid_features().iter().all(|f| FEATURES.contains(f))
        && !EXCLUDED.contains(&code.mnemonic())
}

/// Whether a decoded instruction may be executed by a sequence. Invalid encodings may: they fault.
pub fn instruction_allowed(instruction: &Instruction) -> bool {
    let code = instruction.code();
    let interrupt_80 = code == Code::Int_imm8 && instruction.immediate8() == 0x80;
    code == Code::INVALID || (allowed(code) && !interrupt_80)
}

/// Whether no processor knows the instruction that starts with these bytes, the most there can be.
pub fn is_undefined(bytes: &[u8; 15]) -> bool {
    let mut decoder = Decoder::with_ip(64, bytes, 0x1000_0000, super::generator::decoder_options());
    let code = decoder.decode().code();
    code == Code::INVALID && decoder.last_error() == DecoderError::InvalidInstruction
}

/// How a sequence uses an allowed form.
pub fn kind(code: Code) -> Kind {
    let op = code.op_code();
    match code.mnemonic() {
        Mnemonic::Ret => Kind::Indirect,
        Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Kind::Far,
        Mnemonic::Int
        | Mnemonic::Int3
        | Mnemonic::Int1
        | Mnemonic::Ud0
        | Mnemonic::Ud1
        | Mnemonic::Ud2
        | Mnemonic::Rdtsc
        | Mnemonic::Rdtscp => Kind::Terminal,
        _ if op.must_be_cpl0() || op.is_privileged() || op.is_input_output() => Kind::Terminal,
        _ if code.is_jmp_far_indirect() || code.is_call_far_indirect() => Kind::Far,
        _ if code.is_jmp_near_indirect() || code.is_call_near_indirect() => Kind::Indirect,
        _ if has_target(code) => Kind::Branch,
        _ => Kind::Plain,
    }
}

fn has_target(code: Code) -> bool {
    use OpCodeOperandKind::{br16_1, br16_2, br32_1, br32_4, br64_1, br64_4};
    let kinds = [br16_1, br16_2, br32_1, br32_4, br64_1, br64_4];
    code.op_code().op_kinds().iter().any(|k| kinds.contains(k))
}

/// The forms of the CPU model, by how they are used.
#[derive(Debug)]
pub struct Forms {
    /// See [`Kind::Plain`].
    pub plain: Vec<Code>,
    /// See [`Kind::Branch`].
    pub branch: Vec<Code>,
    /// See [`Kind::Indirect`].
    pub indirect: Vec<Code>,
    /// See [`Kind::Far`].
    pub far: Vec<Code>,
    /// See [`Kind::Terminal`].
    pub terminal: Vec<Code>,
}

impl Default for Forms {
    fn default() -> Self {
        let of = |wanted| {
            Code::values()
                .filter(|&code| code != Code::INVALID && allowed(code) && kind(code) == wanted)
                .collect()
        };
        Self {
            plain: of(Kind::Plain),
            branch: of(Kind::Branch),
            indirect: of(Kind::Indirect),
            far: of(Kind::Far),
            terminal: of(Kind::Terminal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_has_every_legacy_form_and_none_beyond_it() {
        let forms = Forms::default();
        let plain = |code| forms.plain.contains(&code);
        assert!(plain(Code::Cmpxchg16b_m128) && plain(Code::Pcmpistri_xmm_xmmm128_imm8));
        assert!(plain(Code::Fsincos) && plain(Code::Add_rm8_r8) && plain(Code::Popcnt_r64_rm64));
        assert!(forms.terminal.contains(&Code::Hlt) && forms.far.contains(&Code::Iretq));
        for code in [
            Code::Aesenc_xmm_xmmm128,
            Code::Movbe_r32_m32,
            Code::VEX_Vaddps_xmm_xmm_xmmm128,
            Code::Cpuid,
            Code::Syscall,
            Code::Rdrand_r32,
            Code::Movntsd_m64_xmm,
        ] {
            assert!(!allowed(code), "{code:?}");
        }
        assert_eq!(forms.branch.len(), 86);
        assert!(forms.plain.len() > 1100);
    }
}
