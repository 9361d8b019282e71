//! What this host's KVM does, found out by small guests, for `sbctl doctor` and for the choice of what
//! executes a guest. A guest that does not end is stopped after [`PATIENCE`].

mod pmu;
mod tsc;
mod window;

use super::dirty::DirtyLog;
use super::{Host, KvmError, KvmVcpu, Tracking};
use machine::conformance::{self, KINDS, Results};
use machine::cpuid::CpuidTable;
use machine::ram::{Ram, RamError};
use machine::state::{CpuState, Gpr, Seg};
use machine::units::{GuestPhys, Position};
use machine::vcpu::{Exit, Vcpu, VcpuError};
pub use pmu::{Branches, branches};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
pub use tsc::{Tsc, tsc};
pub use window::window_is_exact;

/// How long a small guest may take. Those here take some milliseconds on a processor and at most a few
/// seconds where KVM emulates them.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Slower guests are emulated: processors execute thousands of millions of instructions per second.
pub const NATIVE_PER_SECOND: f64 = 100e6;

/// Why a host could not be examined.
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

/// At which privilege level a small guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// CPL 0.
    Kernel,
    /// CPL 3, with access to ports.
    User,
}

impl Level {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Kernel, Self::User];
}

/// Where things are in a small guest; the first 2 MiB are mapped, for user code too.
const RAM_BYTES: u64 = 2 << 20;
const PML4: u64 = 0x1000;
const STACK: u64 = 0x1_0000;
/// What a guest finds out.
const FOUND: u64 = 0x2_0000;
const CODE: u64 = 0x10_0000;
/// Of [`conformance::program`], which a call from [`CODE`] reaches.
const PROGRAM: u64 = 0x11_0000;
/// OUT 0x80, AL: the end.
const OUT: [u8; 2] = [0xe6, 0x80];

/// A guest of a few instructions.
struct SmallGuest {
    vcpu: KvmVcpu,
    ram: Arc<Ram>,
    start: CpuState,
}

impl SmallGuest {
    /// With `code`, which ends with [`OUT`]. RDI points to [`FOUND`].
    fn new(host: &Host, cpuid: &CpuidTable, level: Level, code: &[u8]) -> Result<Self, ProbeError> {
        let ram = Arc::new(Ram::new(RAM_BYTES)?);
        /// Present, writable, for user code; and a page of 2 MiB.
        const ENTRY: u64 = 7;
        const LARGE: u64 = 0x80;
        for (at, entry) in [
            (PML4, PML4 + 0x1000 + ENTRY),
            (PML4 + 0x1000, PML4 + 0x2000 + ENTRY),
            (PML4 + 0x2000, LARGE + ENTRY),
        ] {
            ram.write(GuestPhys(at), &entry.to_le_bytes())?;
        }
        ram.write(GuestPhys(CODE), code)?;
        ram.write(GuestPhys(PROGRAM), conformance::program())?;
        let tracking = Tracking {
            log: DirtyLog::best(host),
            hold_writes: false,
        };
        let vcpu = KvmVcpu::build(host, ram.clone(), cpuid, tracking)?;
        let start = start(level);
        Ok(Self { vcpu, ram, start })
    }

    /// Runs from the start to the first OUT.
    fn run(&mut self) -> Result<(), ProbeError> {
        self.vcpu.load(&self.start, Position::default())?;
        match self.go_on()? {
            Exit::PortWrite { .. } => Ok(()),
            other => Err(ProbeError::Unexpected(other)),
        }
    }

    /// Runs to the next exit.
    fn go_on(&mut self) -> Result<Exit, ProbeError> {
        let (done, waits) = channel::<()>();
        let kick = self.vcpu.kick_handle();
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || {
                if waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    kick.kick();
                }
            });
            let exit = self.vcpu.run(None);
            drop(done);
            exit
        });
        Ok(exit?)
    }

    /// The first words at [`FOUND`].
    fn found<const N: usize>(&self) -> Result<[u64; N], ProbeError> {
        let mut words = [0; N];
        for (at, word) in (FOUND..).step_by(8).zip(&mut words) {
            let mut bytes = [0; 8];
            self.ram.read(GuestPhys(at), &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }
}

fn start(level: Level) -> CpuState {
    let mut start = CpuState::long_mode(CODE, STACK, PML4);
    start.gpr[Gpr::Rdi as usize] = FOUND;
    if level == Level::User {
        for segment in &mut start.segs {
            // DPL 3.
            segment.attributes |= 0x60;
            segment.selector = 0x2b;
        }
        start.segs[Seg::Cs as usize].selector = 0x33;
        // IOPL 3: the end is an OUT.
        start.rflags |= 3 << 12;
    }
    start
}

/// Instructions per second of a loop in registers.
///
/// # Errors
/// [`ProbeError`].
pub fn speed(host: &Host, level: Level) -> Result<f64, ProbeError> {
    /// Two instructions each.
    const ROUNDS: u32 = 50_000;
    /// Longer, so that entering the guest does not count.
    const MANY_ROUNDS: u32 = 20_000_000;
    let once = |rounds: u32| {
        // MOV ECX, rounds; DEC ECX; JNZ back.
        let code = [
            &[0xb9][..],
            &rounds.to_le_bytes(),
            &[0xff, 0xc9, 0x75, 0xfc],
            &OUT,
        ];
        let mut guest = SmallGuest::new(host, &CpuidTable::of_host(), level, &code.concat())?;
        let start = Instant::now();
        guest.run()?;
        Ok::<_, ProbeError>(2.0 * f64::from(rounds) / start.elapsed().as_secs_f64().max(1e-9))
    };
    // A KVM that emulates takes long enough as it is.
    let speed = once(ROUNDS)?;
    match speed < NATIVE_PER_SECOND / 10.0 {
        true => Ok(speed),
        false => once(MANY_ROUNDS),
    }
}

/// What guests find where the architecture leaves results open.
///
/// # Errors
/// [`ProbeError`].
pub fn results(host: &Host, level: Level) -> Result<Results, ProbeError> {
    // CALL PROGRAM.
    let distance = (PROGRAM - (CODE + 5)) as u32;
    let code = [&[0xe8][..], &distance.to_le_bytes(), &OUT].concat();
    let mut guest = SmallGuest::new(host, &CpuidTable::of_host(), level, &code)?;
    guest.run()?;
    let numbers = guest.found::<{ KINDS.len() }>()?;
    Ok(Results { numbers })
}

/// An answer of CPUID that is not the one it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidDifference {
    /// Input EAX and ECX.
    pub input: [u32; 2],
    /// EAX, EBX, ECX, EDX as they should be.
    pub expected: [u32; 4],
    /// As the guest finds them.
    pub found: [u32; 4],
}

/// Where the guest finds other answers of CPUID than the table has.
///
/// # Errors
/// [`ProbeError`].
pub fn cpuid(host: &Host, table: &CpuidTable) -> Result<Vec<CpuidDifference>, ProbeError> {
    /// Leaves that the table lacks: XSAVE, TSC, hypervisors, AMD's topology.
    const ABSENT: [u32; 4] = [0xd, 0x15, 0x4000_0000, 0x8000_001e];
    let rows = table.entries.iter().map(|row| [row.leaf, row.subleaf]);
    let inputs: Vec<[u32; 2]> = rows.chain(ABSENT.map(|leaf| [leaf, 0])).collect();
    let mut code = Vec::new();
    for [leaf, subleaf] in &inputs {
        // MOV EAX, leaf; MOV ECX, subleaf; CPUID.
        code.push(0xb8);
        code.extend(leaf.to_le_bytes());
        code.push(0xb9);
        code.extend(subleaf.to_le_bytes());
        code.extend([0x0f, 0xa2]);
        // MOV [RDI], EAX; [RDI + 4], EBX; [RDI + 8], ECX; [RDI + 12], EDX; ADD RDI, 16.
        code.extend([0x89, 0x07, 0x89, 0x5f, 4, 0x89, 0x4f, 8, 0x89, 0x57, 12]);
        code.extend([0x48, 0x83, 0xc7, 16]);
    }
    code.extend(OUT);
    let mut guest = SmallGuest::new(host, table, Level::Kernel, &code)?;
    guest.run()?;
    let mut differences = Vec::new();
    for (at, input) in (FOUND..).step_by(16).zip(inputs) {
        let mut bytes = [[0; 4]; 4];
        guest.ram.read(GuestPhys(at), bytes.as_flattened_mut())?;
        let found = bytes.map(u32::from_le_bytes);
        let expected = table.lookup(input[0], input[1]);
        if found != expected {
            differences.push(CpuidDifference {
                input,
                expected,
                found,
            });
        }
    }
    Ok(differences)
}

/// Whether writes of the guest to pages of a checkpoint can be held back until they are copied.
///
/// # Errors
/// There is no vCPU.
///
/// The inner error is why they cannot.
pub fn holds_writes(host: &Host) -> Result<io::Result<()>, ProbeError> {
    let ram = Arc::new(Ram::new(RAM_BYTES)?);
    let tracking = Tracking {
        log: DirtyLog::best(host),
        hold_writes: true,
    };
    let vcpu = KvmVcpu::build(host, ram, &CpuidTable::of_host(), tracking)?;
    Ok(match vcpu.holds_writes() {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(copy(error)),
    })
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => error.kind().into(),
    }
}
