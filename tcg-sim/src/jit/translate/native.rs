//! Instructions that the host executes for the guest, with registers renamed.

use super::memory::Address;
use super::special::is_narrow;
use super::{Flow, Translator};
use crate::jit::asm::{Host, Mem};
use crate::jit::block::MemoryAccess;
use crate::jit::layout::disp;
use crate::jit::regs::{Home, T0, T1, home, is_high_byte, number, resized};
use iced_x86::{
    Code, Instruction, InstructionInfoOptions, Mnemonic, OpAccess, OpCodeOperandKind, OpKind,
    Register,
};

/// A guest register that an instruction gets in a temporary host register.
#[derive(Clone, Copy, Debug)]
struct Temporary {
    guest: usize,
    host: Host,
    load: bool,
    store: bool,
}

/// How operands are arranged for one instruction.
#[derive(Default)]
struct Plan {
    temporaries: Vec<Temporary>,
    /// Legacy host registers lent to the instruction, and where their guest values wait.
    borrowed: Vec<(Host, i32)>,
    /// The instruction names AH, CH, DH or BH and so cannot carry a REX prefix.
    no_rex: bool,
    /// Host RCX holds guest RCX.
    rcx_used: bool,
}

/// The general-purpose register operands, but a count that is CL by definition.
fn register_operands(instruction: &Instruction) -> impl Iterator<Item = (u32, Register)> {
    let op_code = instruction.code().op_code();
    let instruction = *instruction;
    (0..instruction.op_count()).filter_map(move |op| {
        let register =
            (instruction.op_kind(op) == OpKind::Register).then(|| instruction.op_register(op))?;
        let is_operand = register.is_gpr() && op_code.op_kind(op) != OpCodeOperandKind::cl;
        is_operand.then_some((op, register))
    })
}

impl Translator<'_> {
    pub(super) fn native(&mut self, instruction: &Instruction) -> Flow {
        self.native_with_address(instruction);
        Flow::Next
    }

    /// Emits the instruction; returns the register with the linear address of its memory operand.
    pub(super) fn native_with_address(&mut self, instruction: &Instruction) -> Option<Host> {
        let info = self
            .infos
            .info_options(instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
        let access: [OpAccess; 5] = std::array::from_fn(|op| {
            if (op as u32) < instruction.op_count() {
                info.op_access(op as u32)
            } else {
                OpAccess::None
            }
        });
        let memory_op =
            (0..instruction.op_count()).find(|op| instruction.op_kind(*op) == OpKind::Memory);
        let address = memory_op.map(|op| {
            let address = self.linear_address(instruction);
            let access = memory_access(instruction, access[op as usize]);
            let wraps = access.parts && is_narrow(instruction) && !self.compat;
            if wraps || self.is_odd(instruction) {
                self.check_in_rust(address, access);
            } else {
                self.check(address, access);
            }
            address
        });
        self.operate(instruction, &access, address);
        address.map(|a| a.register)
    }

    /// Emits the operation, whose memory operand (if any) is at `address + T1`.
    fn operate(
        &mut self,
        instruction: &Instruction,
        access: &[OpAccess; 5],
        address: Option<Address>,
    ) {
        let mut renamed = canonical_form(instruction);
        let mut plan = Plan {
            no_rex: register_operands(&renamed).any(|(_, register)| is_high_byte(register)),
            ..Plan::default()
        };
        plan_implicit_rcx(&renamed, &mut plan);
        plan_registers(&mut renamed, access, &mut plan, address.is_some());
        let base = address.map(|address| plan_memory(&mut renamed, address, &mut plan));
        for (host, at) in &plan.borrowed {
            self.asm.store(Mem::env(*at), *host);
        }
        if let (Some(address), Some(Some(base))) = (address, base) {
            self.asm.lea(base, Mem::sum(address.register, T1, 0));
        }
        for temporary in plan.temporaries.iter().filter(|t| t.load) {
            self.load_guest(temporary.host, temporary.guest);
        }
        self.encode(&renamed);
        for temporary in plan.temporaries.iter().filter(|t| t.store) {
            self.store_guest(temporary.guest, temporary.host);
        }
        for (host, at) in &plan.borrowed {
            self.asm.load(*host, Mem::env(*at));
        }
    }

    /// Copies a guest register into a host register.
    pub(super) fn load_guest(&mut self, to: Host, guest: usize) {
        match home(guest) {
            Home::Register(host) => self.asm.mov(to, host),
            Home::Block(at) => self.asm.load(to, Mem::env(at)),
        }
    }

    /// Replaces a guest register.
    pub(super) fn store_guest(&mut self, guest: usize, from: Host) {
        match home(guest) {
            Home::Register(host) => self.asm.mov(host, from),
            Home::Block(at) => self.asm.store(Mem::env(at), from),
        }
    }
}

/// RCX as a count, or as an implicit operand, must be in host RCX.
fn plan_implicit_rcx(instruction: &Instruction, plan: &mut Plan) {
    let op_code = instruction.code().op_code();
    let count_in_cl =
        (0..op_code.op_count()).any(|op| op_code.op_kind(op) == OpCodeOperandKind::cl);
    let (load, store) = match instruction.mnemonic() {
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => (true, false),
        Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64 | Mnemonic::Pcmpistri => (false, true),
        _ => (count_in_cl, false),
    };
    if load || store {
        plan.rcx_used = true;
        plan.temporaries.push(Temporary {
            guest: 1,
            host: Host::RCX,
            load,
            store,
        });
    }
}

/// Renames the register operands; those without a usable home get temporaries.
fn plan_registers(
    renamed: &mut Instruction,
    access: &[OpAccess; 5],
    plan: &mut Plan,
    memory: bool,
) {
    let operands: Vec<_> = register_operands(renamed).collect();
    if plan.no_rex && operands.iter().any(|(_, register)| number(*register) == 1) {
        plan.rcx_used = true;
    }
    let mut free = vec![T0, T1];
    if memory {
        // T0 holds the host address then.
        free.remove(0);
    }
    if !plan.rcx_used {
        free.insert(0, Host::RCX);
    }
    for (op, register) in operands {
        let guest = number(register);
        let host = match home(guest) {
            Home::Register(host) if !plan.no_rex || host.0 < 8 => host,
            _ => {
                let host = temporary_host(renamed, plan, &mut free, guest);
                add_temporary(
                    plan,
                    guest,
                    host,
                    register,
                    access[op as usize],
                    renamed.mnemonic(),
                );
                host
            }
        };
        renamed.set_op_register(op, resized(host, register));
    }
}

fn temporary_host(
    renamed: &Instruction,
    plan: &mut Plan,
    free: &mut Vec<Host>,
    guest: usize,
) -> Host {
    if let Some(known) = plan.temporaries.iter().find(|t| t.guest == guest) {
        return known.host;
    }
    match (plan.no_rex, guest) {
        (true, 1) => Host::RCX,
        (true, _) => borrow(renamed, plan),
        (false, _) => free
            .pop()
            .expect("three temporaries suffice for every form"),
    }
}

fn add_temporary(
    plan: &mut Plan,
    guest: usize,
    host: Host,
    register: Register,
    access: OpAccess,
    mnemonic: Mnemonic,
) {
    use Mnemonic as M;
    // Everything else may leave part of its destination as it was.
    let replaces = matches!(
        mnemonic,
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movd | M::Movq
    ) && register.size() >= 4
        && access == OpAccess::Write;
    let store = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
    match plan.temporaries.iter_mut().find(|t| t.guest == guest) {
        Some(known) => {
            known.load |= !replaces;
            known.store |= store;
        }
        None => plan.temporaries.push(Temporary {
            guest,
            host,
            load: !replaces,
            store,
        }),
    }
}

/// Rewrites the memory operand to where the check found it. Returns the register that must hold the
/// sum of address and addend, where the sum is not part of the operand.
fn plan_memory(renamed: &mut Instruction, address: Address, plan: &mut Plan) -> Option<Host> {
    let sum = match (plan.no_rex, plan.rcx_used) {
        (true, true) => Some(borrow(renamed, plan)),
        (true, false) => {
            plan.rcx_used = true;
            Some(Host::RCX)
        }
        (false, _) if plan.temporaries.iter().any(|t| t.host == T1) => Some(T0),
        (false, _) => None,
    };
    renamed.set_memory_base(resized(sum.unwrap_or(address.register), Register::RAX));
    renamed.set_memory_index(if sum.is_some() {
        Register::None
    } else {
        resized(T1, Register::RAX)
    });
    renamed.set_memory_index_scale(1);
    renamed.set_memory_displacement64(0);
    renamed.set_memory_displ_size(0);
    renamed.set_segment_prefix(Register::None);
    sum
}

/// A legacy register that the instruction does not name; its guest value waits in the block.
fn borrow(renamed: &Instruction, plan: &mut Plan) -> Host {
    let named = |host: Host| {
        register_operands(renamed).any(|(_, register)| number(register) == usize::from(host.0))
    };
    let host = [Host::RSI, Host::RDI, Host::RBP]
        .into_iter()
        .find(|host| !named(*host) && !plan.borrowed.iter().any(|(taken, _)| taken == host))
        .expect("an instruction names at most two registers beside memory");
    let at = if plan.borrowed.is_empty() {
        disp!(scratch0)
    } else {
        disp!(scratch1)
    };
    plan.borrowed.push((host, at));
    host
}

/// The same operation without prefixes and forms that make no difference here.
fn canonical_form(instruction: &Instruction) -> Instruction {
    let mut renamed = *instruction;
    // One host thread runs the guest's only CPU, so plain operations are atomic enough.
    renamed.set_has_lock_prefix(false);
    renamed.set_has_rep_prefix(false);
    renamed.set_has_repne_prefix(false);
    let general = match instruction.code() {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        same => same,
    };
    if general != instruction.code() {
        renamed.set_code(general);
    }
    renamed
}

/// What the memory operand's access needs.
fn memory_access(instruction: &Instruction, access: OpAccess) -> MemoryAccess {
    let bytes = instruction.memory_size().size() as u8;
    debug_assert!((1..=64).contains(&bytes), "{instruction}: {bytes} bytes");
    MemoryAccess {
        bytes,
        read: !matches!(access, OpAccess::Write | OpAccess::CondWrite),
        write: !matches!(access, OpAccess::Read | OpAccess::CondRead),
        parts: bytes == 10,
        alignment: if bytes == 16 && needs_alignment(instruction.mnemonic()) {
            15
        } else {
            0
        },
        stack: uses_stack_segment(instruction),
    }
}

fn needs_alignment(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    !matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
    )
}

/// Whether the address counts as one in the stack segment (SDM vol. 1, 3.7.4).
pub(super) fn uses_stack_segment(instruction: &Instruction) -> bool {
    let plain = !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    plain
        && matches!(
            instruction.memory_base(),
            Register::RSP | Register::RBP | Register::ESP | Register::EBP
        )
}
