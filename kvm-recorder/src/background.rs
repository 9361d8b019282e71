//! Threads that must not take the processor from the guest.

use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// Of a thread that works for the store: a tenth of the guest's weight where both want one processor.
const NICENESS: i32 = 10;

/// Makes the calling thread, and those that it starts from now on, give way to the guest's thread. A
/// checkpoint wakes such threads just when the guest is to go on: at equal niceness they would often take
/// its processor for some milliseconds.
pub fn yield_to_guest() {
    // Linux applies this to the thread whose ID it is (setpriority(2), "C library/kernel differences").
    // A host that forbids it records with longer pauses.
    let _ = setpriority_process(Some(gettid()), NICENESS);
}
