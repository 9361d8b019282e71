//! A first program for a Linux guest, for hosts where there is a kernel but no package to take
//! programs from: it says that it is up, starts processes, works on memory, and powers off.

use crate::builtin::elf;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const BASE: u64 = 0x40_0000;
const ROUNDS: i32 = 60;
/// Bytes that each process works on.
const WORK_BYTES: i32 = 2 << 20;

/// System calls of Linux on x86-64.
mod call {
    pub(super) const WRITE: i32 = 1;
    pub(super) const MMAP: i32 = 9;
    pub(super) const FORK: i32 = 57;
    pub(super) const EXIT: i32 = 60;
    pub(super) const WAIT4: i32 = 61;
    pub(super) const REBOOT: i32 = 169;
}

/// An initramfs with nothing but this program and a console.
pub(super) fn initramfs() -> Result<Vec<u8>, IcedError> {
    let program = elf(&program()?, BASE, BASE);
    let mut archive = Archive::default();
    archive.add("dev", 0o040_755, (0, 0), &[]);
    archive.add("dev/console", 0o020_600, (5, 1), &[]);
    archive.add("init", 0o100_755, (0, 0), &program);
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive.0)
}

/// A cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let number = self.0.len() as u32 + 1;
        let fields = [
            number,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.0.extend(b"070701");
        for field in fields {
            self.0.extend(format!("{field:08x}").bytes());
        }
        self.0.extend(name.bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A string in the program, and its length.
struct Text {
    at: CodeLabel,
    bytes: &'static [u8],
}

impl Text {
    fn new(a: &mut CodeAssembler, bytes: &'static [u8]) -> Self {
        let at = a.create_label();
        Self { at, bytes }
    }

    fn print(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.mov(edi, 1)?;
        a.lea(rsi, ptr(self.at))?;
        a.mov(edx, self.bytes.len() as i32)?;
        call(a, call::WRITE)
    }

    fn put(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.set_label(&mut self.at)?;
        a.db(self.bytes)
    }
}

fn call(a: &mut CodeAssembler, number: i32) -> Result<(), IcedError> {
    a.mov(eax, number)?;
    a.syscall()
}

fn program() -> Result<Vec<u8>, IcedError> {
    let a = &mut CodeAssembler::new(64)?;
    let mut texts = [&b"GUEST up\n"[..], b".", b"\nGUEST down\n"].map(|bytes| Text::new(a, bytes));
    let (mut round, mut parent) = (a.create_label(), a.create_label());
    texts[0].print(a)?;
    a.mov(r12d, ROUNDS)?;
    a.set_label(&mut round)?;
    call(a, call::FORK)?;
    a.test(eax, eax)?;
    a.jne(parent)?;
    work(a)?;
    texts[1].print(a)?;
    a.xor(edi, edi)?;
    call(a, call::EXIT)?;
    a.set_label(&mut parent)?;
    a.mov(rdi, -1_i64 as u64)?;
    for register in [esi, edx, r10d] {
        a.xor(register, register)?;
    }
    call(a, call::WAIT4)?;
    a.dec(r12d)?;
    a.jne(round)?;
    texts[2].print(a)?;
    // Power off: the magic numbers of reboot(2).
    a.mov(edi, 0xfee1_dead_u32)?;
    a.mov(esi, 672_274_793)?;
    a.mov(edx, 0x4321_fedc)?;
    call(a, call::REBOOT)?;
    a.ud2()?;
    for text in &mut texts {
        text.put(a)?;
    }
    a.assemble(BASE)
}

/// Maps memory and changes every word of it, several times.
fn work(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut word) = (a.create_label(), a.create_label());
    a.xor(edi, edi)?;
    a.mov(esi, WORK_BYTES)?;
    // Readable and writable; private and without a file.
    a.mov(edx, 3)?;
    a.mov(r10d, 0x22)?;
    a.mov(r8, -1_i64 as u64)?;
    a.xor(r9d, r9d)?;
    call(a, call::MMAP)?;
    a.mov(rbx, rax)?;
    a.mov(r13d, 10)?;
    a.set_label(&mut again)?;
    a.mov(ecx, WORK_BYTES / 8)?;
    a.mov(rdi, rbx)?;
    a.set_label(&mut word)?;
    a.lea(rax, ptr(rax + rax * 4 + 12345))?;
    a.add(qword_ptr(rdi), rax)?;
    a.add(rdi, 8)?;
    a.dec(ecx)?;
    a.jne(word)?;
    a.dec(r13d)?;
    a.jne(again)
}
