//! What a host's KVM does is found out by trying: small guests that tell.

use super::dirty::DirtyLog;
use super::{Host, KvmError, KvmVcpu, Tracking};
use machine::cpuid::CpuidTable;
use machine::ram::{Ram, RamError};
use machine::state::CpuState;
use machine::units::{GuestPhys, Position};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a host could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no vCPU.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The small guest does not run.
    #[error("a small guest does not run on KVM: {0}")]
    Vcpu(#[from] VcpuError),
    /// It does something else than it should.
    #[error("a small guest on KVM ended in {0:?}")]
    Unexpected(Exit),
}

const RAM_BYTES: u64 = 2 << 20;
const PML4: u64 = 0x1000;
const STACK: u64 = 0x8000;
const CODE: u64 = 0x10_0000;
/// Present, writable; and a page of 2 MiB.
const ENTRY: u64 = 3;
const LARGE: u64 = 0x80;

/// How often each way to open the interrupt window is tried.
const WINDOWS: u32 = 20;

/// Rounds of the loop whose speed is measured; two instructions each.
const ROUNDS: u32 = 50_000;

const NOP: u8 = 0x90;
/// OUT 0x80, AL.
const OUT: [u8; 2] = [0xe6, 0x80];
/// PUSH imm32 of RFLAGS with IF set.
const PUSH_FLAGS: [u8; 5] = [0x68, 0x02, 0x02, 0, 0];

/// A guest at CPL 0 in 64-bit mode, with interrupts off and the first 2 MiB mapped.
fn guest(host: &Host, code: &[u8]) -> Result<KvmVcpu, ProbeError> {
    let ram = Arc::new(Ram::new(RAM_BYTES)?);
    for (at, entry) in [
        (PML4, PML4 + 0x1000 + ENTRY),
        (PML4 + 0x1000, PML4 + 0x2000 + ENTRY),
        (PML4 + 0x2000, LARGE + ENTRY),
    ] {
        ram.write(GuestPhys(at), &entry.to_le_bytes())?;
    }
    ram.write(GuestPhys(CODE), code)?;
    let tracking = Tracking {
        log: DirtyLog::best(host),
        hold_writes: false,
    };
    let cpuid = CpuidTable::x86_64_v2();
    let mut vcpu = KvmVcpu::build(host, ram, &cpuid, tracking)?;
    vcpu.load(&start(), Position::default())?;
    Ok(vcpu)
}

fn start() -> CpuState {
    CpuState::long_mode(CODE, STACK, PML4)
}

/// Whether the first open interrupt window is reported where it opens, after STI, POPF and IRET. If it
/// comes later, positions cannot be told by it.
///
/// # Errors
/// [`ProbeError`].
pub fn window_is_exact(host: &Host) -> Result<bool, ProbeError> {
    let sti = [&[0xfb, NOP][..]].concat();
    let popf = [&PUSH_FLAGS[..], &[0x9d]].concat();
    for opening in [sti, popf, iret()] {
        // The OUT, what opens the window, and a slide behind it.
        let code = [&OUT[..], &opening, &[NOP; 200]].concat();
        let opens_at = CODE + (OUT.len() + opening.len()) as u64;
        let mut vcpu = guest(host, &code)?;
        for _ in 0..WINDOWS {
            vcpu.load(&start(), Position::default())?;
            expect_port_write(vcpu.run(None)?)?;
            vcpu.request_interrupt_window(true);
            match vcpu.run(None)? {
                Exit::InterruptWindow if vcpu.rip()? == opens_at => {}
                Exit::InterruptWindow => return Ok(false),
                other => return Err(ProbeError::Unexpected(other)),
            }
        }
    }
    Ok(true)
}

/// IRETQ to the instruction behind it: SS, RSP, RFLAGS, CS and RIP of [`start`] are pushed.
fn iret() -> Vec<u8> {
    let head = [
        // PUSH 0x18 (SS); PUSH RSP, which is 8 too low and good enough.
        &[0x6a, 0x18, 0x54][..],
        &PUSH_FLAGS,
        // PUSH 0x10 (CS).
        &[0x6a, 0x10],
    ]
    .concat();
    // PUSH imm32 and IRETQ have 5 and 2 bytes.
    let after = CODE as u32 + (OUT.len() + head.len() + 5 + 2) as u32;
    let target = after.to_le_bytes();
    [&head[..], &[0x68], &target, &[0x48, 0xcf]].concat()
}

fn expect_port_write(exit: Exit) -> Result<(), ProbeError> {
    match exit {
        Exit::PortWrite { .. } => Ok(()),
        other => Err(ProbeError::Unexpected(other)),
    }
}

/// How long kernel code took, and how many instructions it had: a processor executes thousands of millions
/// a second, a KVM that emulates kernel code some millions.
///
/// # Errors
/// [`ProbeError`].
pub fn speed(host: &Host) -> Result<(u32, Duration), ProbeError> {
    let mut code = OUT.to_vec();
    // MOV ECX, ROUNDS; DEC ECX; JNZ back.
    code.push(0xb9);
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]);
    code.extend(OUT);
    let mut vcpu = guest(host, &code)?;
    expect_port_write(vcpu.run(None)?)?;
    let start = Instant::now();
    expect_port_write(vcpu.run(None)?)?;
    Ok((2 * ROUNDS, start.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::state::rflags;

    #[test]
    fn the_pushed_flags_have_interrupts_on() {
        let [_, flags @ ..] = PUSH_FLAGS;
        let flags = u64::from(u32::from_le_bytes(flags));
        assert_eq!(flags, rflags::IF | rflags::FIXED);
        assert_eq!(start().rflags & rflags::IF, 0);
    }
}
