//! Kicks the vCPU when a host instant has come.

use machine::vcpu::Kick;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    due: Option<Instant>,
    closed: bool,
}

/// One alarm with its thread.
pub(crate) struct Alarm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Alarm {
    pub(crate) fn start(kick: Arc<dyn Kick>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = std::thread::Builder::new().name("alarm".into()).spawn({
            let shared = shared.clone();
            move || ring(&shared, &*kick)
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Sets the instant of the next kick. The thread is woken only for an earlier one; it finds out
    /// about a later one by itself.
    pub(crate) fn set(&self, due: Option<Instant>) {
        let mut state = self.lock();
        let earlier = match (due, state.due) {
            (Some(new), Some(old)) => new < old,
            (Some(_), None) => true,
            (None, _) => false,
        };
        state.due = due;
        if earlier {
            self.shared.changed.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("no panic under the lock")
    }
}

fn ring(shared: &Shared, kick: &dyn Kick) {
    let mut state = shared.state.lock().expect("no panic under the lock");
    while !state.closed {
        let now = Instant::now();
        let wait = match state.due {
            Some(due) if due <= now => {
                state.due = None;
                kick.kick();
                continue;
            }
            Some(due) => Some(due - now),
            None => None,
        };
        state = match wait {
            Some(time) => {
                let waited = shared.changed.wait_timeout(state, time);
                waited.expect("no panic under the lock").0
            }
            None => shared.changed.wait(state).expect("no panic under the lock"),
        };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; there is nothing else to do about it here.
            let _ = thread.join();
        }
    }
}
