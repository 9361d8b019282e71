//! Ctrl-C: the first asks the running command to end in order, the second ends the process.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The command was ended by Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

type Hook = Box<dyn FnMut() + Send>;

/// Whether Ctrl-C was pressed. Clones share it.
#[derive(Clone)]
pub(crate) struct Interrupt {
    flag: Arc<AtomicBool>,
    hooks: Arc<Mutex<Vec<Hook>>>,
}

impl Interrupt {
    /// Catches SIGINT and SIGTERM from here on.
    pub(crate) fn install() -> io::Result<Self> {
        let this = Self {
            flag: Arc::default(),
            hooks: Arc::default(),
        };
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the first signal must find the flag of the second one unset.
            let ends = Arc::clone(&this.flag);
            flag::register_conditional_shutdown(signal, 130, ends)?;
            flag::register(signal, Arc::clone(&this.flag))?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let hooks = Arc::clone(&this.hooks);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in signals.forever() {
                    let mut hooks = hooks.lock().expect("no panic under the lock");
                    hooks.iter_mut().for_each(|hook| hook());
                }
            })?;
        Ok(this)
    }

    /// Whether it was pressed.
    pub(crate) fn requested(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// Calls `hook` when it is pressed; at once if it has been.
    pub(crate) fn on_request(&self, mut hook: impl FnMut() + Send + 'static) {
        let mut hooks = self.hooks.lock().expect("no panic under the lock");
        if self.requested() {
            hook();
        }
        hooks.push(Box::new(hook));
    }
}
