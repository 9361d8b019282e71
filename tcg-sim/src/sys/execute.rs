//! From a decoded instruction to its semantics.

use super::context::Context;
use super::{Fault, Maker, Outcome, SysBus};
use super::{control, far, flags, legacy, misc, msr, near, port, segment, string, syscall, tables};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use machine::state::{CpuState, Shadow, rflags};

type Handler = fn(&mut Context) -> Result<Outcome, Fault>;

/// Where RIP goes when the instruction retires.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// To the next instruction.
    Sequential,
    /// Where the handler put it.
    Transfer,
}

/// Whether [`execute`] has the semantics of an instruction.
pub fn handles(instr: &Instruction) -> bool {
    string::is_string(instr) || handler(instr).is_some()
}

/// Executes one instruction. A REP string instruction does at most `max_iterations` (at least 1)
/// iterations. See the module's contract.
///
/// # Errors
/// The fault that the instruction raises.
pub fn execute(
    instr: &Instruction,
    cpu: &mut CpuState,
    bus: &mut dyn SysBus,
    max_iterations: u64,
) -> Result<Outcome, Fault> {
    let shadow = cpu.shadow;
    cpu.shadow = Shadow::None;
    let result = dispatch(&mut Context { instr, cpu, bus }, max_iterations);
    let retired = result.is_ok_and(|outcome| has_retired(&outcome));
    if !retired
        && !matches!(
            result,
            Ok(Outcome::RepPartial { .. } | Outcome::PortWrite { .. })
        )
    {
        cpu.shadow = shadow;
    }
    if retired && shadow == Shadow::MovSs && cpu.shadow == Shadow::MovSs {
        // Of several in a row only the first is sure to hold events back (SDM vol. 3, 6.8.3); the second
        // does not on family 6 model 207.
        cpu.shadow = Shadow::None;
    }
    result
}

fn dispatch(ctx: &mut Context, max_iterations: u64) -> Result<Outcome, Fault> {
    if string::is_string(ctx.instr) && !is_port_string(ctx.instr) {
        let outcome = string_instruction(ctx, max_iterations)?;
        return Ok(retire(ctx, outcome, Flow::Sequential));
    }
    let Some((handler, flow)) = handler(ctx.instr) else {
        return Ok(Outcome::Limit("instruction without semantics"));
    };
    // LOCK is #UD on all of these (SDM vol. 2, LOCK).
    if ctx.instr.has_lock_prefix() {
        return Err(Fault::UD);
    }
    let outcome = handler(ctx)?;
    Ok(retire(ctx, outcome, flow))
}

/// A string instruction. Intel commits the flags of repeated CMPS and SCAS at the end: a fault, a trap
/// or an interrupt between two iterations finds those from before the first (SDM vol. 2, REP; family 6
/// model 207, also for TF and interrupts). No difference was seen on AMD family 19h with the flags of
/// the last iteration.
fn string_instruction(ctx: &mut Context, max_iterations: u64) -> Result<Outcome, Fault> {
    let before = ctx.cpu.rflags;
    let result = string::execute(ctx, max_iterations);
    if result != Ok(Outcome::Next) && ctx.bus.vendor() == Maker::Intel {
        ctx.cpu.rflags = before;
    }
    result
}

fn has_retired(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::RepPartial { .. }
        | Outcome::PortRead { .. }
        | Outcome::TimestampRead
        | Outcome::Limit(_) => false,
        Outcome::PortWrite { retired, .. } => *retired,
        _ => true,
    }
}

/// Moves RIP on and clears RF, which IRET alone may leave set, if the instruction has retired.
fn retire(ctx: &mut Context, outcome: Outcome, flow: Flow) -> Outcome {
    if !has_retired(&outcome) {
        return outcome;
    }
    if flow == Flow::Sequential {
        ctx.cpu.rip = ctx.next_rip();
    }
    let iret = matches!(
        ctx.instr.mnemonic(),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
    );
    if !iret {
        ctx.cpu.rflags &= !rflags::RF;
    }
    outcome
}

/// Completes IN or one element of INS with the value read (low `size` bytes count).
///
/// # Errors
/// The fault of storing an element, which cannot happen when nothing ran since [`execute`].
pub fn finish_port_read(
    instr: &Instruction,
    cpu: &mut CpuState,
    bus: &mut dyn SysBus,
    value: u32,
) -> Result<Outcome, Fault> {
    let mut ctx = Context { instr, cpu, bus };
    let outcome = port::finish(&mut ctx, value)?;
    ctx.cpu.shadow = Shadow::None;
    Ok(retire(&mut ctx, outcome, Flow::Sequential))
}

/// Completes RDTSC, RDTSCP or RDMSR of the time stamp counter.
pub fn finish_timestamp(
    instr: &Instruction,
    cpu: &mut CpuState,
    bus: &mut dyn SysBus,
    value: u64,
) -> Outcome {
    let mut ctx = Context { instr, cpu, bus };
    misc::finish_timestamp(&mut ctx, value);
    ctx.cpu.shadow = Shadow::None;
    retire(&mut ctx, Outcome::Next, Flow::Sequential)
}

fn is_port_string(instr: &Instruction) -> bool {
    matches!(
        instr.mnemonic(),
        Mnemonic::Insb
            | Mnemonic::Insw
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsw
            | Mnemonic::Outsd
    )
}

/// MOV has three families here, told by their registers.
fn mov_handler(instr: &Instruction) -> Option<Handler> {
    let is = |test: fn(Register) -> bool| {
        [
            (instr.op0_kind(), instr.op0_register()),
            (instr.op1_kind(), instr.op1_register()),
        ]
        .into_iter()
        .any(|(kind, register)| kind == OpKind::Register && test(register))
    };
    if is(Register::is_segment_register) {
        Some(segment::mov)
    } else if is(Register::is_cr) {
        Some(control::mov_control)
    } else if is(Register::is_dr) {
        Some(control::mov_debug)
    } else {
        None
    }
}

/// The table of semantics: one row per family of mnemonics.
fn handler(instr: &Instruction) -> Option<(Handler, Flow)> {
    use Flow::{Sequential, Transfer};
    use Mnemonic as M;
    let far_branch = instr.is_jmp_far_indirect()
        || instr.is_call_far_indirect()
        || instr.is_jmp_far()
        || instr.is_call_far();
    let segment_operand = instr.op0_register().is_segment_register();
    let row: (Handler, Flow) = match instr.mnemonic() {
        _ if near::is_narrow(instr) => (near::transfer, Transfer),
        M::Mov => (mov_handler(instr)?, Sequential),
        M::Push if segment_operand => (segment::push, Sequential),
        M::Pop if segment_operand => (segment::pop, Sequential),
        M::Lss | M::Lds | M::Les | M::Lfs | M::Lgs => (segment::load_far_pointer, Sequential),
        M::Lar | M::Lsl => (segment::inspect, Sequential),
        M::Verr | M::Verw => (segment::verify, Sequential),
        M::Jmp if far_branch => (far::jump, Transfer),
        M::Call if far_branch => (far::call, Transfer),
        M::Retf => (far::ret, Transfer),
        M::Iret | M::Iretd | M::Iretq => (far::iret, Transfer),
        M::Int | M::Int1 | M::Int3 | M::Into => (far::software_interrupt, Transfer),
        M::Syscall => (syscall::syscall, Transfer),
        M::Sysret | M::Sysretq => (syscall::sysret, Transfer),
        M::Sysenter => (syscall::sysenter, Transfer),
        M::Sysexit | M::Sysexitq => (syscall::sysexit, Transfer),
        M::Swapgs => (syscall::swapgs, Sequential),
        M::Rdmsr => (msr::rdmsr, Sequential),
        M::Wrmsr => (msr::wrmsr, Sequential),
        M::Lmsw => (control::lmsw, Sequential),
        M::Smsw => (control::smsw, Sequential),
        M::Clts => (control::clts, Sequential),
        M::Lgdt | M::Lidt => (tables::load_table, Sequential),
        M::Sgdt | M::Sidt => (tables::store_table, Sequential),
        M::Lldt | M::Ltr => (tables::load_register, Sequential),
        M::Sldt | M::Str => (tables::store_register, Sequential),
        M::Pushf | M::Pushfd | M::Pushfq => (flags::pushf, Sequential),
        M::Popf | M::Popfd | M::Popfq => (flags::popf, Sequential),
        M::Pusha | M::Pushad => (legacy::push_all, Sequential),
        M::Popa | M::Popad => (legacy::pop_all, Sequential),
        M::Aaa | M::Aas => (legacy::ascii_adjust, Sequential),
        M::Daa | M::Das => (legacy::decimal_adjust, Sequential),
        M::Aam => (legacy::ascii_multiply, Sequential),
        M::Aad => (legacy::ascii_divide, Sequential),
        M::Salc => (legacy::set_al, Sequential),
        M::Bound => (legacy::bound, Sequential),
        M::Arpl => (legacy::arpl, Sequential),
        M::Cli | M::Sti => (flags::interrupt_flag, Sequential),
        M::Clac | M::Stac => (flags::alignment_flag, Sequential),
        M::In => (port::input, Sequential),
        M::Out => (port::output, Sequential),
        M::Insb | M::Insw | M::Insd => (port::input_string, Sequential),
        M::Outsb | M::Outsw | M::Outsd => (port::output_string, Sequential),
        M::Cpuid => (misc::cpuid, Sequential),
        M::Rdtsc | M::Rdtscp => (misc::timestamp, Sequential),
        M::Rdpmc => (misc::rdpmc, Sequential),
        M::Hlt => (misc::hlt, Sequential),
        M::Invlpg => (misc::invlpg, Sequential),
        M::Invd | M::Wbinvd => (misc::invalidate_caches, Sequential),
        M::Clflush => (misc::clflush, Sequential),
        M::Enter => (misc::enter, Sequential),
        M::Leave => (misc::leave, Sequential),
        M::Xlatb => (misc::xlat, Sequential),
        mnemonic if is_absent(mnemonic) => (misc::undefined, Sequential),
        _ => return None,
    };
    Some(row)
}

/// Instructions that are #UD in this CPU model, and those that always are.
fn is_absent(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Monitor
            | M::Mwait
            | M::Monitorx
            | M::Mwaitx
            | M::Xgetbv
            | M::Xsetbv
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaves
            | M::Xsaves64
            | M::Xrstor
            | M::Xrstor64
            | M::Xrstors
            | M::Xrstors64
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Invpcid
            | M::Rdpid
            | M::Rdpkru
            | M::Wrpkru
            | M::Rdpru
            | M::Rdrand
            | M::Rdseed
            | M::Clflushopt
            | M::Clwb
            | M::Wbnoinvd
            | M::Vmcall
            | M::Vmmcall
            | M::Vmlaunch
            | M::Vmresume
            | M::Vmxoff
            | M::Vmxon
            | M::Vmptrld
            | M::Vmptrst
            | M::Vmclear
            | M::Vmread
            | M::Vmwrite
            | M::Invept
            | M::Invvpid
            | M::Vmrun
            | M::Vmload
            | M::Vmsave
            | M::Stgi
            | M::Clgi
            | M::Skinit
            | M::Invlpga
            | M::Rsm
            | M::Getsec
    )
}
