//! The devices of the machine. Each is a function of (saved state, guest access, host input, virtual
//! time): none reads a clock, has a thread or does I/O of its own.

pub mod cmos;
pub mod keyboard;
pub mod pic;
pub mod pit;
pub mod uart;

#[cfg(test)]
mod contract;

use crate::units::{Port, VirtualNanos};

/// An interrupt output since it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Its level now.
    pub high: bool,
    /// Whether it rose in between, even if it was high before and is high or low now.
    pub rose: bool,
}

/// A device with byte-wide ports and one interrupt output.
///
/// Time never runs backwards: an instant before the latest one seen counts as that one.
pub trait Device {
    /// The guest reads a byte. Ports that are not the device's read as all ones.
    fn read(&mut self, port: Port, now: VirtualNanos) -> u8;

    /// The guest writes a byte. Ports that are not the device's are ignored.
    fn write(&mut self, port: Port, value: u8, now: VirtualNanos);

    /// Lets time pass.
    fn advance(&mut self, now: VirtualNanos);

    /// The next instant at which the interrupt output may change although nobody touches the device.
    /// Later than the latest instant seen; at each earlier instant the output is as it is now.
    fn next_deadline(&self) -> Option<VirtualNanos>;

    /// The interrupt output since the last call.
    fn take_line(&mut self) -> Line;
}
