//! A thread that kicks a vCPU whose run takes too long, and ends the process if it does not obey.

use machine::vcpu::{Kick, Vcpu};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Runs take milliseconds; on a busy host they may be scheduled late.
const PATIENCE: Duration = Duration::from_secs(30);

struct Watched {
    name: u64,
    since: Instant,
    kick: Arc<dyn Kick>,
    kicked: bool,
}

/// See the module. A vCPU is watched until the next one is.
pub struct Watchdog {
    watched: Arc<Mutex<Option<Watched>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the thread.
    #[expect(
        clippy::new_without_default,
        reason = "a thread is not a default value"
    )]
    pub fn new() -> Self {
        let watched = Arc::new(Mutex::new(None));
        let (stop, stopped) = mpsc::channel();
        let theirs = watched.clone();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                look(&theirs);
            }
        });
        Self {
            watched,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Watches this vCPU from now on; `name` says which case it is.
    pub fn watch(&self, name: u64, vcpu: &dyn Vcpu) {
        *self.watched.lock().expect("the watchdog does not panic") = Some(Watched {
            name,
            since: Instant::now(),
            kick: vcpu.kick_handle(),
            kicked: false,
        });
    }
}

fn look(watched: &Mutex<Option<Watched>>) {
    let mut guard = watched.lock().expect("watchers do not panic");
    let Some(run) = guard.as_mut() else { return };
    let age = run.since.elapsed();
    if age > 2 * PATIENCE {
        eprintln!("case {} does not obey a kick", run.name);
        std::process::abort();
    }
    if age > PATIENCE && !run.kicked {
        run.kicked = true;
        run.kick.kick();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the watchdog does not panic");
        }
    }
}
