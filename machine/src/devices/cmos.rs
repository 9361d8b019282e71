//! The MC146818 real-time clock with its battery-backed memory (Motorola MC146818A data sheet):
//! index port 0x70, data port 0x71, IRQ8.
//!
//! The time of day is virtual time plus an offset that the guest moves by setting the clock; the
//! weekday always follows from the date. As on the chip, a change of the format (register B) leaves
//! the bytes, so that the guest has to set the clock anew. While the guest holds the clock (SET of register B, or the
//! divider in reset) the time registers are plain memory. Updates take place at whole seconds of the
//! divider; a released divider makes the first one after half a second.

mod calendar;

use crate::devices::{Device, Line};
use crate::saved::devices::SavedCmos;
use crate::saved::{InvalidSaved, require};
use crate::units::{Port, VirtualNanos};
use calendar::{Civil, SECONDS_PER_DAY};

/// 2026-01-01T00:00:00Z in seconds since 1970: the default date at virtual time 0.
pub const DEFAULT_START_UNIX_S: i64 = 1_767_225_600;

const SECOND_NS: u128 = 1_000_000_000;
/// An update is announced by UIP 244 µs before it begins and takes 1,984 µs.
const UPDATE_NS: u128 = 2_228_000;
/// Ticks per second of the divider's input.
const CRYSTAL_HZ: u128 = 32_768;

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REGISTER_A: usize = 0x0a;
const REGISTER_B: usize = 0x0b;
const REGISTER_C: usize = 0x0c;
const REGISTER_D: usize = 0x0d;
const CENTURY: usize = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_UPDATE_INTERRUPT: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_REQUEST: u8 = 0x80;
/// Flags in register C and, at the same bits, their enables in register B.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const D_VALID: u8 = 0x80;

/// Clock and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmos {
    index: u8,
    /// Registers and memory. The time registers are valid only while the clock is held.
    registers: [u8; 128],
    /// Date and time at divider second 0, in seconds since 1970.
    offset_s: i64,
    /// What the divider is ahead of virtual time.
    phase_ns: u32,
    now: VirtualNanos,
    high: bool,
    rose: bool,
}

fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

fn from_bcd(value: u8) -> u8 {
    (value >> 4) * 10 + (value & 0xf)
}

impl Cmos {
    /// A clock that shows `start_unix_s` (seconds since 1970) at virtual time 0, in a machine with
    /// `ram_bytes` of RAM from address 0.
    pub fn new(ram_bytes: u64, start_unix_s: i64) -> Self {
        let mut registers = [0; 128];
        // 32,768 Hz crystal, 1,024 Hz periodic rate; BCD, 24 hours.
        registers[REGISTER_A] = 0x26;
        registers[REGISTER_B] = B_24_HOURS;
        registers[REGISTER_D] = D_VALID;
        // Equipment: a coprocessor.
        registers[0x14] = 0x02;
        let mut put = |at: usize, value: u64| {
            let capped = value.min(0xffff) as u16;
            registers[at..at + 2].copy_from_slice(&capped.to_le_bytes());
        };
        let above = |start: u64, unit: u64| ram_bytes.saturating_sub(start) / unit;
        // Conventional memory in KiB; above 1 MiB in KiB (twice); above 16 MiB in 64 KiB.
        put(0x15, (ram_bytes >> 10).min(640));
        put(0x17, above(1 << 20, 1 << 10));
        put(0x30, above(1 << 20, 1 << 10));
        put(0x34, above(16 << 20, 64 << 10));
        Self {
            index: 0,
            registers,
            offset_s: start_unix_s.clamp(-(1 << 40), 1 << 40),
            phase_ns: 0,
            now: VirtualNanos(0),
            high: false,
            rose: false,
        }
    }

    fn divider_ns(&self, now: VirtualNanos) -> u128 {
        u128::from(now.0) + u128::from(self.phase_ns)
    }

    /// The instant at which the divider shows `divider_ns`, if virtual time reaches it.
    fn instant(&self, divider_ns: u128) -> Option<VirtualNanos> {
        let ns = divider_ns.checked_sub(u128::from(self.phase_ns))?;
        u64::try_from(ns).ok().map(VirtualNanos)
    }

    fn unix_seconds(&self, now: VirtualNanos) -> i64 {
        // At most 2^64 ns, so the quotient is below 2^35.
        self.offset_s + (self.divider_ns(now) / SECOND_NS) as i64
    }

    fn divider_in_reset(&self) -> bool {
        self.registers[REGISTER_A] & 0x60 == 0x60
    }

    /// Whether the time registers are plain memory and no updates take place.
    fn held(&self) -> bool {
        self.divider_in_reset() || self.registers[REGISTER_B] & B_SET != 0
    }

    /// Ticks of the crystal per periodic interrupt.
    fn period(&self) -> Option<u128> {
        match self.registers[REGISTER_A] & 0xf {
            _ if self.divider_in_reset() => None,
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.registers[REGISTER_B] & B_BINARY != 0 {
            value
        } else {
            to_bcd(value)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.registers[REGISTER_B] & B_BINARY != 0 {
            value
        } else {
            from_bcd(value)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.registers[REGISTER_B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.registers[REGISTER_B] & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let afternoon = if value & 0x80 != 0 { 12 } else { 0 };
        self.decode(value & 0x7f) % 12 + afternoon
    }

    /// Puts the running time into the time registers.
    fn latch_time(&mut self) {
        let civil = Civil::from_unix(self.unix_seconds(self.now));
        let year = civil.year.rem_euclid(10_000);
        for (register, value) in [
            (SECONDS, self.encode(civil.second)),
            (MINUTES, self.encode(civil.minute)),
            (HOURS, self.encode_hour(civil.hour)),
            (WEEKDAY, self.encode(civil.weekday)),
            (DAY, self.encode(civil.day)),
            (MONTH, self.encode(civil.month)),
            (YEAR, self.encode((year % 100) as u8)),
            (CENTURY, self.encode((year / 100) as u8)),
        ] {
            self.registers[register] = value;
        }
    }

    /// Makes the running time what the time registers say. Impossible values become the nearest
    /// possible ones.
    fn adopt_time(&mut self) {
        let field = |register: usize| self.decode(self.registers[register]);
        let civil = Civil {
            year: i64::from(field(CENTURY).min(99)) * 100 + i64::from(field(YEAR).min(99)),
            month: field(MONTH).clamp(1, 12),
            day: field(DAY).clamp(1, 31),
            hour: self.decode_hour(self.registers[HOURS]).min(23),
            minute: field(MINUTES).min(59),
            second: field(SECONDS).min(59),
            weekday: 1,
        };
        self.offset_s += civil.to_unix() - self.unix_seconds(self.now);
    }

    /// Changes registers A and B with what follows for the running of the clock.
    fn reconfigure(&mut self, change: impl FnOnce(&mut [u8; 128])) {
        if !self.held() {
            self.latch_time();
        }
        let was_in_reset = self.divider_in_reset();
        change(&mut self.registers);
        if was_in_reset && !self.divider_in_reset() {
            let half = SECOND_NS / 2;
            let into_second = u128::from(self.now.0) % SECOND_NS;
            self.phase_ns = ((SECOND_NS + half - into_second) % SECOND_NS) as u32;
        }
        if !self.held() {
            self.adopt_time();
        }
    }

    /// Whether `value` of a time register satisfies its alarm register.
    fn alarm_matches(&self, alarm: usize, value: u8) -> bool {
        let alarm = self.registers[alarm];
        alarm >= 0xc0 || alarm == value
    }

    /// The first second after `unix` that satisfies the alarm.
    fn next_alarm(&self, unix: i64) -> Option<i64> {
        let day = unix.div_euclid(SECONDS_PER_DAY) * SECONDS_PER_DAY;
        let hours = (0..24).filter(|&h| self.alarm_matches(HOURS_ALARM, self.encode_hour(h)));
        let sixty = |alarm| (0..60).filter(move |&v| self.alarm_matches(alarm, self.encode(v)));
        let in_day: Vec<i64> = hours
            .flat_map(|h| sixty(MINUTES_ALARM).map(move |m| (h, m)))
            .map(|(h, m)| i64::from(h) * 3600 + i64::from(m) * 60)
            .collect();
        let first = sixty(SECONDS_ALARM).next()?;
        let last = sixty(SECONDS_ALARM).next_back()?;
        let minute_start = in_day
            .iter()
            .map(|minute| day + minute)
            .find(|minute| minute + i64::from(last) > unix);
        match minute_start {
            Some(minute) => sixty(SECONDS_ALARM)
                .map(|s| minute + i64::from(s))
                .find(|&at| at > unix),
            None => in_day
                .first()
                .map(|minute| day + SECONDS_PER_DAY + minute + i64::from(first)),
        }
    }

    /// The flags that are set by the passage of time from `self.now` to `to`.
    fn elapsed_flags(&self, to: VirtualNanos) -> u8 {
        let (from_ns, to_ns) = (self.divider_ns(self.now), self.divider_ns(to));
        let mut flags = 0;
        if let Some(period) = self.period() {
            let periods = |ns: u128| ns * CRYSTAL_HZ / SECOND_NS / period;
            if periods(from_ns) != periods(to_ns) {
                flags |= PERIODIC;
            }
        }
        if !self.held() && from_ns / SECOND_NS != to_ns / SECOND_NS {
            flags |= UPDATE;
            let alarm = self.next_alarm(self.unix_seconds(self.now));
            if alarm.is_some_and(|at| at <= self.unix_seconds(to)) {
                flags |= ALARM;
            }
        }
        flags
    }

    fn update_line(&mut self) {
        let high = self.registers[REGISTER_B] & self.registers[REGISTER_C] & 0x70 != 0;
        self.rose |= high && !self.high;
        self.high = high;
    }

    fn read_register(&mut self) -> u8 {
        let index = usize::from(self.index);
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY if !self.held() => {
                self.latch_time();
            }
            REGISTER_A => {
                let into_second = self.divider_ns(self.now) % SECOND_NS;
                let updating = !self.held() && into_second >= SECOND_NS - UPDATE_NS;
                let bit = if updating { A_UPDATE_IN_PROGRESS } else { 0 };
                return self.registers[REGISTER_A] | bit;
            }
            REGISTER_C => {
                let request = if self.high { C_REQUEST } else { 0 };
                return std::mem::take(&mut self.registers[REGISTER_C]) | request;
            }
            _ => {}
        }
        self.registers[index]
    }

    fn write_register(&mut self, value: u8) {
        match usize::from(self.index) {
            REGISTER_A => self.reconfigure(|r| r[REGISTER_A] = value & !A_UPDATE_IN_PROGRESS),
            REGISTER_B => self.reconfigure(|r| {
                // Setting the clock disables the update interrupt.
                let cleared = if value & B_SET != 0 {
                    B_UPDATE_INTERRUPT
                } else {
                    0
                };
                r[REGISTER_B] = value & !cleared;
            }),
            REGISTER_C | REGISTER_D => {}
            index @ (SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY) => {
                self.reconfigure(|r| r[index] = value);
            }
            index => self.registers[index] = value,
        }
    }

    /// The saved form.
    pub fn save(&self) -> SavedCmos {
        let Self {
            index,
            registers,
            offset_s,
            phase_ns,
            now,
            high,
            rose,
        } = *self;
        SavedCmos {
            index,
            registers,
            offset_s,
            phase_ns,
            now_ns: now.0,
            high,
            rose,
        }
    }

    /// The device in the saved state.
    ///
    /// # Errors
    /// [`InvalidSaved`] for a state the clock cannot be in.
    pub fn restore(saved: &SavedCmos) -> Result<Self, InvalidSaved> {
        let registers = saved.registers;
        require(saved.index < 128, "CMOS index")?;
        require(registers[REGISTER_A] & 0x80 == 0, "CMOS register A")?;
        require(registers[REGISTER_C] & !0x70 == 0, "CMOS register C")?;
        require(registers[REGISTER_D] == D_VALID, "CMOS register D")?;
        // Four-digit years lie well inside; sums stay far from overflow.
        require(saved.offset_s.unsigned_abs() < 1 << 41, "CMOS date")?;
        require(u128::from(saved.phase_ns) < SECOND_NS, "CMOS phase")?;
        Ok(Self {
            index: saved.index,
            registers,
            offset_s: saved.offset_s,
            phase_ns: saved.phase_ns,
            now: VirtualNanos(saved.now_ns),
            high: saved.high,
            rose: saved.rose,
        })
    }
}

impl Device for Cmos {
    fn read(&mut self, port: Port, now: VirtualNanos) -> u8 {
        self.advance(now);
        // The index port is write-only.
        let value = match port.0 {
            0x71 => self.read_register(),
            _ => 0xff,
        };
        self.update_line();
        value
    }

    fn write(&mut self, port: Port, value: u8, now: VirtualNanos) {
        self.advance(now);
        match port.0 {
            // Bit 7 masks NMI, of which this machine has none.
            0x70 => self.index = value & 0x7f,
            0x71 => self.write_register(value),
            _ => {}
        }
        self.update_line();
    }

    fn advance(&mut self, now: VirtualNanos) {
        if now > self.now {
            self.registers[REGISTER_C] |= self.elapsed_flags(now);
            self.now = now;
            self.update_line();
        }
    }

    fn next_deadline(&self) -> Option<VirtualNanos> {
        if self.high {
            return None;
        }
        let enabled = |bit| self.registers[REGISTER_B] & bit != 0;
        let divider = self.divider_ns(self.now);
        let period = self.period().filter(|_| enabled(PERIODIC));
        let periodic = period.map(|period| {
            let next = (divider * CRYSTAL_HZ / SECOND_NS / period + 1) * period;
            (next * SECOND_NS).div_ceil(CRYSTAL_HZ)
        });
        let running = !self.held();
        let update = (running && enabled(UPDATE)).then(|| (divider / SECOND_NS + 1) * SECOND_NS);
        let alarm = (running && enabled(ALARM))
            .then(|| self.next_alarm(self.unix_seconds(self.now)))
            .flatten()
            .and_then(|at| u128::try_from(at - self.offset_s).ok())
            .map(|divider_s| divider_s * SECOND_NS);
        [periodic, update, alarm]
            .into_iter()
            .flatten()
            .filter_map(|at| self.instant(at))
            .min()
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

    const SECOND: u64 = 1_000_000_000;

    fn cmos() -> Cmos {
        Cmos::new(256 << 20, DEFAULT_START_UNIX_S)
    }

    fn read(cmos: &mut Cmos, register: usize, now: u64) -> u8 {
        cmos.write(Port(0x70), register as u8, VirtualNanos(now));
        cmos.read(Port(0x71), VirtualNanos(now))
    }

    fn write(cmos: &mut Cmos, register: usize, value: u8, now: u64) {
        cmos.write(Port(0x70), register as u8, VirtualNanos(now));
        cmos.write(Port(0x71), value, VirtualNanos(now));
    }

    /// Century, year, month, day, hour, minute, second, weekday.
    fn time(cmos: &mut Cmos, now: u64) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY]
            .map(|register| read(cmos, register, now))
    }

    #[test]
    fn the_time_follows_virtual_time() {
        let mut cmos = cmos();
        assert_eq!(time(&mut cmos, 0), [0x20, 0x26, 1, 1, 0, 0, 0, 5]);
        let late = (59 * 86_400 - 1) * SECOND;
        let expected = [0x20, 0x26, 2, 0x28, 0x23, 0x59, 0x59, 7];
        assert_eq!(time(&mut cmos, late), expected);
        let next = late + SECOND;
        assert_eq!(time(&mut cmos, next), [0x20, 0x26, 3, 1, 0, 0, 0, 1]);
    }

    /// As on the chip, a change of format leaves the bytes and the guest sets the clock anew.
    #[test]
    fn binary_and_12_hour_formats() {
        let mut cmos = cmos();
        write(&mut cmos, REGISTER_B, B_BINARY, 0);
        assert_eq!(read(&mut cmos, YEAR, 0), 0x26);
        write(&mut cmos, REGISTER_B, B_SET | B_BINARY, 0);
        let set = [
            (CENTURY, 20),
            (YEAR, 31),
            (MONTH, 12),
            (DAY, 31),
            (HOURS, 12),
        ];
        for (register, value) in set {
            write(&mut cmos, register, value, 0);
        }
        write(&mut cmos, REGISTER_B, B_BINARY, 0);
        let afternoon = (13 * 3600 + 45 * 60) * SECOND;
        assert_eq!(time(&mut cmos, afternoon), [20, 31, 12, 31, 0x81, 45, 0, 4]);
        assert_eq!(read(&mut cmos, HOURS, 23 * 3600 * SECOND), 0x8b);
        assert_eq!(time(&mut cmos, 24 * 3600 * SECOND)[1..5], [32, 1, 1, 12]);
    }

    #[test]
    fn the_guest_sets_the_clock_as_linux_does() {
        let mut cmos = cmos();
        let now = 10 * SECOND + SECOND / 4;
        write(&mut cmos, REGISTER_B, B_24_HOURS | B_SET, now);
        write(&mut cmos, REGISTER_A, 0x76, now);
        for (register, value) in [
            (YEAR, 0x31),
            (MONTH, 0x12),
            (DAY, 0x31),
            (HOURS, 0x23),
            (MINUTES, 0x59),
            (SECONDS, 0x59),
        ] {
            write(&mut cmos, register, value, now);
        }
        // Held: neither time nor the written values move.
        let held = now + 100 * SECOND;
        let written = [0x20, 0x31, 0x12, 0x31, 0x23, 0x59, 0x59];
        assert_eq!(time(&mut cmos, held)[..7], written);
        write(&mut cmos, REGISTER_B, B_24_HOURS, held);
        write(&mut cmos, REGISTER_A, 0x26, held);
        // The divider starts half a second before the next update.
        let half = SECOND / 2;
        assert_eq!(time(&mut cmos, held + half - 1)[..7], written);
        let expected = [0x20, 0x32, 1, 1, 0, 0, 0, 5];
        assert_eq!(time(&mut cmos, held + half), expected);
    }

    #[test]
    fn an_update_is_announced() {
        let mut cmos = cmos();
        let uip = |cmos: &mut Cmos, now| read(cmos, REGISTER_A, now) & A_UPDATE_IN_PROGRESS != 0;
        assert!(!uip(&mut cmos, SECOND - 2_228_001));
        assert!(uip(&mut cmos, SECOND - 2_228_000));
        assert!(uip(&mut cmos, SECOND - 1));
        assert!(!uip(&mut cmos, SECOND));
    }

    #[test]
    fn each_interrupt_comes_when_it_is_due_and_register_c_ends_it() {
        let due = |enable: u8, expected: u64| {
            let mut cmos = cmos();
            write(&mut cmos, SECONDS_ALARM, 0x30, 0);
            write(&mut cmos, MINUTES_ALARM, 0xff, 0);
            write(&mut cmos, HOURS_ALARM, 0x02, 0);
            write(&mut cmos, REGISTER_B, B_24_HOURS | enable, 0);
            assert_eq!(cmos.next_deadline(), Some(VirtualNanos(expected)));
            cmos.advance(VirtualNanos(expected));
            assert!(cmos.take_line().rose);
            assert_eq!(cmos.next_deadline(), None);
            let flags = read(&mut cmos, REGISTER_C, expected);
            assert_eq!(flags & (enable | C_REQUEST), enable | C_REQUEST);
            assert_eq!(read(&mut cmos, REGISTER_C, expected), 0);
            assert!(!cmos.take_line().high);
            cmos
        };
        // 1,024 Hz: 976,562.5 ns.
        due(PERIODIC, 976_563);
        due(UPDATE, SECOND);
        let first = (2 * 3600 + 30) * SECOND;
        let cmos = due(ALARM, first);
        assert_eq!(
            cmos.next_deadline(),
            Some(VirtualNanos(first + 60 * SECOND))
        );
    }

    #[test]
    fn periodic_rates_as_in_the_data_sheet() {
        for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
            let mut cmos = cmos();
            write(&mut cmos, REGISTER_A, 0x20 | rate, 0);
            write(&mut cmos, REGISTER_B, PERIODIC, 0);
            let period = VirtualNanos(SECOND.div_ceil(hz));
            assert_eq!(cmos.next_deadline(), Some(period), "rate {rate}");
        }
    }

    #[test]
    fn memory_sizes_are_in_the_memory() {
        let word =
            |cmos: &mut Cmos, at| u16::from_le_bytes([read(cmos, at, 0), read(cmos, at + 1, 0)]);
        let mut small = Cmos::new(8 << 20, 0);
        assert_eq!(word(&mut small, 0x15), 640);
        assert_eq!(word(&mut small, 0x17), 7 * 1024);
        assert_eq!(word(&mut small, 0x34), 0);
        let mut large = cmos();
        assert_eq!(word(&mut large, 0x17), 0xffff);
        assert_eq!(word(&mut large, 0x34), 240 * 16);
        write(&mut large, 0x40, 0x77, 0);
        assert_eq!(read(&mut large, 0x40, 99), 0x77);
    }
}
