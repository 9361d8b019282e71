//! Host signals that translated code raises: the guest's own divide errors, floating-point
//! exceptions, alignment faults and undefined opcodes, executed natively.
#![expect(unsafe_code, reason = "signal handlers edit the interrupted context")]

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

/// The trap that ended a stay in translated code.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trap {
    /// x86 exception vector.
    pub(crate) vector: u64,
    /// Host address of the instruction.
    pub(crate) pc: u64,
}

#[derive(Clone, Copy)]
struct Active {
    start: u64,
    end: u64,
    gate: u64,
}

thread_local! {
    static ACTIVE: Cell<Option<Active>> = const { Cell::new(None) };
    static LAST: Cell<Trap> = const { Cell::new(Trap { vector: 0, pc: 0 }) };
    static STACK: Cell<Option<AlternateStack>> = const { Cell::new(None) };
}

const SIGNALS: [i32; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];

/// While it lives, traps inside the code range continue at the gate on this thread.
pub(crate) struct Guard {
    previous: Option<Active>,
}

/// Routes traps of this thread inside `start..end` to `gate`.
///
/// # Errors
/// What the host says about handlers or the alternate stack.
pub(crate) fn route(start: u64, end: u64, gate: u64) -> io::Result<Guard> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(install)
        .map_err(io::Error::from_raw_os_error)?;
    AlternateStack::ensure()?;
    Ok(Guard {
        previous: ACTIVE.replace(Some(Active { start, end, gate })),
    })
}

impl Drop for Guard {
    fn drop(&mut self) {
        ACTIVE.set(self.previous);
    }
}

/// The trap that the trap gate was entered for.
pub(crate) fn last() -> Trap {
    LAST.get()
}

fn install() -> Result<(), i32> {
    for (index, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: the handler is async-signal-safe; a zeroed sigaction is valid before it is filled.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, &raw const action, &raw mut old) != 0 {
                return Err(io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EINVAL));
            }
            PREVIOUS[index].0.get_or_init(|| old);
        }
    }
    Ok(())
}

struct Previous(OnceLock<libc::sigaction>);

// SAFETY: a sigaction is plain data.
unsafe impl Sync for Previous {}

static PREVIOUS: [Previous; 5] = [const { Previous(OnceLock::new()) }; 5];

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = registers[libc::REG_RIP as usize] as u64;
    match ACTIVE.get() {
        Some(active) if (active.start..active.end).contains(&pc) => {
            let vector = registers[libc::REG_TRAPNO as usize] as u64;
            LAST.set(Trap { vector, pc });
            registers[libc::REG_RIP as usize] = active.gate as i64;
        }
        _ => chain(signal, info, context),
    }
}

/// Not ours: what was there before decides.
fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = SIGNALS
        .iter()
        .position(|known| *known == signal)
        .and_then(|index| PREVIOUS[index].0.get());
    // SAFETY: the old handler was installed with the flags that say which signature it has.
    unsafe {
        match previous {
            Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
                if old.sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(old.sa_sigaction);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(i32) = std::mem::transmute(old.sa_sigaction);
                    call(signal);
                }
            }
            _ => {
                // The default action, when the faulting instruction runs again.
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

const STACK_BYTES: usize = 64 << 10;

/// This thread's alternate signal stack; std gives its threads one that may be too small for wide
/// vector state.
struct AlternateStack(*mut libc::c_void);

impl AlternateStack {
    fn ensure() -> io::Result<()> {
        let known = STACK.take();
        if known.is_some() {
            STACK.set(known);
            return Ok(());
        }
        // SAFETY: a fresh mapping becomes the alternate stack; it is unmapped only after the thread
        // has given it up (`drop`).
        unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                STACK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let stack = libc::stack_t {
                ss_sp: memory,
                ss_flags: 0,
                ss_size: STACK_BYTES,
            };
            if libc::sigaltstack(&raw const stack, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            STACK.set(Some(Self(memory)));
        }
        Ok(())
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        // SAFETY: disables the stack before its memory goes.
        unsafe {
            let off = libc::stack_t {
                ss_sp: std::ptr::null_mut(),
                ss_flags: libc::SS_DISABLE,
                ss_size: 0,
            };
            libc::sigaltstack(&raw const off, std::ptr::null_mut());
            libc::munmap(self.0, STACK_BYTES);
        }
    }
}
