//! The pair of cascaded 8259A interrupt controllers (Intel 8259A data sheet, order 231468) with the
//! edge/level control registers of PC chipsets at 0x4d0 and 0x4d1.
//!
//! As in chipsets, LTIM of ICW1 is ignored in favour of the edge/level registers, and only the 8086
//! interrupt sequence exists. An input counts as requesting only while it is high: an edge whose
//! line falls again before the acknowledge is withdrawn (data sheet, "Interrupt sequence"). The chips
//! have no reset pin: the power-on state is the one that PC firmware leaves, with vectors from 0x08
//! and 0x70 and everything masked.

use crate::saved::devices::{SavedPic, SavedPicChip};
use crate::saved::{InvalidSaved, require};
use crate::units::{IrqLine, Port, Vector};

/// The input of the first chip that the second one drives.
const CASCADE: u8 = 2;

/// Inputs that may be switched to level triggering: not the timer, keyboard and cascade (first
/// chip), not the clock and coprocessor (second chip).
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// Which initialisation command word is expected next at the odd address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Expect {
    Nothing,
    Icw2,
    Icw3,
    Icw4,
}

/// What the next read of the even address returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum ReadSelect {
    Irr,
    Isr,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chip {
    /// Input levels.
    lines: u8,
    /// Inputs that rose since they were last acknowledged and have not fallen.
    edges: u8,
    /// Inputs that are level-triggered.
    elcr: u8,
    /// Masked inputs.
    imr: u8,
    /// Inputs in service.
    isr: u8,
    vector_base: u8,
    /// The input with the lowest priority; the next one has the highest.
    lowest: u8,
    expect: Expect,
    /// ICW4 follows in the running initialisation.
    wants_icw4: bool,
    /// No ICW3 in the running initialisation.
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// The next read is a poll.
    poll: bool,
    read_select: ReadSelect,
}

impl Chip {
    fn new(vector_base: u8) -> Self {
        Self {
            lines: 0,
            edges: 0,
            elcr: 0,
            imr: 0xff,
            isr: 0,
            vector_base,
            lowest: 7,
            expect: Expect::Nothing,
            wants_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            poll: false,
            read_select: ReadSelect::Irr,
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        if !high {
            self.lines &= !bit;
            self.edges &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.edges |= bit;
        }
    }

    /// The interrupt request register.
    fn irr(&self) -> u8 {
        (self.edges & !self.elcr) | (self.lines & self.elcr)
    }

    /// The set bit with the highest priority.
    fn highest(&self, bits: u8) -> Option<u8> {
        (1..=8)
            .map(|distance| (self.lowest + distance) & 7)
            .find(|input| bits & (1 << input) != 0)
    }

    /// Rank of an input, 0 is the highest priority.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest + 1) & 7
    }

    /// The input that INT is raised for. `transparent` inputs do not block while in service.
    fn request(&self, transparent: u8) -> Option<u8> {
        if self.expect != Expect::Nothing {
            return None;
        }
        let candidate = self.highest(self.irr() & !self.imr)?;
        let mut blocking = self.isr & !transparent;
        if self.special_mask {
            blocking &= !self.imr;
        }
        match self.highest(blocking) {
            Some(served) => (self.rank(candidate) < self.rank(served)).then_some(candidate),
            None => Some(candidate),
        }
    }

    /// The effect of the acknowledge cycle on `input`.
    fn acknowledge(&mut self, input: u8) {
        self.edges &= !(1 << input);
        if !self.auto_eoi {
            self.isr |= 1 << input;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn end_of_interrupt(&mut self, specific: Option<u8>, rotate: bool) {
        let maskable = if self.special_mask { !self.imr } else { 0xff };
        let Some(input) = specific.or_else(|| self.highest(self.isr & maskable)) else {
            return;
        };
        self.isr &= !(1 << input);
        if rotate {
            self.lowest = input;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            elcr: self.elcr,
            imr: 0,
            expect: Expect::Icw2,
            wants_icw4: value & 1 != 0,
            single: value & 2 != 0,
            ..Self::new(self.vector_base)
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => self.end_of_interrupt(None, false),
            0b101 => self.end_of_interrupt(None, true),
            0b011 => self.end_of_interrupt(Some(level), false),
            0b111 => self.end_of_interrupt(Some(level), true),
            0b110 => self.lowest = level,
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        self.poll = value & 4 != 0;
        match value & 3 {
            2 => self.read_select = ReadSelect::Irr,
            3 => self.read_select = ReadSelect::Isr,
            _ => {}
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Nothing => {
                self.imr = value;
                Expect::Nothing
            }
            Expect::Icw2 => {
                self.vector_base = value & 0xf8;
                match (self.single, self.wants_icw4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Nothing,
                }
            }
            // The wiring is fixed, so the content of ICW3 has no effect.
            Expect::Icw3 if self.wants_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Nothing,
            Expect::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Expect::Nothing
            }
        };
    }

    fn read_register(&self, odd_address: bool) -> u8 {
        match (odd_address, self.read_select) {
            (true, _) => self.imr,
            (false, ReadSelect::Irr) => self.irr(),
            (false, ReadSelect::Isr) => self.isr,
        }
    }

    fn save(&self) -> SavedPicChip {
        let Self {
            lines,
            edges,
            elcr,
            imr,
            isr,
            vector_base,
            lowest,
            expect,
            wants_icw4,
            single,
            auto_eoi,
            rotate_on_auto_eoi,
            special_mask,
            special_fully_nested,
            poll,
            read_select,
        } = *self;
        SavedPicChip {
            lines,
            edges,
            elcr,
            imr,
            isr,
            vector_base,
            lowest,
            expect: expect as u8,
            wants_icw4,
            single,
            auto_eoi,
            rotate_on_auto_eoi,
            special_mask,
            special_fully_nested,
            poll,
            read_isr: read_select == ReadSelect::Isr,
        }
    }

    fn restore(saved: &SavedPicChip, elcr_writable: u8) -> Result<Self, InvalidSaved> {
        require(saved.lowest < 8, "PIC lowest priority")?;
        require(saved.vector_base & 7 == 0, "PIC vector base")?;
        require(saved.edges & !saved.lines == 0, "PIC edge without line")?;
        require(saved.elcr & !elcr_writable == 0, "PIC edge/level control")?;
        let expect = match saved.expect {
            0 => Expect::Nothing,
            1 => Expect::Icw2,
            2 => Expect::Icw3,
            3 => Expect::Icw4,
            _ => return Err(InvalidSaved("PIC initialisation step")),
        };
        Ok(Self {
            lines: saved.lines,
            edges: saved.edges,
            elcr: saved.elcr,
            imr: saved.imr,
            isr: saved.isr,
            vector_base: saved.vector_base,
            lowest: saved.lowest,
            expect,
            wants_icw4: saved.wants_icw4,
            single: saved.single,
            auto_eoi: saved.auto_eoi,
            rotate_on_auto_eoi: saved.rotate_on_auto_eoi,
            special_mask: saved.special_mask,
            special_fully_nested: saved.special_fully_nested,
            poll: saved.poll,
            read_select: if saved.read_isr {
                ReadSelect::Isr
            } else {
                ReadSelect::Irr
            },
        })
    }
}

/// The pair: inputs 0 to 7 on the first chip, 8 to 15 on the second, which drives input 2.
///
/// Ports 0x20, 0x21 (first), 0xa0, 0xa1 (second), 0x4d0, 0x4d1 (edge/level control).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Default for Pic {
    fn default() -> Self {
        Self {
            chips: [Chip::new(0x08), Chip::new(0x70)],
        }
    }
}

impl Pic {
    /// Sets the level of an input. Input 2 is the cascade and cannot be driven from outside; lines
    /// above 15 do not exist. Both are ignored.
    pub fn set_line(&mut self, line: IrqLine, high: bool) {
        match line.0 {
            CASCADE | 16.. => return,
            0..=7 => self.chips[0].set_line(line.0, high),
            8..=15 => self.chips[1].set_line(line.0 - 8, high),
        }
        self.drive_cascade();
    }

    fn drive_cascade(&mut self) {
        let high = self.chips[1].request(0).is_some();
        self.chips[0].set_line(CASCADE, high);
    }

    fn first_request(&self) -> Option<u8> {
        let first = &self.chips[0];
        first.request(if first.special_fully_nested {
            1 << CASCADE
        } else {
            0
        })
    }

    /// Whether INT of the first chip is high.
    pub fn interrupt_pending(&self) -> bool {
        self.first_request().is_some()
    }

    /// The interrupt acknowledge sequence. Without a request it yields the spurious vector of input
    /// 7 and puts nothing in service.
    pub fn acknowledge(&mut self) -> Vector {
        let Some(input) = self.first_request() else {
            return Vector(self.chips[0].vector_base | 7);
        };
        self.chips[0].acknowledge(input);
        if input != CASCADE {
            return Vector(self.chips[0].vector_base | input);
        }
        self.acknowledge_second()
    }

    /// The second chip answers with its spurious vector if its request is gone: on hardware when the
    /// line falls between the two acknowledge cycles.
    fn acknowledge_second(&mut self) -> Vector {
        let second = &mut self.chips[1];
        let request = second.request(0);
        if let Some(input) = request {
            second.acknowledge(input);
        }
        let vector = Vector(second.vector_base | request.unwrap_or(7));
        // INT of the second chip falls at the end of each acknowledge, so that what still waits
        // there makes a new edge.
        self.chips[0].set_line(CASCADE, false);
        self.drive_cascade();
        vector
    }

    /// Reads a port of the pair; other ports read as all ones.
    pub fn read(&mut self, port: Port) -> u8 {
        match port.0 {
            0x20 | 0x21 => self.read_chip(0, port.0 & 1 != 0),
            0xa0 | 0xa1 => self.read_chip(1, port.0 & 1 != 0),
            0x4d0 => self.chips[0].elcr,
            0x4d1 => self.chips[1].elcr,
            _ => 0xff,
        }
    }

    fn read_chip(&mut self, chip: usize, odd_address: bool) -> u8 {
        if !std::mem::take(&mut self.chips[chip].poll) {
            return self.chips[chip].read_register(odd_address);
        }
        let request = if chip == 0 {
            self.first_request()
        } else {
            self.chips[1].request(0)
        };
        let Some(input) = request else { return 0x07 };
        self.chips[chip].acknowledge(input);
        self.drive_cascade();
        0x80 | input
    }

    /// Writes a port of the pair; other ports are ignored.
    pub fn write(&mut self, port: Port, value: u8) {
        match port.0 {
            0x20 => self.chips[0].write_command(value),
            0x21 => self.chips[0].write_data(value),
            0xa0 => self.chips[1].write_command(value),
            0xa1 => self.chips[1].write_data(value),
            0x4d0 => self.chips[0].elcr = value & ELCR_WRITABLE[0],
            0x4d1 => self.chips[1].elcr = value & ELCR_WRITABLE[1],
            _ => return,
        }
        self.drive_cascade();
    }

    /// The saved form.
    pub fn save(&self) -> SavedPic {
        let Self { chips } = self;
        SavedPic {
            chips: [chips[0].save(), chips[1].save()],
        }
    }

    /// The device in the saved state.
    ///
    /// # Errors
    /// [`InvalidSaved`] for a state the chips cannot be in.
    pub fn restore(saved: &SavedPic) -> Result<Self, InvalidSaved> {
        let chip = |i: usize| Chip::restore(&saved.chips[i], ELCR_WRITABLE[i]);
        let pic = Self {
            chips: [chip(0)?, chip(1)?],
        };
        let mut driven = pic.clone();
        driven.drive_cascade();
        require(driven.chips[0].lines == pic.chips[0].lines, "PIC cascade")?;
        Ok(pic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initialised(icw4: u8) -> Pic {
        let mut pic = Pic::default();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, icw4),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 0x02),
            (0xa1, icw4),
        ] {
            pic.write(Port(port), value);
        }
        pic
    }

    fn raise(pic: &mut Pic, line: u8) {
        pic.set_line(IrqLine(line), true);
    }

    fn isr(pic: &mut Pic, command: u16) -> u8 {
        pic.write(Port(command), 0x0b);
        pic.read(Port(command))
    }

    #[test]
    fn power_on_masks_everything_and_the_mask_can_be_probed() {
        let mut pic = Pic::default();
        raise(&mut pic, 0);
        assert!(!pic.interrupt_pending());
        pic.write(Port(0x21), 0xfb);
        assert_eq!(pic.read(Port(0x21)), 0xfb);
    }

    #[test]
    fn priorities_nest_and_end_of_interrupt_reopens() {
        let mut pic = initialised(1);
        raise(&mut pic, 4);
        assert_eq!(pic.acknowledge(), Vector(0x34));
        raise(&mut pic, 5);
        assert!(!pic.interrupt_pending());
        raise(&mut pic, 1);
        assert_eq!(pic.acknowledge(), Vector(0x31));
        assert_eq!(isr(&mut pic, 0x20), 0x12);
        pic.write(Port(0x20), 0x20);
        assert_eq!(isr(&mut pic, 0x20), 0x10);
        pic.write(Port(0x20), 0x64);
        assert_eq!(pic.acknowledge(), Vector(0x35));
    }

    #[test]
    fn the_second_chip_interrupts_through_input_2() {
        let mut pic = initialised(1);
        raise(&mut pic, 8);
        raise(&mut pic, 14);
        assert_eq!(pic.acknowledge(), Vector(0x38));
        assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (4, 1));
        assert!(!pic.interrupt_pending());
        pic.write(Port(0xa0), 0x20);
        pic.write(Port(0x20), 0x20);
        assert_eq!(pic.acknowledge(), Vector(0x3e));
    }

    #[test]
    fn with_auto_eoi_a_second_slave_request_is_not_lost() {
        let mut pic = initialised(3);
        raise(&mut pic, 9);
        raise(&mut pic, 10);
        assert_eq!(pic.acknowledge(), Vector(0x39));
        assert_eq!(pic.acknowledge(), Vector(0x3a));
        assert!(!pic.interrupt_pending());
    }

    #[test]
    fn special_fully_nested_mode_lets_the_second_chip_nest() {
        let mut pic = initialised(0x11);
        raise(&mut pic, 12);
        assert_eq!(pic.acknowledge(), Vector(0x3c));
        raise(&mut pic, 9);
        assert_eq!(pic.acknowledge(), Vector(0x39));
    }

    #[test]
    fn an_edge_fires_once_and_a_withdrawn_edge_never() {
        let mut pic = initialised(3);
        raise(&mut pic, 3);
        assert_eq!(pic.acknowledge(), Vector(0x33));
        raise(&mut pic, 3);
        assert!(!pic.interrupt_pending());
        pic.set_line(IrqLine(3), false);
        raise(&mut pic, 3);
        assert!(pic.interrupt_pending());
        pic.set_line(IrqLine(3), false);
        assert!(!pic.interrupt_pending());
    }

    #[test]
    fn a_level_input_fires_until_it_falls() {
        let mut pic = initialised(3);
        pic.write(Port(0x4d1), 0xff);
        assert_eq!(pic.read(Port(0x4d1)), 0xde);
        raise(&mut pic, 11);
        assert_eq!(pic.acknowledge(), Vector(0x3b));
        assert_eq!(pic.acknowledge(), Vector(0x3b));
        pic.set_line(IrqLine(11), false);
        assert!(!pic.interrupt_pending());
    }

    #[test]
    fn an_acknowledge_without_request_is_spurious_and_serves_nothing() {
        let mut pic = initialised(1);
        assert_eq!(pic.acknowledge(), Vector(0x37));
        assert_eq!(isr(&mut pic, 0x20), 0);
        raise(&mut pic, 9);
        pic.chips[0].acknowledge(CASCADE);
        pic.chips[1].set_line(1, false);
        assert_eq!(pic.acknowledge_second(), Vector(0x3f));
        assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (4, 0));
    }

    #[test]
    fn rotation_makes_the_served_input_the_lowest() {
        let mut pic = initialised(1);
        raise(&mut pic, 3);
        assert_eq!(pic.acknowledge(), Vector(0x33));
        pic.write(Port(0x20), 0xa0);
        raise(&mut pic, 1);
        raise(&mut pic, 4);
        assert_eq!(pic.acknowledge(), Vector(0x34));
        pic.write(Port(0x20), 0x20);
        pic.write(Port(0x20), 0xc0);
        raise(&mut pic, 0);
        assert_eq!(pic.acknowledge(), Vector(0x31));
    }

    #[test]
    fn special_mask_mode_opens_all_other_inputs() {
        let mut pic = initialised(1);
        raise(&mut pic, 1);
        assert_eq!(pic.acknowledge(), Vector(0x31));
        raise(&mut pic, 6);
        assert!(!pic.interrupt_pending());
        pic.write(Port(0x21), 0x02);
        pic.write(Port(0x20), 0x68);
        assert_eq!(pic.acknowledge(), Vector(0x36));
        // A non-specific EOI does not see the masked input 1.
        pic.write(Port(0x20), 0x20);
        assert_eq!(isr(&mut pic, 0x20), 0x02);
    }

    #[test]
    fn a_poll_acknowledges() {
        let mut pic = initialised(1);
        raise(&mut pic, 6);
        pic.write(Port(0x20), 0x0c);
        assert_eq!(pic.read(Port(0x20)), 0x86);
        assert_eq!(isr(&mut pic, 0x20), 0x40);
        pic.write(Port(0x20), 0x0c);
        assert_eq!(pic.read(Port(0x20)), 0x07);
    }

    #[test]
    fn nothing_is_requested_during_initialisation() {
        let mut pic = initialised(1);
        raise(&mut pic, 0);
        pic.write(Port(0x20), 0x11);
        assert!(!pic.interrupt_pending());
        assert_eq!(pic.read(Port(0x21)), 0, "ICW1 clears the mask");
    }
}
