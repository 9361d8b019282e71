//! The contract that every device keeps, and the board as a whole.

use super::cmos::{Cmos, DEFAULT_START_UNIX_S};
use super::keyboard::Keyboard;
use super::pic::Pic;
use super::pit::Pit;
use super::uart::Uart;
use super::{Device, Line};
use crate::board::{Board, Effects};
use crate::saved::codec::{Code, Decoder};
use crate::saved::devices::{
    SavedBoard, SavedCmos, SavedKeyboard, SavedPic, SavedPit, SavedPitChannel, SavedUart,
};
use crate::units::{IrqLine, Port, Vector, VirtualNanos};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// A device under test.
trait Subject: Device + Clone + PartialEq + Debug {
    const PORTS: &[u16];
    fn fresh() -> Self;
    /// The same device out of its encoded saved state.
    fn reloaded(&self) -> Self;
    /// Host input, or what else the device's surroundings do to it.
    fn host(&mut self, _byte: u8, _now: VirtualNanos) {}
    /// What the device has for the host.
    fn output(&mut self) -> Option<u32> {
        None
    }
}

fn recoded<T: Code + PartialEq + Debug>(saved: &T) -> T {
    let mut bytes = Vec::new();
    saved.encode(&mut bytes);
    let mut decoder = Decoder::new(&bytes);
    let decoded = T::decode(&mut decoder).unwrap();
    decoder.finish().unwrap();
    assert_eq!(&decoded, saved);
    decoded
}

impl Subject for Pit {
    const PORTS: &[u16] = &[0x40, 0x41, 0x42, 0x43, 0x61];
    fn fresh() -> Self {
        Self::default()
    }
    fn reloaded(&self) -> Self {
        Self::restore(&recoded(&self.save())).unwrap()
    }
}

impl Subject for Uart {
    const PORTS: &[u16] = &[
        0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x3f8, 0x3f9,
    ];
    fn fresh() -> Self {
        Self::default()
    }
    fn reloaded(&self) -> Self {
        Self::restore(&recoded(&self.save())).unwrap()
    }
    fn host(&mut self, byte: u8, now: VirtualNanos) {
        self.push_input(&vec![byte; usize::from(byte % 32)], now);
    }
    fn output(&mut self) -> Option<u32> {
        self.take_output().map(u32::from)
    }
}

impl Subject for Cmos {
    const PORTS: &[u16] = &[0x70, 0x71, 0x71];
    fn fresh() -> Self {
        Self::new(512 << 20, DEFAULT_START_UNIX_S)
    }
    fn reloaded(&self) -> Self {
        Self::restore(&recoded(&self.save())).unwrap()
    }
    /// Writes one of the registers that do something.
    fn host(&mut self, byte: u8, now: VirtualNanos) {
        self.write(Port(0x70), byte % 14, now);
        self.write(Port(0x71), byte.wrapping_mul(37), now);
    }
}

impl Subject for Keyboard {
    const PORTS: &[u16] = &[0x60, 0x64, 0x92, 0xcf9];
    fn fresh() -> Self {
        Self::default()
    }
    fn reloaded(&self) -> Self {
        Self::restore(&recoded(&self.save())).unwrap()
    }
    /// Sets the command byte, which allows interrupts.
    fn host(&mut self, byte: u8, now: VirtualNanos) {
        self.write(Port(0x64), 0x60, now);
        self.write(Port(0x60), byte, now);
    }
    fn output(&mut self) -> Option<u32> {
        self.take_reset().then_some(1)
    }
}

/// The interrupt controllers: the surroundings move lines and acknowledge.
#[derive(Clone, Debug, PartialEq)]
struct PicSubject {
    pic: Pic,
    vector: Option<Vector>,
}

impl Device for PicSubject {
    fn read(&mut self, port: Port, _now: VirtualNanos) -> u8 {
        self.pic.read(port)
    }
    fn write(&mut self, port: Port, value: u8, _now: VirtualNanos) {
        self.pic.write(port, value);
    }
    fn advance(&mut self, _now: VirtualNanos) {}
    fn next_deadline(&self) -> Option<VirtualNanos> {
        None
    }
    fn take_line(&mut self) -> Line {
        Line {
            high: self.pic.interrupt_pending(),
            rose: false,
        }
    }
}

impl Subject for PicSubject {
    const PORTS: &[u16] = &[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
    fn fresh() -> Self {
        Self {
            pic: Pic::default(),
            vector: None,
        }
    }
    fn reloaded(&self) -> Self {
        Self {
            pic: Pic::restore(&recoded(&self.pic.save())).unwrap(),
            vector: self.vector,
        }
    }
    fn host(&mut self, byte: u8, _now: VirtualNanos) {
        if byte & 0x80 != 0 {
            self.vector = Some(self.pic.acknowledge());
        } else {
            self.pic.set_line(IrqLine(byte & 0xf), byte & 0x10 != 0);
        }
    }
    fn output(&mut self) -> Option<u32> {
        self.vector.take().map(|v| u32::from(v.0))
    }
}

/// The whole board: accesses of all widths, input, acknowledges.
#[derive(Clone, Debug, PartialEq)]
struct BoardSubject {
    board: Board,
    effects: Effects,
}

impl Device for BoardSubject {
    fn read(&mut self, port: Port, now: VirtualNanos) -> u8 {
        let size = [1, 2, 4][usize::from(port.0 % 3)];
        self.board.port_read(port, size, now) as u8
    }
    fn write(&mut self, port: Port, value: u8, now: VirtualNanos) {
        let size = [1, 1, 2, 4][usize::from(value % 4)];
        let value = u32::from(value).wrapping_mul(0x0104_0301);
        self.effects = self.board.port_write(port, size, value, now);
    }
    fn advance(&mut self, now: VirtualNanos) {
        self.board.advance(now);
    }
    fn next_deadline(&self) -> Option<VirtualNanos> {
        self.board.next_deadline()
    }
    fn take_line(&mut self) -> Line {
        Line {
            high: self.board.interrupt_pending(),
            rose: false,
        }
    }
}

impl Subject for BoardSubject {
    const PORTS: &[u16] = &[
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3f8, 0x3f9,
        0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x4d0, 0xcf8, 0xcf9, 0xcfc, 0x80, 0xffff,
    ];
    fn fresh() -> Self {
        Self {
            board: Board::new(512 << 20, DEFAULT_START_UNIX_S),
            effects: Effects::default(),
        }
    }
    fn reloaded(&self) -> Self {
        Self {
            board: Board::restore(&recoded(&self.board.save())).unwrap(),
            effects: self.effects,
        }
    }
    fn host(&mut self, byte: u8, now: VirtualNanos) {
        if byte & 1 != 0 {
            self.board.console_input(&[byte; 3], now);
        } else if self.board.acknowledge().is_some() {
            // End the interrupt, so that others follow.
            let _ = self.board.port_write(Port(0xa0), 1, 0x20, now);
            let _ = self.board.port_write(Port(0x20), 1, 0x20, now);
        }
    }
    fn output(&mut self) -> Option<u32> {
        let Effects { console, reset } = std::mem::take(&mut self.effects);
        console.map(u32::from).or_else(|| reset.then_some(0x100))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Read(usize),
    Write(usize, u8),
    Host(u8),
    /// Time passes, in ns.
    Pass(u64),
    /// Time passes up to the next deadline.
    PassToDeadline,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let pass = prop_oneof![
        0..3_000_u64,
        0..3_000_000_u64,
        0..3_000_000_000_u64,
        0..400 * 86_400 * 1_000_000_000_u64,
    ];
    let op = prop_oneof![
        3 => any::<usize>().prop_map(Op::Read),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(port, value)| Op::Write(port, value)),
        2 => any::<u8>().prop_map(Op::Host),
        2 => pass.prop_map(Op::Pass),
        2 => Just(Op::PassToDeadline),
    ];
    prop::collection::vec(op, 1..60)
}

/// Does `op`, up to what the device makes of it.
fn act<S: Subject>(subject: &mut S, op: &Op, now: &mut VirtualNanos) -> Option<u8> {
    let port = |index: usize| Port(S::PORTS[index % S::PORTS.len()]);
    let mut read = None;
    match *op {
        Op::Read(index) => read = Some(subject.read(port(index), *now)),
        Op::Write(index, value) => subject.write(port(index), value, *now),
        Op::Host(byte) => subject.host(byte, *now),
        Op::Pass(ns) => now.0 = now.0.saturating_add(ns),
        Op::PassToDeadline => *now = subject.next_deadline().unwrap_or(*now),
    }
    subject.advance(*now);
    read
}

/// Takes what the device has for its surroundings.
fn observe<S: Subject>(subject: &mut S) -> (Option<u32>, Line, Option<VirtualNanos>) {
    let line = subject.take_line();
    (subject.output(), line, subject.next_deadline())
}

/// Up to its deadline a device leaves its line alone, and at the deadline something happens.
fn check_deadline<S: Subject>(subject: &S, now: VirtualNanos, part: u64) {
    let before = subject.clone().take_line().high;
    let quiet = |until: u64| {
        let mut device = subject.clone();
        device.take_line();
        device.advance(VirtualNanos(until));
        let line = device.take_line();
        assert_eq!((line.high, line.rose), (before, false), "line moved early");
        device
    };
    let Some(deadline) = subject.next_deadline() else {
        quiet(now.0.saturating_add(part));
        return;
    };
    assert!(deadline > now, "the deadline {deadline} is past");
    quiet(now.0 + part % (deadline.0 - now.0));
    let mut device = quiet(deadline.0 - 1);
    assert_eq!(device.next_deadline(), Some(deadline), "deadline forgotten");
    device.advance(deadline);
    let line = device.take_line();
    let rearmed = device.next_deadline();
    assert!(rearmed.is_none_or(|next| next > deadline));
    assert!(
        line.high != before || line.rose || rearmed != Some(deadline),
        "nothing happened at the deadline"
    );
}

fn keeps_the_contract<S: Subject>(ops: &[Op], cut: usize, part: u64) {
    let mut device = S::fresh();
    let mut twin = None;
    let mut now = VirtualNanos(0);
    for (index, op) in ops.iter().enumerate() {
        let cut_here = index == cut % ops.len();
        if cut_here && part.is_multiple_of(2) {
            twin = Some(device.reloaded());
        }
        let mut twin_now = now;
        // Time that passes in two pieces is the same time.
        if let (Op::Pass(ns), Some(twin)) = (op, twin.as_mut()) {
            twin.advance(VirtualNanos(now.0.saturating_add(part % (ns + 1))));
        }
        let read = act(&mut device, op, &mut now);
        if let Some(twin) = twin.as_mut() {
            assert_eq!(read, act(twin, op, &mut twin_now), "after {op:?}");
        }
        // With edges and output that nobody has taken yet.
        if cut_here && !part.is_multiple_of(2) {
            twin = Some(device.reloaded());
        }
        let seen = observe(&mut device);
        if let Some(twin) = twin.as_mut() {
            assert_eq!(seen, observe(twin), "after {op:?}");
            assert_eq!(&device, twin);
        }
        check_deadline(&device, now, part);
        // An instant from the past changes nothing.
        let mut late = device.clone();
        late.advance(VirtualNanos(now.0 / 2));
        assert_eq!(late, device);
    }
}

macro_rules! contracts {
    ($($name:ident: $subject:ty,)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(400))]
            $(
                #[test]
                fn $name(ops in ops(), cut: usize, part: u64) {
                    keeps_the_contract::<$subject>(&ops, cut, part);
                }
            )*
        }
    };
}

contracts! {
    the_timer_keeps_the_contract: Pit,
    the_serial_port_keeps_the_contract: Uart,
    the_clock_keeps_the_contract: Cmos,
    the_keyboard_controller_keeps_the_contract: Keyboard,
    the_interrupt_controllers_keep_the_contract: PicSubject,
    the_board_keeps_the_contract: BoardSubject,
}

/// Operations that a device can be in the middle of, and whether it is.
type Midway = Vec<(&'static str, bool)>;

fn pic_midway(SavedPic { chips }: &SavedPic) -> Midway {
    let any = |test: fn(&crate::saved::devices::SavedPicChip) -> bool| chips.iter().any(test);
    vec![
        ("initialisation", any(|chip| chip.expect != 0)),
        ("service", any(|chip| chip.isr != 0)),
        ("a request", any(|chip| chip.edges & !chip.imr != 0)),
        ("a poll", any(|chip| chip.poll)),
    ]
}

fn pit_midway(SavedPit { channels, rose, .. }: &SavedPit) -> Midway {
    let any = |test: fn(&SavedPitChannel) -> bool| channels.iter().any(test);
    vec![
        ("a two-byte write", any(|c| c.written_low.is_some())),
        ("a two-byte read", any(|c| c.read_high)),
        ("a latched count", any(|c| c.latched_count.is_some())),
        ("a latched status", any(|c| c.latched_status.is_some())),
        (
            "a period with a new count",
            any(|c| c.next_reload.is_some()),
        ),
        ("a count that a gate stops", any(|c| c.run.kind == 2)),
        ("an edge", *rose),
    ]
}

fn uart_midway(uart: &SavedUart) -> Midway {
    vec![
        ("receiving", !uart.received.is_empty()),
        (
            "arrival",
            uart.arrival_ns.is_some() && !uart.incoming.is_empty(),
        ),
        ("a receive time-out", uart.timeout_ns.is_some()),
        ("a transmit interrupt", uart.transmit_empty && uart.high),
        ("errors", uart.line_errors != 0),
        ("output", uart.output.is_some()),
        ("an edge", uart.rose),
    ]
}

fn cmos_midway(cmos: &SavedCmos) -> Midway {
    vec![
        ("a second", cmos.phase_ns != 0),
        ("an interrupt", cmos.high),
        ("setting the clock", cmos.registers[0xb] & 0x80 != 0),
        ("an edge", cmos.rose),
    ]
}

fn keyboard_midway(keyboard: &SavedKeyboard) -> Midway {
    vec![
        ("a command", keyboard.pending.is_some()),
        ("a reply", keyboard.reply.is_some()),
        ("an interrupt", keyboard.high),
        ("a reset", keyboard.reset),
        ("an edge", keyboard.rose),
    ]
}

/// That the contract would notice what is lost there: its random operations bring a device into the
/// middle of each of these in at least one run of fifty.
fn comes_to_the_middle<S: Subject>(midway: impl Fn(&S) -> Midway) {
    const RUNS: usize = 800;
    let mut runner = TestRunner::deterministic();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..RUNS {
        let tree = ops().new_tree(&mut runner).expect("operations");
        let (mut device, mut now) = (S::fresh(), VirtualNanos(0));
        let mut reached: BTreeMap<&str, bool> = BTreeMap::new();
        for op in tree.current() {
            act(&mut device, &op, &mut now);
            for (name, holds) in midway(&device) {
                *reached.entry(name).or_default() |= holds;
            }
            observe(&mut device);
        }
        for (name, reached) in reached {
            *counts.entry(name).or_default() += usize::from(reached);
        }
    }
    assert!(
        counts.values().all(|count| *count >= RUNS / 50),
        "{counts:?}"
    );
}

#[test]
fn the_contract_brings_every_device_into_the_middle_of_what_it_does() {
    comes_to_the_middle::<PicSubject>(|subject| pic_midway(&subject.pic.save()));
    comes_to_the_middle::<Pit>(|pit| pit_midway(&pit.save()));
    comes_to_the_middle::<Uart>(|uart| uart_midway(&uart.save()));
    comes_to_the_middle::<Cmos>(|cmos| cmos_midway(&cmos.save()));
    comes_to_the_middle::<Keyboard>(|keyboard| keyboard_midway(&keyboard.save()));
    // A device that is added to the board shows here, and needs a subject above.
    let SavedBoard {
        now_ns: _,
        pic: _,
        pit: _,
        uart: _,
        cmos: _,
        keyboard: _,
    } = BoardSubject::fresh().board.save();
}
