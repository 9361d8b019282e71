//! The log of the interval in progress: what is logged, and at which position.

use crate::bus::DeviceWrite;
use crate::landmark::Sampler;
use crate::summary::{EventCounts, LandmarkCost, PositionCounts};
use machine::ram::{PageBytes, Ram};
use machine::state::CpuState;
use machine::units::{GuestPhys, PAGE_BYTES, Position, Vector, VirtualNanos};
use replay_log::{
    Async, Check, Content, ContentId, Effect, End, EndReason, Event, EventPosition, Header,
    IoSteps, Landmark, PositionKind, Read, ReadSource, RecordingId, SegmentWriter, VcpuId,
    WriteError,
};

/// The only vCPU.
const VCPU: VcpuId = VcpuId(0);

/// What the boundary at which the vCPU stands is known as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// Nothing has run since the last I/O step or the start of the interval.
    Io,
    /// Nothing has run since the last asynchronous event, which was not at such a place.
    Follows,
    /// The first open window since it was asked for at one of the above.
    Window,
    /// None of these.
    Anywhere,
}

/// How positions are given.
pub(crate) enum Kind {
    Count,
    Landmark(Sampler),
}

/// The state of the vCPU at a boundary where something is logged.
pub(crate) struct Here<'a> {
    pub(crate) cpu: &'a CpuState,
    pub(crate) position: Option<Position>,
}

/// A segment that lacks its end.
pub(crate) struct Closed {
    pub(crate) writer: SegmentWriter<Vec<u8>>,
    pub(crate) end: End,
}

pub(crate) struct Journal {
    recording: RecordingId,
    kind: Kind,
    writer: SegmentWriter<Vec<u8>>,
    io_steps: IoSteps,
    boundary: Boundary,
    /// Whether the request for the interrupt window, if there is one, was made where nothing had run
    /// since the last I/O step or asynchronous event.
    window_anchored: bool,
    /// The landmark of this boundary, taken before devices acted on RAM.
    prepared: Option<Box<Landmark>>,
    pub(crate) events: EventCounts,
    pub(crate) positions: PositionCounts,
}

impl Journal {
    /// The journal of interval 0, which starts at `start`.
    pub(crate) fn new(
        recording: RecordingId,
        kind: Kind,
        start: Option<Position>,
    ) -> Result<Self, WriteError> {
        let header = header(recording, 0, &kind, start);
        Ok(Self {
            recording,
            writer: SegmentWriter::new(Vec::new(), &header)?,
            kind,
            io_steps: IoSteps(0),
            boundary: Boundary::Io,
            window_anchored: false,
            prepared: None,
            events: EventCounts::default(),
            positions: PositionCounts::default(),
        })
    }

    pub(crate) fn landmarks(&self) -> LandmarkCost {
        match &self.kind {
            Kind::Count => LandmarkCost::default(),
            Kind::Landmark(sampler) => sampler.cost,
        }
    }

    /// An I/O step has completed.
    pub(crate) fn io_step(&mut self) {
        self.io_steps.0 += 1;
        self.boundary = Boundary::Io;
        self.prepared = None;
        // A window that has not opened up to here is from here on the first after this step.
        self.window_anchored = true;
    }

    /// A read has completed and RIP is now `rip`.
    pub(crate) fn read(
        &mut self,
        source: ReadSource,
        value: u64,
        rip: u64,
    ) -> Result<(), WriteError> {
        self.io_step();
        self.events.reads += 1;
        self.writer.push(&Event::Read(Read {
            vcpu: VCPU,
            source,
            rip,
            value,
        }))
    }

    /// The vCPU stopped for another reason than an I/O step; `at_window` if that was exactly where the
    /// interrupt window opened.
    pub(crate) fn stopped(&mut self, at_window: bool) {
        self.prepared = None;
        self.boundary = if at_window && self.window_anchored {
            Boundary::Window
        } else {
            Boundary::Anywhere
        };
    }

    /// The interrupt window is asked for at this boundary, having been asked for before or not.
    pub(crate) fn window_requested(&mut self, before: bool) {
        let anchored_here = self.boundary != Boundary::Anywhere;
        self.window_anchored = anchored_here || (before && self.window_anchored);
    }

    /// Whether positions at this boundary need a landmark, which [`Journal::prepare`] takes.
    pub(crate) fn needs_landmark(&self) -> bool {
        matches!(self.kind, Kind::Landmark(_)) && self.boundary == Boundary::Anywhere
    }

    /// Takes the landmark of this boundary. Must come before devices act, since they may write RAM
    /// and the landmark describes it as it was before.
    pub(crate) fn prepare(&mut self, cpu: &CpuState, ram: &Ram) {
        if let Kind::Landmark(sampler) = &mut self.kind {
            let landmark = sampler.landmark(ram, cpu, self.io_steps);
            self.prepared = Some(Box::new(landmark));
        }
    }

    /// An interrupt is about to be delivered.
    pub(crate) fn interrupt(
        &mut self,
        here: &Here<'_>,
        ram: &Ram,
        vector: Vector,
    ) -> Result<(), WriteError> {
        self.events.interrupts += 1;
        self.asynchronous(here, ram, Effect::Interrupt(vector))
    }

    /// A device has written RAM. Whole pages go out through `store`, the rest is kept inline.
    pub(crate) fn device_write(
        &mut self,
        here: &Here<'_>,
        ram: &Ram,
        write: &DeviceWrite,
        mut store: impl FnMut(ContentId, &PageBytes),
    ) -> Result<(), WriteError> {
        let mut to = write.to;
        let mut rest = write.bytes.as_slice();
        while !rest.is_empty() {
            let length = piece(to, rest.len());
            let (bytes, after) = rest.split_at(length);
            let content = match bytes.first_chunk() {
                Some(page) if to.0.is_multiple_of(PAGE_BYTES) => {
                    let id = ContentId::of(page);
                    store(id, page);
                    Content::Page {
                        id,
                        offset: 0,
                        bytes: PAGE_BYTES as u16,
                    }
                }
                _ => Content::Inline(bytes.to_vec()),
            };
            self.events.writes += 1;
            self.asynchronous(here, ram, Effect::Write { to, content })?;
            to.0 += length as u64;
            rest = after;
        }
        Ok(())
    }

    fn asynchronous(
        &mut self,
        here: &Here<'_>,
        ram: &Ram,
        effect: Effect,
    ) -> Result<(), WriteError> {
        let event = Async {
            vcpu: VCPU,
            at: self.position(here, ram),
            check: Check::of(here.cpu),
            effect,
        };
        if self.boundary != Boundary::Io {
            self.boundary = Boundary::Follows;
        }
        self.writer.push(&Event::Async(event))
    }

    fn position(&mut self, here: &Here<'_>, ram: &Ram) -> EventPosition {
        let sampler = match &mut self.kind {
            Kind::Count => {
                self.positions.count += 1;
                let position = here.position.expect("counts are logged if the vCPU counts");
                return EventPosition::Count(position);
            }
            Kind::Landmark(sampler) => sampler,
        };
        let counts = &mut self.positions;
        match self.boundary {
            Boundary::Io => {
                counts.after_io += 1;
                EventPosition::AfterIo(self.io_steps)
            }
            Boundary::Follows => {
                counts.follows += 1;
                EventPosition::Follows
            }
            Boundary::Window => {
                counts.window += 1;
                EventPosition::Window(self.io_steps)
            }
            Boundary::Anywhere => {
                counts.landmark += 1;
                let prepared = self.prepared.take();
                EventPosition::Landmark(
                    prepared.unwrap_or_else(|| {
                        Box::new(sampler.landmark(ram, here.cpu, self.io_steps))
                    }),
                )
            }
        }
    }

    /// Ends the interval here and starts interval `next`.
    pub(crate) fn end(
        &mut self,
        here: &Here<'_>,
        ram: &Ram,
        reason: EndReason,
        time: VirtualNanos,
        next: u64,
    ) -> Result<Closed, WriteError> {
        let end = End {
            vcpu: VCPU,
            at: self.position(here, ram),
            check: Check::of(here.cpu),
            reason,
            time,
        };
        let header = header(self.recording, next, &self.kind, here.position);
        let writer = std::mem::replace(&mut self.writer, SegmentWriter::new(Vec::new(), &header)?);
        self.io_steps = IoSteps(0);
        self.boundary = Boundary::Io;
        // A request that is still open is as good as made at the start of the interval.
        self.window_anchored = true;
        Ok(Closed { writer, end })
    }
}

fn header(recording: RecordingId, interval: u64, kind: &Kind, start: Option<Position>) -> Header {
    let positions = match kind {
        Kind::Count => PositionKind::Count {
            start: start.expect("counts are logged if the vCPU counts"),
        },
        Kind::Landmark(_) => PositionKind::Landmark,
    };
    Header {
        recording,
        interval,
        positions,
    }
}

/// How much of a device write one event takes: up to the next page boundary, or one whole page.
fn piece(to: GuestPhys, rest: usize) -> usize {
    let to_boundary = PAGE_BYTES - to.0 % PAGE_BYTES;
    rest.min(to_boundary as usize)
}
