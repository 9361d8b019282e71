//! States that no CPU is in, as a damaged checkpoint would hold them.

use super::image::{Bytes, build, load_code};
use super::trial::{cpuid, guarded_ram};
use crate::differential::rng::Rng;
use machine::state::{Activity, CpuState, Shadow};
use machine::units::Position;
use machine::vcpu::{Exit, Vcpu, VcpuError};
use tcg_sim::{Engine, EngineOptions};

/// Whether the state was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Refused as invalid, or run until a named limit.
    Refused,
    /// Taken and run.
    Ran,
}

/// Damages a valid state in a few places and loads it: it must be refused with an error, or run for
/// a while like any other.
///
/// # Errors
/// Any other end, in words.
pub fn load_damaged(seed: u64, watch: &mut dyn FnMut(&dyn Vcpu)) -> Result<Answer, String> {
    let mut rng = Rng::new(seed);
    let input: Vec<u8> = (0..512).map(|_| rng.bits() as u8).collect();
    let mut bytes = Bytes::new(&input);
    let mut image = build(&mut bytes);
    load_code(&mut image, bytes.rest());
    for _ in 0..1 + rng.below(4) {
        damage(&mut image.state, &mut rng);
    }
    let (ram, guards) = guarded_ram(&image.ram);
    let options = EngineOptions {
        code_bytes: 1 << 20,
        one_instruction_blocks: rng.percent(30),
    };
    let mut engine = Engine::new(ram, cpuid(), options).map_err(|e| e.to_string())?;
    watch(&engine);
    let answer = match engine.load(&image.state, Position::at(rng.bits() >> 2)) {
        Err(VcpuError::InvalidState(_)) => Answer::Refused,
        Err(other) => return Err(other.to_string()),
        Ok(()) => {
            let start = engine.position().map_or(0, |at| at.steps.0);
            run(&mut engine, Position::at(start + 500))?
        }
    };
    guards.check()?;
    Ok(answer)
}

fn run(engine: &mut Engine, until: Position) -> Result<Answer, String> {
    loop {
        match engine.run(Some(until)) {
            Ok(Exit::PortRead { .. } | Exit::TimestampRead | Exit::MmioRead { .. }) => {
                engine.complete_read(0).map_err(|e| e.to_string())?;
            }
            Ok(Exit::Reached | Exit::Shutdown | Exit::Halt) => return Ok(Answer::Ran),
            Ok(Exit::Kicked) => return Err("the watchdog kicked".to_owned()),
            Ok(_) => {}
            Err(VcpuError::Limit { what, .. }) if !what.contains("host trap") => {
                return Ok(Answer::Refused);
            }
            Err(other) => return Err(other.to_string()),
        }
    }
}

/// Changes one field: a flipped bit, or another value altogether.
fn damage(state: &mut CpuState, rng: &mut Rng) {
    let flip = |value: &mut u64, rng: &mut Rng| {
        *value = match rng.below(3) {
            0 => rng.bits(),
            1 => 0,
            _ => *value ^ 1 << rng.below(64),
        };
    };
    match rng.below(14) {
        0 => flip(&mut state.rip, rng),
        1 => flip(&mut state.rflags, rng),
        2 => flip(&mut state.cr0, rng),
        3 => flip(&mut state.cr3, rng),
        4 => flip(&mut state.cr4, rng),
        5 => flip(&mut state.msrs.efer, rng),
        6 => segment(state, rng, flip),
        7 => {
            let index = rng.below(4);
            flip(&mut state.dr[index], rng);
            flip(&mut state.dr7, rng);
        }
        8 => flip(&mut state.dr6, rng),
        9 => {
            state.fpu.mxcsr = rng.bits() as u32;
            state.fpu.fcw = rng.bits() as u16;
            state.fpu.fsw = rng.bits() as u16;
        }
        10 => {
            flip(&mut state.gdtr.base, rng);
            flip(&mut state.idtr.base, rng);
            state.idtr.limit = rng.bits() as u16;
        }
        11 => {
            for field in [
                &mut state.msrs.star,
                &mut state.msrs.lstar,
                &mut state.msrs.sfmask,
                &mut state.msrs.pat,
                &mut state.xcr0,
                &mut state.cr8,
            ] {
                if rng.percent(30) {
                    flip(field, rng);
                }
            }
        }
        12 => {
            state.shadow = rng.pick(&[Shadow::Sti, Shadow::MovSs]);
            if rng.percent(50) {
                state.held_breakpoints = rng.bits() as u8 & rng.pick(&[0xf, 0xff]);
            }
        }
        _ => state.activity = rng.pick(&[Activity::Halted, Activity::Shutdown]),
    }
}

fn segment(state: &mut CpuState, rng: &mut Rng, flip: impl Fn(&mut u64, &mut Rng)) {
    let index = rng.below(8);
    let segment = match index {
        6 => &mut state.tr,
        7 => &mut state.ldtr,
        n => &mut state.segs[n],
    };
    match rng.below(4) {
        0 => segment.attributes = rng.bits() as u16,
        1 => segment.selector = rng.bits() as u16,
        2 => segment.limit = rng.bits() as u32,
        _ => flip(&mut segment.base, rng),
    }
}
