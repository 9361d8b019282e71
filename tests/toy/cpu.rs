//! The processor. Its state is a [`CpuState`] of which it uses the general-purpose registers, RIP,
//! IF and the interrupt shadow. Instructions take eight bytes: operation, registers a, b, c, and a
//! 32-bit immediate. The program counter wraps at the end of RAM, so that nothing is out of bounds.

use machine::ram::Ram;
use machine::state::{Activity, CpuState, Gpr, Shadow, rflags};
use machine::units::{GuestPhys, PAGE_BYTES, Port, Position, Steps, Vector};
use machine::vcpu::{Exit, Kick, Vcpu, VcpuError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tcg_sim::replay::{Arrival, Arrived, ReplayVcpu, arrive_by_steps};

pub(crate) const ADD: u8 = 0;
pub(crate) const LOAD: u8 = 1;
pub(crate) const STORE: u8 = 2;
pub(crate) const IN: u8 = 3;
pub(crate) const OUT: u8 = 4;
pub(crate) const JNZ: u8 = 5;
pub(crate) const HLT: u8 = 6;
pub(crate) const STI: u8 = 7;
pub(crate) const CLI: u8 = 8;
pub(crate) const IRET: u8 = 9;
pub(crate) const FILL: u8 = 10;
pub(crate) const TIME: u8 = 11;
pub(crate) const MIX: u8 = 12;
pub(crate) const LOADSS: u8 = 13;
pub(crate) const FAIL: u8 = 14;

/// Interrupt vectors: quadwords from here.
pub(crate) const VECTORS: u64 = 0x800;

struct Flag(AtomicBool);

impl Kick for Flag {
    fn kick(&self) {
        self.0.store(true, Ordering::Release);
    }
}

pub(crate) struct ToyCpu {
    ram: Arc<Ram>,
    cpu: CpuState,
    position: Position,
    /// The register that waits for a value, and the I/O size.
    pending: Option<(u8, u8)>,
    window: bool,
    kicked: Arc<Flag>,
}

impl ToyCpu {
    pub(crate) fn new(ram: Arc<Ram>) -> Self {
        Self {
            ram,
            cpu: CpuState::default(),
            position: Position::default(),
            pending: None,
            window: false,
            kicked: Arc::new(Flag(AtomicBool::new(false))),
        }
    }

    fn address(&self, address: u64) -> GuestPhys {
        GuestPhys(address % (self.ram.bytes() - 8))
    }

    fn read(&self, address: u64) -> Result<u64, VcpuError> {
        let at = self.address(address);
        let mut bytes = [0; 8];
        self.ram
            .read(at, &mut bytes)
            .map_err(|error| failed(at, error))?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), VcpuError> {
        let at = self.address(address);
        self.ram.write(at, bytes).map_err(|error| failed(at, error))
    }

    fn retire(&mut self) {
        self.position = Position::at(self.position.steps.0 + 1);
        self.cpu.rip = (self.cpu.rip + 8) % (self.ram.bytes() - 8);
    }

    /// Executes one instruction, or one iteration of FILL.
    fn step(&mut self) -> Result<Option<Exit>, VcpuError> {
        let [op, a, b, _c, imm @ ..] = self.read(self.cpu.rip)?.to_le_bytes();
        let (a, b) = (usize::from(a & 15), usize::from(b & 15));
        let imm = u64::from(u32::from_le_bytes(imm));
        self.cpu.shadow = Shadow::None;
        match op {
            ADD => self.cpu.gpr[a] = self.cpu.gpr[b].wrapping_add(imm),
            LOAD => self.cpu.gpr[a] = self.read(self.cpu.gpr[b].wrapping_add(imm))?,
            STORE => {
                let address = self.cpu.gpr[b].wrapping_add(imm);
                self.write(address, &self.cpu.gpr[a].to_le_bytes())?;
            }
            IN => {
                self.pending = Some((a as u8, 4));
                let port = Port(imm as u16);
                return Ok(Some(Exit::PortRead { port, size: 4 }));
            }
            TIME => {
                self.pending = Some((a as u8, 8));
                return Ok(Some(Exit::TimestampRead));
            }
            OUT => {
                self.retire();
                return Ok(Some(Exit::PortWrite {
                    port: Port(imm as u16),
                    size: b as u8,
                    value: self.cpu.gpr[a] as u32 & (u32::MAX >> (32 - 8 * b as u32)),
                }));
            }
            JNZ if self.cpu.gpr[a] != 0 => {
                self.retire();
                self.cpu.rip = imm % (self.ram.bytes() - 8);
                return Ok(None);
            }
            JNZ => {}
            HLT => {
                self.retire();
                self.cpu.activity = Activity::Halted;
                return Ok(Some(Exit::Halt));
            }
            STI => {
                if self.cpu.rflags & rflags::IF == 0 {
                    self.cpu.shadow = Shadow::Sti;
                }
                self.cpu.rflags |= rflags::IF;
            }
            LOADSS => self.cpu.shadow = Shadow::MovSs,
            CLI => self.cpu.rflags &= !rflags::IF,
            IRET => {
                let stack = self.cpu.gpr[Gpr::Rsp as usize];
                let (rip, flags) = (self.read(stack)?, self.read(stack.wrapping_add(8))?);
                self.cpu.gpr[Gpr::Rsp as usize] = stack.wrapping_add(16);
                self.retire();
                self.cpu.rip = rip % (self.ram.bytes() - 8);
                self.cpu.rflags = flags & rflags::DEFINED | rflags::FIXED;
                return Ok(None);
            }
            FILL => return self.fill(a),
            MIX => {
                let mixed = self.cpu.gpr[a] ^ self.cpu.gpr[b].rotate_left(13);
                self.cpu.gpr[a] = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            _ => {
                self.cpu.activity = Activity::Shutdown;
                return Ok(Some(Exit::Shutdown));
            }
        }
        self.retire();
        Ok(None)
    }

    /// One iteration: stores a byte at RDI while RCX is not zero.
    fn fill(&mut self, value: usize) -> Result<Option<Exit>, VcpuError> {
        let (count, to) = (Gpr::Rcx as usize, Gpr::Rdi as usize);
        if self.cpu.gpr[count] > 0 {
            self.write(self.cpu.gpr[to], &[self.cpu.gpr[value] as u8])?;
            self.cpu.gpr[to] = self.cpu.gpr[to].wrapping_add(1);
            self.cpu.gpr[count] -= 1;
        }
        match self.cpu.gpr[count] {
            0 => self.retire(),
            _ => self.position.rep_iterations += 1,
        }
        Ok(None)
    }
}

fn failed(address: GuestPhys, error: machine::ram::RamError) -> VcpuError {
    VcpuError::PageLoad {
        address,
        source: error.into(),
    }
}

impl Vcpu for ToyCpu {
    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        if self.pending.is_some() {
            return Err(VcpuError::Protocol("a read waits"));
        }
        if self.cpu.activity != Activity::Running {
            return Err(VcpuError::Protocol("halted"));
        }
        loop {
            if self.kicked.0.swap(false, Ordering::AcqRel) {
                return Ok(Exit::Kicked);
            }
            if self.window && self.interrupt_window_open() {
                self.window = false;
                return Ok(Exit::InterruptWindow);
            }
            if until.is_some_and(|until| self.position >= until) {
                return Ok(Exit::Reached);
            }
            if let Some(exit) = self.step()? {
                return Ok(exit);
            }
        }
    }

    fn complete_read(&mut self, value: u64) -> Result<(), VcpuError> {
        let (register, size) = self
            .pending
            .take()
            .ok_or(VcpuError::Protocol("no read waits"))?;
        let mask = u64::MAX >> (64 - 8 * u32::from(size));
        self.cpu.gpr[usize::from(register)] = value & mask;
        self.retire();
        Ok(())
    }

    fn position(&self) -> Option<Position> {
        Some(self.position)
    }

    fn interrupt_window_open(&self) -> bool {
        self.pending.is_none()
            && self.cpu.rflags & rflags::IF != 0
            && self.cpu.shadow == Shadow::None
            && self.cpu.activity != Activity::Shutdown
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window = wanted;
    }

    fn inject_interrupt(&mut self, vector: Vector) -> Result<(), VcpuError> {
        if !self.interrupt_window_open() {
            return Err(VcpuError::Protocol("the window is closed"));
        }
        let stack = self.cpu.gpr[Gpr::Rsp as usize].wrapping_sub(16);
        let mut frame = self.cpu.rip.to_le_bytes().to_vec();
        frame.extend_from_slice(&self.cpu.rflags.to_le_bytes());
        self.write(stack, &frame[..8])?;
        self.write(stack.wrapping_add(8), &frame[8..])?;
        self.cpu.gpr[Gpr::Rsp as usize] = stack;
        self.cpu.rip = self.read(VECTORS + 8 * u64::from(vector.0))? % (self.ram.bytes() - 8);
        self.cpu.rflags &= !rflags::IF;
        self.cpu.activity = Activity::Running;
        self.position = Position {
            steps: Steps(self.position.steps.0 + 1),
            rep_iterations: 0,
        };
        Ok(())
    }

    fn save(&mut self) -> Result<CpuState, VcpuError> {
        match self.pending {
            None => Ok(self.cpu.clone()),
            Some(_) => Err(VcpuError::Protocol("a read waits")),
        }
    }

    fn load(&mut self, state: &CpuState, position: Position) -> Result<(), VcpuError> {
        self.cpu = state.clone();
        self.position = position;
        self.pending = None;
        Ok(())
    }

    fn ram_written(&mut self, start: GuestPhys, bytes: u64) {
        assert!(start.0 + bytes <= self.ram.frames() * PAGE_BYTES);
    }

    fn arm_write_tracking(&mut self) {}

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.kicked.clone()
    }
}

impl ReplayVcpu for ToyCpu {
    fn run_to_arrival(
        &mut self,
        arrival: &Arrival,
        until: Option<Position>,
    ) -> Result<Arrived, VcpuError> {
        arrive_by_steps(self, arrival, until)
    }
}
