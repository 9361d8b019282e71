//! Any `machine::vcpu::Vcpu` as a runner of guests.

use crate::guest::{End, Guest, Outcome, layout};
use crate::hostile::trial;
use machine::board::Board;
use machine::devices::cmos::DEFAULT_START_UNIX_S;
use machine::ram::Ram;
use machine::units::{GuestPhys, Port, Position, Vector, VirtualNanos};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::sync::Arc;
use tcg_sim::{Engine, EngineOptions};

/// RAM that holds a guest's image.
pub fn ram_of(guest: &Guest) -> Arc<Ram> {
    let ram = Ram::new(layout::RAM_BYTES).expect("the host has memory for a test guest");
    ram.write(GuestPhys(0), guest.ram())
        .expect("the image is as large as RAM");
    Arc::new(ram)
}

/// RAM and an engine for a guest that has not been loaded.
pub fn engine_for(guest: &Guest, one_instruction_blocks: bool) -> (Arc<Ram>, Engine) {
    let ram = ram_of(guest);
    let options = EngineOptions {
        code_bytes: 4 << 20,
        one_instruction_blocks,
    };
    let engine = Engine::new(ram.clone(), trial::cpuid(), options);
    (ram, engine.expect("this host runs the engine"))
}

/// What stands behind the ports of a guest.
pub trait Ports {
    /// IN.
    fn read(&mut self, port: Port, size: u8) -> u32;
    /// OUT.
    fn write(&mut self, port: Port, size: u8, value: u32);
    /// Whether an interrupt waits.
    fn pending(&mut self) -> bool;
    /// Takes the waiting interrupt.
    fn acknowledge(&mut self) -> Option<Vector>;
}

/// No devices: reads give all ones.
pub struct NoPorts;

impl Ports for NoPorts {
    fn read(&mut self, _: Port, _: u8) -> u32 {
        u32::MAX
    }
    fn write(&mut self, _: Port, _: u8, _: u32) {}
    fn pending(&mut self) -> bool {
        false
    }
    fn acknowledge(&mut self) -> Option<Vector> {
        None
    }
}

/// Steps after which a run counts as endless.
pub const STEP_LIMIT: u64 = 2_000_000;

/// Loads the guest's state into `vcpu`, whose RAM is `ram` and holds the image, and runs it.
pub fn run(vcpu: &mut dyn Vcpu, ram: &Ram, guest: &Guest, ports: &mut dyn Ports) -> Outcome {
    let end = match vcpu
        .load(&guest.state, Position::at(0))
        .and_then(|()| drive(vcpu, ports))
    {
        Ok(end) => end,
        Err(error) => End::Unsupported(error.to_string()),
    };
    let mut after = vec![0; layout::RAM_BYTES as usize];
    ram.read(GuestPhys(0), &mut after)
        .expect("the buffer is as large as RAM");
    Outcome::from_ram(end, &after, &guest.watched)
}

/// Runs until the guest ends the case.
///
/// # Errors
/// What the vCPU reports.
pub fn drive(vcpu: &mut dyn Vcpu, ports: &mut dyn Ports) -> Result<End, VcpuError> {
    loop {
        if ports.pending() {
            if vcpu.interrupt_window_open() {
                if let Some(vector) = ports.acknowledge() {
                    vcpu.inject_interrupt(vector)?;
                }
            } else {
                vcpu.request_interrupt_window(true);
            }
        }
        match vcpu.run(Some(Position::at(STEP_LIMIT)))? {
            Exit::PortWrite { port, .. } if port.0 == layout::EXIT_PORT => {
                return Ok(End::Finished);
            }
            Exit::PortWrite { port, size, value } => ports.write(port, size, value),
            Exit::PortRead { port, size } => {
                let value = ports.read(port, size);
                vcpu.complete_read(u64::from(value))?;
            }
            Exit::MmioRead { .. } => vcpu.complete_read(u64::MAX)?,
            Exit::TimestampRead => vcpu.complete_read(0)?,
            Exit::Halt if !ports.pending() => return Ok(End::Halted),
            Exit::Halt | Exit::MmioWrite { .. } | Exit::InterruptWindow => {}
            Exit::Shutdown => return Ok(End::Shutdown),
            Exit::Reached | Exit::Kicked => return Ok(End::Limit),
        }
    }
}

/// The PC's devices. Time passes with each access, a microsecond a time.
pub struct BoardPorts {
    board: Board,
    now: VirtualNanos,
}

impl BoardPorts {
    /// The devices at power-on.
    #[expect(
        clippy::new_without_default,
        reason = "the power-on state is not a default value"
    )]
    pub fn new() -> Self {
        Self {
            board: Board::new(layout::RAM_BYTES, DEFAULT_START_UNIX_S),
            now: VirtualNanos(0),
        }
    }

    fn tick(&mut self) -> VirtualNanos {
        self.now.0 += 1000;
        self.now
    }
}

impl Ports for BoardPorts {
    fn read(&mut self, port: Port, size: u8) -> u32 {
        let now = self.tick();
        self.board.port_read(port, size, now)
    }
    fn write(&mut self, port: Port, size: u8, value: u32) {
        let now = self.tick();
        // No guest of the suites prints or resets.
        let _ = self.board.port_write(port, size, value, now);
    }
    fn pending(&mut self) -> bool {
        self.board.interrupt_pending()
    }
    fn acknowledge(&mut self) -> Option<Vector> {
        self.board.acknowledge()
    }
}
