//! Programs for the processor.

use super::cpu::*;
use super::devices::{DMA_PORT, RANDOM_PORT};
use machine::ram::Ram;
use machine::state::{CpuState, Gpr};
use machine::units::GuestPhys;

pub(crate) const RAM_BYTES: u64 = 64 << 12;
const MAIN: u64 = 0x2000;
const HANDLER: u64 = 0x1000;
const STACK: u64 = 0x8000;

/// SplitMix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

type Instruction = (u8, u8, u8, u32);

fn put(ram: &Ram, at: u64, code: &[Instruction]) {
    for (index, (op, a, b, imm)) in code.iter().enumerate() {
        let mut bytes = [*op, *a, *b, 0, 0, 0, 0, 0];
        bytes[4..].copy_from_slice(&imm.to_le_bytes());
        ram.write(GuestPhys(at + 8 * index as u64), &bytes).unwrap();
    }
}

/// Counts in memory, acknowledges the interrupt, returns. Registers 14 and 15 are its own.
fn put_handler(ram: &Ram) {
    let handler = [
        (LOAD, 15, 14, 0x900),
        (ADD, 15, 15, 1),
        (STORE, 15, 14, 0x900),
        (ADD, 15, 14, 0x20),
        (OUT, 15, 1, 0x20),
        (IRET, 0, 0, 0),
    ];
    put(ram, HANDLER, &handler);
    for vector in 0..256 {
        let at = GuestPhys(VECTORS + 8 * vector);
        ram.write(at, &HANDLER.to_le_bytes()).unwrap();
    }
}

fn start_state(seed: u64) -> CpuState {
    let mut rng = Rng::new(seed);
    let mut cpu = CpuState {
        rip: MAIN,
        ..CpuState::default()
    };
    for register in [0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13] {
        cpu.gpr[register] = rng.next();
    }
    cpu.gpr[Gpr::Rsp as usize] = STACK;
    cpu
}

/// A random program that loops for ever, unless it powers off.
pub(crate) fn load_program(ram: &Ram, seed: u64) -> CpuState {
    put_handler(ram);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut code = vec![(STI, 0, 0, 0)];
    // A third of the programs exit for nothing but interrupts.
    let kinds = if seed.is_multiple_of(3) { 8 } else { 14 };
    for _ in 0..rng.below(30) + 5 {
        piece(&mut rng, &mut code, kinds);
    }
    if rng.below(4) == 0 {
        // Ends after some rounds: memory counts them.
        code.extend([
            (LOAD, 0, 14, 0x910),
            (ADD, 0, 0, 1),
            (STORE, 0, 14, 0x910),
            (ADD, 0, 0, (-(rng.below(300) as i32 + 20)) as u32),
        ]);
        // Sign-extends by hand: the upper half must be zero to compare.
        code.push((STORE, 0, 14, 0x918));
        code.push((STORE, 14, 14, 0x91c));
        code.push((LOAD, 0, 14, 0x918));
        let last = [(CLI, 0, 0, 0), (HLT, 0, 0, 0), (FAIL, 0, 0, 0)];
        code.push((JNZ, 0, 0, (MAIN + 8) as u32));
        code.extend_from_slice(&last[rng.below(2) as usize * 2..]);
        code.push((HLT, 0, 0, 0));
    }
    code.push((ADD, 0, 14, 1));
    code.push((JNZ, 0, 0, (MAIN + 8) as u32));
    put(ram, MAIN, &code);
    start_state(seed)
}

/// A few instructions that do something.
fn piece(rng: &mut Rng, code: &mut Vec<Instruction>, kinds: u64) {
    // Registers that nothing else depends on.
    let free = [0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13];
    let mut register = || free[rng.below(free.len() as u64) as usize];
    let (a, b) = (register(), register());
    let data = 0x9000 + rng.below(0x8000) as u32 * 2;
    let here = |code: &Vec<Instruction>| (MAIN + 8 * code.len() as u64) as u32;
    match rng.below(kinds) {
        0 | 1 => code.push((MIX, a, b, 0)),
        2 => code.push((STORE, a, 14, data)),
        3 => code.push((LOAD, a, 14, data)),
        4 => code.push((LOADSS, 0, 0, 0)),
        5 => code.extend([
            (ADD, 1, 14, rng.below(200) as u32),
            (ADD, 7, 14, data),
            (FILL, a, 0, 0),
        ]),
        6 => {
            // A loop that changes memory and, in registers, only its counter.
            code.push((ADD, 1, 14, rng.below(300) as u32 + 1));
            let top = here(code);
            code.extend([
                (LOAD, a, 14, data),
                (ADD, a, a, 3),
                (STORE, a, 14, data),
                (ADD, a, 14, 0),
                (ADD, 1, 1, u32::MAX),
                // The counter is 32 bits wide: the upper half is cut off through memory.
                (STORE, 1, 14, 0x920),
                (STORE, 14, 14, 0x924),
                (LOAD, 1, 14, 0x920),
                (JNZ, 1, 0, top),
            ]);
        }
        7 => {
            // A delay whose registers are the same in every round: only memory tells them apart.
            code.push((ADD, a, 14, rng.below(200) as u32 + 1));
            code.push((STORE, a, 14, data));
            let top = here(code);
            code.extend([
                (LOAD, a, 14, data),
                (ADD, a, a, u32::MAX),
                (STORE, a, 14, data),
                (STORE, 14, 14, data + 4),
                (LOAD, b, 14, data),
                (ADD, a, 14, 0),
                (JNZ, b, 0, top),
            ]);
        }
        8 => code.push((IN, a, 0, u32::from(RANDOM_PORT))),
        9 => code.push((TIME, a, 0, 0)),
        10 => code.push((OUT, a, 4, u32::from(DMA_PORT))),
        11 => code.push((HLT, 0, 0, 0)),
        _ => {
            // Interrupts off for a while, with I/O in it.
            code.push((CLI, 0, 0, 0));
            code.extend([(MIX, a, b, 0); 40]);
            code.push((IN, a, 0, u32::from(RANDOM_PORT)));
            code.extend([(MIX, a, b, 0); 10]);
            code.push((STORE, a, 14, data));
            code.push((STI, 0, 0, 0));
            code.push((MIX, b, a, 0));
        }
    }
}
