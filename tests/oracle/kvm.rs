//! /dev/kvm as an oracle.
#![expect(
    unsafe_code,
    reason = "guest RAM is handed to KVM by address, and a signal must interrupt KVM_RUN"
)]

use crate::guest::boot::fxsave_image;
use crate::guest::{End, Guest, Outcome, layout};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_fpu,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_recorder::kvm::Host;
use machine::cpuid::CpuidTable;
use machine::state::{CpuState, DescriptorTable, Segment};
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
        vcpu.set_cpuid2(&self.cpuid()?).map_err(error)?;
        load(&vcpu, state)?;
        let alarm = Alarm::set(self.timeout);
        let end = wait(&mut vcpu);
        drop(alarm);
        end
    }

    /// The table of the tests, as far as KVM knows its leaves.
    fn cpuid(&self) -> io::Result<CpuId> {
        let mut table = CpuidTable::x86_64_v2();
        for entry in &mut table.entries {
            if entry.leaf == 7 {
                entry.registers[1] =
                    machine::cpuid::leaf7::EBX_SMEP | machine::cpuid::leaf7::EBX_SMAP;
            }
        }
        let entries: Vec<kvm_cpuid_entry2> = table
            .entries
            .iter()
            .map(|e| kvm_cpuid_entry2 {
                function: e.leaf,
                index: e.subleaf,
                flags: u32::from(e.has_subleaves),
                eax: e.registers[0],
                ebx: e.registers[1],
                ecx: e.registers[2],
                edx: e.registers[3],
                ..Default::default()
            })
            .collect();
        assert!(entries.len() <= KVM_MAX_CPUID_ENTRIES);
        CpuId::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))
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
    let mut sregs = vcpu.get_sregs().map_err(error)?;
    fill_sregs(&mut sregs, state);
    vcpu.set_sregs(&sregs).map_err(error)?;
    vcpu.set_regs(&regs(state)).map_err(error)?;
    vcpu.set_fpu(&fpu(state)).map_err(error)?;
    vcpu.set_debug_regs(&kvm_debugregs {
        db: state.dr,
        dr6: state.dr6,
        dr7: state.dr7,
        ..Default::default()
    })
    .map_err(error)?;
    let m = &state.msrs;
    let entries: Vec<kvm_msr_entry> = [
        (0xc000_0081u32, m.star),
        (0xc000_0082, m.lstar),
        (0xc000_0083, m.cstar),
        (0xc000_0084, m.sfmask),
        (0xc000_0102, m.kernel_gs_base),
        (0x174, m.sysenter_cs),
        (0x175, m.sysenter_esp),
        (0x176, m.sysenter_eip),
        (0x277, m.pat),
    ]
    .into_iter()
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    })
    .collect();
    let count = entries.len();
    let msrs = Msrs::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
    match vcpu.set_msrs(&msrs).map_err(error)? {
        written if written == count => Ok(()),
        written => Err(io::Error::other(format!(
            "KVM refused MSR {:#x}",
            entries[written].index
        ))),
    }
}

fn regs(state: &CpuState) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn fill_sregs(sregs: &mut kvm_sregs, state: &CpuState) {
    let [es, cs, ss, ds, fs, gs] = state.segs.map(|s| segment(&s));
    (sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs) = (es, cs, ss, ds, fs, gs);
    (sregs.ldt, sregs.tr) = (segment(&state.ldtr), segment(&state.tr));
    (sregs.gdt, sregs.idt) = (table(&state.gdtr), table(&state.idtr));
    (sregs.cr0, sregs.cr2, sregs.cr3) = (state.cr0, state.cr2, state.cr3);
    (sregs.cr4, sregs.cr8, sregs.efer) = (state.cr4, state.cr8, state.msrs.efer);
}

fn segment(s: &Segment) -> kvm_segment {
    let bit = |n: u16| (s.attributes >> n & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind(),
        present: bit(7),
        dpl: s.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: u8::from(!s.present()),
        padding: 0,
    }
}

fn table(t: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    }
}

fn fpu(state: &CpuState) -> kvm_fpu {
    let image = fxsave_image(&state.fpu);
    let sixteen = |at: usize| -> [u8; 16] {
        image[at..at + 16]
            .try_into()
            .expect("a slice of sixteen bytes")
    };
    kvm_fpu {
        fpr: std::array::from_fn(|i| sixteen(32 + i * 16)),
        fcw: state.fpu.fcw,
        fsw: state.fpu.fsw,
        ftwx: state.fpu.ftw,
        last_opcode: state.fpu.fop,
        last_ip: state.fpu.fip,
        last_dp: state.fpu.fdp,
        xmm: std::array::from_fn(|i| sixteen(160 + i * 16)),
        mxcsr: state.fpu.mxcsr,
        ..Default::default()
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
