//! An engine that shows itself as hardware does.

use super::Rng;
use crate::guest::{layout, pte};
use machine::msr::FROZEN_TSC;
use machine::ram::Ram;
use machine::state::rflags;
use machine::units::{GuestPhys, Position};
use machine::vcpu::{Exit, Vcpu, VcpuError, VcpuLayer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tcg_sim::Engine;

/// The table of the first 2 MiB of every guest.
const TABLE: u64 = layout::TABLES + 0x2000;

/// An engine that does not count and, wherever it is kicked, has done what processors may do there: it set
/// an accessed bit on a path that it gave up, or RF when an access met a fault of the host's.
pub struct LikeHardware {
    engine: Engine,
    ram: Arc<Ram>,
    random: Rng,
    /// What RDTSC gives, which nobody sees.
    pub timestamp: u64,
    /// What it did, for whoever counts.
    pub speculated: Arc<Speculated>,
}

/// How often it did what.
#[derive(Debug, Default)]
pub struct Speculated {
    /// Accessed bits set.
    pub accessed: AtomicU64,
    /// RF changed.
    pub resume_flags: AtomicU64,
}

impl LikeHardware {
    /// On an engine that runs on `ram`.
    pub fn new(engine: Engine, ram: Arc<Ram>, seed: u64) -> Self {
        Self {
            engine,
            ram,
            random: Rng::new(seed),
            timestamp: FROZEN_TSC,
            speculated: Arc::default(),
        }
    }

    fn set_accessed(&mut self) {
        let slot = GuestPhys(TABLE + 8 * self.random.below(512));
        let mut bytes = [0; 8];
        self.ram
            .read(slot, &mut bytes)
            .expect("the table is in RAM");
        let entry = u64::from_le_bytes(bytes);
        if entry & (pte::P | pte::A) == pte::P {
            let accessed = (entry | pte::A).to_le_bytes();
            self.ram
                .write(slot, &accessed)
                .expect("the table is in RAM");
            self.engine.ram_written(slot, 8);
            self.speculated.accessed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// RF as a fault of the host's leaves it, or as a recorder does that takes it away.
    fn change_resume_flag(&mut self) -> Result<(), VcpuError> {
        let mut state = self.engine.save()?;
        let at = self.engine.position().expect("the engine counts");
        if at.rep_iterations == 0 && state.shadow == machine::state::Shadow::None {
            state.rflags ^= rflags::RF;
            self.engine.load(&state, at)?;
            self.speculated.resume_flags.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl VcpuLayer for LikeHardware {
    type Below = Engine;

    fn below(&self) -> &Engine {
        &self.engine
    }

    fn below_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn run(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        if until.is_some() {
            return Err(VcpuError::Protocol("hardware does not count steps"));
        }
        let exit = loop {
            match self.engine.run(None)? {
                Exit::TimestampRead => self.engine.complete_read(self.timestamp)?,
                exit => break exit,
            }
        };
        if exit == Exit::Kicked {
            match self.random.below(3) {
                0 => self.set_accessed(),
                1 => self.change_resume_flag()?,
                _ => {}
            }
        }
        Ok(exit)
    }

    fn position(&self) -> Option<Position> {
        None
    }
}
