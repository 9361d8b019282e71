//! The loops on the host CPU itself, and the host's CPU clocks.
#![expect(
    unsafe_code,
    reason = "calls assembled code; asks the host for CPU time"
)]

use crate::loops::Loop;
use iced_x86::code_asm::{CodeAssembler, rcx, rdi, rsi};
use simuboost_tests::guest::asm;

const BYTES: usize = 1 << 16;

/// Memory for code and data.
pub(crate) struct Arena {
    code: *mut u8,
    data: Box<[u64; 1024]>,
}

impl Arena {
    pub(crate) fn new() -> Self {
        // SAFETY: a fresh private mapping; the result is checked.
        let code = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(code, libc::MAP_FAILED, "the host gives 64 KiB");
        Self {
            code: code.cast(),
            data: Box::new([0; 1024]),
        }
    }

    /// CPU seconds of so many rounds.
    pub(crate) fn run(&mut self, what: &Loop, rounds: u64) -> f64 {
        let code = assemble(what, self.code as u64);
        assert!(code.len() <= BYTES);
        self.data[0] = self.data.as_ptr() as u64;
        // SAFETY: the mapping is writable and large enough, and no code in it runs.
        unsafe {
            self.code
                .copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
        // SAFETY: `assemble` emits a function with this signature that keeps the preserved registers
        // and touches only the data, 8 KiB, and its stack.
        let function: extern "sysv64" fn(*mut u64, u64) = unsafe { std::mem::transmute(self.code) };
        let start = thread_seconds();
        function(self.data.as_mut_ptr(), rounds);
        thread_seconds() - start
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length.
        unsafe { libc::munmap(self.code.cast(), BYTES) };
    }
}

fn assemble(what: &Loop, at: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a bitness");
    let emit = |a: &mut CodeAssembler| {
        asm!(a; mov(rcx, rsi); mov(rsi, rdi););
        what.emit(a)?;
        a.ret()
    };
    emit(&mut a).expect("the loops assemble");
    a.assemble(at).expect("the loops assemble")
}

/// CPU seconds of this thread.
pub(crate) fn thread_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// CPU seconds of the child processes that have ended.
pub(crate) fn children_seconds() -> f64 {
    // SAFETY: an all-zero rusage is valid, and a valid place for the result.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
