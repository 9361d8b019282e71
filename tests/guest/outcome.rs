//! What a guest left behind.

use super::stubs::{field, last};
use super::{layout, read_u64};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The finishing code wrote to the exit port.
    Finished,
    /// Triple fault.
    Shutdown,
    /// Neither within the limit of time or steps.
    Limit,
    /// HLT with interrupts off.
    Halted,
    /// The vCPU cannot do what the guest asks, in words.
    Unsupported(String),
}

/// One recorded event: the frame that the CPU pushed and some registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventRecord {
    /// Vector.
    pub vector: u64,
    /// Error code; 0 for the vectors without.
    pub error: u64,
    /// Pushed RIP.
    pub rip: u64,
    /// Pushed CS, with whatever the CPU put above bit 15.
    pub cs: u64,
    /// Pushed RFLAGS.
    pub rflags: u64,
    /// Pushed RSP.
    pub rsp: u64,
    /// Pushed SS.
    pub ss: u64,
    /// CR2 in the handler.
    pub cr2: u64,
    /// DR6 in the handler, for vector 1; else 0.
    pub dr6: u64,
    /// Address of the error code, or of the zero that stands for it.
    pub frame: u64,
    /// RAX, RCX, RDX, RBX, RSI and RDI in the handler.
    pub registers: [u64; 6],
}

/// The registers at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalState {
    /// General-purpose registers in encoding order; RSP as at the jump to the finishing code.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// CR0, CR2, CR3, CR4, CR8.
    pub cr: [u64; 5],
    /// DR0 to DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [u64; 6],
    /// FS base, GS base, kernel GS base.
    pub bases: [u64; 3],
    /// FXSAVE64 image.
    pub fxsave: Vec<u8>,
}

/// Everything that a run produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Events in order.
    pub events: Vec<EventRecord>,
    /// The registers, if the finishing code ran.
    pub last: Option<FinalState>,
    /// Watched memory: name, content.
    pub memory: Vec<(String, Vec<u8>)>,
}

impl Outcome {
    /// Reads the result out of a guest's RAM. `watched` is that of the guest.
    pub fn from_ram(end: End, ram: &[u8], watched: &[(String, u64, usize)]) -> Self {
        let count = read_u64(ram, layout::EVENT_COUNT).min(layout::EVENT_LIMIT);
        let memory = watched
            .iter()
            .map(|(name, at, bytes)| (name.clone(), ram[*at as usize..][..*bytes].to_vec()))
            .collect();
        Self {
            end,
            events: (0..count).map(|index| event(ram, index)).collect(),
            last: final_state(ram),
            memory,
        }
    }
}

fn event(ram: &[u8], index: u64) -> EventRecord {
    let at = |offset| read_u64(ram, layout::EVENTS + index * layout::EVENT_BYTES + offset);
    EventRecord {
        vector: at(field::VECTOR),
        error: at(field::ERROR),
        rip: at(field::RIP),
        cs: at(field::CS),
        rflags: at(field::RFLAGS),
        rsp: at(field::RSP),
        ss: at(field::SS),
        cr2: at(field::CR2),
        dr6: at(field::DR6),
        frame: at(field::FRAME),
        registers: [
            at(field::RAX),
            at(field::RCX),
            at(field::RDX),
            at(field::RBX),
            at(field::RSI),
            at(field::RDI),
        ],
    }
}

fn final_state(ram: &[u8]) -> Option<FinalState> {
    let at = |offset: u64, index: usize| read_u64(ram, layout::FINAL + offset + index as u64 * 8);
    (at(last::VALID, 0) == 1).then(|| FinalState {
        gpr: std::array::from_fn(|i| at(last::GPR, i)),
        rflags: at(last::RFLAGS, 0),
        cr: std::array::from_fn(|i| at(last::CR, i)),
        dr: std::array::from_fn(|i| at(last::DR, i)),
        segs: std::array::from_fn(|i| at(last::SEGS, i)),
        bases: std::array::from_fn(|i| at(last::BASES, i)),
        fxsave: ram[(layout::FINAL + last::FXSAVE) as usize..][..512].to_vec(),
    })
}
