//! How other threads make KVM_RUN return.
//!
//! The kicking thread sets the flag in the shared page that keeps KVM_RUN from entering the guest, and
//! sends a signal whose handler does nothing, which ends a KVM_RUN that is under way. Whichever way the
//! two race, one of them takes effect. The flag is cleared by the vCPU's thread alone, when it delivers
//! the kick.
#![expect(
    unsafe_code,
    reason = "a flag in a page shared with the kernel is written from another thread, and a signal sent"
)]

use kvm_ioctls::VcpuFd;
use machine::vcpu::Kick;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Once};

/// Kicks one vCPU.
pub(super) struct Kicker {
    wanted: AtomicBool,
    target: Mutex<Option<Target>>,
}

/// Where the vCPU is; none once it is gone.
struct Target {
    /// The shared page's `immediate_exit`.
    flag: *const AtomicU8,
    /// The thread that runs it, as the kernel numbers threads; 0 before the first run.
    thread: libc::pid_t,
}

// SAFETY: `flag` points into the vCPU's shared page, which stays mapped until `close` has taken the
// target away under the lock; an atomic byte may be written by any thread.
unsafe impl Send for Target {}

impl Kicker {
    pub(super) fn new(vcpu: &mut VcpuFd) -> Arc<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install_handler);
        let flag = (&raw mut vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        Arc::new(Self {
            wanted: AtomicBool::new(false),
            target: Mutex::new(Some(Target { flag, thread: 0 })),
        })
    }

    /// This thread runs the vCPU from now on.
    pub(super) fn runs_here(&self) {
        // SAFETY: gettid has no precondition.
        let thread = unsafe { libc::gettid() };
        if let Some(target) = &mut *self.lock() {
            target.thread = thread;
        }
    }

    /// Whether the vCPU was kicked. Ends the kick.
    pub(super) fn take(&self) -> bool {
        if !self.wanted.load(Ordering::Acquire) {
            return false;
        }
        let target = self.lock();
        self.wanted.store(false, Ordering::Release);
        self.set_flag(&target, 0);
        true
    }

    /// Runs `complete` with the flag set, after which it is again what kicks want it to be.
    pub(super) fn set_meanwhile<T>(&self, complete: impl FnOnce() -> T) -> T {
        self.set_flag(&self.lock(), 1);
        let result = complete();
        let target = self.lock();
        self.set_flag(&target, u8::from(self.wanted.load(Ordering::Acquire)));
        result
    }

    /// The vCPU is about to be gone.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    fn set_flag(&self, target: &Option<Target>, value: u8) {
        if let Some(Target { flag, .. }) = target {
            // SAFETY: the page is mapped as long as there is a target, see `Target`.
            unsafe { (**flag).store(value, Ordering::SeqCst) };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Target>> {
        self.target.lock().expect("no panic under the lock")
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        let target = self.lock();
        self.wanted.store(true, Ordering::Release);
        self.set_flag(&target, 1);
        if let Some(Target { thread: 1.., .. }) = *target {
            let thread = target.as_ref().map_or(0, |target| target.thread);
            // SAFETY: only sends a signal, whose handler does nothing. A thread that has ended makes
            // the call fail, which is as good: nobody runs the vCPU then.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

/// The signal that kicks.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

fn install_handler() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nothing as extern "C" fn(libc::c_int);
    // SAFETY: installs a handler that does nothing, without SA_RESTART, so that the signal only makes
    // system calls return; nobody else in the project uses this signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        libc::sigaction(signal(), &action, std::ptr::null_mut());
    }
}
