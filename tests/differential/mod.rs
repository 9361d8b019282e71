//! Differential fuzzing of the engine against the host CPU.
//!
//! A [`generator`] makes a [`case`]: a sequence of instructions and the state it starts in. Two
//! [`side`]s execute it, the host CPU ([`native`]) and a virtual CPU ([`guest`]); [`compare`] says
//! where their ends differ, and [`minimise`] makes what differs small enough to read. [`fuzzer`] joins
//! them. Everything follows from a seed.

pub mod case;
pub mod compare;
pub mod forms;
pub mod fuzzer;
pub mod generator;
pub mod guest;
pub mod image;
pub mod layout;
pub mod minimise;
pub mod native;
pub mod registers;
pub mod rng;
pub mod side;
pub mod text;
mod values;
pub mod vendor;

use guest::{Guest, GuestError, Start};
use image::Images;
use machine::cpuid::CpuidTable;
use machine::units::Position;
use machine::vcpu::Vcpu;
use side::GuestSide;
use tcg_sim::{Engine, EngineOptions};

/// The engine as a side: as it is used, or with one instruction per block and every memory access
/// checked in Rust. The former keeps what it has cached from one sequence to the next, the latter starts
/// cold, so that the two differ in that, too. `cpu_number` is [`native::NativeCpu::cpu_number`] of the other side.
///
/// # Errors
/// [`GuestError`] when the host gives no memory or lacks what the engine needs.
pub fn engine(
    images: &Images,
    single: bool,
    cpu_number: u32,
) -> Result<GuestSide<Engine>, GuestError> {
    let options = EngineOptions {
        one_instruction_blocks: single,
        // Translations are used once: they stay in the processor's caches this way.
        code_bytes: 1 << 20,
    };
    let make = |ram| Engine::new(ram, CpuidTable::x86_64_v2(), options);
    let start: Start<Engine> = if single {
        |engine, state| engine.load(state, Position::at(0))
    } else {
        |engine, state| {
            engine.rewind_to(state, Position::at(0));
            Ok(())
        }
    };
    let guest = Guest::new(images, cpu_number, make, start)?;
    Ok(GuestSide::new(guest))
}
