//! The guest's console on the host: where its output goes and where its input comes from.
//!
//! On a terminal the keys go to the guest as they are typed; Ctrl-A X ends the run, Ctrl-A Ctrl-A
//! types a Ctrl-A. Input from a file is there from the beginning, so that it reaches the guest at the
//! same positions in every run; input from a pipe arrives when it comes.

use crate::guest::ConsoleArgument;
use anyhow::{Context, Result};
use kvm_recorder::{ConsoleInput, Control};
use rustix::termios::{self, OptionalActions, Termios};
use std::fs::File;
use std::io::{self, IsTerminal, LineWriter, Read, Write};

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// Opens where the guest's output goes.
pub(crate) fn output(console: &ConsoleArgument) -> Result<Box<dyn Write + Send>> {
    Ok(match console {
        ConsoleArgument::None => Box::new(io::sink()),
        ConsoleArgument::File(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot create the console file {}", path.display()))?;
            Box::new(LineWriter::new(file))
        }
        ConsoleArgument::Stdio if io::stdout().is_terminal() => Box::new(Immediate(io::stdout())),
        ConsoleArgument::Stdio => Box::new(io::stdout()),
    })
}

/// Shows each byte at once: a prompt does not end with a line feed.
struct Immediate(io::Stdout);

impl Write for Immediate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.0.flush()?;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Connects standard input with the guest, if that is where its console is. The terminal is in raw
/// mode until the result is dropped.
pub(crate) fn input(console: &ConsoleArgument, control: &Control) -> Result<Option<RawMode>> {
    if *console != ConsoleArgument::Stdio {
        return Ok(None);
    }
    let keys = control.console();
    if io::stdin().is_terminal() {
        let raw = RawMode::enter().context("cannot put the terminal into raw mode")?;
        eprint!("The guest has the terminal; Ctrl-A X ends it.\r\n");
        let control = control.clone();
        start(move || forward_keys(&control, &keys))?;
        return Ok(Some(raw));
    }
    if is_file()? {
        let mut bytes = Vec::new();
        io::stdin()
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
        keys.send(&bytes);
    } else {
        start(move || forward_all(&keys))?;
    }
    Ok(None)
}

fn is_file() -> Result<bool> {
    let status = rustix::fs::fstat(io::stdin()).context("cannot examine standard input")?;
    let kind = rustix::fs::FileType::from_raw_mode(status.st_mode);
    Ok(kind == rustix::fs::FileType::RegularFile)
}

/// The thread ends with the process: it may wait for input for ever.
fn start(work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name("console".into())
        .spawn(work)
        .context("cannot start the console's thread")?;
    Ok(())
}

fn forward_all(keys: &ConsoleInput) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
        keys.send(&buffer[..count]);
    }
}

fn forward_keys(control: &Control, keys: &ConsoleInput) {
    let mut escape = Escape::default();
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
        let typed = escape.filter(&buffer[..count]);
        keys.send(&typed.bytes);
        if typed.end {
            control.stop();
            return;
        }
    }
}

/// Takes the escape sequences out of what is typed.
#[derive(Default)]
struct Escape {
    /// Ctrl-A was the last key.
    pending: bool,
}

/// What is left of typed keys.
#[derive(Debug, PartialEq, Eq)]
struct Typed {
    bytes: Vec<u8>,
    end: bool,
}

impl Escape {
    fn filter(&mut self, keys: &[u8]) -> Typed {
        let mut bytes = Vec::new();
        for &key in keys {
            match (std::mem::take(&mut self.pending), key) {
                (false, ESCAPE) => self.pending = true,
                (true, b'x' | b'X') => return Typed { bytes, end: true },
                // Ctrl-A Ctrl-A is a Ctrl-A; before any other key it is one too.
                (true, ESCAPE) => bytes.push(ESCAPE),
                (true, _) => bytes.extend([ESCAPE, key]),
                (false, _) => bytes.push(key),
            }
        }
        Typed { bytes, end: false }
    }
}

/// The terminal passes every key on and changes nothing of the output. Dropping it restores the
/// terminal.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // There is nothing to do about a terminal that has gone away.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_taken_out_of_the_keys() {
        type Row<'a> = (&'a [&'a [u8]], &'a [u8], bool);
        let rows: &[Row<'_>] = &[
            (&[b"ls\r"], b"ls\r", false),
            (&[b"a\x01x", b"b"], b"a", true),
            (&[b"a\x01", b"Xb"], b"a", true),
            (&[b"\x01\x01x"], b"\x01x", false),
            (&[b"\x01", b"\x01"], b"\x01", false),
            (&[b"\x01k"], b"\x01k", false),
        ];
        for (chunks, bytes, end) in rows {
            let mut escape = Escape::default();
            let mut all = Typed {
                bytes: Vec::new(),
                end: false,
            };
            for chunk in *chunks {
                if !all.end {
                    let typed = escape.filter(chunk);
                    all.bytes.extend(typed.bytes);
                    all.end = typed.end;
                }
            }
            assert_eq!((&all.bytes[..], all.end), (*bytes, *end), "{chunks:?}");
        }
    }
}
