//! Sequences in a virtual CPU: a guest that has the addresses of [`layout`](super::layout) mapped for
//! privilege level 3 and whose exception handlers halt at once.

use super::case::Case;
use super::forms::{instruction_allowed, is_vector_encoding};
use super::generator::decoder_options;
use super::image::Images;
use super::layout::{
    CODE, CODE_BYTES, CONSTANT, DATA, IMAGE_BYTES, Region, STACK, WRAP, image_offset,
};
use super::registers::{End, FxImage, Outcome, Registers};
use iced_x86::Decoder;
use machine::ram::{Ram, RamError};
use machine::state::{CpuState, DescriptorTable, FpuState, Segment, cr0, cr4};
use machine::units::{GuestPhys, PAGE_BYTES, Position};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::sync::Arc;

/// Bytes of a page.
const PAGE: usize = PAGE_BYTES as usize;
/// Steps after which a sequence counts as endless.
const STEP_LIMIT: u64 = 30_000;
/// Steps that are looked at one by one in a sequence that differs.
const TRACED_STEPS: u64 = 20_000;
/// Frames of RAM.
const FRAMES: u64 = 64;
/// Linear address at which the supervisor sees frame 0.
const SUPERVISOR: u64 = 0xffff_c9a7_4000_0000;

/// Frames of the page tables and of what they map.
mod frame {
    pub(super) const PML4: u64 = 1;
    pub(super) const PDPT: u64 = 2;
    pub(super) const SUPERVISOR_PDPT: u64 = 3;
    pub(super) const SUPERVISOR_PD: u64 = 4;
    pub(super) const SUPERVISOR_PT: u64 = 5;
    /// Page directories of GiB 0, 3 and 4.
    pub(super) const PD: [(u64, u64); 3] = [(0, 6), (3, 7), (4, 8)];
    /// Page tables of the pages in [`super::pages`], by 2 MiB.
    pub(super) const FIRST_PT: u64 = 9;
    /// The memory image.
    pub(super) const IMAGE: u64 = 16;
    pub(super) const CONSTANT: u64 = 24;
    pub(super) const GDT: u64 = 32;
    pub(super) const IDT: u64 = 33;
    pub(super) const TSS: u64 = 34;
    pub(super) const STACK: u64 = 35;
    pub(super) const HANDLERS: u64 = 36;
    pub(super) const SYSCALL: u64 = 37;
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Accessed and dirty.
const USED: u64 = 3 << 5;
const NO_EXECUTE: u64 = 1 << 63;

/// Bytes between the handlers of two vectors.
const HANDLER_BYTES: u64 = 16;
const HLT: u8 = 0xf4;

/// The host kernel's descriptors, since LAR and the like show them: 32-bit and 64-bit supervisor code,
/// supervisor data, 32-bit user code, user data, 64-bit user code, the TSS at 0x40, and at 0x78 the
/// one that carries the number of the CPU in its limit.
const GDT: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0x0000_8b00_0000_0067,
    0,
    0,
    0,
    0,
    0,
    0,
    0x0040_f500_0000_0000,
];

/// Why a sequence did not come to an end that could be compared.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The virtual CPU gave up.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// An exit that no sequence should cause.
    #[error("unexpected exit {0:?}")]
    Exit(Exit),
    /// The guest halted elsewhere than in a handler.
    #[error("halted at {0:#x}")]
    Halted(u64),
    /// RAM could not be had or accessed.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// A guest that runs sequences on a virtual CPU.
pub struct Guest<V> {
    vcpu: V,
    ram: Arc<Ram>,
    template: CpuState,
    start: Start<V>,
}

/// Gives a virtual CPU a state at position 0. All changes of RAM were announced, so what is cached may
/// stay.
pub type Start<V> = fn(&mut V, &CpuState) -> Result<(), VcpuError>;

impl<V: Vcpu> Guest<V> {
    /// A guest on the virtual CPU that `make` builds over the RAM. `cpu_number` is what the host's
    /// kernel shows of the CPU that it is compared with.
    ///
    /// # Errors
    /// [`GuestError::Ram`], and what `make` returns.
    pub fn new(
        images: &Images,
        cpu_number: u32,
        make: impl FnOnce(Arc<Ram>) -> Result<V, VcpuError>,
        start: Start<V>,
    ) -> Result<Self, GuestError> {
        let ram = Arc::new(Ram::new(FRAMES * PAGE_BYTES)?);
        write_page_tables(&ram)?;
        write_system_tables(&ram, cpu_number)?;
        ram.write(physical(frame::CONSTANT), images.constant())?;
        let vcpu = make(ram.clone())?;
        Ok(Self {
            vcpu,
            ram,
            template: template(),
            start,
        })
    }

    /// The virtual CPU, between two sequences.
    pub fn vcpu(&mut self) -> &mut V {
        &mut self.vcpu
    }

    /// Makes memory what a sequence starts over. `now` is what it is: zeros at first, and what the last
    /// [`Self::run`] or [`Self::leaves_model`] read.
    ///
    /// # Errors
    /// [`GuestError::Ram`].
    pub fn reset(
        &mut self,
        case: &Case,
        images: &Images,
        now: &[u8; IMAGE_BYTES],
    ) -> Result<(), GuestError> {
        let mut code = [0; CODE_BYTES];
        case.fill_code(&mut code);
        let data = &images.get(case.image)[CODE_BYTES..];
        let wanted = [&code[..], data];
        let pages = wanted.into_iter().flat_map(|part| part.chunks_exact(PAGE));
        for (index, (wanted, now)) in pages.zip(now.chunks_exact(PAGE)).enumerate() {
            if wanted != now {
                let at = physical(frame::IMAGE + index as u64);
                self.ram.write(at, wanted)?;
                self.vcpu.ram_written(at, PAGE_BYTES);
            }
        }
        Ok(())
    }

    /// Runs a sequence after [`Self::reset`]; `memory` receives the memory at the end.
    ///
    /// # Errors
    /// [`GuestError`]: all mean that the virtual CPU is wrong or limited.
    pub fn run(
        &mut self,
        case: &Case,
        memory: &mut [u8; IMAGE_BYTES],
    ) -> Result<Outcome, GuestError> {
        let mut state = self.template.clone();
        load_registers(&mut state, &case.start);
        let started = (self.start)(&mut self.vcpu, &state);
        let exit = started.and_then(|()| self.vcpu.run(Some(Position::at(STEP_LIMIT))));
        self.ram.read(physical(frame::IMAGE), memory)?;
        let exit = exit?;
        let state = self.vcpu.save()?;
        match exit {
            Exit::Halt => self.outcome(&state),
            Exit::Reached => Ok(Outcome {
                end: End::Endless,
                registers: save_registers(&state),
            }),
            other => Err(GuestError::Exit(other)),
        }
    }

    /// After [`Self::reset`], runs a sequence step by step and returns whether it comes to an instruction that a sequence may
    /// not contain, or to a repeated string instruction that writes over itself: hardware goes on for
    /// as much of a 64-byte chunk as it had begun, the engine until it has overwritten a byte.
    /// `memory` receives the memory at the end.
    pub(super) fn leaves_model(&mut self, case: &Case, memory: &mut [u8; IMAGE_BYTES]) -> bool {
        let leaves = self.trace_out(case);
        self.ram
            .read(physical(frame::IMAGE), memory)
            .expect("the image is in RAM");
        leaves
    }

    fn trace_out(&mut self, case: &Case) -> bool {
        let mut state = self.template.clone();
        load_registers(&mut state, &case.start);
        if self.vcpu.load(&state, Position::at(0)).is_err() {
            return false;
        }
        for step in 1..TRACED_STEPS {
            let Ok(state) = self.vcpu.save() else {
                return false;
            };
            let rip = state.rip;
            let bitness = if state.segs[1].long_mode() { 64 } else { 32 };
            let bytes = self.code_at(rip);
            let instruction = Decoder::with_ip(bitness, &bytes, rip, decoder_options()).decode();
            let vector = is_vector_encoding(&bytes, bitness);
            if !bytes.is_empty() && (vector || !instruction_allowed(&instruction)) {
                return true;
            }
            let reached = matches!(self.vcpu.run(Some(Position::at(step))), Ok(Exit::Reached));
            let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
            if repeats && instruction.is_string_instruction() && self.code_at(rip) != bytes {
                return true;
            }
            if !reached {
                return false;
            }
        }
        false
    }

    /// What can be an instruction at an address; empty outside the code, where sequences end.
    fn code_at(&self, rip: u64) -> Vec<u8> {
        let Some(at) = image_offset(rip).filter(|_| CODE.contains(rip)) else {
            return Vec::new();
        };
        let mut bytes = vec![0; (CODE.end() - rip).min(15) as usize];
        let from = GuestPhys(physical(frame::IMAGE).0 + at as u64);
        match self.ram.read(from, &mut bytes) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }

    /// Reads the exception frame.
    fn outcome(&self, state: &CpuState) -> Result<Outcome, GuestError> {
        let mut registers = save_registers(state);
        if state.rip == linear(frame::SYSCALL) + 1 {
            return Ok(Outcome {
                end: End::Syscall,
                registers,
            });
        }
        let offset = state.rip.wrapping_sub(linear(frame::HANDLERS) + 1);
        if !offset.is_multiple_of(HANDLER_BYTES) || offset >= 256 * HANDLER_BYTES {
            return Err(GuestError::Halted(state.rip));
        }
        let vector = (offset / HANDLER_BYTES) as u8;
        // Error code where there is one, RIP, CS, RFLAGS, RSP, SS, up to the top of the stack.
        let mut words = [[0; 8]; 6];
        let bytes = words.as_flattened_mut();
        let top = physical(frame::STACK + 1);
        self.ram.read(GuestPhys(top.0 - 48), bytes)?;
        let [error, rip, cs, rflags, rsp, ss] = words.map(u64::from_le_bytes);
        let has_error = super::native::has_error_code(vector);
        registers.rip = rip;
        registers.selectors[1] = cs as u16;
        registers.selectors[2] = ss as u16;
        registers.rflags = rflags;
        registers.gpr[4] = rsp;
        Ok(Outcome {
            end: End::Exception {
                vector,
                error: if has_error { error } else { 0 },
                cr2: if vector == 14 { state.cr2 } else { 0 },
            },
            registers,
        })
    }
}

fn physical(frame: u64) -> GuestPhys {
    GuestPhys(frame * PAGE_BYTES)
}

fn linear(frame: u64) -> u64 {
    SUPERVISOR + frame * PAGE_BYTES
}

/// Linear address, frame and permissions of each page a sequence can use.
fn pages() -> Vec<(u64, u64, u64)> {
    let mut pages = Vec::new();
    let mut frame = frame::IMAGE;
    let mut add = |region: Region, flags: u64| {
        for page in 0..region.pages {
            pages.push((region.base + page * PAGE_BYTES, frame, flags));
            frame += 1;
        }
    };
    add(CODE, WRITABLE);
    for region in [DATA, STACK, WRAP] {
        add(region, WRITABLE | NO_EXECUTE);
    }
    assert_eq!(frame, frame::CONSTANT, "the image is eight pages");
    pages.push((CONSTANT.base, frame::CONSTANT, NO_EXECUTE));
    pages
}

fn put(ram: &Ram, frame: u64, index: u64, value: u64) -> Result<(), RamError> {
    let at = GuestPhys(physical(frame).0 + index * 8);
    ram.write(at, &value.to_le_bytes())
}

fn write_page_tables(ram: &Ram) -> Result<(), RamError> {
    let table = PRESENT | WRITABLE | USER | USED;
    let entry = |frame: u64, flags: u64| (frame * PAGE_BYTES) | flags;
    put(ram, frame::PML4, 0, entry(frame::PDPT, table))?;
    for (gib, directory) in frame::PD {
        put(ram, frame::PDPT, gib, entry(directory, table))?;
    }
    let mut tables: Vec<u64> = Vec::new();
    for (address, frame, flags) in pages() {
        let large = address >> 21;
        let known = tables.iter().position(|&t| t == large);
        let nth = known.unwrap_or_else(|| {
            tables.push(large);
            tables.len() - 1
        });
        let page_table = frame::FIRST_PT + nth as u64;
        let (_, directory) = frame::PD
            .into_iter()
            .find(|&(gib, _)| gib == address >> 30)
            .expect("each GiB in use has a directory");
        put(ram, directory, large & 511, entry(page_table, table))?;
        let leaf = entry(frame, PRESENT | USER | USED | flags);
        put(ram, page_table, (address >> 12) & 511, leaf)?;
    }
    let supervisor = PRESENT | WRITABLE | USED;
    let at = |level: u32| (SUPERVISOR >> (12 + 9 * level)) & 511;
    put(
        ram,
        frame::PML4,
        at(3),
        entry(frame::SUPERVISOR_PDPT, supervisor),
    )?;
    put(
        ram,
        frame::SUPERVISOR_PDPT,
        at(2),
        entry(frame::SUPERVISOR_PD, supervisor),
    )?;
    put(
        ram,
        frame::SUPERVISOR_PD,
        at(1),
        entry(frame::SUPERVISOR_PT, supervisor),
    )?;
    for frame in frame::GDT..=frame::SYSCALL {
        put(ram, frame::SUPERVISOR_PT, frame, entry(frame, supervisor))?;
    }
    Ok(())
}

fn write_system_tables(ram: &Ram, cpu_number: u32) -> Result<(), RamError> {
    let tss = linear(frame::TSS);
    for (index, descriptor) in GDT.into_iter().enumerate() {
        let base = match index {
            8 => (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56,
            9 => tss >> 32,
            15 => u64::from(cpu_number & 0xffff) | u64::from(cpu_number >> 16 & 0xf) << 48,
            _ => 0,
        };
        put(ram, frame::GDT, index as u64, descriptor | base)?;
    }
    for vector in 0..256u64 {
        let handler = linear(frame::HANDLERS) + vector * HANDLER_BYTES;
        // The host's kernel lets user mode raise these.
        let dpl = if matches!(vector, 3 | 4 | 0x80) {
            3u64
        } else {
            0
        };
        let gate = handler & 0xffff
            | 0x10 << 16
            | (0x8e00 | dpl << 13) << 32
            | (handler >> 16 & 0xffff) << 48;
        put(ram, frame::IDT, vector * 2, gate)?;
        put(ram, frame::IDT, vector * 2 + 1, handler >> 32)?;
        let code = GuestPhys(physical(frame::HANDLERS).0 + vector * HANDLER_BYTES);
        ram.write(code, &[HLT])?;
    }
    ram.write(physical(frame::SYSCALL), &[HLT])?;
    // RSP0 is at offset 4 of a 64-bit TSS; the I/O map base at 102 lies beyond the limit.
    let stack_top = linear(frame::STACK + 1);
    ram.write(
        GuestPhys(physical(frame::TSS).0 + 4),
        &stack_top.to_le_bytes(),
    )?;
    ram.write(GuestPhys(physical(frame::TSS).0 + 102), &[0xff, 0xff])
}

/// The system state that all sequences start in; the host's kernel has the same where it shows.
fn template() -> CpuState {
    let mut state = CpuState::long_mode(0, 0, frame::PML4 * PAGE_BYTES);
    state.cr0 |= cr0::AM;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::TSD;
    state.gdtr = DescriptorTable {
        base: linear(frame::GDT),
        limit: (GDT.len() * 8 - 1) as u16,
    };
    state.idtr = DescriptorTable {
        base: linear(frame::IDT),
        limit: 0xfff,
    };
    state.tr = Segment {
        selector: 0x40,
        attributes: 0x8b,
        limit: 0x67,
        base: linear(frame::TSS),
    };
    state.msrs.star = 0x0023_0010 << 32;
    state.msrs.lstar = linear(frame::SYSCALL);
    let flat = |selector, attributes| Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    };
    let null = Segment::default();
    state.segs = [
        null,
        flat(0x33, 0xa0fb),
        flat(0x2b, 0xc0f3),
        null,
        null,
        null,
    ];
    state
}

fn load_registers(state: &mut CpuState, from: &Registers) {
    state.gpr = from.gpr;
    state.rip = from.rip;
    state.rflags = from.rflags;
    state.segs[4].base = from.fs_base;
    state.segs[5].base = from.gs_base;
    let fpu = &from.fpu;
    state.fpu = FpuState {
        fcw: fpu.fcw(),
        fsw: fpu.fsw(),
        ftw: fpu.ftw(),
        fop: fpu.fop(),
        fip: fpu.fip(),
        fdp: fpu.fdp(),
        fcs: 0,
        fds: 0,
        st: std::array::from_fn(|n| fpu.st(n)),
        mxcsr: fpu.mxcsr(),
        xmm: std::array::from_fn(|n| fpu.xmm(n)),
    };
}

fn save_registers(state: &CpuState) -> Registers {
    let mut fpu = FxImage::default();
    fpu.set_fcw(state.fpu.fcw);
    fpu.set_fsw(state.fpu.fsw);
    fpu.set_ftw(state.fpu.ftw);
    fpu.set_fop(state.fpu.fop);
    fpu.set_fip(state.fpu.fip);
    fpu.set_fdp(state.fpu.fdp);
    fpu.set_mxcsr(state.fpu.mxcsr);
    for (index, value) in state.fpu.st.into_iter().enumerate() {
        fpu.set_st(index, value);
    }
    for (index, value) in state.fpu.xmm.into_iter().enumerate() {
        fpu.set_xmm(index, value);
    }
    Registers {
        gpr: state.gpr,
        rip: state.rip,
        rflags: state.rflags,
        fs_base: state.segs[4].base,
        gs_base: state.segs[5].base,
        selectors: state.segs.map(|s| s.selector),
        fpu,
    }
}
