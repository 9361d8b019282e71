//! Sequences on the host CPU.
//!
//! A forked process executes them. It keeps nothing mapped but the runtime, the shared arena and the
//! memory of a sequence, so that a sequence sees the same address space as in the guest and cannot
//! hurt the test program; system calls from a sequence become a signal before they do anything.

#![expect(
    unsafe_code,
    reason = "runs chosen machine code in a process of its own, over shared memory"
)]

mod arena;
mod runtime;

use super::image::{IMAGES, Images};
use super::layout::{self, CODE, CODE_BYTES, CONSTANT, DATA, DATA_BYTES, IMAGE_BYTES, STACK, WRAP};
use super::registers::{Outcome, Registers};
use arena::{Header, IMAGES_OFFSET, SLOTS_OFFSET, Slot};
use runtime::{RUNTIME_BYTES, SLOW_TICK_SIGNAL, TICK_SIGNAL};
use std::io::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(super) use arena::has_error_code;

/// Linear address of the runtime in the executing process, chosen as [`arena::BASE`] is.
const RUNTIME_BASE: u64 = 0x2a59_91c6_4000;
/// Linear address of its signal stack.
const SIGNAL_STACK_BASE: u64 = RUNTIME_BASE + 0x10_0000;
/// Bytes of the signal stack: more than a frame with any vector state the kernel may save.
const SIGNAL_STACK_BYTES: usize = 0x1_0000;
/// Processor time between ticks; a sequence is ended by the second tick it sees.
const TICK_MICROSECONDS: i64 = 4_000;
/// Time by the clock on the wall between slow ticks.
const SLOW_TICK_MICROSECONDS: i64 = 700_000;
/// One above the highest address a process can map.
const TASK_END: u64 = 0x7fff_ffff_f000;
/// Wall-clock time for a batch after which the executing process counts as lost.
const BATCH_LIMIT: Duration = Duration::from_secs(60);

// From the kernel's user interface; the libc crate does not name them all.
const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const PR_SYS_DISPATCH_ON: u64 = 1;
const SA_RESTORER: u64 = 0x0400_0000;
const RSEQ_FLAG_UNREGISTER: i32 = 1;
const RSEQ_SIGNATURE: u32 = 0x5305_3053;

/// Why sequences cannot run on the host CPU.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The host refused something while the executing process was set up.
    #[error("{operation}: {source}")]
    Setup {
        /// What was tried.
        operation: &'static str,
        /// The host's answer.
        source: Error,
    },
    /// The executing process is gone; a sequence got out of its cage or the set-up failed in it.
    #[error("the executing process ended with wait status {status:#x}")]
    Lost {
        /// As `waitpid` reports it.
        status: i32,
    },
    /// No answer in time.
    #[error("the executing process did not finish a batch within {0:?}")]
    Stuck(Duration),
}

fn failed(operation: &'static str) -> NativeError {
    NativeError::Setup {
        operation,
        source: Error::last_os_error(),
    }
}

/// A process that executes batches of sequences on the host CPU.
#[derive(Debug)]
pub struct NativeCpu {
    child: i32,
    arena: *mut u8,
    arena_bytes: usize,
    slots: usize,
    /// The executing process owns the arena.
    running: bool,
    /// The host CPU that the executing process stays on.
    host_cpu: u32,
}

impl NativeCpu {
    /// Starts the executing process with room for `slots` sequences per batch.
    ///
    /// # Errors
    /// [`NativeError::Setup`].
    pub fn new(slots: usize, images: &Images) -> Result<Self, NativeError> {
        Self::on_cpu(current_cpu(), slots, images)
    }

    /// As [`Self::new`], on the CPU of this number.
    ///
    /// # Errors
    /// [`NativeError::Setup`].
    pub fn on_cpu(host_cpu: u32, slots: usize, images: &Images) -> Result<Self, NativeError> {
        let arena_bytes = SLOTS_OFFSET + slots * size_of::<Slot>();
        // SAFETY: a new shared anonymous mapping at a place the kernel chooses.
        let arena = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                arena_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if arena == libc::MAP_FAILED {
            return Err(failed("mmap of the arena"));
        }
        for index in 0..IMAGES {
            let data = &images.get(index)[CODE_BYTES..];
            let at = IMAGES_OFFSET + usize::from(index) * DATA_BYTES;
            // SAFETY: the arena has room for all images before the slots, and nobody else has it yet.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    data.as_ptr(),
                    arena.cast::<u8>().add(at),
                    DATA_BYTES,
                );
            }
        }
        let constant = images.constant();
        // SAFETY: the child calls `Child::run` only, which makes async-signal-safe calls.
        let child = unsafe { libc::fork() };
        if child == 0 {
            Child {
                arena: arena.cast(),
                arena_bytes,
                constant,
                host_cpu,
            }
            .run();
        }
        let cpu = Self {
            child,
            arena: arena.cast(),
            arena_bytes,
            slots,
            running: false,
            host_cpu,
        };
        if child < 0 {
            return Err(failed("fork"));
        }
        Ok(cpu)
    }

    /// What selector 0x78 has for a limit on the host CPU used: the number of CPU and node.
    pub fn cpu_number(&self) -> u32 {
        self.host_cpu
    }

    /// Sequences per batch.
    pub fn slots(&self) -> usize {
        self.slots
    }

    fn slot(&self, index: usize) -> *mut Slot {
        assert!(index < self.slots, "slot {index} of {}", self.slots);
        assert!(!self.running, "slot {index} while a batch is running");
        // SAFETY: the arena holds `slots` slots from there on.
        unsafe {
            self.arena
                .add(SLOTS_OFFSET + index * size_of::<Slot>())
                .cast()
        }
    }

    fn header(&self) -> *mut Header {
        self.arena.cast()
    }

    /// Places a sequence over a memory image. `fill` receives the code to write completely.
    pub fn place(
        &mut self,
        index: usize,
        start: &Registers,
        image: u8,
        fill: impl FnOnce(&mut [u8; CODE_BYTES]),
    ) {
        assert!(image < IMAGES, "image {image}");
        let slot = self.slot(index);
        // SAFETY: no batch is running (checked by `slot`), so only this process touches the slot,
        // and any bytes are a valid `Slot`.
        unsafe {
            (*slot).start = *start;
            (*slot).image = u64::from(image);
            fill(&mut (*slot).code);
        }
    }

    /// Executes the first `count` slots.
    ///
    /// # Errors
    /// [`NativeError::Lost`], [`NativeError::Stuck`].
    pub fn run(&mut self, count: usize) -> Result<(), NativeError> {
        self.start(count);
        self.wait()
    }

    /// Lets the executing process begin with the first `count` slots.
    pub(super) fn start(&mut self, count: usize) {
        assert!(!self.running, "a batch is running");
        self.running = true;
        assert!(
            count <= self.slots,
            "{count} sequences, {} slots",
            self.slots
        );
        // SAFETY: the header is at the start of the arena; the child reads `count` after `request`.
        unsafe { (*self.header()).count = count as u64 };
        let request = self.counter(0);
        request.fetch_add(1, Ordering::Release);
        futex(request, libc::FUTEX_WAKE, 1, None);
    }

    /// Waits until it is done with them.
    pub(super) fn wait(&mut self) -> Result<(), NativeError> {
        let wanted = self.counter(0).load(Ordering::Relaxed);
        let begin = Instant::now();
        loop {
            let done = self.counter(64).load(Ordering::Acquire);
            if done == wanted {
                self.running = false;
                return Ok(());
            }
            futex(
                self.counter(64),
                libc::FUTEX_WAIT,
                done,
                Some(Duration::from_millis(200)),
            );
            let mut status = 0;
            // SAFETY: asks about our own child without waiting.
            if unsafe { libc::waitpid(self.child, &mut status, libc::WNOHANG) } == self.child {
                self.child = -1;
                return Err(NativeError::Lost { status });
            }
            if begin.elapsed() > BATCH_LIMIT {
                return Err(NativeError::Stuck(BATCH_LIMIT));
            }
        }
    }

    /// One of the two futex words, by its offset in the header.
    fn counter(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `request` is at offset 0 and `done` at offset 64 of the header, both aligned and
        // only accessed atomically after the start.
        unsafe { &*self.arena.add(offset).cast::<AtomicU32>() }
    }

    /// The outcome of a sequence of the last batch.
    pub fn outcome(&self, index: usize) -> Outcome {
        // SAFETY: no batch is running (checked by `slot`); any bytes are a valid `RawOutcome`.
        unsafe { (*self.slot(index)).raw.decode() }
    }

    /// The memory image at the end of a sequence of the last batch.
    pub fn memory(&self, index: usize) -> &[u8; IMAGE_BYTES] {
        // SAFETY: as in `outcome`; `&self` keeps the next batch from starting.
        unsafe { &(*self.slot(index)).memory_out }
    }
}

impl Drop for NativeCpu {
    fn drop(&mut self) {
        if self.child > 0 {
            let mut status = 0;
            // SAFETY: ends and reaps our own child.
            unsafe {
                libc::kill(self.child, libc::SIGKILL);
                libc::waitpid(self.child, &mut status, 0);
            }
        }
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.arena.cast(), self.arena_bytes) };
    }
}

/// Number of the CPU this runs on.
fn current_cpu() -> u32 {
    // SAFETY: takes no arguments.
    let cpu = unsafe { libc::sched_getcpu() };
    u32::try_from(cpu).unwrap_or(0)
}

fn futex(word: &AtomicU32, operation: i32, value: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs() as i64,
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    // SAFETY: the word outlives the call, the timeout is a valid timespec or null. Whether the call
    // waited is of no interest: the caller looks at the word again.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation,
            value,
            timeout
                .as_ref()
                .map_or(std::ptr::null(), std::ptr::from_ref),
        );
    }
}

/// The forked process until it jumps to the runtime.
struct Child<'a> {
    arena: *mut u8,
    arena_bytes: usize,
    constant: &'a [u8; 4096],
    host_cpu: u32,
}

impl Child<'_> {
    /// Never returns. Set-up errors end the process with status 1 to 10.
    fn run(&self) -> ! {
        // SAFETY: this process has one thread; everything here is a raw system call or a copy into
        // memory mapped a line before. The jump at the end goes to the runtime, which needs nothing
        // that was mapped before it.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // LSL shows the number of the CPU.
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(self.host_cpu as usize, &mut set);
            let pinned = libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
            check(pinned == 0, 10);
            self.map_all();
            self.write_unmap_table();
            install_handlers();
            unregister_rseq();
            // RDTSC and RDTSCP fault, as in the guest with CR4.TSD set.
            check(libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) == 0, 5);
            check(
                libc::prctl(
                    PR_SET_SYSCALL_USER_DISPATCH,
                    PR_SYS_DISPATCH_ON,
                    RUNTIME_BASE,
                    RUNTIME_BYTES as u64,
                    0u64,
                ) == 0,
                6,
            );
            let entry: extern "C" fn() -> ! = std::mem::transmute(RUNTIME_BASE as usize);
            entry()
        }
    }

    /// # Safety
    /// Only in the child.
    unsafe fn map_all(&self) {
        use libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
        let rw = PROT_READ | PROT_WRITE;
        // SAFETY: fixed addresses that nothing of this process uses, checked by the kernel.
        unsafe {
            map(RUNTIME_BASE, RUNTIME_BYTES, rw | PROT_EXEC);
            map(SIGNAL_STACK_BASE, SIGNAL_STACK_BYTES, rw);
            map(CODE.base, CODE.bytes() as usize, rw | PROT_EXEC);
            for region in [DATA, STACK, WRAP, CONSTANT] {
                map(region.base, region.bytes() as usize, rw);
            }
            let from = &raw const runtime::simuboost_runtime;
            std::ptr::copy_nonoverlapping(from, RUNTIME_BASE as *mut u8, RUNTIME_BYTES);
            std::ptr::copy_nonoverlapping(
                self.constant.as_ptr(),
                CONSTANT.base as *mut u8,
                self.constant.len(),
            );
            let constant = CONSTANT.base as *mut libc::c_void;
            let sealed = libc::mprotect(constant, CONSTANT.bytes() as usize, PROT_READ);
            check(sealed == 0, 2);
            let moved = libc::mremap(
                self.arena.cast(),
                self.arena_bytes,
                self.arena_bytes,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                arena::BASE as *mut libc::c_void,
            );
            check(moved != libc::MAP_FAILED, 3);
        }
    }

    /// Lists the gaps between what stays mapped.
    ///
    /// # Safety
    /// After [`Self::map_all`].
    unsafe fn write_unmap_table(&self) {
        let mut kept = [
            (CODE.base, CODE.end()),
            (DATA.base, CONSTANT.end()),
            (STACK.base, STACK.end()),
            (WRAP.base, WRAP.end()),
            (RUNTIME_BASE, RUNTIME_BASE + RUNTIME_BYTES as u64),
            (
                SIGNAL_STACK_BASE,
                SIGNAL_STACK_BASE + SIGNAL_STACK_BYTES as u64,
            ),
            (arena::BASE, arena::BASE + self.arena_bytes as u64),
            (TASK_END, TASK_END),
        ];
        kept.sort_unstable();
        let table = in_runtime(&raw const runtime::simuboost_runtime_unmap) as *mut [u64; 2];
        let mut from = 0;
        for (row, (start, end)) in kept.into_iter().enumerate() {
            // The arena ends on a page boundary, since slots are aligned to pages.
            // SAFETY: the table has 32 rows in the writable copy of the runtime.
            unsafe { *table.add(row) = [from, start - from] };
            from = end;
        }
    }
}

/// Address in the copy of a symbol of the runtime.
fn in_runtime(symbol: *const u8) -> u64 {
    RUNTIME_BASE + (symbol as u64 - (&raw const runtime::simuboost_runtime) as u64)
}

fn check(condition: bool, status: i32) {
    if !condition {
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(status) };
    }
}

/// # Safety
/// Only in the child.
unsafe fn map(base: u64, bytes: usize, protection: i32) {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
    let at = unsafe { libc::mmap(base as *mut libc::c_void, bytes, protection, flags, -1, 0) };
    check(at as u64 == base, 4);
}

/// # Safety
/// Only in the child, after its memory is mapped.
unsafe fn install_handlers() {
    let stack = libc::stack_t {
        ss_sp: SIGNAL_STACK_BASE as *mut libc::c_void,
        ss_flags: 0,
        ss_size: SIGNAL_STACK_BYTES,
    };
    // The kernel's `struct sigaction`: handler, flags, restorer, mask.
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER) as u64 | SA_RESTORER;
    let action = [
        in_runtime(&raw const runtime::simuboost_runtime_handler),
        flags,
        in_runtime(&raw const runtime::simuboost_runtime_restorer),
        0,
    ];
    let no_signals = 0u64;
    // SAFETY: all pointers are to locals that outlive the calls.
    unsafe {
        check(libc::sigaltstack(&stack, std::ptr::null_mut()) == 0, 7);
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
            libc::SIGSYS,
            TICK_SIGNAL,
            SLOW_TICK_SIGNAL,
        ] {
            let done = libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), 0u64, 8);
            check(done == 0, 8);
        }
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const no_signals,
            0u64,
            8,
        );
        for (clock, tv_usec) in [
            (libc::ITIMER_VIRTUAL, TICK_MICROSECONDS),
            (libc::ITIMER_REAL, SLOW_TICK_MICROSECONDS),
        ] {
            let tick = libc::timeval { tv_sec: 0, tv_usec };
            let timer = libc::itimerval {
                it_interval: tick,
                it_value: tick,
            };
            check(libc::setitimer(clock, &timer, std::ptr::null_mut()) == 0, 9);
        }
    }
}

/// The C library registers a structure in thread-local storage that the kernel writes to; that
/// memory is about to go.
///
/// # Safety
/// Only in the child.
unsafe fn unregister_rseq() {
    // SAFETY: the symbols, where they exist, are an `isize` and a `u32`; reading the thread pointer
    // has no effect.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        if offset.is_null() {
            return;
        }
        let thread: u64;
        std::arch::asm!("mov {}, fs:0", out(reg) thread);
        let area = thread.wrapping_add_signed(*offset as i64);
        // glibc registers at least the original 32 bytes, whatever size it announces.
        libc::syscall(
            libc::SYS_rseq,
            area,
            32,
            RSEQ_FLAG_UNREGISTER,
            RSEQ_SIGNATURE,
        );
    }
}

const _: () = assert!(size_of::<Slot>().is_multiple_of(4096));
const _: () = assert!(layout::IMAGE_BYTES == 8 * 4096 && CODE_BYTES == 2 * 4096);

// SAFETY: the arena belongs to this value alone in this process.
unsafe impl Send for NativeCpu {}

#[cfg(test)]
mod tests {
    use super::super::registers::{End, START_SELECTORS};
    use super::*;

    /// Runs each code from the start of [`CODE`], over a stack and data of zeros.
    fn run(codes: &[&[u8]], start: &Registers) -> (NativeCpu, Vec<Outcome>) {
        let mut cpu = NativeCpu::new(codes.len(), &Images::default()).unwrap();
        for (index, code) in codes.iter().enumerate() {
            cpu.place(index, start, 0, |image| {
                image.fill(0xcc);
                image[..code.len()].copy_from_slice(code);
            });
        }
        cpu.run(codes.len()).unwrap();
        let outcomes = (0..codes.len()).map(|index| cpu.outcome(index)).collect();
        (cpu, outcomes)
    }

    fn start() -> Registers {
        let mut registers = Registers {
            gpr: std::array::from_fn(|index| 0x1111 * index as u64),
            rip: CODE.base,
            rflags: 0x202 | 0x8d5,
            fs_base: 0x1234,
            gs_base: 0xffff_8000_0000_0000,
            selectors: START_SELECTORS,
            ..Registers::default()
        };
        registers.gpr[4] = STACK.end();
        registers.fpu.set_xmm(15, 77);
        registers.fpu.set_st(0, 5);
        registers
    }

    fn exception(vector: u8, error: u64, cr2: u64) -> End {
        End::Exception { vector, error, cr2 }
    }

    #[test]
    fn a_sequence_starts_with_the_registers_given_and_ends_at_the_breakpoint() {
        let (_, outcomes) = run(&[&[]], &start());
        assert_eq!(outcomes[0].end, exception(3, 0, 0));
        let mut expected = start();
        expected.rip += 1;
        assert_eq!(outcomes[0].registers, expected);
    }

    #[test]
    fn every_way_to_end_is_told_apart() {
        let (cpu, outcomes) = run(
            &[
                &[0x0f, 0x0b],                         // ud2
                &[0xf7, 0xf0, 0x90],                   // div eax with rdx = 0x2222
                &[0xeb, 0xfe],                         // endless
                &[0x0f, 0x05],                         // syscall
                &[0xa3, 8, 0, 0, 0, 0, 0, 0, 0],       // store to address 8
                &[0x50, 0x48, 0x89, 0x04, 0x24, 0xf4], // push rax; mov [rsp],rax; hlt
                &[0x0f, 0x31],                         // rdtsc
            ],
            &start(),
        );
        assert_eq!(outcomes[0].end, exception(6, 0, 0));
        assert_eq!(outcomes[1].end, exception(0, 0, 0));
        assert_eq!(outcomes[2].end, End::Endless);
        assert_eq!(outcomes[3].end, End::Syscall);
        assert_eq!(outcomes[4].end, exception(14, 6, 8));
        assert_eq!(outcomes[5].end, exception(13, 0, 0));
        assert_eq!(outcomes[5].registers.gpr[4], STACK.end() - 8);
        assert_eq!(outcomes[6].end, exception(13, 0, 0));
        let stack_top = layout::image_offset(STACK.end() - 1).unwrap();
        assert_eq!(cpu.memory(5)[stack_top], 0);
        assert_eq!(cpu.memory(0)[..2], [0x0f, 0x0b]);
    }

    #[test]
    fn nothing_of_the_test_program_is_mapped_in_the_executing_process() {
        let local = 5u64;
        for address in [
            &raw const local as u64,
            run as *const () as u64,
            arena::BASE - 1,
        ] {
            let mut start = start();
            start.gpr[0] = address;
            // mov rax, [rax]
            let (_, outcomes) = run(&[&[0x48, 0x8b, 0x00]], &start);
            assert_eq!(outcomes[0].end, exception(14, 4, address));
        }
    }

    /// Why the comparison takes all null selectors for one: the RPL of a null selector is there while
    /// the sequence runs, and gone once the kernel has returned to the signal handler with IRET.
    #[test]
    fn the_rpl_of_a_null_selector_does_not_outlive_the_sequence() {
        // mov eax, 1; mov fs, eax; mov ecx, fs
        let code = [0xb8, 1, 0, 0, 0, 0x8e, 0xe0, 0x8c, 0xe1];
        let (_, outcomes) = run(&[&code], &start());
        assert_eq!(outcomes[0].registers.gpr[1], 1);
        assert_eq!(outcomes[0].registers.selectors[4], 0);
    }
}
