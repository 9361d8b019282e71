//! Tests of system semantics on flat RAM with real page tables.

mod compat;
mod debugging;
mod delivery;
mod registers;
mod strings;
mod transfers;

use super::{AccessKind, Fault, Maker, Outcome, SysBus, execute};
use crate::mmu::{Access, AccessType, Paging, PhysMem, walk};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use machine::cpuid::CpuidTable;
use machine::state::{CpuState, DescriptorTable, Gpr, Seg, Segment, cr4, rflags};
use machine::units::GuestPhys;

/// 2 MiB, identity-mapped by 4 KiB pages that everybody may use.
const RAM: usize = 2 << 20;
const PAGE_TABLE: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const CODE: u64 = 0x8000;
const KERNEL_STACK: u64 = 0x20000;
const IST1: u64 = 0x28000;
const STACK: u64 = 0x30000;
const DATA: u64 = 0x40000;

const KERNEL_CS: u16 = 0x10;
const KERNEL_DS: u16 = 0x18;
const CODE32: u16 = 0x20;
const USER_DS: u16 = 0x2b;
const USER_CS: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;
const LDT_SELECTOR: u16 = 0x50;
const GATE: u16 = 0x60;
const CONFORMING: u16 = 0x70;
const ABSENT: u16 = 0x78;

/// Descriptors by index.
const DESCRIPTORS: [u64; 16] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    // Available TSS at 0x7000, limit 0x7f.
    0x0000_8900_7000_007f,
    0,
    // LDT at 0x9000, limit 0xf.
    0x0000_8200_9000_000f,
    0,
    // Call gate, DPL 3, to KERNEL_CS:0x8800.
    0x0000_ec00_0010_8800,
    0,
    0x00af_9f00_0000_ffff,
    0x00cf_1300_0000_ffff,
];

struct FlatBus {
    ram: Vec<u8>,
    cpuid: CpuidTable,
    vendor: Maker,
    /// Whether string instructions get host pointers.
    direct: bool,
}

impl PhysMem for FlatBus {
    fn read_u64(&mut self, address: GuestPhys) -> u64 {
        match self.ram.get(address.0 as usize..address.0 as usize + 8) {
            Some(bytes) => u64::from_le_bytes(bytes.try_into().unwrap()),
            None => u64::MAX,
        }
    }
    fn update_u64(&mut self, address: GuestPhys, value: u64) {
        self.poke(address.0, &value.to_le_bytes());
    }
}

impl FlatBus {
    fn poke(&mut self, address: u64, bytes: &[u8]) {
        let start = address as usize;
        self.ram[start..start + bytes.len()].copy_from_slice(bytes);
    }
    fn poke_u64(&mut self, address: u64, value: u64) {
        self.poke(address, &value.to_le_bytes());
    }
    fn peek(&self, address: u64, len: usize) -> &[u8] {
        &self.ram[address as usize..address as usize + len]
    }
    fn peek_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(address, 8).try_into().unwrap())
    }
    /// Replaces the low flags of the entry that maps a page.
    fn protect(&mut self, va: u64, flags: u64) {
        self.poke_u64(PAGE_TABLE + (va >> 12) * 8, (va & !0xfff) | flags);
    }
    fn translate(
        &mut self,
        cpu: &CpuState,
        va: u64,
        kind: AccessType,
        how: AccessKind,
    ) -> Result<usize, Fault> {
        let access = Access {
            kind,
            user: how.user(cpu),
            implicit: how == AccessKind::System,
        };
        match walk(self, &Paging::of(cpu), va, access) {
            Ok(mapping) => Ok(mapping.gpa.0 as usize),
            Err(fault) => Err(Fault::page(va, fault.error)),
        }
    }
}

impl SysBus for FlatBus {
    fn read(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &mut [u8],
        kind: AccessKind,
    ) -> Result<(), Fault> {
        for (index, byte) in bytes.iter_mut().enumerate() {
            let va = va.wrapping_add(index as u64);
            let gpa = self.translate(cpu, va, AccessType::Read, kind)?;
            *byte = self.ram.get(gpa).copied().unwrap_or(0xff);
        }
        Ok(())
    }
    fn write(
        &mut self,
        cpu: &CpuState,
        va: u64,
        bytes: &[u8],
        kind: AccessKind,
    ) -> Result<(), Fault> {
        self.prepare_write(cpu, va, bytes.len(), kind)?;
        for (index, byte) in bytes.iter().enumerate() {
            let va = va.wrapping_add(index as u64);
            let gpa = self.translate(cpu, va, AccessType::Write, kind)?;
            if let Some(slot) = self.ram.get_mut(gpa) {
                *slot = *byte;
            }
        }
        Ok(())
    }
    fn prepare_write(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        kind: AccessKind,
    ) -> Result<(), Fault> {
        for index in 0..len as u64 {
            self.translate(cpu, va.wrapping_add(index), AccessType::Write, kind)?;
        }
        Ok(())
    }
    fn host_run(
        &mut self,
        cpu: &CpuState,
        va: u64,
        len: usize,
        write: bool,
    ) -> Result<Option<*mut u8>, Fault> {
        assert!(
            len > 0 && va >> 12 == (va + len as u64 - 1) >> 12,
            "one page"
        );
        if !self.direct {
            return Ok(None);
        }
        let kind = if write {
            AccessType::Write
        } else {
            AccessType::Read
        };
        let gpa = self.translate(cpu, va, kind, AccessKind::Data)?;
        Ok((gpa + len <= self.ram.len()).then(|| self.ram.as_mut_ptr().wrapping_add(gpa)))
    }
    fn cpuid(&self) -> &CpuidTable {
        &self.cpuid
    }
    fn vendor(&self) -> Maker {
        self.vendor
    }
}

/// What [`execute`] is expected to say.
type Verdict = Result<Outcome, Fault>;

/// A CPU with its memory, at CPL 0 with interrupts off.
struct Machine {
    cpu: CpuState,
    bus: FlatBus,
}

impl Machine {
    fn new() -> Self {
        let mut bus = FlatBus {
            ram: vec![0; RAM],
            cpuid: CpuidTable::x86_64_v2(),
            vendor: Maker::Amd,
            direct: true,
        };
        for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, PAGE_TABLE)] {
            bus.poke_u64(table, next | 7);
        }
        for page in 0..512 {
            bus.protect(page << 12, 7);
        }
        for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
            bus.poke_u64(GDT + index as u64 * 8, *descriptor);
        }
        for vector in 0..256 {
            let dpl = if vector == 0x80 || vector == 3 { 3 } else { 0 };
            let ist = u64::from(vector == 8);
            let gate = gate(handler_of(vector as u8), KERNEL_CS, 0x8e | dpl << 5, ist);
            bus.poke_u64(IDT + vector * 16, gate);
        }
        bus.poke_u64(TSS + 4, KERNEL_STACK);
        bus.poke_u64(TSS + 0x24, IST1);
        // The I/O map starts at 0x68; port 0 to 7 allowed, the rest denied.
        bus.poke(TSS + 0x66, &[0x68, 0, 0x00, 0xff, 0x00]);
        let mut cpu = CpuState::long_mode(CODE, STACK, 0x1000);
        cpu.gdtr = DescriptorTable {
            base: GDT,
            limit: 0x7f,
        };
        cpu.idtr = DescriptorTable {
            base: IDT,
            limit: 0xfff,
        };
        cpu.tr = Segment {
            selector: TSS_SELECTOR,
            attributes: 0x8b,
            limit: 0x6a,
            base: TSS,
        };
        cpu.cr4 |= cr4::PGE;
        Self { cpu, bus }
    }

    /// The same at CPL 3.
    fn user() -> Self {
        let mut machine = Self::new();
        let cpu = &mut machine.cpu;
        cpu.segs[Seg::Cs as usize] = Segment {
            selector: USER_CS,
            attributes: 0xa0fb,
            limit: u32::MAX,
            base: 0,
        };
        cpu.segs[Seg::Ss as usize] = Segment {
            selector: USER_DS,
            attributes: 0xc0f3,
            limit: u32::MAX,
            base: 0,
        };
        machine
    }

    fn get(&self, register: Gpr) -> u64 {
        self.cpu.gpr[register as usize]
    }

    fn set(&mut self, register: Gpr, value: u64) {
        self.cpu.gpr[register as usize] = value;
    }

    fn decode(&self, bytes: &[u8]) -> Instruction {
        let long = self.cpu.segs[Seg::Cs as usize].long_mode();
        let bitness = if long { 64 } else { 32 };
        let instr = Decoder::with_ip(bitness, bytes, self.cpu.rip, DecoderOptions::NONE).decode();
        assert!(
            !instr.is_invalid() && instr.len() == bytes.len(),
            "{bytes:02x?}"
        );
        instr
    }

    /// Executes one instruction; checks that a fault changes no register.
    fn run(&mut self, bytes: &[u8]) -> Result<Outcome, Fault> {
        let before = self.cpu.clone();
        let result = self.run_limited(bytes, u64::MAX);
        if result.is_err() {
            assert_eq!(self.cpu, before, "a fault changed registers");
        }
        result
    }

    fn run_limited(&mut self, bytes: &[u8], max: u64) -> Result<Outcome, Fault> {
        let instr = self.decode(bytes);
        execute(&instr, &mut self.cpu, &mut self.bus, max)
    }

    /// Pushes quadwords so that the first is on top.
    fn stack(&mut self, slots: &[u64]) {
        for (index, slot) in slots.iter().enumerate() {
            let address = self.get(Gpr::Rsp) + index as u64 * 8;
            self.bus.poke_u64(address, *slot);
        }
    }
}

/// The low quadword of an IDT gate whose target lies below 4 GiB.
fn gate(target: u64, selector: u16, access: u64, ist: u64) -> u64 {
    (target & 0xffff) | u64::from(selector) << 16 | ist << 32 | access << 40 | target >> 16 << 48
}

fn handler_of(vector: u8) -> u64 {
    0x10000 + u64::from(vector) * 16
}

/// Runs a test with all arithmetic flags clear and with all set.
fn with_flags(test: impl Fn(Machine, u64)) {
    for flags in [0, rflags::OSZAPC] {
        let mut machine = Machine::new();
        machine.cpu.rflags |= flags;
        test(machine, flags);
    }
}
