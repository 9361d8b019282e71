//! The board: all devices of the machine, their ports and their interrupt lines.
//!
//! How a recording loop uses it: after each exit of the vCPU it lets time pass ([`Board::advance`]),
//! serves the access, and, when [`Board::interrupt_pending`] and the vCPU's window is open, injects
//! what [`Board::acknowledge`] returns. Between exits it runs the vCPU no longer than to
//! [`Board::next_deadline`].

use crate::devices::cmos::Cmos;
use crate::devices::keyboard::Keyboard;
use crate::devices::pic::Pic;
use crate::devices::pit::Pit;
use crate::devices::uart::Uart;
use crate::devices::{Device, Line};
use crate::saved::InvalidSaved;
use crate::saved::devices::SavedBoard;
use crate::units::{IrqLine, Port, Vector, VirtualNanos};

const TIMER_LINE: IrqLine = IrqLine(0);
const KEYBOARD_LINE: IrqLine = IrqLine(1);
const UART_LINE: IrqLine = IrqLine(4);
const CMOS_LINE: IrqLine = IrqLine(8);

/// Both controllers edge-triggered and cascaded, vectors from 0x08 and 0x70, all inputs masked.
#[rustfmt::skip]
const FIRMWARE_PIC_SETUP: [(u16, u8); 10] = [
    (0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0xff),
    (0xa0, 0x11), (0xa1, 0x70), (0xa1, 0x02), (0xa1, 0x01), (0xa1, 0xff),
];

/// What an access did to the outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// A byte that the guest sent to its console. One access sends at most one.
    pub console: Option<u8>,
    /// The guest asked for a reset of the machine.
    pub reset: bool,
}

/// All devices. A reset of the machine is a new board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    now: VirtualNanos,
    pic: Pic,
    pit: Pit,
    uart: Uart,
    cmos: Cmos,
    keyboard: Keyboard,
}

/// Which device answers at a byte-wide port.
enum Owner {
    Pic,
    Pit,
    Uart,
    Cmos,
    Keyboard,
    Nobody,
}

fn owner(port: Port) -> Owner {
    match port.0 {
        0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => Owner::Pic,
        0x40..=0x43 | 0x61 => Owner::Pit,
        0x3f8..=0x3ff => Owner::Uart,
        0x70 | 0x71 => Owner::Cmos,
        0x60 | 0x64 | 0x92 | 0xcf9 => Owner::Keyboard,
        _ => Owner::Nobody,
    }
}

/// Whether an access belongs to the PCI configuration mechanism, which sees it undivided. The reset
/// register is a byte within its ports. Today there is no bus: reads give all ones, writes nothing.
fn is_pci_configuration(port: Port, size: u8) -> bool {
    (0xcf8..=0xcff).contains(&port.0) && (port.0, size) != (0xcf9, 1)
}

/// The ports of the bytes of an access, lowest first: wide accesses to byte-wide devices fall apart
/// into bytes at consecutive ports. Bytes beyond port 0xffff go nowhere.
fn byte_ports(port: Port, size: u8) -> impl Iterator<Item = Port> {
    (0..u16::from(size)).map_while(move |offset| port.0.checked_add(offset).map(Port))
}

/// All ones in `size` bytes.
fn all_ones(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}

impl Board {
    /// The devices at power-on, in a machine with `ram_bytes` of RAM, whose clock shows
    /// `start_unix_s` (seconds since 1970, UTC) at virtual time 0; see
    /// [`crate::devices::cmos::DEFAULT_START_UNIX_S`].
    pub fn new(ram_bytes: u64, start_unix_s: i64) -> Self {
        let mut board = Self {
            now: VirtualNanos(0),
            pic: Pic::default(),
            pit: Pit::default(),
            uart: Uart::default(),
            cmos: Cmos::new(ram_bytes, start_unix_s),
            keyboard: Keyboard::default(),
        };
        // The timer's output is high already. Firmware initialises the interrupt controllers last,
        // which forgets that edge; they stay masked.
        board.collect_lines();
        for (port, value) in FIRMWARE_PIC_SETUP {
            board.pic.write(Port(port), value);
        }
        board
    }

    /// The guest reads `size` (1, 2 or 4) bytes. The value is zero-extended; ports that nobody owns
    /// read as all ones.
    pub fn port_read(&mut self, port: Port, size: u8, now: VirtualNanos) -> u32 {
        self.advance(now);
        if is_pci_configuration(port, size) {
            return all_ones(size);
        }
        let mut value = all_ones(size);
        for (index, port) in byte_ports(port, size).enumerate() {
            let byte = self.byte_device(port, |device, now| device.read(port, now));
            let byte = match owner(port) {
                Owner::Pic => self.pic.read(port),
                _ => byte.unwrap_or(0xff),
            };
            let shift = 8 * index as u32;
            value = value & !(0xff << shift) | u32::from(byte) << shift;
        }
        self.collect_lines();
        value
    }

    /// The guest writes the low `size` (1, 2 or 4) bytes of `value`.
    #[must_use = "the guest may have asked for a reset or printed"]
    pub fn port_write(&mut self, port: Port, size: u8, value: u32, now: VirtualNanos) -> Effects {
        self.advance(now);
        if is_pci_configuration(port, size) {
            return Effects::default();
        }
        let mut effects = Effects::default();
        for (port, byte) in byte_ports(port, size).zip(value.to_le_bytes()) {
            match owner(port) {
                Owner::Pic => self.pic.write(port, byte),
                _ => {
                    self.byte_device(port, |device, now| device.write(port, byte, now));
                }
            }
            effects.console = self.uart.take_output().or(effects.console);
            effects.reset |= self.keyboard.take_reset();
        }
        self.collect_lines();
        effects
    }

    /// Runs `access` on the device behind a port, if there is one and it is not the interrupt
    /// controller.
    fn byte_device<T>(
        &mut self,
        port: Port,
        access: impl FnOnce(&mut dyn Device, VirtualNanos) -> T,
    ) -> Option<T> {
        let device: &mut dyn Device = match owner(port) {
            Owner::Pit => &mut self.pit,
            Owner::Uart => &mut self.uart,
            Owner::Cmos => &mut self.cmos,
            Owner::Keyboard => &mut self.keyboard,
            Owner::Pic | Owner::Nobody => return None,
        };
        Some(access(device, self.now))
    }

    /// Lets time pass. An instant before the latest one seen counts as that one.
    pub fn advance(&mut self, now: VirtualNanos) {
        if now <= self.now {
            return;
        }
        self.now = now;
        self.pit.advance(now);
        self.uart.advance(now);
        self.cmos.advance(now);
        self.keyboard.advance(now);
        self.collect_lines();
    }

    fn collect_lines(&mut self) {
        let lines = [
            (TIMER_LINE, self.pit.take_line()),
            (KEYBOARD_LINE, self.keyboard.take_line()),
            (UART_LINE, self.uart.take_line()),
            (CMOS_LINE, self.cmos.take_line()),
        ];
        for (input, Line { high, rose }) in lines {
            if rose {
                self.pic.set_line(input, false);
                self.pic.set_line(input, true);
            }
            self.pic.set_line(input, high);
        }
    }

    /// The next instant at which a device may change its interrupt line although nobody touches it.
    /// Later than the latest instant seen; until then [`Board::advance`] changes no line.
    pub fn next_deadline(&self) -> Option<VirtualNanos> {
        [
            self.pit.next_deadline(),
            self.uart.next_deadline(),
            self.cmos.next_deadline(),
            self.keyboard.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether the interrupt controllers ask for an interrupt now.
    pub fn interrupt_pending(&self) -> bool {
        self.pic.interrupt_pending()
    }

    /// The interrupt acknowledge cycle: the vector to inject, now in service. `None` if the request
    /// was withdrawn; then nothing is to be injected, as INTR is sampled at the boundary itself.
    #[must_use = "the vector is in service and must be injected"]
    pub fn acknowledge(&mut self) -> Option<Vector> {
        self.interrupt_pending().then(|| self.pic.acknowledge())
    }

    /// Offers host input for the console and returns how many bytes were taken.
    pub fn console_input(&mut self, bytes: &[u8], now: VirtualNanos) -> usize {
        self.advance(now);
        let taken = self.uart.push_input(bytes, self.now);
        self.collect_lines();
        taken
    }

    /// The saved form.
    pub fn save(&self) -> SavedBoard {
        let Self {
            now,
            pic,
            pit,
            uart,
            cmos,
            keyboard,
        } = self;
        SavedBoard {
            now_ns: now.0,
            pic: pic.save(),
            pit: pit.save(),
            uart: uart.save(),
            cmos: cmos.save(),
            keyboard: keyboard.save(),
        }
    }

    /// The board in the saved state.
    ///
    /// # Errors
    /// [`InvalidSaved`] for a state the devices cannot be in.
    pub fn restore(saved: &SavedBoard) -> Result<Self, InvalidSaved> {
        Ok(Self {
            now: VirtualNanos(saved.now_ns),
            pic: Pic::restore(&saved.pic)?,
            pit: Pit::restore(&saved.pit)?,
            uart: Uart::restore(&saved.uart)?,
            cmos: Cmos::restore(&saved.cmos)?,
            keyboard: Keyboard::restore(&saved.keyboard)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::cmos::DEFAULT_START_UNIX_S;
    use crate::devices::pit::PIT_HZ;

    fn board() -> Board {
        Board::new(256 << 20, DEFAULT_START_UNIX_S)
    }

    fn write(board: &mut Board, now: u64, writes: &[(u16, u8)]) {
        for &(port, value) in writes {
            let effects = board.port_write(Port(port), 1, value.into(), VirtualNanos(now));
            assert_eq!(effects, Effects::default(), "{port:#x}");
        }
    }

    /// As Linux programs the controllers: vectors from 0x30, given lines open.
    fn open_lines(board: &mut Board, open: u16) {
        let [first, second] = (!open).to_le_bytes();
        #[rustfmt::skip]
        write(board, 0, &[
            (0x21, 0xff), (0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01),
            (0xa0, 0x11), (0xa1, 0x38), (0xa1, 0x02), (0xa1, 0x01),
            (0x21, first), (0xa1, second),
        ]);
    }

    #[test]
    fn a_periodic_timer_ticks_exactly_for_a_century() {
        let mut board = board();
        open_lines(&mut board, 1);
        let latch = PIT_HZ / 250;
        let [low, high] = (latch as u16).to_le_bytes();
        write(&mut board, 0, &[(0x43, 0x34), (0x40, low), (0x40, high)]);
        let tick = |board: &mut Board, n: u64| {
            // The count is loaded one clock after it was written.
            let ticks = u128::from(1 + n * latch);
            let at = (ticks * 1_000_000_000).div_ceil(u128::from(PIT_HZ)) as u64;
            board.advance(VirtualNanos(at - 1));
            assert!(!board.interrupt_pending(), "tick {n} is early");
            assert_eq!(board.next_deadline(), Some(VirtualNanos(at)));
            board.advance(VirtualNanos(at));
            assert_eq!(board.acknowledge(), Some(Vector(0x30)));
            write(board, at, &[(0x20, 0x60)]);
        };
        for n in 1..1000 {
            tick(&mut board, n);
        }
        // A jump: what was missed is one interrupt, and the phase stays.
        let century = 100 * 365 * 86_400 * 250;
        board.advance(VirtualNanos(century / 250 * 1_000_000_000));
        assert_eq!(board.acknowledge(), Some(Vector(0x30)));
        let now = board.now.0;
        write(&mut board, now, &[(0x20, 0x60)]);
        let n = u128::from(now) * u128::from(PIT_HZ) / 1_000_000_000 / u128::from(latch);
        tick(&mut board, n as u64 + 1);
    }

    #[test]
    fn wide_accesses_fall_apart_into_bytes() {
        let mut board = board();
        let now = VirtualNanos(0);
        // 0x20 is a command, 0x21 the mask.
        let _ = board.port_write(Port(0x20), 2, 0x5a0b, now);
        assert_eq!(board.port_read(Port(0x20), 2, now), 0x5a00);
        assert_eq!(board.port_read(Port(0x3ff), 4, now), 0xffff_ff00);
        assert_eq!(board.port_read(Port(0xfffe), 4, now), 0xffff_ffff);
        assert_eq!(board.port_read(Port(0x80), 1, now), 0xff);
        let effects = board.port_write(Port(0x3f7), 2, 0x4100, now);
        assert_eq!(effects.console, Some(b'A'));
    }

    #[test]
    fn there_is_no_pci_bus() {
        let mut board = board();
        let now = VirtualNanos(0);
        let effects = board.port_write(Port(0xcf8), 4, 0x8000_0600, now);
        assert_eq!(
            effects,
            Effects::default(),
            "0xcf9 must not see the address"
        );
        assert_eq!(board.port_read(Port(0xcf8), 4, now), u32::MAX);
        assert_eq!(board.port_read(Port(0xcfc), 2, now), 0xffff);
    }

    #[test]
    fn every_way_to_reset_works() {
        for writes in [
            &[(0x64, 0xfe)][..],
            &[(0x92, 0x02), (0x92, 0x03)],
            &[(0xcf9, 0x02), (0xcf9, 0x06)],
            &[(0x64, 0xd1), (0x60, 0xfe)],
        ] {
            let mut board = board();
            let resets: Vec<bool> = writes
                .iter()
                .map(|&(port, value)| {
                    board
                        .port_write(Port(port), 1, value, VirtualNanos(0))
                        .reset
                })
                .collect();
            let (last, others) = resets.split_last().unwrap();
            assert!(*last && !others.contains(&true), "{writes:x?}");
        }
    }

    #[test]
    fn console_input_arrives_with_its_interrupt() {
        let mut board = board();
        open_lines(&mut board, 1 << 4);
        // 115,200 baud, 8n1, FIFO with trigger 8, OUT2, received-data interrupt.
        #[rustfmt::skip]
        write(&mut board, 0, &[(0x3fb, 0x03), (0x3fa, 0x81), (0x3fc, 0x0b), (0x3f9, 0x01)]);
        assert_eq!(board.console_input(b"ls\n", VirtualNanos(1000)), 3);
        assert!(!board.interrupt_pending());
        // Three characters of 86.8 us, then four character times of silence.
        let mut now = VirtualNanos(0);
        while !board.interrupt_pending() {
            now = board.next_deadline().unwrap();
            board.advance(now);
        }
        assert_eq!(now.0, 1000 + 7 * 86_806);
        assert_eq!(board.acknowledge(), Some(Vector(0x34)));
        assert_eq!(board.port_read(Port(0x3fa), 1, now), 0xcc);
        let text: Vec<u8> = (0..3)
            .map(|_| board.port_read(Port(0x3f8), 1, now) as u8)
            .collect();
        assert_eq!(text, b"ls\n");
        assert_eq!(board.port_read(Port(0x3fa), 1, now), 0xc1);
        assert_eq!(board.port_read(Port(0x3fd), 1, now), 0x60);
    }

    #[test]
    fn a_withdrawn_request_is_not_injected() {
        let mut board = board();
        open_lines(&mut board, 1);
        // Terminal count raises IRQ0; the next control word lowers OUT again.
        write(&mut board, 0, &[(0x43, 0x10), (0x40, 5)]);
        board.advance(VirtualNanos(10_000));
        assert!(board.interrupt_pending());
        write(&mut board, 10_000, &[(0x43, 0x10)]);
        assert_eq!(board.acknowledge(), None);
    }

    #[test]
    fn a_damaged_board_is_refused() {
        let mut saved = board().save();
        saved.pit.channels[2].mode = 6;
        assert_eq!(Board::restore(&saved), Err(InvalidSaved("PIT mode")));
    }
}
