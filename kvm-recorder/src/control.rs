//! How other threads reach a recording that runs: console input and the request to stop. What they
//! bring becomes visible to the guest on the vCPU's thread, between two exits.

use machine::vcpu::Kick;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long a halted guest sleeps at most while input waits that its console does not take.
const FULL_CONSOLE: Duration = Duration::from_millis(1);

/// A handle on a running recording. Clones are the same handle.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

struct Shared {
    stop: AtomicBool,
    /// Set while `inbox` may hold something, so that the loop need not lock to know.
    input: AtomicBool,
    inbox: Mutex<Vec<u8>>,
    news: Condvar,
    consoles: AtomicUsize,
    kick: Arc<dyn Kick>,
}

/// Sends console input. While one exists, a guest that halts may still be woken by it.
pub struct ConsoleInput(Control);

impl Control {
    pub(crate) fn new(kick: Arc<dyn Kick>) -> Self {
        Self(Arc::new(Shared {
            stop: AtomicBool::new(false),
            input: AtomicBool::new(false),
            inbox: Mutex::new(Vec::new()),
            news: Condvar::new(),
            consoles: AtomicUsize::new(0),
            kick,
        }))
    }

    /// Asks the recording to take its closing checkpoint and end.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Opens a way for console input.
    pub fn console(&self) -> ConsoleInput {
        self.0.consoles.fetch_add(1, Ordering::AcqRel);
        ConsoleInput(self.clone())
    }

    pub(crate) fn stop_requested(&self) -> bool {
        self.0.stop.load(Ordering::Acquire)
    }

    pub(crate) fn has_console(&self) -> bool {
        self.0.consoles.load(Ordering::Acquire) > 0
    }

    pub(crate) fn has_input(&self) -> bool {
        self.0.input.load(Ordering::Acquire)
    }

    /// Offers the input to `take`, which says how many bytes it took; the others stay.
    pub(crate) fn offer_input(&self, take: impl FnOnce(&[u8]) -> usize) {
        let mut inbox = self.inbox();
        if !inbox.is_empty() {
            let taken = take(&inbox);
            inbox.drain(..taken);
        }
        self.0.input.store(!inbox.is_empty(), Ordering::Release);
    }

    /// Sleeps until there is news, at most this long.
    pub(crate) fn wait(&self, at_most: Option<Duration>) {
        let inbox = self.inbox();
        if self.stop_requested() {
            return;
        }
        let at_most = match inbox.is_empty() {
            true => at_most,
            // The console is full: the guest may make room without any news.
            false => Some(at_most.unwrap_or(FULL_CONSOLE).min(FULL_CONSOLE)),
        };
        // Spurious wake-ups are fine: the caller looks again at everything.
        match at_most {
            Some(time) => drop(self.0.news.wait_timeout(inbox, time)),
            None => drop(self.0.news.wait(inbox)),
        }
    }

    fn wake(&self) {
        // Under the lock, so that no one goes to sleep between its look and this call.
        let inbox = self.inbox();
        self.0.news.notify_all();
        drop(inbox);
        self.0.kick.kick();
    }

    fn inbox(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0
            .inbox
            .lock()
            .expect("no panic while the inbox is locked")
    }
}

impl ConsoleInput {
    /// Sends bytes to the guest's console.
    pub fn send(&self, bytes: &[u8]) {
        let shared = &self.0.0;
        self.0.inbox().extend_from_slice(bytes);
        shared.input.store(true, Ordering::Release);
        self.0.wake();
    }
}

impl Drop for ConsoleInput {
    fn drop(&mut self) {
        self.0.0.consoles.fetch_sub(1, Ordering::AcqRel);
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(AtomicUsize);

    impl Kick for Count {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn input_waits_until_it_is_taken_and_kicks_the_guest() {
        let kicks = Arc::new(Count(AtomicUsize::new(0)));
        let control = Control::new(kicks.clone());
        assert!(!control.has_console());
        let console = control.console();
        console.send(b"abc");
        assert!(control.has_console() && control.has_input());
        assert_eq!(kicks.0.load(Ordering::Relaxed), 1);
        control.offer_input(|bytes| {
            assert_eq!(bytes, b"abc");
            2
        });
        assert!(control.has_input());
        control.offer_input(|bytes| {
            assert_eq!(bytes, b"c");
            1
        });
        assert!(!control.has_input());
        drop(console);
        assert!(!control.has_console());
    }

    #[test]
    fn news_ends_a_wait() {
        let control = Control::new(Arc::new(Count(AtomicUsize::new(0))));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !control.stop_requested() {
                    control.wait(None);
                }
            });
            control.stop();
        });
        control.wait(None);
    }
}
