//! One channel of the timer, as a function of the clock tick.

use crate::saved::devices::{SavedPitChannel, SavedPitRun};
use crate::saved::{InvalidSaved, require};

/// Which bytes of a count the guest reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Access {
    Low = 1,
    High = 2,
    Both = 3,
}

/// What the counting element does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// Waits for a count or a trigger; the output rests.
    Idle,
    /// `reload` was or will be in the counter at tick `origin`.
    Counting { origin: i64, reload: u32 },
    /// The gate stopped it `elapsed` ticks after the load (negative: before it).
    Paused { elapsed: i64, reload: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Channel {
    mode: u8,
    access: Access,
    bcd: bool,
    pub(super) gate: bool,
    /// The count register in clock ticks, once one was written under the current mode.
    count: Option<u32>,
    /// A count that replaces the running one at the end of the (half) period, modes 2 and 3.
    next_reload: Option<u32>,
    run: Run,
    /// The low byte of a two-byte count that is being written.
    written_low: Option<u8>,
    /// The next read of a two-byte count gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    /// As firmware leaves the channels: mode 3 with the longest period.
    pub(super) fn new(gate: bool) -> Self {
        let run = if gate {
            Run::Counting {
                origin: 0,
                reload: 0x1_0000,
            }
        } else {
            Run::Idle
        };
        Self {
            mode: 3,
            access: Access::Both,
            bcd: false,
            gate,
            count: Some(0x1_0000),
            next_reload: None,
            run,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Ticks until the counter has wrapped once.
    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Ticks of the high half of the square wave.
    fn high_half(reload: u32) -> i64 {
        i64::from(reload.div_ceil(2))
    }

    /// The tick after `tick` at which a waiting count is loaded, if one waits.
    fn switch_tick(&self, tick: i64) -> Option<i64> {
        self.next_reload?;
        let Run::Counting { origin, reload } = self.run else {
            return None;
        };
        let elapsed = tick - origin;
        let period = i64::from(reload);
        let start = if elapsed < 0 {
            origin
        } else {
            tick - elapsed % period
        };
        let half = start + Self::high_half(reload);
        Some(if self.mode == 3 && tick < half {
            half
        } else {
            start + period
        })
    }

    /// Brings the channel from a state that is right at `from` to `to`: loads a count whose time came.
    pub(super) fn settle(&mut self, from: i64, to: i64) {
        let Some(switch) = self.switch_tick(from).filter(|&switch| switch <= to) else {
            return;
        };
        let Some(reload) = self.next_reload else {
            return;
        };
        // A square wave that has ended its high half goes on with the low half of the new count.
        let into_low_half = self.mode == 3 && !self.output(switch);
        let origin = if into_low_half {
            switch - Self::high_half(reload)
        } else {
            switch
        };
        self.next_reload = None;
        self.run = Run::Counting { origin, reload };
    }

    /// Level of OUT at a tick for which the channel is settled.
    pub(super) fn output(&self, tick: i64) -> bool {
        let (elapsed, reload) = match self.run {
            Run::Idle => return self.mode != 0,
            Run::Counting { origin, reload } => (tick - origin, reload),
            Run::Paused { elapsed, reload } => (elapsed, reload),
        };
        let period = i64::from(reload);
        match self.mode {
            0 => elapsed >= period,
            1 => elapsed < 0 || elapsed >= period,
            2 => elapsed < 0 || elapsed % period != period - 1,
            3 => elapsed < 0 || elapsed % period < Self::high_half(reload),
            _ => elapsed != period,
        }
    }

    /// The first tick after `tick` at which OUT changes.
    pub(super) fn next_change(&self, tick: i64) -> Option<i64> {
        let Run::Counting { origin, reload } = self.run else {
            return None;
        };
        let period = i64::from(reload);
        let elapsed = tick - origin;
        let within = if elapsed < 0 { 0 } else { elapsed % period };
        let start = if elapsed < 0 { origin } else { tick - within };
        let candidates = match self.mode {
            0 => [origin + period; 2],
            1 => [origin, origin + period],
            2 => [start + period - 1, start + period],
            3 => [start + Self::high_half(reload), start + period],
            _ => [origin + period, origin + period + 1],
        };
        candidates.into_iter().find(|&change| change > tick)
    }

    /// The counting element as the guest reads it.
    fn current_count(&self, tick: i64) -> u16 {
        let (elapsed, reload) = match self.run {
            Run::Idle => return self.encode(self.count.unwrap_or(0)),
            Run::Counting { origin, reload } => ((tick - origin).max(0), reload),
            Run::Paused { elapsed, reload } => (elapsed.max(0), reload),
        };
        let period = i64::from(reload);
        let value = match self.mode {
            2 => period - elapsed % period,
            3 => {
                let within = elapsed % period;
                let half = Self::high_half(reload);
                let into_half = if within < half { within } else { within - half };
                (period & !1) - 2 * into_half
            }
            _ => (period - elapsed).rem_euclid(i64::from(self.modulus())),
        };
        self.encode(value as u32)
    }

    /// A number of ticks as register content; the modulus reads as 0.
    fn encode(&self, ticks: u32) -> u16 {
        if !self.bcd {
            return ticks as u16;
        }
        (0..4).fold(0, |bcd, digit| {
            bcd | ((ticks / 10_u32.pow(digit) % 10) << (4 * digit)) as u16
        })
    }

    /// Register content as a number of ticks; 0 stands for the modulus.
    fn decode(&self, register: u16) -> u32 {
        let ticks = if self.bcd {
            (0..4).fold(0, |sum, digit| {
                sum + u32::from(register >> (4 * digit) & 0xf) * 10_u32.pow(digit)
            }) % 10_000
        } else {
            u32::from(register)
        };
        match (ticks, self.mode) {
            (0, _) => self.modulus(),
            (1, 2 | 3) => 2,
            _ => ticks,
        }
    }

    fn status(&self, tick: i64) -> u8 {
        let loaded = match self.run {
            Run::Idle => false,
            Run::Counting { origin, .. } => tick >= origin,
            Run::Paused { elapsed, .. } => elapsed >= 0,
        };
        let null_count = !loaded || self.next_reload.is_some();
        u8::from(self.output(tick)) << 7
            | u8::from(null_count) << 6
            | (self.access as u8) << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    pub(super) fn write_control(&mut self, access: Access, control: u8) {
        let mode = match control >> 1 & 7 {
            mode @ 0..=5 => mode,
            // The top bit is ignored for modes 2 and 3.
            mode => mode & 3,
        };
        *self = Self {
            mode,
            access,
            bcd: control & 1 != 0,
            count: None,
            run: Run::Idle,
            ..Self::new(self.gate)
        };
    }

    pub(super) fn write(&mut self, value: u8, tick: i64) {
        let register = match (self.access, self.written_low.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.written_low = Some(value);
                if self.mode == 0 {
                    self.run = Run::Idle;
                }
                return;
            }
        };
        self.load(self.decode(register), tick);
    }

    /// A complete new count.
    fn load(&mut self, reload: u32, tick: i64) {
        self.count = Some(reload);
        match (self.mode, self.run) {
            (0 | 4, _) if self.gate => self.start(reload, tick),
            (0 | 4, _) => {
                self.run = Run::Paused {
                    elapsed: -1,
                    reload,
                };
            }
            (2 | 3, Run::Counting { origin, .. }) if origin <= tick => {
                self.next_reload = Some(reload)
            }
            (2 | 3, _) if self.gate => self.start(reload, tick),
            // Modes 1 and 5 wait for the trigger, modes 2 and 3 for the gate.
            _ => {}
        }
    }

    /// Loads on the next clock pulse.
    fn start(&mut self, reload: u32, tick: i64) {
        self.next_reload = None;
        self.run = Run::Counting {
            origin: tick + 1,
            reload,
        };
    }

    pub(super) fn set_gate(&mut self, high: bool, tick: i64) {
        if high == std::mem::replace(&mut self.gate, high) {
            return;
        }
        match (high, self.mode, self.run, self.count) {
            (true, 0 | 4, Run::Paused { elapsed, reload }, _) => {
                self.run = Run::Counting {
                    origin: tick - elapsed,
                    reload,
                };
            }
            (true, 1 | 2 | 3 | 5, _, Some(reload)) => self.start(reload, tick),
            (false, 0 | 4, Run::Counting { origin, reload }, _) => {
                self.run = Run::Paused {
                    elapsed: tick - origin,
                    reload,
                };
            }
            (false, 2 | 3, ..) => {
                self.run = Run::Idle;
                self.next_reload = None;
            }
            _ => {}
        }
    }

    pub(super) fn latch_count(&mut self, tick: i64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.current_count(tick));
        }
    }

    pub(super) fn latch_status(&mut self, tick: i64) {
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(tick));
        }
    }

    pub(super) fn read(&mut self, tick: i64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.current_count(tick))
            .to_le_bytes();
        let give_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if !self.read_high {
            self.latched_count = None;
        }
        if give_high { high } else { low }
    }

    pub(super) fn save(&self) -> SavedPitChannel {
        let Self {
            mode,
            access,
            bcd,
            gate,
            count,
            next_reload,
            run,
            written_low,
            read_high,
            latched_count,
            latched_status,
        } = *self;
        let (kind, tick, reload) = match run {
            Run::Idle => (0, 0, 0),
            Run::Counting { origin, reload } => (1, origin, reload),
            Run::Paused { elapsed, reload } => (2, elapsed, reload),
        };
        SavedPitChannel {
            mode,
            access: access as u8,
            bcd,
            gate,
            count,
            next_reload,
            run: SavedPitRun { kind, tick, reload },
            written_low,
            read_high,
            latched_count,
            latched_status,
        }
    }

    pub(super) fn restore(saved: &SavedPitChannel) -> Result<Self, InvalidSaved> {
        let valid = |ticks: u32| {
            let least = if matches!(saved.mode, 2 | 3) { 2 } else { 1 };
            let most = if saved.bcd { 10_000 } else { 0x1_0000 };
            (least..=most).contains(&ticks)
        };
        let SavedPitRun { kind, tick, reload } = saved.run;
        // Far beyond what virtual time reaches, and far from overflow.
        let near = tick.unsigned_abs() < 1 << 60;
        let idle = (kind, tick, reload) == (0, 0, 0);
        require(idle || (kind != 0 && near && valid(reload)), "PIT run")?;
        require(saved.count.is_none_or(valid), "PIT count")?;
        require(saved.next_reload.is_none_or(valid), "PIT next count")?;
        require(saved.mode <= 5, "PIT mode")?;
        require(saved.access == 3 || !saved.read_high, "PIT read order")?;
        Ok(Self {
            mode: saved.mode,
            access: match saved.access {
                1 => Access::Low,
                2 => Access::High,
                3 => Access::Both,
                _ => return Err(InvalidSaved("PIT access")),
            },
            bcd: saved.bcd,
            gate: saved.gate,
            count: saved.count,
            next_reload: saved.next_reload,
            run: match kind {
                0 => Run::Idle,
                1 => Run::Counting {
                    origin: tick,
                    reload,
                },
                2 => Run::Paused {
                    elapsed: tick,
                    reload,
                },
                _ => return Err(InvalidSaved("PIT run")),
            },
            written_low: saved.written_low,
            read_high: saved.read_high,
            latched_count: saved.latched_count,
            latched_status: saved.latched_status,
        })
    }
}
