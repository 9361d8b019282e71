//! Holds back the guest's writes to pages that a checkpoint has not copied yet, with userfaultfd.
//!
//! Protected pages are read as before. A write to one, by the guest or by this program, waits; a thread
//! here hears of it, lets the checkpoint copy the page ([`Ram::let_write`]) and lifts the protection.
#![expect(unsafe_code, reason = "userfaultfd is used through ioctl")]

use machine::ram::{FrameBits, Ram};
use machine::units::{Gfn, PAGE_BYTES};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// `_IO(USERFAULTFD_IOC, 0)` on /dev/userfaultfd, include/uapi/linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
/// `_IOWR(UFFDIO, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(UFFDIO, 0, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(UFFDIO, 6, struct uffdio_writeprotect)`.
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
/// The version of the interface.
const UFFD_API: u64 = 0xaa;
/// Faults on protected pages are told as such.
const FEATURE_WRITE_PROTECT: u64 = 1;
/// Register for write protection.
const MODE_WRITE_PROTECT: u64 = 1 << 1;
/// An event: a fault.
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of one event, and where the address is in it.
const EVENT_BYTES: usize = 32;
const EVENT_ADDRESS: usize = 16;

/// Protected pages that are this close to each other are protected together with those between, which
/// then cost a fault when they are written: cheaper than a call for each.
const GAP_FRAMES: u64 = 8;

/// RAM of a guest under guard.
pub(super) struct WriteGuard {
    area: Arc<Area>,
    /// Ends the thread when it is closed.
    stop: Option<File>,
    thread: Option<JoinHandle<()>>,
}

/// The userfaultfd and what it watches.
struct Area {
    fd: File,
    base: u64,
    frames: u64,
}

impl WriteGuard {
    /// Puts `ram` under guard; nothing is protected yet.
    ///
    /// # Errors
    /// What the kernel says: it has no write protection by userfaultfd (before Linux 5.7), or this user
    /// may not use it (no right to /dev/userfaultfd and no CAP_SYS_PTRACE).
    pub(super) fn start(ram: Arc<Ram>) -> io::Result<Self> {
        let area = Arc::new(Area {
            fd: open()?,
            base: ram.host_base() as u64,
            frames: ram.frames(),
        });
        area.register()?;
        let (stopped, stop) = io::pipe()?;
        let thread = std::thread::Builder::new()
            .name("write guard".into())
            .spawn({
                let area = area.clone();
                move || listen(&ram, &area, &OwnedFd::from(stopped))
            })?;
        Ok(Self {
            area,
            stop: Some(File::from(OwnedFd::from(stop))),
            thread: Some(thread),
        })
    }

    /// Protects these frames.
    pub(super) fn protect(&self, frames: &FrameBits) {
        for (first, count) in ranges(frames) {
            self.area.set_protection(first, count, true);
        }
    }

    /// Ends the protection of what [`WriteGuard::protect`] protected for these frames.
    pub(super) fn release(&self, frames: &FrameBits) {
        for (first, count) in ranges(frames) {
            self.area.set_protection(first, count, false);
        }
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        if let Some(mut stop) = self.stop.take() {
            // Either way the thread wakes up: at the latest when the pipe is closed.
            let _ = stop.write_all(&[0]);
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; there is nothing else to do about it here.
            let _ = thread.join();
        }
    }
}

/// First frame and number of runs of frames, close ones joined.
fn ranges(frames: &FrameBits) -> Vec<(Gfn, u64)> {
    let mut ranges: Vec<(Gfn, u64)> = Vec::new();
    for gfn in frames.iter() {
        match ranges.last_mut() {
            Some((first, count)) if gfn.0 - (first.0 + *count) <= GAP_FRAMES => {
                *count = gfn.0 - first.0 + 1;
            }
            _ => ranges.push((gfn, 1)),
        }
    }
    ranges
}

impl Area {
    fn register(&self) -> io::Result<()> {
        let request = [
            self.base,
            self.frames * PAGE_BYTES,
            MODE_WRITE_PROTECT,
            // Filled in with the calls that are possible.
            0,
        ];
        let mut request = request;
        self.call(UFFDIO_REGISTER, &mut request)
    }

    fn set_protection(&self, first: Gfn, count: u64, on: bool) {
        let start = self.base + first.base().0;
        loop {
            let mut request = [start, count * PAGE_BYTES, u64::from(on)];
            match self.call(UFFDIO_WRITEPROTECT, &mut request) {
                Ok(()) => return,
                // The process is forking or changing its mappings.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    std::thread::yield_now();
                }
                Err(error) => panic!("pages that can be protected were refused: {error}"),
            }
        }
    }

    fn call<const WORDS: usize>(
        &self,
        request: libc::c_ulong,
        argument: &mut [u64; WORDS],
    ) -> io::Result<()> {
        // SAFETY: each request of this module takes a structure of exactly the words that it is called
        // with; the addresses in it are of RAM's mapping, whose content and mapping no request changes.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument.as_mut_ptr()) };
        match result {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A userfaultfd that hears of faults in the kernel, too, since guests write through KVM.
fn open() -> io::Result<File> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    let fd = match &device {
        // SAFETY: this request takes flags and makes a file descriptor.
        Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) },
        // SAFETY: takes flags and makes a file descriptor.
        Err(_) => unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as libc::c_int },
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut request = [UFFD_API, FEATURE_WRITE_PROTECT, 0];
    // SAFETY: this request takes a structure of three words.
    match unsafe { libc::ioctl(file.as_raw_fd(), UFFDIO_API, request.as_mut_ptr()) } {
        0.. => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The thread that hears of writes to protected pages.
fn listen(ram: &Ram, area: &Area, stopped: &OwnedFd) {
    let mut events = [0; 16 * EVENT_BYTES];
    while wait(area, stopped) {
        // None, if the write was given up meanwhile.
        let Ok(bytes) = (&area.fd).read(&mut events) else {
            continue;
        };
        for event in events[..bytes].chunks_exact(EVENT_BYTES) {
            if event[0] != EVENT_PAGEFAULT {
                continue;
            }
            let address = std::array::from_fn(|n| event[EVENT_ADDRESS + n]);
            let gfn = Gfn((u64::from_le_bytes(address) - area.base) / PAGE_BYTES);
            ram.let_write(gfn, || area.set_protection(gfn, 1, false));
        }
    }
}

/// Waits for an event. False when the guard ends.
fn wait(area: &Area, stopped: &OwnedFd) -> bool {
    let mut files = [area.fd.as_raw_fd(), stopped.as_raw_fd()].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: takes two structures that live through the call.
    unsafe { libc::poll(files.as_mut_ptr(), files.len() as libc::nfds_t, -1) };
    files[1].revents == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::ram::{Before, FrameSet, WriteObserver};
    use machine::units::GuestPhys;
    use std::sync::Mutex;

    fn set(frames: &[u64]) -> FrameBits {
        let set = FrameSet::empty(1000);
        frames.iter().for_each(|frame| {
            set.insert(Gfn(*frame));
        });
        set.bits()
    }

    #[test]
    fn close_frames_are_protected_together() {
        assert_eq!(ranges(&set(&[])), []);
        assert_eq!(
            ranges(&set(&[1, 2, 10, 19, 500])),
            [(Gfn(1), 19), (Gfn(500), 1)]
        );
    }

    #[test]
    fn a_write_waits_until_the_page_was_seen() {
        struct Seen(Mutex<Vec<(Gfn, u8)>>);
        impl WriteObserver for Seen {
            fn before_first_write(&self, gfn: Gfn, before: Before<'_>) {
                self.0.lock().unwrap().push((gfn, before.copy()[0]));
            }
        }
        let ram = Arc::new(Ram::new(64 * PAGE_BYTES).unwrap());
        let guard = match WriteGuard::start(ram.clone()) {
            Ok(guard) => guard,
            Err(error) => return eprintln!("not tested: {error}"),
        };
        for frame in 0..4 {
            ram.write(GuestPhys(frame * PAGE_BYTES), &[frame as u8 + 1])
                .unwrap();
        }
        let seen = Arc::new(Seen(Mutex::default()));
        let frames = ram.begin_epoch(Some(seen.clone()));
        guard.protect(&frames);
        // As a vCPU does, without asking.
        let write = |frame: u64| {
            // SAFETY: the address is in RAM; the thread that reads it meanwhile does so before the
            // protection ends.
            unsafe { ram.host_base().add((frame * PAGE_BYTES) as usize).write(99) };
        };
        write(2);
        write(0);
        assert_eq!(*seen.0.lock().unwrap(), [(Gfn(2), 3), (Gfn(0), 1)]);
        guard.release(&frames);
        write(3);
        assert_eq!(seen.0.lock().unwrap().len(), 2);
        assert_eq!(ram.page(Gfn(2))[0], 99);
    }
}
