//! Executable memory and the gates between Rust and translated code.
#![expect(unsafe_code, reason = "maps and writes executable memory")]

use super::asm::{Asm, Host, Mem};
use super::layout::Core;
use super::layout::{core_disp, disp};
use std::io;
use std::mem::offset_of;

/// Code memory, mapped twice: writable at one address, executable at another.
pub(crate) struct CodeMemory {
    write: *mut u8,
    execute: u64,
    bytes: usize,
    used: usize,
    /// First byte after the gates.
    start: usize,
    gates: Gates,
}

/// Host addresses of the fixed code.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gates {
    /// `extern "sysv64" fn(base)`: enters translated code at [`Core::resume`].
    pub(crate) enter: u64,
    /// Leaves translated code; ECX names the site.
    pub(crate) leave: u64,
    /// Where the signal handler continues a trapped instruction.
    pub(crate) trap: u64,
}

/// [`Core::site`] when translated code left through a host trap.
pub(crate) const TRAP_SITE: u64 = u32::MAX as u64;

impl CodeMemory {
    /// Maps `bytes` (a multiple of 4096, below 2 GiB) of code memory and writes the gates.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let (write, execute) = map_twice(bytes)?;
        let mut this = Self {
            write,
            execute: execute as u64,
            bytes,
            used: 0,
            start: 0,
            gates: Gates::default(),
        };
        this.gates.enter = this.place(emit_enter);
        this.gates.leave = this.place(|asm| emit_leave(asm, false));
        this.gates.trap = this.place(|asm| emit_leave(asm, true));
        this.start = this.used;
        Ok(this)
    }

    fn place(&mut self, emit: impl FnOnce(&mut Asm)) -> u64 {
        let mut asm = Asm::new(self.next());
        let at = self.next();
        emit(&mut asm);
        self.append(&asm.bytes);
        at
    }

    /// The fixed code.
    pub(crate) fn gates(&self) -> Gates {
        self.gates
    }

    /// Host address at which the next code will execute.
    pub(crate) fn next(&self) -> u64 {
        self.execute + self.used as u64
    }

    /// Bytes that can still be appended.
    pub(crate) fn room(&self) -> usize {
        self.bytes - self.used
    }

    /// Appends code that was assembled for [`CodeMemory::next`].
    ///
    /// # Panics
    /// If it is longer than [`CodeMemory::room`].
    pub(crate) fn append(&mut self, code: &[u8]) {
        assert!(
            code.len() + 16 <= self.room(),
            "the translator checks for room before a block"
        );
        // SAFETY: `used + len` is within the writable mapping.
        unsafe {
            self.write
                .add(self.used)
                .copy_from_nonoverlapping(code.as_ptr(), code.len())
        };
        self.used = (self.used + code.len()).next_multiple_of(16);
    }

    /// All code but the gates, as it is now, with what was patched into it.
    pub(crate) fn emitted(&self) -> &[u8] {
        // SAFETY: within the writable mapping, whose first `used` bytes were written; nothing writes while
        // the slice is borrowed, since that takes the memory mutably.
        unsafe { std::slice::from_raw_parts(self.write.add(self.start), self.used - self.start) }
    }

    /// Forgets all code but the gates.
    pub(crate) fn clear(&mut self) {
        self.used = self.start;
    }

    /// First and last-plus-one host address of the memory.
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.execute, self.execute + self.bytes as u64)
    }

    /// Points the 32-bit displacement at host address `at` to `target`.
    pub(crate) fn patch(&mut self, at: u64, target: u64) {
        let offset = (at - self.execute) as usize;
        assert!(offset + 4 <= self.used, "patches lie in emitted code");
        let relative = target.wrapping_sub(at + 4) as i32;
        // SAFETY: within the writable mapping as asserted; translated code does not run meanwhile,
        // since one thread does both.
        unsafe {
            self.write
                .add(offset)
                .cast::<[u8; 4]>()
                .write_unaligned(relative.to_le_bytes())
        };
    }

    /// Where the 32-bit displacement at host address `at` points to.
    pub(crate) fn target(&self, at: u64) -> u64 {
        let offset = (at - self.execute) as usize;
        assert!(offset + 4 <= self.used, "links lie in emitted code");
        // SAFETY: within the writable mapping as asserted.
        let bytes = unsafe { self.write.add(offset).cast::<[u8; 4]>().read_unaligned() };
        (at + 4).wrapping_add_signed(i64::from(i32::from_le_bytes(bytes)))
    }

    /// Runs translated code on a state block until it leaves through a gate.
    ///
    /// # Safety
    /// `base` is [`super::layout::EnvBox::base`] of a block whose `resume` is an entry into code of
    /// this memory and whose TLB entries map only memory this engine may access.
    pub(crate) unsafe fn enter(&self, base: *mut u8) {
        // SAFETY: `gates.enter` was emitted by `emit_enter` with this signature.
        let enter: extern "sysv64" fn(*mut u8) =
            unsafe { std::mem::transmute(self.gates.enter as usize) };
        enter(base);
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both ranges were mapped by `map_twice` with this length.
        unsafe {
            libc::munmap(self.write.cast(), self.bytes);
            libc::munmap(self.execute as *mut libc::c_void, self.bytes);
        }
    }
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for CodeMemory {}

fn map_twice(bytes: usize) -> io::Result<(*mut u8, *mut u8)> {
    // SAFETY: plain system calls on a fresh descriptor; results are checked.
    unsafe {
        let file = libc::memfd_create(c"translated-code".as_ptr(), libc::MFD_CLOEXEC);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                file,
                0,
            )
        };
        let mut result = Err(io::Error::last_os_error());
        if libc::ftruncate(file, bytes as libc::off_t) == 0 {
            let write = map(libc::PROT_READ | libc::PROT_WRITE);
            let execute = map(libc::PROT_READ | libc::PROT_EXEC);
            result = if write == libc::MAP_FAILED || execute == libc::MAP_FAILED {
                Err(io::Error::last_os_error())
            } else {
                Ok((write.cast(), execute.cast()))
            };
        }
        libc::close(file);
        result
    }
}

/// Guest registers that live in host registers while translated code runs, but RAX, which the gates
/// need for the flags.
fn register_homes() -> [(Host, i32); 11] {
    [
        (Host::RDX, disp!(rdx)),
        (Host::RBX, disp!(rbx)),
        (Host::RSI, disp!(rsi)),
        (Host::RDI, disp!(rdi)),
        (Host::RBP, disp!(rbp)),
        (Host::R8, disp!(r8)),
        (Host::R12, disp!(r12)),
        (Host::R13, disp!(r13)),
        (super::regs::BUDGET, disp!(budget)),
        (super::regs::GUEST_RSP, disp!(rsp)),
        (super::regs::GUEST_RCX, disp!(rcx)),
    ]
}

const CALLEE_SAVED: [Host; 6] = [
    Host::RBX,
    Host::RBP,
    Host::R12,
    Host::R13,
    Host::R14,
    Host::R15,
];

fn xmm_disp(index: u8) -> i32 {
    core_disp(offset_of!(Core, xmm) + 16 * usize::from(index))
}

fn emit_enter(asm: &mut Asm) {
    for register in CALLEE_SAVED {
        asm.push(register);
    }
    asm.store(Mem::base(Host::RDI, disp!(host_rsp)), Host::RSP);
    asm.mov(Host::RSP, Host::RDI);
    asm.ldmxcsr(Mem::env(disp!(mxcsr)));
    for xmm in 0..16 {
        asm.movaps_load(xmm, Mem::env(xmm_disp(xmm)));
    }
    asm.load(Host::RAX, Mem::env(disp!(flags)));
    asm.flags_from_ax();
    for (register, home) in register_homes() {
        asm.load(register, Mem::env(home));
    }
    asm.load(super::regs::T0, Mem::env(disp!(t0)));
    asm.load(super::regs::T1, Mem::env(disp!(t1)));
    asm.load(Host::RAX, Mem::env(disp!(rax)));
    asm.jmp_mem(Mem::env(disp!(resume)));
}

fn emit_leave(asm: &mut Asm, trapped: bool) {
    if trapped {
        asm.mov_imm(Host::RCX, TRAP_SITE);
    }
    asm.store(Mem::env(disp!(site)), Host::RCX);
    asm.store(Mem::env(disp!(rax)), Host::RAX);
    asm.flags_to_ax();
    asm.store(Mem::env(disp!(flags)), Host::RAX);
    for (register, home) in register_homes() {
        asm.store(Mem::env(home), register);
    }
    asm.store(Mem::env(disp!(t0)), super::regs::T0);
    asm.store(Mem::env(disp!(t1)), super::regs::T1);
    for xmm in 0..16 {
        asm.movaps_store(Mem::env(xmm_disp(xmm)), xmm);
    }
    asm.stmxcsr(Mem::env(disp!(mxcsr)));
    asm.ldmxcsr(Mem::env(disp!(host_mxcsr)));
    asm.load(Host::RSP, Mem::env(disp!(host_rsp)));
    for register in CALLEE_SAVED.iter().rev() {
        asm.pop(*register);
    }
    asm.ret();
}
