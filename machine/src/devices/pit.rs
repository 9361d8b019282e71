//! The 8254 programmable interval timer (Intel 8254 data sheet, order 231164) and the system control
//! port 0x61 that gates channel 2.
//!
//! Nothing here counts: all outputs and counts are functions of what the guest wrote and of the
//! number of clock ticks since the machine started. Channel 0 drives IRQ0, channel 1 stands for the
//! memory refresh timer (only the toggle in port 0x61 is visible), channel 2 the speaker.
//!
//! A count of 1, which the data sheet forbids in modes 2 and 3, acts as 2 there.

mod channel;

use crate::devices::{Device, Line};
use crate::saved::devices::SavedPit;
use crate::saved::{InvalidSaved, require};
use crate::units::{Port, VirtualNanos};
use channel::{Access, Channel};

/// Frequency of the clock input in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// Ticks of the refresh timer per half period of the toggle in port 0x61: about 15.09 µs.
const REFRESH_TICKS: u64 = 18;

const NANOS: u128 = 1_000_000_000;

/// Whole ticks since the machine started.
fn tick_at(now: VirtualNanos) -> i64 {
    // At most 2^64 ns, so at most 2.3e16 ticks.
    (u128::from(now.0) * u128::from(PIT_HZ) / NANOS) as i64
}

/// The first instant at which [`tick_at`] is `tick`, if virtual time reaches it.
fn time_of(tick: i64) -> Option<VirtualNanos> {
    let tick = u128::try_from(tick).ok()?;
    u64::try_from((tick * NANOS).div_ceil(u128::from(PIT_HZ)))
        .ok()
        .map(VirtualNanos)
}

/// The timer: ports 0x40 to 0x43 and 0x61, IRQ0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pit {
    channels: [Channel; 3],
    /// Speaker data enable, port 0x61 bit 1.
    speaker: bool,
    /// The tick up to which everything is accounted for.
    tick: i64,
    /// OUT of channel 0 rose since the line was last taken.
    rose: bool,
}

impl Default for Pit {
    fn default() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            tick: 0,
            rose: false,
        }
    }
}

impl Pit {
    /// Runs a guest access to the channels and notes whether it raised OUT of channel 0.
    fn changing<T>(&mut self, access: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.channels[0].output(self.tick);
        let result = access(self);
        self.rose |= !before && self.channels[0].output(self.tick);
        result
    }

    fn write_control(&mut self, value: u8) {
        let tick = self.tick;
        let channel = usize::from(value >> 6);
        let access = match value >> 4 & 3 {
            _ if channel == 3 => return self.read_back(value),
            0 => return self.channels[channel].latch_count(tick),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.changing(|pit| pit.channels[channel].write_control(access, value));
    }

    fn read_back(&mut self, command: u8) {
        let tick = self.tick;
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if command & (2 << index) == 0 {
                continue;
            }
            if command & 0x20 == 0 {
                channel.latch_count(tick);
            }
            if command & 0x10 == 0 {
                channel.latch_status(tick);
            }
        }
    }

    fn system_control(&self) -> u8 {
        let refresh = (self.tick as u64 / REFRESH_TICKS) & 1 != 0;
        u8::from(self.channels[2].gate)
            | u8::from(self.speaker) << 1
            | u8::from(refresh) << 4
            | u8::from(self.channels[2].output(self.tick)) << 5
    }

    /// The saved form.
    pub fn save(&self) -> SavedPit {
        let Self {
            channels,
            speaker,
            tick,
            rose,
        } = self;
        SavedPit {
            channels: [channels[0].save(), channels[1].save(), channels[2].save()],
            speaker: *speaker,
            tick: *tick,
            rose: *rose,
        }
    }

    /// The device in the saved state.
    ///
    /// # Errors
    /// [`InvalidSaved`] for a state the timer cannot be in.
    pub fn restore(saved: &SavedPit) -> Result<Self, InvalidSaved> {
        require((0..1 << 60).contains(&saved.tick), "PIT tick")?;
        let channel = |i: usize| Channel::restore(&saved.channels[i]);
        Ok(Self {
            channels: [channel(0)?, channel(1)?, channel(2)?],
            speaker: saved.speaker,
            tick: saved.tick,
            rose: saved.rose,
        })
    }
}

impl Device for Pit {
    fn read(&mut self, port: Port, now: VirtualNanos) -> u8 {
        self.advance(now);
        match port.0 {
            0x40..=0x42 => self.channels[usize::from(port.0 - 0x40)].read(self.tick),
            0x61 => self.system_control(),
            _ => 0xff,
        }
    }

    fn write(&mut self, port: Port, value: u8, now: VirtualNanos) {
        self.advance(now);
        let tick = self.tick;
        match port.0 {
            0x40..=0x42 => {
                let channel = usize::from(port.0 - 0x40);
                self.changing(|pit| pit.channels[channel].write(value, tick));
            }
            0x43 => self.write_control(value),
            0x61 => {
                self.speaker = value & 2 != 0;
                self.channels[2].set_gate(value & 1 != 0, tick);
            }
            _ => {}
        }
    }

    fn advance(&mut self, now: VirtualNanos) {
        let to = tick_at(now);
        if to <= self.tick {
            return;
        }
        // OUT alternates, so its next two changes hold a rise if there is one.
        let mut at = self.tick;
        for _ in 0..2 {
            let Some(change) = self.channels[0].next_change(at).filter(|&t| t <= to) else {
                break;
            };
            self.channels[0].settle(at, change);
            at = change;
            self.rose |= self.channels[0].output(at);
        }
        self.channels[0].settle(at, to);
        for channel in &mut self.channels[1..] {
            channel.settle(self.tick, to);
        }
        self.tick = to;
    }

    fn next_deadline(&self) -> Option<VirtualNanos> {
        self.channels[0].next_change(self.tick).and_then(time_of)
    }

    fn take_line(&mut self) -> Line {
        Line {
            high: self.channels[0].output(self.tick),
            rose: std::mem::take(&mut self.rose),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A timer at tick 1000 with `control` and `count` written to a channel; the count is loaded at
    /// tick 1001.
    fn programmed(channel: u8, control: u8, count: u16) -> Pit {
        let mut pit = Pit::default();
        write(&mut pit, 1000, 0x43, channel << 6 | 0x30 | control);
        for byte in count.to_le_bytes() {
            write(&mut pit, 1000, 0x40 + u16::from(channel), byte);
        }
        pit
    }

    fn at(tick: i64) -> VirtualNanos {
        time_of(tick).unwrap()
    }

    fn write(pit: &mut Pit, tick: i64, port: u16, value: u8) {
        pit.write(Port(port), value, at(tick));
    }

    /// OUT of a channel at each of some ticks after the load, as text.
    fn wave(pit: &Pit, channel: usize, ticks: i64) -> String {
        let mut pit = pit.clone();
        (0..ticks)
            .map(|tick| {
                pit.advance(at(1001 + tick));
                let high = pit.channels[channel].output(pit.tick);
                if high { '-' } else { '_' }
            })
            .collect()
    }

    fn count(pit: &mut Pit, tick: i64, channel: u8) -> u16 {
        write(pit, tick, 0x43, channel << 6);
        let port = Port(0x40 + u16::from(channel));
        // Later reads give the latched value.
        let low = pit.read(port, at(tick + 1));
        u16::from_le_bytes([low, pit.read(port, at(tick + 2))])
    }

    #[test]
    fn each_mode_has_its_wave() {
        for (mode, expected) in [
            (0, "_____-----------"),
            (2, "----_----_----_-"),
            (3, "---__---__---__-"),
            (4, "-----_----------"),
        ] {
            let pit = programmed(0, mode << 1, 5);
            assert_eq!(wave(&pit, 0, 16), expected, "mode {mode}");
        }
        // Nothing triggers the gate of channel 0.
        for mode in [1, 5] {
            let pit = programmed(0, mode << 1, 5);
            assert_eq!(wave(&pit, 0, 16), "----------------", "mode {mode}");
        }
    }

    #[test]
    fn the_gate_of_channel_2_triggers_restarts_and_stops() {
        for (mode, open, reopened) in [
            (0, "_____-------", "____________"),
            (1, "_____-------", "_____-------"),
            (2, "----_----_--", "------------"),
            (3, "---__---__--", "------------"),
            (4, "-----_------", "------------"),
            (5, "-----_------", "-----_------"),
        ] {
            let mut pit = programmed(2, mode << 1, 5);
            write(&mut pit, 1000, 0x61, 1);
            assert_eq!(wave(&pit, 2, 12), open, "mode {mode}");
            write(&mut pit, 1000, 0x61, 0);
            assert_eq!(wave(&pit, 2, 12), reopened, "mode {mode}, gate low");
        }
    }

    #[test]
    fn a_pause_by_the_gate_keeps_the_count_of_mode_0() {
        let mut pit = programmed(2, 0, 100);
        write(&mut pit, 1000, 0x61, 1);
        write(&mut pit, 1031, 0x61, 0);
        assert_eq!(count(&mut pit, 5000, 2), 70);
        write(&mut pit, 6000, 0x61, 1);
        assert_eq!(count(&mut pit, 6010, 2), 60);
        let out = |pit: &mut Pit, tick| pit.read(Port(0x61), at(tick)) & 0x20 != 0;
        assert!(!out(&mut pit, 6069));
        assert!(out(&mut pit, 6070));
    }

    #[test]
    fn counts_run_down_and_latches_hold() {
        let mut rate = programmed(0, 0x04, 1000);
        assert_eq!(count(&mut rate, 1001, 0), 1000);
        assert_eq!(count(&mut rate, 1010, 0), 991);
        assert_eq!(count(&mut rate, 2000, 0), 1);
        assert_eq!(count(&mut rate, 2003, 0), 998);
        let mut square = programmed(0, 0x06, 1000);
        assert_eq!(count(&mut square, 1011, 0), 980);
        assert_eq!(count(&mut square, 1501, 0), 1000);
        let mut once = programmed(0, 0x00, 10);
        assert_eq!(count(&mut once, 1012, 0), 0xffff);
        let mut decimal = programmed(0, 0x05, 0x1234);
        assert_eq!(count(&mut decimal, 1001, 0), 0x1234);
        assert_eq!(count(&mut decimal, 1006, 0), 0x1229);
    }

    #[test]
    fn a_new_count_waits_for_the_end_of_the_period() {
        let mut pit = programmed(0, 0x04, 5);
        write(&mut pit, 1002, 0x40, 3);
        write(&mut pit, 1002, 0x40, 0);
        assert_eq!(wave(&pit, 0, 12), "----_--_--_-");
        let mut pit = programmed(0, 0x06, 6);
        write(&mut pit, 1002, 0x40, 4);
        write(&mut pit, 1002, 0x40, 0);
        assert_eq!(wave(&pit, 0, 12), "---__--__--_");
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let mut pit = programmed(0, 0x04, 0x0203);
        write(&mut pit, 1000, 0x43, 0xc2);
        write(&mut pit, 1500, 0x43, 0xc2);
        let read = |pit: &mut Pit| pit.read(Port(0x40), at(1600));
        // OUT high, count not loaded yet, both bytes, mode 2.
        assert_eq!(read(&mut pit), 0xf4);
        assert_eq!([read(&mut pit), read(&mut pit)], [0x03, 0x02]);
        write(&mut pit, 1600, 0x43, 0xe2);
        assert_eq!(read(&mut pit), 0xb4);
    }

    #[test]
    fn single_byte_access_sets_the_other_byte_to_zero() {
        let mut pit = Pit::default();
        write(&mut pit, 1000, 0x43, 0x14);
        write(&mut pit, 1000, 0x40, 7);
        assert_eq!(pit.read(Port(0x40), at(1003)), 5);
        write(&mut pit, 1003, 0x43, 0x24);
        write(&mut pit, 1003, 0x40, 7);
        assert_eq!(pit.read(Port(0x40), at(1005)), 6);
    }

    #[test]
    fn port_61_toggles_with_the_memory_refresh() {
        let mut pit = Pit::default();
        let changes = (0..1800)
            .map(|tick| pit.read(Port(0x61), at(tick)) & 0x10)
            .collect::<Vec<_>>()
            .windows(2)
            .filter(|pair| pair[0] != pair[1])
            .count();
        assert_eq!(changes, 1799 / 18);
    }

    #[test]
    fn ticks_and_times_are_exact() {
        for tick in [1, 2, 1_193_181, 1_193_182, 4_000_000_000_000_000] {
            let time = at(tick);
            assert_eq!(tick_at(time), tick);
            assert_eq!(tick_at(VirtualNanos(time.0 - 1)), tick - 1);
        }
        assert_eq!(tick_at(VirtualNanos(1_000_000_000)), 1_193_182);
        assert_eq!(time_of(i64::MAX), None);
    }
}
