//! Which instruction forms belong to the CPU model, and which of them a sequence may contain.

#[cfg(test)]
use super::vendor::Vendor;
#[cfg(test)]
use iced_x86::MemorySize;
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderError, EncodingKind, Instruction, Mnemonic,
    OpCodeOperandKind,
};
use std::sync::LazyLock;

/// CPUID features of the model x86-64-v2, in the decoder's names. `LZCNT` and `BMI1` stand for the
/// legacy encodings of LZCNT and TZCNT, which hardware executes whatever the table says, the CET one
/// and `PREFETCHW` for encodings that are NOPs or hints where the feature is not offered.
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
    CpuidFeature::PREFETCHW,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::TSC,
];

/// Features that the model has as well, all of whose forms are on [`EXCLUDED`].
#[cfg(test)]
const SYSTEM_FEATURES: &[CpuidFeature] = &[
    CpuidFeature::CPUID,
    CpuidFeature::RDPMC,
    CpuidFeature::SEP,
    CpuidFeature::SYSCALL,
];

/// Mnemonics that cannot be compared with a process of the host's kernel, and why.
const EXCLUDED: &[(&[Mnemonic], &str)] = &[
    (
        &[
            Mnemonic::Syscall,
            Mnemonic::Sysenter,
            Mnemonic::Sysexit,
            Mnemonic::Sysret,
            Mnemonic::Sysexitq,
            Mnemonic::Sysretq,
        ],
        "enters the kernel, or faults by what it has set up",
    ),
    (
        &[
            Mnemonic::Sgdt,
            Mnemonic::Sidt,
            Mnemonic::Sldt,
            Mnemonic::Str,
            Mnemonic::Smsw,
        ],
        "the kernel forbids it by UMIP and emulates it",
    ),
    (&[Mnemonic::Cpuid], "shows the host's table"),
    (
        &[Mnemonic::Rdpmc],
        "allowed or not by what else the host does",
    ),
    (&[Mnemonic::Rsm], "may trap to a hypervisor"),
];

/// Why no sequence may contain a form of the model.
fn exclusion(code: Code) -> Option<&'static str> {
    if code.op_code().fwait() {
        return Some("two instructions: WAIT and the form without");
    }
    let (_, reason) = EXCLUDED
        .iter()
        .find(|(mnemonics, _)| mnemonics.contains(&code.mnemonic()))?;
    Some(reason)
}

/// Why the host's decoder never comes to an allowed form.
#[cfg(test)]
pub(super) fn unreachable(code: Code, vendor: Vendor) -> Option<&'static str> {
    use OpCodeOperandKind::{br16_1, br16_2};
    let narrow = [br16_1, br16_2].contains(&code.op_code().op_kind(0))
        || matches!(
            code,
            Code::Call_rm16 | Code::Jmp_rm16 | Code::Retnw | Code::Retnw_imm16
        );
    match vendor {
        Vendor::Intel if narrow => Some("the prefix is ignored"),
        Vendor::Intel if code == Code::Ud0 => Some("it has a ModRM byte"),
        Vendor::Amd if code.mnemonic() == Mnemonic::Ud0 && code != Code::Ud0 => {
            Some("it has no ModRM byte")
        }
        Vendor::Amd if code.op_code().memory_size() == MemorySize::SegPtr64 => {
            Some("far pointers with 64-bit offsets do not exist")
        }
        _ => None,
    }
}

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

/// What is known of a form, and asked often.
static FACTS: LazyLock<Vec<(bool, Kind)>> = LazyLock::new(|| {
    Code::values()
        .map(|code| (find_allowed(code), find_kind(code)))
        .collect()
});

/// Whether a decoded or planned form may be executed by a sequence.
pub fn allowed(code: Code) -> bool {
    FACTS[code as usize].0
}

fn find_allowed(code: Code) -> bool {
    let op = code.op_code();
    op.is_instruction()
        && op.mode64()
        && op.encoding() == EncodingKind::Legacy
        && code.cpuid_features().iter().all(|f| FEATURES.contains(f))
        && exclusion(code).is_none()
}

/// Whether a decoded instruction may be executed by a sequence. Invalid encodings may: they fault.
pub fn instruction_allowed(instruction: &Instruction) -> bool {
    let code = instruction.code();
    let interrupt_80 = code == Code::Int_imm8 && instruction.immediate8() == 0x80;
    code == Code::INVALID || (allowed(code) && !interrupt_80)
}

/// Whether code of this bitness takes the bytes for a VEX or EVEX encoding. The model has neither, the
/// host has, and even how much of an undefined one is fetched depends on that.
pub fn is_vector_encoding(bytes: &[u8], bitness: u32) -> bool {
    let prefix = |byte: &u8| match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => true,
        0x40..=0x4f => bitness == 64,
        _ => false,
    };
    let Some(at) = bytes.iter().position(|byte| !prefix(byte)) else {
        return false;
    };
    // Otherwise LES, LDS or BOUND in 32-bit code.
    let possible = bitness == 64 || bytes.get(at + 1).is_some_and(|next| *next >= 0xc0);
    matches!(bytes[at], 0x62 | 0xc4 | 0xc5) && possible
}

/// Whether no processor knows the instruction that starts with these bytes, the most there can be.
pub fn is_undefined(bytes: &[u8; 15], bitness: u32) -> bool {
    let options = super::generator::decoder_options();
    let mut decoder = Decoder::with_ip(bitness, bytes, 0x1000_0000, options);
    let code = decoder.decode().code();
    code == Code::INVALID && decoder.last_error() == DecoderError::InvalidInstruction
}

/// How a sequence uses an allowed form.
pub fn kind(code: Code) -> Kind {
    FACTS[code as usize].1
}

fn find_kind(code: Code) -> Kind {
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
    fn every_form_of_the_model_is_used_or_excluded_for_a_reason() {
        let known = |f| FEATURES.contains(f) || SYSTEM_FEATURES.contains(f);
        let of_model = Code::values().filter(|code| {
            let op = code.op_code();
            // BMI1 stands for legacy encodings alone.
            let legacy = op.encoding() == EncodingKind::Legacy;
            legacy && op.is_instruction() && op.mode64() && code.cpuid_features().iter().all(known)
        });
        let (mut used, mut excluded) = (0, 0);
        for code in of_model {
            assert_ne!(allowed(code), exclusion(code).is_some(), "{code:?}");
            used += u32::from(allowed(code));
            excluded += u32::from(!allowed(code));
        }
        assert!(used > 1300 && excluded < 60, "{used}, {excluded}");
    }

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
