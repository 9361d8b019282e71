//! The i8042 keyboard controller without keyboard and mouse (ports 0x60, 0x64), and the reset
//! registers of PC chipsets (ports 0x92 and 0xcf9).
//!
//! A byte for the keyboard is answered as the controller answers when nobody is there: 0xfe with the
//! time-out bit, so that a driver gives up at once instead of waiting. The auxiliary port fails its
//! test. A20 is always on; its bits only read back.

use crate::devices::{Device, Line};
use crate::saved::InvalidSaved;
use crate::saved::devices::{SavedKeyboard, SavedReply};
use crate::units::{Port, VirtualNanos};

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_LAST_WAS_COMMAND: u8 = 0x08;
const STATUS_NOT_LOCKED: u8 = 0x10;
const STATUS_AUX: u8 = 0x20;
const STATUS_TIMEOUT: u8 = 0x40;

const COMMAND_BYTE_KEYBOARD_INTERRUPT: u8 = 0x01;
const COMMAND_BYTE_SYSTEM: u8 = 0x04;
const COMMAND_BYTE_AUX_DISABLED: u8 = 0x20;
const COMMAND_BYTE_KEYBOARD_DISABLED: u8 = 0x10;

/// The controller's output port with reset (bit 0, active low) and all others idle, without A20 (bit 1).
const OUTPUT_PORT_IDLE: u8 = 0xcd;

/// A byte for the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reply {
    byte: u8,
    /// Status bits that go with it.
    status: u8,
}

/// The controller and the reset registers; IRQ1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyboard {
    command_byte: u8,
    /// A controller command that waits for its parameter.
    pending: Option<u8>,
    reply: Option<Reply>,
    last_was_command: bool,
    /// The controller's memory, read and written with commands 0x20 to 0x7f.
    memory: [u8; 32],
    /// Port 0x92.
    control_a: u8,
    /// Port 0xcf9.
    reset_control: u8,
    reset: bool,
    high: bool,
    rose: bool,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            command_byte: COMMAND_BYTE_SYSTEM | COMMAND_BYTE_AUX_DISABLED,
            pending: None,
            reply: None,
            last_was_command: false,
            memory: [0; 32],
            control_a: 2,
            reset_control: 0,
            reset: false,
            high: false,
            rose: false,
        }
    }
}

impl Keyboard {
    /// Whether the last access asked for a reset of the machine, once.
    pub fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    fn answer(&mut self, byte: u8) {
        self.reply = Some(Reply { byte, status: 0 });
    }

    fn status(&self) -> u8 {
        let reply = self
            .reply
            .map_or(0, |reply| reply.status | STATUS_OUTPUT_FULL);
        let system = if self.command_byte & COMMAND_BYTE_SYSTEM != 0 {
            STATUS_SYSTEM
        } else {
            0
        };
        let command = if self.last_was_command {
            STATUS_LAST_WAS_COMMAND
        } else {
            0
        };
        STATUS_NOT_LOCKED | system | command | reply
    }

    fn write_command(&mut self, command: u8) {
        self.last_was_command = true;
        self.pending = None;
        match command {
            0x20 => self.answer(self.command_byte),
            0x21..=0x3f => self.answer(self.memory[usize::from(command & 0x1f)]),
            // Parameters follow; D3 and D2 echo theirs, D4 goes to the absent mouse.
            0x60..=0x7f | 0xd1..=0xd4 => self.pending = Some(command),
            0xa7 => self.command_byte |= COMMAND_BYTE_AUX_DISABLED,
            0xa8 => self.command_byte &= !COMMAND_BYTE_AUX_DISABLED,
            // Clock line stuck low: no auxiliary port.
            0xa9 => self.answer(0x01),
            0xaa => {
                self.command_byte |= COMMAND_BYTE_SYSTEM;
                self.answer(0x55);
            }
            0xab => self.answer(0x00),
            0xad => self.command_byte |= COMMAND_BYTE_KEYBOARD_DISABLED,
            0xae => self.command_byte &= !COMMAND_BYTE_KEYBOARD_DISABLED,
            0xc0 => self.answer(0x00),
            0xd0 => self.answer(OUTPUT_PORT_IDLE | (self.control_a & 2)),
            // Pulses the output port lines whose bit is 0; line 0 is reset.
            0xf0..=0xff => self.reset |= command & 1 == 0,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.last_was_command = false;
        match self.pending.take() {
            Some(0x60) => self.command_byte = value,
            Some(command @ 0x61..=0x7f) => self.memory[usize::from(command & 0x1f)] = value,
            Some(0xd1) => {
                self.control_a = self.control_a & !2 | value & 2;
                self.reset |= value & 1 == 0;
            }
            // The echo lacks the auxiliary status bit: there is no auxiliary port.
            Some(0xd2 | 0xd3) => self.answer(value),
            Some(_) => self.nobody_there(STATUS_AUX),
            None => self.nobody_there(0),
        }
    }

    fn nobody_there(&mut self, status: u8) {
        self.reply = Some(Reply {
            byte: 0xfe,
            status: status | STATUS_TIMEOUT,
        });
    }

    fn update_line(&mut self) {
        let for_keyboard = self.reply.is_some_and(|r| r.status & STATUS_AUX == 0);
        let high = for_keyboard && self.command_byte & COMMAND_BYTE_KEYBOARD_INTERRUPT != 0;
        self.rose |= high && !self.high;
        self.high = high;
    }

    fn write_reset_control(&mut self, value: u8) {
        // A rising bit 2 resets; bit 1 chooses how much, which is the same here.
        self.reset |= value & !self.reset_control & 4 != 0;
        self.reset_control = value & 0x0e;
    }

    /// The saved form.
    pub fn save(&self) -> SavedKeyboard {
        let Self {
            command_byte,
            pending,
            reply,
            last_was_command,
            memory,
            control_a,
            reset_control,
            reset,
            high,
            rose,
        } = *self;
        SavedKeyboard {
            command_byte,
            pending,
            reply: reply.map(|Reply { byte, status }| SavedReply { byte, status }),
            last_was_command,
            memory,
            control_a,
            reset_control,
            reset,
            high,
            rose,
        }
    }

    /// The device in the saved state.
    ///
    /// # Errors
    /// None today: every content of the registers is possible.
    pub fn restore(saved: &SavedKeyboard) -> Result<Self, InvalidSaved> {
        Ok(Self {
            command_byte: saved.command_byte,
            pending: saved.pending,
            reply: saved.reply.as_ref().map(|r| Reply {
                byte: r.byte,
                status: r.status,
            }),
            last_was_command: saved.last_was_command,
            memory: saved.memory,
            control_a: saved.control_a,
            reset_control: saved.reset_control,
            reset: saved.reset,
            high: saved.high,
            rose: saved.rose,
        })
    }
}

impl Device for Keyboard {
    fn read(&mut self, port: Port, _now: VirtualNanos) -> u8 {
        match port.0 {
            0x60 => {
                let byte = self.reply.take().map_or(0, |reply| reply.byte);
                self.update_line();
                byte
            }
            0x64 => self.status(),
            0x92 => self.control_a,
            0xcf9 => self.reset_control,
            _ => 0xff,
        }
    }

    fn write(&mut self, port: Port, value: u8, _now: VirtualNanos) {
        match port.0 {
            0x60 => self.write_data(value),
            0x64 => self.write_command(value),
            0x92 => {
                self.reset |= value & !self.control_a & 1 != 0;
                self.control_a = value & 3;
            }
            0xcf9 => self.write_reset_control(value),
            _ => {}
        }
        self.update_line();
    }

    fn advance(&mut self, _now: VirtualNanos) {}

    fn next_deadline(&self) -> Option<VirtualNanos> {
        None
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

    fn command(keyboard: &mut Keyboard, command: u8) -> Option<u8> {
        keyboard.write(Port(0x64), command, NOW);
        reply(keyboard)
    }

    fn reply(keyboard: &mut Keyboard) -> Option<u8> {
        let full = keyboard.read(Port(0x64), NOW) & STATUS_OUTPUT_FULL != 0;
        full.then(|| keyboard.read(Port(0x60), NOW))
    }

    #[test]
    fn the_controller_answers_and_passes_its_tests() {
        let mut keyboard = Keyboard::default();
        assert_eq!(command(&mut keyboard, 0xaa), Some(0x55));
        assert_eq!(command(&mut keyboard, 0xab), Some(0x00));
        assert_eq!(command(&mut keyboard, 0x60), None);
        keyboard.write(Port(0x60), 0x35, NOW);
        assert_eq!(command(&mut keyboard, 0x20), Some(0x35));
        assert_eq!(command(&mut keyboard, 0x2a), Some(0));
    }

    #[test]
    fn there_is_no_mouse() {
        let mut keyboard = Keyboard::default();
        assert_eq!(command(&mut keyboard, 0xd3), None);
        keyboard.write(Port(0x60), 0x5a, NOW);
        assert_eq!(keyboard.read(Port(0x64), NOW) & STATUS_AUX, 0);
        assert_eq!(reply(&mut keyboard), Some(0x5a));
        assert_eq!(command(&mut keyboard, 0xa9), Some(0x01));
    }

    #[test]
    fn a_byte_for_the_absent_keyboard_times_out_at_once_with_an_interrupt() {
        let mut keyboard = Keyboard::default();
        command(&mut keyboard, 0x60);
        keyboard.write(Port(0x60), COMMAND_BYTE_KEYBOARD_INTERRUPT, NOW);
        keyboard.write(Port(0x60), 0xf2, NOW);
        assert!(keyboard.take_line().rose);
        assert_ne!(keyboard.read(Port(0x64), NOW) & STATUS_TIMEOUT, 0);
        assert_eq!(reply(&mut keyboard), Some(0xfe));
        assert_eq!(keyboard.take_line(), Line::default());
        assert_eq!(reply(&mut keyboard), None);
    }

    #[test]
    fn a20_reads_back() {
        let mut keyboard = Keyboard::default();
        keyboard.write(Port(0x92), 0, NOW);
        assert_eq!(command(&mut keyboard, 0xd0), Some(0xcd));
        keyboard.write(Port(0x64), 0xd1, NOW);
        keyboard.write(Port(0x60), 0xdf, NOW);
        assert_eq!(keyboard.read(Port(0x92), NOW), 2);
        assert!(!keyboard.take_reset());
    }
}
