//! The 16550A serial port at 0x3f8, IRQ4 (National Semiconductor PC16550D data sheet).
//!
//! The transmitter is instantaneous: a byte leaves as it is written, and the holding and shift
//! registers always read as empty. Kernels poll for that while they print, so a timed transmitter
//! would only make the guest spin. The receiver is timed: host input arrives one character per
//! character time of the programmed line, and waits on the host's side while the FIFO is full, so
//! that input is never lost to an overrun. Without a divisor (0) nothing arrives.
//!
//! The other end of the line always has CTS, DSR and DCD on. OUT2 gates the interrupt, as on PCs.

use crate::devices::{Device, Line};
use crate::saved::devices::SavedUart;
use crate::saved::{InvalidSaved, require};
use crate::units::{Port, VirtualNanos};
use std::collections::VecDeque;

/// First of the eight ports.
pub const UART_BASE: u16 = 0x3f8;

/// Host input that waits for the guest, in bytes; more is refused.
pub const INPUT_BACKLOG_BYTES: usize = 64 * 1024;

/// Input clock in Hz; a bit takes 16 x divisor cycles.
const CLOCK_HZ: u64 = 1_843_200;

const FIFO_BYTES: usize = 16;

const IER_RECEIVED: u8 = 1;
const IER_TRANSMIT_EMPTY: u8 = 2;
const IER_LINE_STATUS: u8 = 4;
const IER_MODEM_STATUS: u8 = 8;

const LCR_DLAB: u8 = 0x80;

const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;

const LSR_DATA_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
/// Holding register and transmitter empty.
const LSR_IDLE: u8 = 0x60;

/// Interrupt identifications, in order of priority.
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_RECEIVED: u8 = 0x04;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_NONE: u8 = 0x01;

/// CTS, DSR and DCD on, RI off.
const MODEM_CONNECTED: u8 = 0xb0;

/// The serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    ier: u8,
    lcr: u8,
    mcr: u8,
    /// Overrun; the other error bits cannot arise.
    line_errors: u8,
    /// Changes of the modem lines since MSR was read.
    modem_deltas: u8,
    scratch: u8,
    divisor: u16,
    fifo: bool,
    /// Received bytes at which the interrupt fires.
    trigger: u8,
    /// The transmit-empty interrupt is pending.
    transmit_empty: bool,
    received: VecDeque<u8>,
    /// Host input on its way.
    incoming: VecDeque<u8>,
    /// When the first byte of `incoming` is complete.
    arrival: Option<VirtualNanos>,
    /// When unread bytes in the FIFO raise the time-out interrupt, or did.
    timeout: Option<VirtualNanos>,
    /// Written bytes that the board has not taken yet.
    output: Option<u8>,
    now: VirtualNanos,
    high: bool,
    rose: bool,
}

impl Default for Uart {
    /// As firmware leaves it: 115,200 baud, 8 data bits, no parity, FIFOs off.
    fn default() -> Self {
        Self {
            ier: 0,
            lcr: 0x03,
            mcr: 0,
            line_errors: 0,
            modem_deltas: 0,
            scratch: 0,
            divisor: 1,
            fifo: false,
            trigger: 1,
            transmit_empty: false,
            received: VecDeque::new(),
            incoming: VecDeque::new(),
            arrival: None,
            timeout: None,
            output: None,
            now: VirtualNanos(0),
            high: false,
            rose: false,
        }
    }
}

impl Uart {
    /// Queues host input and returns how many of the bytes were taken; the others must be offered
    /// again when the guest has read some.
    pub fn push_input(&mut self, bytes: &[u8], now: VirtualNanos) -> usize {
        self.advance(now);
        let taken = bytes.len().min(INPUT_BACKLOG_BYTES - self.incoming.len());
        self.incoming.extend(&bytes[..taken]);
        self.schedule_arrival(self.now);
        taken
    }

    /// The byte that the last access sent, once.
    pub fn take_output(&mut self) -> Option<u8> {
        self.output.take()
    }

    /// Time of one character on the line, at most 73 ms; `None` without a bit clock.
    fn character_ns(&self) -> Option<u64> {
        let data = 5 + u64::from(self.lcr & 3);
        let parity = u64::from(self.lcr >> 3 & 1);
        let stop_halves = match (self.lcr & 4 != 0, self.lcr & 3) {
            (false, _) => 2,
            (true, 0) => 3,
            (true, _) => 4,
        };
        let half_bits = 2 * (1 + data + parity) + stop_halves;
        let cycles = half_bits * 8 * u64::from(self.divisor);
        (cycles > 0).then(|| (cycles * 1_000_000_000).div_ceil(CLOCK_HZ))
    }

    fn capacity(&self) -> usize {
        if self.fifo { FIFO_BYTES } else { 1 }
    }

    /// The next byte starts at `start`, if one waits, can be taken and none is on its way.
    fn schedule_arrival(&mut self, start: VirtualNanos) {
        let possible = self.mcr & MCR_LOOP == 0
            && !self.incoming.is_empty()
            && self.received.len() < self.capacity();
        let time = self.character_ns().filter(|_| possible);
        match (time, self.arrival) {
            (None, _) => self.arrival = None,
            (Some(ns), None) => self.arrival = Some(VirtualNanos(start.0.saturating_add(ns))),
            (Some(_), Some(_)) => {}
        }
    }

    /// Restarts the time-out of unread bytes: four character times without traffic.
    fn restart_timeout(&mut self, at: VirtualNanos) {
        self.timeout = match self.character_ns() {
            Some(ns) if self.fifo && !self.received.is_empty() => {
                Some(VirtualNanos(at.0.saturating_add(4 * ns)))
            }
            _ => None,
        };
    }

    /// When the next byte arrives or the time-out fires.
    fn next_event(&self) -> Option<VirtualNanos> {
        let timeout = self.timeout.filter(|&at| at > self.now);
        self.arrival.into_iter().chain(timeout).min()
    }

    fn receive(&mut self, byte: u8, at: VirtualNanos) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
            self.restart_timeout(at);
        } else {
            self.line_errors |= LSR_OVERRUN;
        }
    }

    /// The interrupt with the highest priority, without the FIFO bits.
    fn identification(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        let timed_out = self.timeout.is_some_and(|at| at <= self.now);
        if enabled(IER_LINE_STATUS) && self.line_errors != 0 {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && self.received.len() >= usize::from(self.trigger) {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && timed_out {
            IIR_TIMEOUT
        } else if enabled(IER_TRANSMIT_EMPTY) && self.transmit_empty {
            IIR_TRANSMIT_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.modem_deltas != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// Follows the interrupt output; must run after every change of state.
    fn update_line(&mut self) {
        let connected = self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        let high = connected && self.identification() != IIR_NONE;
        self.rose |= high && !self.high;
        self.high = high;
    }

    fn modem_lines(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MODEM_CONNECTED;
        }
        // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
        (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
    }

    fn write_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value & 0x1f;
        let changed = before ^ self.modem_lines();
        // The ring indicator reports only its trailing edge.
        let reported = changed & !0x40 | changed & before & 0x40;
        self.modem_deltas |= reported >> 4;
        self.schedule_arrival(self.now);
    }

    fn write_fifo_control(&mut self, value: u8) {
        let enable = value & 1 != 0;
        if enable != self.fifo || (enable && value & 2 != 0) {
            self.received.clear();
            self.timeout = None;
        }
        self.fifo = enable;
        self.trigger = match (enable, value >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        };
        self.schedule_arrival(self.now);
    }

    fn transmit(&mut self, byte: u8) {
        self.transmit_empty = false;
        self.update_line();
        if self.mcr & MCR_LOOP != 0 {
            self.receive(byte, self.now);
        } else {
            self.output = Some(byte);
        }
        self.transmit_empty = true;
    }

    fn write_register(&mut self, register: u16, value: u8) {
        let divisor_access = self.lcr & LCR_DLAB != 0;
        let [low, high] = self.divisor.to_le_bytes();
        match register {
            0 if divisor_access => self.divisor = u16::from_le_bytes([value, high]),
            1 if divisor_access => self.divisor = u16::from_le_bytes([low, value]),
            0 => self.transmit(value),
            1 => {
                // Enabling the interrupt while the register is empty raises it.
                self.transmit_empty |= value & !self.ier & IER_TRANSMIT_EMPTY != 0;
                self.ier = value & 0x0f;
            }
            2 => self.write_fifo_control(value),
            3 => self.lcr = value,
            4 => self.write_modem_control(value),
            7 => self.scratch = value,
            _ => {}
        }
        if matches!(register, 0 | 1 | 3) {
            self.schedule_arrival(self.now);
        }
    }

    fn read_received(&mut self) -> u8 {
        let byte = self.received.pop_front().unwrap_or(0);
        self.restart_timeout(self.now);
        self.schedule_arrival(self.now);
        byte
    }

    fn read_identification(&mut self) -> u8 {
        let identification = self.identification();
        if identification == IIR_TRANSMIT_EMPTY {
            self.transmit_empty = false;
        }
        identification | if self.fifo { 0xc0 } else { 0 }
    }

    fn read_register(&mut self, register: u16) -> u8 {
        let divisor_access = self.lcr & LCR_DLAB != 0;
        match register {
            0 if divisor_access => self.divisor.to_le_bytes()[0],
            1 if divisor_access => self.divisor.to_le_bytes()[1],
            0 => self.read_received(),
            1 => self.ier,
            2 => self.read_identification(),
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let ready = if self.received.is_empty() {
                    0
                } else {
                    LSR_DATA_READY
                };
                LSR_IDLE | ready | std::mem::take(&mut self.line_errors)
            }
            6 => self.modem_lines() | std::mem::take(&mut self.modem_deltas),
            _ => self.scratch,
        }
    }

    /// The saved form.
    pub fn save(&self) -> SavedUart {
        let Self {
            ier,
            lcr,
            mcr,
            line_errors,
            modem_deltas,
            scratch,
            divisor,
            fifo,
            trigger,
            transmit_empty,
            received,
            incoming,
            arrival,
            timeout,
            output,
            now,
            high,
            rose,
        } = self;
        SavedUart {
            ier: *ier,
            lcr: *lcr,
            mcr: *mcr,
            line_errors: *line_errors,
            modem_deltas: *modem_deltas,
            scratch: *scratch,
            divisor: *divisor,
            fifo: *fifo,
            trigger: *trigger,
            transmit_empty: *transmit_empty,
            received: received.iter().copied().collect(),
            incoming: incoming.iter().copied().collect(),
            arrival_ns: arrival.map(|at| at.0),
            timeout_ns: timeout.map(|at| at.0),
            output: *output,
            now_ns: now.0,
            high: *high,
            rose: *rose,
        }
    }

    /// The device in the saved state.
    ///
    /// # Errors
    /// [`InvalidSaved`] for a state the port cannot be in.
    pub fn restore(saved: &SavedUart) -> Result<Self, InvalidSaved> {
        require(saved.ier <= 0x0f && saved.mcr <= 0x1f, "UART control")?;
        require(saved.line_errors & !LSR_OVERRUN == 0, "UART line errors")?;
        require(saved.modem_deltas <= 0x0f, "UART modem deltas")?;
        let trigger_fits = if saved.fifo {
            matches!(saved.trigger, 1 | 4 | 8 | 14)
        } else {
            saved.trigger == 1
        };
        require(trigger_fits, "UART trigger level")?;
        let fifo_bytes = if saved.fifo { FIFO_BYTES } else { 1 };
        require(saved.received.len() <= fifo_bytes, "UART FIFO")?;
        require(saved.incoming.len() <= INPUT_BACKLOG_BYTES, "UART input")?;
        let room = saved.received.len() < fifo_bytes && !saved.incoming.is_empty();
        let later = saved.arrival_ns.is_none_or(|at| room && at > saved.now_ns);
        require(later, "UART arrival")?;
        Ok(Self {
            ier: saved.ier,
            lcr: saved.lcr,
            mcr: saved.mcr,
            line_errors: saved.line_errors,
            modem_deltas: saved.modem_deltas,
            scratch: saved.scratch,
            divisor: saved.divisor,
            fifo: saved.fifo,
            trigger: saved.trigger,
            transmit_empty: saved.transmit_empty,
            received: saved.received.iter().copied().collect(),
            incoming: saved.incoming.iter().copied().collect(),
            arrival: saved.arrival_ns.map(VirtualNanos),
            timeout: saved.timeout_ns.map(VirtualNanos),
            output: saved.output,
            now: VirtualNanos(saved.now_ns),
            high: saved.high,
            rose: saved.rose,
        })
    }
}

impl Device for Uart {
    fn read(&mut self, port: Port, now: VirtualNanos) -> u8 {
        self.advance(now);
        let value = self.read_register(port.0.wrapping_sub(UART_BASE) & 7);
        self.update_line();
        value
    }

    fn write(&mut self, port: Port, value: u8, now: VirtualNanos) {
        self.advance(now);
        self.write_register(port.0.wrapping_sub(UART_BASE) & 7, value);
        self.update_line();
    }

    fn advance(&mut self, now: VirtualNanos) {
        // One event after the other, so that it does not matter in how many calls time passes.
        while let Some(at) = self.next_event().filter(|&at| at <= now) {
            self.now = self.now.max(at);
            if self.arrival.take_if(|arrival| *arrival <= at).is_some() {
                if let Some(byte) = self.incoming.pop_front() {
                    self.receive(byte, at);
                }
                self.schedule_arrival(at);
            }
            self.update_line();
        }
        self.now = self.now.max(now);
    }

    fn next_deadline(&self) -> Option<VirtualNanos> {
        // Events matter to the line only through the received-data interrupt.
        self.next_event().filter(|_| self.ier & IER_RECEIVED != 0)
    }

    fn take_line(&mut self) -> Line {
        Line {
            high: self.high,
            rose: std::mem::take(&mut self.rose),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: VirtualNanos = VirtualNanos(0);

    fn write(uart: &mut Uart, register: u16, value: u8) {
        uart.write(Port(UART_BASE + register), value, NOW);
    }

    fn read(uart: &mut Uart, register: u16) -> u8 {
        uart.read(Port(UART_BASE + register), NOW)
    }

    #[test]
    fn drivers_recognise_a_16550a() {
        let mut uart = Uart::default();
        write(&mut uart, 1, 0xff);
        assert_eq!(read(&mut uart, 1), 0x0f);
        write(&mut uart, 1, 0);
        // Loopback of the modem lines.
        write(&mut uart, 4, 0x1a);
        assert_eq!(read(&mut uart, 6) & 0xf0, 0x90);
        write(&mut uart, 4, 0);
        write(&mut uart, 2, 1);
        assert_eq!(read(&mut uart, 2), 0xc1);
        write(&mut uart, 7, 0xa5);
        assert_eq!(read(&mut uart, 7), 0xa5);
        write(&mut uart, 3, 0x83);
        write(&mut uart, 0, 0x34);
        write(&mut uart, 1, 0x12);
        assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (0x34, 0x12));
        write(&mut uart, 3, 0x03);
        assert_eq!(read(&mut uart, 1), 0);
    }

    #[test]
    fn enabling_the_transmit_interrupt_raises_it_and_reading_it_clears_it() {
        let mut uart = Uart::default();
        write(&mut uart, 4, MCR_OUT2);
        for _ in 0..2 {
            write(&mut uart, 1, IER_TRANSMIT_EMPTY);
            assert_eq!(
                uart.take_line(),
                Line {
                    high: true,
                    rose: true
                }
            );
            assert_eq!(read(&mut uart, 2), IIR_TRANSMIT_EMPTY);
            assert_eq!(read(&mut uart, 2), IIR_NONE);
            write(&mut uart, 1, 0);
        }
        write(&mut uart, 1, IER_TRANSMIT_EMPTY);
        uart.take_line();
        // A write lowers and raises the line again.
        write(&mut uart, 0, b'x');
        assert!(uart.take_line().rose);
        assert_eq!(uart.take_output(), Some(b'x'));
        assert_eq!(read(&mut uart, 5), LSR_IDLE);
    }

    #[test]
    fn without_out2_the_line_stays_low() {
        let mut uart = Uart::default();
        write(&mut uart, 1, IER_TRANSMIT_EMPTY);
        assert_eq!(uart.take_line(), Line::default());
        assert_eq!(read(&mut uart, 2), IIR_TRANSMIT_EMPTY);
    }

    #[test]
    fn loopback_receives_what_is_sent_and_overruns() {
        let mut uart = Uart::default();
        write(&mut uart, 4, MCR_LOOP);
        write(&mut uart, 1, IER_LINE_STATUS | IER_RECEIVED);
        write(&mut uart, 0, 1);
        write(&mut uart, 0, 2);
        assert_eq!(uart.take_output(), None);
        assert_eq!(read(&mut uart, 2), IIR_LINE_STATUS);
        assert_eq!(read(&mut uart, 5), LSR_IDLE | LSR_OVERRUN | LSR_DATA_READY);
        assert_eq!(read(&mut uart, 2), IIR_RECEIVED);
        assert_eq!(read(&mut uart, 0), 1);
        assert_eq!(read(&mut uart, 2), IIR_NONE);
    }

    #[test]
    fn input_comes_at_line_speed_and_waits_while_the_fifo_is_full() {
        let mut uart = Uart::default();
        write(&mut uart, 2, 0xc1);
        // 9,600 baud 8n1: 1,041,667 ns per character.
        write(&mut uart, 3, 0x83);
        write(&mut uart, 0, 12);
        write(&mut uart, 3, 0x03);
        let input: Vec<u8> = (0..40).collect();
        assert_eq!(uart.push_input(&input, NOW), 40);
        uart.advance(VirtualNanos(3 * 1_041_667 - 1));
        assert_eq!(uart.received, [0, 1]);
        uart.advance(VirtualNanos(1_000_000_000));
        assert_eq!(uart.received.len(), FIFO_BYTES);
        let mut now = 1_000_000_000;
        let mut text = Vec::new();
        while text.len() < input.len() {
            assert_eq!(uart.line_errors, 0);
            text.push(uart.read(Port(UART_BASE), VirtualNanos(now)));
            now += 2_000_000;
        }
        assert_eq!(text, input);
    }

    #[test]
    fn too_much_input_is_refused_not_lost() {
        let mut uart = Uart::default();
        let much = vec![b'x'; INPUT_BACKLOG_BYTES + 5];
        assert_eq!(uart.push_input(&much, NOW), INPUT_BACKLOG_BYTES);
        assert_eq!(uart.push_input(b"y", NOW), 0);
    }

    #[test]
    fn the_trigger_level_and_the_time_out_raise_different_interrupts() {
        let mut uart = Uart::default();
        write(&mut uart, 2, 0x41);
        write(&mut uart, 1, IER_RECEIVED);
        uart.push_input(b"abcde", NOW);
        let character = uart.character_ns().unwrap();
        let iir = |uart: &mut Uart, at| uart.read(Port(UART_BASE + 2), VirtualNanos(at));
        assert_eq!(iir(&mut uart, 3 * character), 0xc1);
        assert_eq!(iir(&mut uart, 4 * character), 0xc4);
        let late = 5 * character;
        for _ in 0..2 {
            uart.read(Port(UART_BASE), VirtualNanos(late));
        }
        assert_eq!(iir(&mut uart, late + 4 * character - 1), 0xc1);
        assert_eq!(iir(&mut uart, late + 4 * character), 0xcc);
    }
}
