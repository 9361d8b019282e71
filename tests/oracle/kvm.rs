//! /dev/kvm as an oracle.
#![expect(
    unsafe_code,
    reason = "guest RAM is handed to KVM by address, and a signal must interrupt KVM_RUN"
)]

use crate::guest::{End, Guest, Outcome, layout};
use kvm_bindings::{CpuId, kvm_debugregs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_recorder::kvm::{Host, cpuid_entries, to_fpu, to_msrs, to_regs, to_sregs};
use machine::cpuid::CpuidTable;
use machine::state::CpuState;
use std::io;
use std::time::Duration;

/// /dev/kvm, or none where there is none: then the tests say so. `SB_REQUIRE_KVM=1` makes that a failure.
pub fn host() -> Option<Host> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error) if std::env::var_os("SB_REQUIRE_KVM").is_none() => {
            eprintln!("not tested: {error}");
            None
        }
        Err(error) => panic!("SB_REQUIRE_KVM is set: {error}"),
    }
}

/// Runs guests on /dev/kvm.
pub struct KvmOracle {
    kvm: Kvm,
    /// A run that takes longer ends as [`End::Limit`].
    pub timeout: Duration,
}

impl KvmOracle {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            kvm: Kvm::new().map_err(error)?,
            timeout: Duration::from_secs(2),
        })
    }

    /// Runs a guest to its end. What KVM's instruction emulator cannot do ends as
    /// [`End::Unsupported`].
    ///
    /// # Errors
    /// KVM refuses the machine or the state.
    pub fn run(&self, guest: &Guest) -> io::Result<Outcome> {
        let mut ram = vec![0u64; layout::RAM_BYTES as usize / 8 + 512];
        let skew = ram.as_ptr().align_offset(4096);
        let ram = &mut ram[skew..][..layout::RAM_BYTES as usize / 8];
        for (word, bytes) in ram.iter_mut().zip(guest.ram().chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
        }
        let vm = self.kvm.create_vm().map_err(error)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: layout::RAM_BYTES,
            userspace_addr: ram.as_mut_ptr() as u64,
        };
        // SAFETY: `ram` is page-aligned, as long as the region says, and outlives `vm`, which is
        // dropped before this function returns.
        unsafe { vm.set_user_memory_region(region) }.map_err(error)?;
        let end = self.run_vcpu(&vm, &guest.state)?;
        drop(vm);
        let after: Vec<u8> = ram.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(Outcome::from_ram(end, &after, &guest.watched))
    }

    fn run_vcpu(&self, vm: &VmFd, state: &CpuState) -> io::Result<End> {
        let mut vcpu = vm.create_vcpu(0).map_err(error)?;
        vcpu.set_cpuid2(&Self::cpuid()).map_err(error)?;
        load(&vcpu, state)?;
        let alarm = Alarm::set(self.timeout);
        let end = wait(&mut vcpu);
        drop(alarm);
        end
    }

    /// The table of the tests, as far as KVM knows its leaves.
    fn cpuid() -> CpuId {
        let mut table = CpuidTable::x86_64_v2();
        for entry in &mut table.entries {
            if entry.leaf == 7 {
                entry.registers[1] =
                    machine::cpuid::leaf7::EBX_SMEP | machine::cpuid::leaf7::EBX_SMAP;
            }
        }
        cpuid_entries(&table)
    }
}

fn wait(vcpu: &mut VcpuFd) -> io::Result<End> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(layout::EXIT_PORT, _)) => return Ok(End::Finished),
            Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::Hlt) => return Ok(End::Halted),
            Ok(VcpuExit::Shutdown) => return Ok(End::Shutdown),
            Ok(VcpuExit::Intr) => return Ok(End::Limit),
            Ok(other) => return Ok(End::Unsupported(format!("{other:?}"))),
            Err(e) if e.errno() == libc::EINTR => return Ok(End::Limit),
            Err(e) => return Err(error(e)),
        }
    }
}

fn load(vcpu: &VcpuFd, state: &CpuState) -> io::Result<()> {
    let before = vcpu.get_sregs().map_err(error)?;
    let sregs = kvm_sregs {
        apic_base: before.apic_base,
        interrupt_bitmap: before.interrupt_bitmap,
        ..to_sregs(state)
    };
    vcpu.set_sregs(&sregs).map_err(error)?;
    vcpu.set_regs(&to_regs(state)).map_err(error)?;
    vcpu.set_fpu(&to_fpu(&state.fpu)).map_err(error)?;
    vcpu.set_debug_regs(&kvm_debugregs {
        db: state.dr,
        dr6: state.dr6,
        dr7: state.dr7,
        ..Default::default()
    })
    .map_err(error)?;
    let msrs = to_msrs(state);
    let written = vcpu.set_msrs(&msrs).map_err(error)?;
    match msrs.as_slice().get(written) {
        None => Ok(()),
        Some(refused) => Err(io::Error::other(format!(
            "KVM refused MSR {:#x}",
            refused.index
        ))),
    }
}

/// Interrupts the calling thread's system call after a while.
struct Alarm {
    done: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Alarm {
    fn set(after: Duration) -> Self {
        extern "C" fn nothing(_: libc::c_int) {}
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: installs a handler that does nothing, without SA_RESTART, so that the signal only
        // makes KVM_RUN return EINTR; pthread_self has no precondition.
        let target = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut());
            libc::pthread_self()
        };
        let (done, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut wait = after;
            while stopped.recv_timeout(wait) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                // SAFETY: `target` is the thread that set the alarm; it joins this thread before it
                // ends (Drop).
                unsafe { libc::pthread_kill(target, libc::SIGUSR2) };
                wait = Duration::from_millis(20);
            }
        });
        Self {
            done,
            thread: Some(thread),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // The thread may have ended with the channel; either way it is joined.
        let _ = self.done.send(());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the alarm thread does not panic");
        }
    }
}

fn error(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}
