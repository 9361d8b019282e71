//! One run of a guest in one of the engine's ways to work.

use super::guards::Guards;
use super::image::Image;
use machine::cpuid::{CpuidTable, leaf7};
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::{GuestPhys, Position, Steps, Vector};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use std::sync::Arc;
use tcg_sim::{Engine, EngineOptions};

/// How to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One instruction a block.
    pub one_instruction_blocks: bool,
    /// Steps after which the run ends.
    pub steps: u64,
    /// Stop at each of these positions on the way, in order, and forget everything cached there.
    pub stops: Vec<u64>,
    /// Bytes of code memory: a small one is dropped often.
    pub code_bytes: usize,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At the position asked for.
    Steps,
    /// HLT that nothing ends.
    Halted,
    /// Triple fault.
    Shutdown,
    /// A named limit of the engine.
    Limit(String),
    /// A kick ended it: a string instruction may take minutes. No position to compare.
    Kicked,
}

/// Everything that a run leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// How it ended.
    pub ending: Ending,
    /// Where.
    pub position: Option<Position>,
    /// The state at the end; none at a limit.
    pub state: Option<Box<CpuState>>,
    /// RAM at the end.
    pub ram: Vec<u8>,
    /// A hash of everything that left through ports.
    pub output: u64,
}

/// The CPU model of the trials.
pub fn cpuid() -> CpuidTable {
    let mut table = CpuidTable::x86_64_v2();
    for entry in table.entries.iter_mut().filter(|entry| entry.leaf == 7) {
        entry.registers[1] |= leaf7::EBX_SMEP | leaf7::EBX_SMAP;
    }
    table
}

/// RAM with an image in it, and pages that must not be touched around it.
pub fn guarded_ram(bytes: &[u8]) -> (Arc<Ram>, Guards) {
    let ram = Ram::new(bytes.len() as u64).expect("the host has memory for a small guest");
    ram.write(GuestPhys(0), bytes)
        .expect("the image is as large as RAM");
    let guards = Guards::around(&ram);
    (Arc::new(ram), guards)
}

/// Runs a guest. `watch` learns of the engine before it starts, for a watchdog.
///
/// # Errors
/// What the engine must never do, in words.
pub fn run(image: &Image, plan: &Plan, watch: &mut dyn FnMut(&dyn Vcpu)) -> Result<Trace, String> {
    let (ram, guards) = guarded_ram(&image.ram);
    let options = EngineOptions {
        code_bytes: plan.code_bytes,
        one_instruction_blocks: plan.one_instruction_blocks,
    };
    let mut engine = Engine::new(ram.clone(), cpuid(), options).map_err(|e| e.to_string())?;
    watch(&engine);
    engine
        .load(&image.state, Position::at(0))
        .map_err(|e| format!("the state of the image is refused: {e}"))?;
    let mut output = 0;
    let mut ending = None;
    for stop in plan.stops.iter().chain([&plan.steps]) {
        ending = drive(&mut engine, Position::at(*stop), &mut output)?;
        if ending.is_some() {
            break;
        }
        engine.drop_caches();
    }
    let ending = ending.unwrap_or(Ending::Steps);
    let limited = matches!(ending, Ending::Limit(_));
    let state = if limited {
        None
    } else {
        Some(Box::new(engine.save().map_err(|e| e.to_string())?))
    };
    if let Some(state) = &state {
        state
            .validate()
            .map_err(|e| format!("the end state is not one a CPU can be in: {e}"))?;
    }
    guards.check()?;
    let mut after = vec![0; image.ram.len()];
    ram.read(GuestPhys(0), &mut after)
        .expect("the buffer is as large as RAM");
    Ok(Trace {
        ending,
        position: engine.position(),
        state,
        ram: after,
        output,
    })
}

/// Runs to a position. `None`: it is reached.
fn drive(engine: &mut Engine, until: Position, output: &mut u64) -> Result<Option<Ending>, String> {
    loop {
        let exit = match engine.run(Some(until)) {
            Ok(exit) => exit,
            Err(VcpuError::Limit { what, rip, .. }) if allowed(&what) => {
                return Ok(Some(Ending::Limit(format!("{what} at {rip:#x}"))));
            }
            Err(error) => return Err(error.to_string()),
        };
        match exit {
            Exit::Reached if engine.position() == Some(until) => return Ok(None),
            // The instruction at the position may have been begun before it.
            Exit::Reached => return Err(format!("stopped at {:?} for {until}", engine.position())),
            Exit::PortRead { port, size } => {
                let value = u64::from(port.0).wrapping_mul(0x0101_0101) ^ u64::from(size);
                engine.complete_read(value).map_err(|e| e.to_string())?;
            }
            Exit::TimestampRead => {
                let steps = engine.position().map_or(0, |at| at.steps.0);
                engine.complete_read(steps).map_err(|e| e.to_string())?;
            }
            Exit::PortWrite { port, size, value } => {
                let word = u64::from(port.0) << 40 | u64::from(size) << 32 | u64::from(value);
                *output = (output.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            Exit::Halt => {
                if !engine.interrupt_window_open() {
                    return Ok(Some(Ending::Halted));
                }
                engine
                    .inject_interrupt(Vector(0x21))
                    .map_err(|e| e.to_string())?;
            }
            Exit::Shutdown => return Ok(Some(Ending::Shutdown)),
            Exit::Kicked => return Ok(Some(Ending::Kicked)),
            Exit::MmioRead { .. } => engine.complete_read(0).map_err(|e| e.to_string())?,
            Exit::MmioWrite { .. } | Exit::InterruptWindow => {}
        }
    }
}

/// Limits that a guest may meet. A trap of the host that no guest instruction explains is none: it
/// is how an access outside guest RAM shows.
fn allowed(what: &str) -> bool {
    !what.contains("host trap")
}

/// Steps of a position, for reports.
pub fn steps(position: Option<Position>) -> Steps {
    position.map_or(Steps(0), |at| at.steps)
}
