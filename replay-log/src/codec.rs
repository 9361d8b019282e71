//! Events as bytes. Delta coding starts afresh in each frame, so that frames decode alone.

use crate::event::{
    Async, Content, ContentId, Effect, End, EndReason, Event, Read, ReadSource, VcpuId,
};
use crate::position::{Check, EventPosition, Fingerprint, IoSteps, Landmark};
use machine::units::{Gfn, GuestPhys, PAGE_BYTES, Port, Position, Vector, VirtualNanos};

const TAG_PORT_READ: u8 = 1;
const TAG_MMIO_READ: u8 = 2;
const TAG_TIMESTAMP_READ: u8 = 3;
const TAG_INTERRUPT: u8 = 4;
const TAG_WRITE_INLINE: u8 = 5;
const TAG_WRITE_PAGE: u8 = 6;

const POSITION_COUNT: u8 = 0;
const POSITION_AFTER_IO: u8 = 1;
const POSITION_WINDOW: u8 = 2;
const POSITION_LANDMARK: u8 = 3;
const POSITION_FOLLOWS: u8 = 4;

const FINGERPRINT_PAGE: u8 = 1;
const FINGERPRINT_TABLE: u8 = 2;
const FINGERPRINT_WORD: u8 = 3;

/// What deltas are taken against; all zero at the start of a frame.
#[derive(Default)]
struct Previous {
    rip: u64,
    steps: u64,
    io_steps: u64,
    timestamp: u64,
}

/// Appends events to a frame.
#[derive(Default)]
pub(crate) struct Encoder {
    pub(crate) bytes: Vec<u8>,
    previous: Previous,
}

fn zigzag(delta: i64) -> u64 {
    ((delta << 1) ^ (delta >> 63)) as u64
}

fn unzigzag(coded: u64) -> i64 {
    (coded >> 1) as i64 ^ -((coded & 1) as i64)
}

impl Encoder {
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Read(read) => self.read(read),
            Event::Async(event) => self.asynchronous(event),
        }
    }

    pub(crate) fn end(&mut self, end: &End) {
        let End {
            vcpu,
            at,
            check,
            reason,
            time,
        } = end;
        self.varint(u64::from(vcpu.0));
        self.position(at);
        self.check(check);
        self.bytes.push(match reason {
            EndReason::Checkpoint => 0,
            EndReason::PoweredOff => 1,
            EndReason::Reset => 2,
            EndReason::Shutdown => 3,
            EndReason::Stopped => 4,
            EndReason::Idle => 5,
        });
        self.varint(time.0);
    }

    fn read(&mut self, read: &Read) {
        let Read {
            vcpu,
            source,
            rip,
            value,
        } = read;
        self.bytes.push(match source {
            ReadSource::Port { .. } => TAG_PORT_READ,
            ReadSource::Mmio { .. } => TAG_MMIO_READ,
            ReadSource::Timestamp => TAG_TIMESTAMP_READ,
        });
        self.varint(u64::from(vcpu.0));
        self.rip(*rip);
        match source {
            ReadSource::Port { port, size } => {
                self.bytes.extend_from_slice(&port.0.to_le_bytes());
                self.bytes.push(*size);
                self.varint(*value);
            }
            ReadSource::Mmio { address, size } => {
                self.varint(address.0);
                self.bytes.push(*size);
                self.varint(*value);
            }
            ReadSource::Timestamp => {
                let delta = value.wrapping_sub(self.previous.timestamp);
                self.previous.timestamp = *value;
                self.varint(zigzag(delta as i64));
            }
        }
    }

    fn asynchronous(&mut self, event: &Async) {
        let Async {
            vcpu,
            at,
            check,
            effect,
        } = event;
        self.bytes.push(match effect {
            Effect::Interrupt(_) => TAG_INTERRUPT,
            Effect::Write {
                content: Content::Inline(_),
                ..
            } => TAG_WRITE_INLINE,
            Effect::Write {
                content: Content::Page { .. },
                ..
            } => TAG_WRITE_PAGE,
        });
        self.varint(u64::from(vcpu.0));
        self.position(at);
        self.check(check);
        match effect {
            Effect::Interrupt(vector) => self.bytes.push(vector.0),
            Effect::Write { to, content } => {
                self.varint(to.0);
                self.content(content);
            }
        }
    }

    fn content(&mut self, content: &Content) {
        match content {
            Content::Inline(bytes) => {
                self.varint(bytes.len() as u64);
                self.bytes.extend_from_slice(bytes);
            }
            Content::Page { id, offset, bytes } => {
                self.bytes.extend_from_slice(&id.0);
                self.varint(u64::from(*offset));
                self.varint(u64::from(*bytes));
            }
        }
    }

    fn position(&mut self, position: &EventPosition) {
        match position {
            EventPosition::Count(at) => {
                self.bytes.push(POSITION_COUNT);
                let delta = at.steps.0.wrapping_sub(self.previous.steps);
                self.previous.steps = at.steps.0;
                self.varint(zigzag(delta as i64));
                self.varint(at.rep_iterations);
            }
            EventPosition::AfterIo(n) => {
                self.bytes.push(POSITION_AFTER_IO);
                self.io_steps(*n);
            }
            EventPosition::Window(n) => {
                self.bytes.push(POSITION_WINDOW);
                self.io_steps(*n);
            }
            EventPosition::Landmark(landmark) => {
                self.bytes.push(POSITION_LANDMARK);
                self.landmark(landmark);
            }
            EventPosition::Follows => self.bytes.push(POSITION_FOLLOWS),
        }
    }

    fn landmark(&mut self, landmark: &Landmark) {
        let Landmark {
            io_steps,
            gpr,
            rflags,
            state,
            memory,
        } = landmark;
        self.io_steps(*io_steps);
        gpr.iter().for_each(|register| self.quad(*register));
        self.quad(*rflags);
        self.bytes.extend_from_slice(state);
        self.varint(memory.len() as u64);
        memory.iter().for_each(|fact| self.fingerprint(fact));
    }

    fn fingerprint(&mut self, fact: &Fingerprint) {
        let (tag, gfn, hash) = match fact {
            Fingerprint::Page { gfn, hash } => (FINGERPRINT_PAGE, gfn, hash),
            Fingerprint::Table { gfn, hash } => (FINGERPRINT_TABLE, gfn, hash),
            Fingerprint::Word { address, value } => {
                self.bytes.push(FINGERPRINT_WORD);
                self.varint(address.0);
                return self.quad(*value);
            }
        };
        self.bytes.push(tag);
        self.varint(gfn.0);
        self.bytes.extend_from_slice(hash);
    }

    fn check(&mut self, check: &Check) {
        let Check {
            rip,
            rcx,
            registers,
        } = check;
        self.rip(*rip);
        self.varint(*rcx);
        self.quad(*registers);
    }

    fn rip(&mut self, rip: u64) {
        let delta = rip.wrapping_sub(self.previous.rip);
        self.previous.rip = rip;
        self.varint(zigzag(delta as i64));
    }

    fn io_steps(&mut self, n: IoSteps) {
        let delta = n.0.wrapping_sub(self.previous.io_steps);
        self.previous.io_steps = n.0;
        self.varint(zigzag(delta as i64));
    }

    fn quad(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

/// Why the content of a frame, whose checksum held, is not a list of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Takes events from the content of a frame.
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
    previous: Previous,
}

type Decoded<T> = Result<T, Malformed>;

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            previous: Previous::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn event(&mut self) -> Decoded<Event> {
        match self.byte()? {
            tag @ (TAG_PORT_READ | TAG_MMIO_READ | TAG_TIMESTAMP_READ) => {
                self.read(tag).map(Event::Read)
            }
            tag @ (TAG_INTERRUPT | TAG_WRITE_INLINE | TAG_WRITE_PAGE) => {
                self.asynchronous(tag).map(Event::Async)
            }
            _ => Err(Malformed("unknown event kind")),
        }
    }

    pub(crate) fn end(&mut self) -> Decoded<End> {
        Ok(End {
            vcpu: self.vcpu()?,
            at: self.position()?,
            check: self.check()?,
            reason: match self.byte()? {
                0 => EndReason::Checkpoint,
                1 => EndReason::PoweredOff,
                2 => EndReason::Reset,
                3 => EndReason::Shutdown,
                4 => EndReason::Stopped,
                5 => EndReason::Idle,
                _ => return Err(Malformed("unknown reason of the end")),
            },
            time: VirtualNanos(self.varint()?),
        })
    }

    fn read(&mut self, tag: u8) -> Decoded<Read> {
        let vcpu = self.vcpu()?;
        let rip = self.rip()?;
        let (source, value) = match tag {
            TAG_PORT_READ => {
                let port = Port(u16::from_le_bytes(self.array()?));
                let size = self.byte()?;
                if !matches!(size, 1 | 2 | 4) {
                    return Err(Malformed("port read of an impossible size"));
                }
                (ReadSource::Port { port, size }, self.varint()?)
            }
            TAG_MMIO_READ => {
                let address = GuestPhys(self.varint()?);
                let size = self.byte()?;
                if !matches!(size, 1..=8) {
                    return Err(Malformed("MMIO read of an impossible size"));
                }
                (ReadSource::Mmio { address, size }, self.varint()?)
            }
            _ => {
                let delta = unzigzag(self.varint()?);
                let value = self.previous.timestamp.wrapping_add(delta as u64);
                self.previous.timestamp = value;
                (ReadSource::Timestamp, value)
            }
        };
        Ok(Read {
            vcpu,
            source,
            rip,
            value,
        })
    }

    fn asynchronous(&mut self, tag: u8) -> Decoded<Async> {
        let vcpu = self.vcpu()?;
        let at = self.position()?;
        let check = self.check()?;
        let effect = if tag == TAG_INTERRUPT {
            Effect::Interrupt(Vector(self.byte()?))
        } else {
            Effect::Write {
                to: GuestPhys(self.varint()?),
                content: self.content(tag)?,
            }
        };
        Ok(Async {
            vcpu,
            at,
            check,
            effect,
        })
    }

    fn content(&mut self, tag: u8) -> Decoded<Content> {
        let content = if tag == TAG_WRITE_INLINE {
            let bytes = self.varint()?;
            if bytes > Content::INLINE_MAX as u64 {
                return Err(Malformed("inline content over the limit"));
            }
            Content::Inline(self.take(bytes as usize)?.to_vec())
        } else {
            Content::Page {
                id: ContentId(self.array()?),
                offset: self.below_page()?,
                bytes: self.below_page()?,
            }
        };
        if !content.is_valid() {
            return Err(Malformed("content runs past the end of its page"));
        }
        Ok(content)
    }

    fn below_page(&mut self) -> Decoded<u16> {
        match self.varint()? {
            value @ 0..=PAGE_BYTES => Ok(value as u16),
            _ => Err(Malformed("offset or length beyond a page")),
        }
    }

    fn position(&mut self) -> Decoded<EventPosition> {
        match self.byte()? {
            POSITION_COUNT => {
                let delta = unzigzag(self.varint()?);
                let steps = self.previous.steps.wrapping_add(delta as u64);
                self.previous.steps = steps;
                Ok(EventPosition::Count(Position {
                    rep_iterations: self.varint()?,
                    ..Position::at(steps)
                }))
            }
            POSITION_AFTER_IO => self.io_steps().map(EventPosition::AfterIo),
            POSITION_WINDOW => self.io_steps().map(EventPosition::Window),
            POSITION_LANDMARK => self
                .landmark()
                .map(|landmark| EventPosition::Landmark(Box::new(landmark))),
            POSITION_FOLLOWS => Ok(EventPosition::Follows),
            _ => Err(Malformed("unknown kind of position")),
        }
    }

    fn landmark(&mut self) -> Decoded<Landmark> {
        let io_steps = self.io_steps()?;
        let mut gpr = [0; 16];
        for register in &mut gpr {
            *register = self.quad()?;
        }
        let rflags = self.quad()?;
        let state = self.array()?;
        let count = self.varint()?;
        if count > Landmark::MEMORY_MAX as u64 {
            return Err(Malformed("landmark with too many facts about memory"));
        }
        let mut memory = Vec::new();
        for _ in 0..count {
            memory.push(self.fingerprint()?);
        }
        Ok(Landmark {
            io_steps,
            gpr,
            rflags,
            state,
            memory,
        })
    }

    fn fingerprint(&mut self) -> Decoded<Fingerprint> {
        Ok(match self.byte()? {
            FINGERPRINT_PAGE => Fingerprint::Page {
                gfn: Gfn(self.varint()?),
                hash: self.array()?,
            },
            FINGERPRINT_TABLE => Fingerprint::Table {
                gfn: Gfn(self.varint()?),
                hash: self.array()?,
            },
            FINGERPRINT_WORD => Fingerprint::Word {
                address: GuestPhys(self.varint()?),
                value: self.quad()?,
            },
            _ => return Err(Malformed("unknown kind of fingerprint")),
        })
    }

    fn check(&mut self) -> Decoded<Check> {
        Ok(Check {
            rip: self.rip()?,
            rcx: self.varint()?,
            registers: self.quad()?,
        })
    }

    fn rip(&mut self) -> Decoded<u64> {
        let delta = unzigzag(self.varint()?);
        self.previous.rip = self.previous.rip.wrapping_add(delta as u64);
        Ok(self.previous.rip)
    }

    fn io_steps(&mut self) -> Decoded<IoSteps> {
        let delta = unzigzag(self.varint()?);
        self.previous.io_steps = self.previous.io_steps.wrapping_add(delta as u64);
        Ok(IoSteps(self.previous.io_steps))
    }

    fn vcpu(&mut self) -> Decoded<VcpuId> {
        u16::try_from(self.varint()?)
            .map(VcpuId)
            .map_err(|_| Malformed("vCPU number over 65535"))
    }

    fn quad(&mut self) -> Decoded<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn byte(&mut self) -> Decoded<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let (array, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(Malformed("event cut off"))?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, bytes: usize) -> Decoded<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(bytes)
            .ok_or(Malformed("event cut off"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// At most ten bytes; the tenth holds one bit.
    fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("number over 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_at_their_edges() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX >> 1, u64::MAX] {
            let mut encoder = Encoder::default();
            encoder.varint(value);
            let mut decoder = Decoder::new(&encoder.bytes);
            assert_eq!(decoder.varint(), Ok(value));
            assert!(decoder.is_empty());
            assert_eq!(zigzag(unzigzag(value)), value);
        }
    }

    #[test]
    fn an_overlong_number_is_refused() {
        let bytes = [0xff; 9];
        let mut long = bytes.to_vec();
        long.push(2);
        assert!(Decoder::new(&long).varint().is_err());
        long[9] = 0x80;
        long.push(0);
        assert!(Decoder::new(&long).varint().is_err());
    }
}
