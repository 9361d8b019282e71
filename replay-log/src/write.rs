//! Writing a segment.

use crate::codec::Encoder;
use crate::event::{Effect, End, Event};
use crate::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, FrameSeal, HEADER_BYTES, Header};
use crate::position::{EventPosition, Landmark};
use std::io;

/// A frame is closed when its events take this many bytes.
const FRAME_RAW_TARGET: usize = 64 << 10;

/// Fast and small enough: logs are a tiny part of a recording.
const ZSTD_LEVEL: i32 = 3;

/// Why a segment could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output refused.
    #[error("cannot write the replay log: {0}")]
    Io(#[from] io::Error),
    /// A device write over the limits of one event; split it.
    #[error("device write of {bytes} bytes does not fit one event")]
    ContentTooLarge {
        /// Its length.
        bytes: u64,
    },
    /// A landmark with more than [`Landmark::MEMORY_MAX`] facts about memory.
    #[error("a landmark with {0} facts about memory")]
    TooManyFacts(usize),
}

/// What a finished segment came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Events, the end not counted.
    pub events: u64,
    /// Bytes of events before compression.
    pub raw_bytes: u64,
    /// Bytes written, headers included.
    pub written_bytes: u64,
}

/// Writes one segment, event by event, as frames.
pub struct SegmentWriter<W> {
    out: W,
    seal: FrameSeal,
    frame: Encoder,
    frame_events: u32,
    summary: SegmentSummary,
}

impl<W: io::Write> SegmentWriter<W> {
    /// Starts a segment: writes its header.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn new(mut out: W, header: &Header) -> Result<Self, WriteError> {
        let header = header.encode();
        out.write_all(&header)?;
        Ok(Self {
            out,
            seal: FrameSeal { header, index: 0 },
            frame: Encoder::default(),
            frame_events: 0,
            summary: SegmentSummary {
                written_bytes: HEADER_BYTES as u64,
                ..SegmentSummary::default()
            },
        })
    }

    /// Appends an event. It may stay in memory until [`SegmentWriter::flush`] or
    /// [`SegmentWriter::finish`].
    ///
    /// # Errors
    /// [`WriteError`]; after any but [`WriteError::Io`] the segment is as before.
    pub fn push(&mut self, event: &Event) -> Result<(), WriteError> {
        if let Event::Async(event) = event {
            check_effect(&event.effect)?;
            check_position(&event.at)?;
        }
        self.frame.event(event);
        self.frame_events += 1;
        self.summary.events += 1;
        if self.frame.bytes.len() >= FRAME_RAW_TARGET {
            self.flush()?;
        }
        Ok(())
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.summary.events
    }

    /// Closes the frame in progress, so that all events so far reach the output.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn flush(&mut self) -> Result<(), WriteError> {
        if self.frame_events > 0 {
            let events = std::mem::take(&mut self.frame_events);
            self.write_frame(FrameKind::Events, events)?;
        }
        self.out.flush()?;
        Ok(())
    }

    /// Ends the segment and returns the output.
    ///
    /// # Errors
    /// [`WriteError::Io`], [`WriteError::TooManyFacts`].
    pub fn finish(mut self, end: &End) -> Result<(W, SegmentSummary), WriteError> {
        check_position(&end.at)?;
        self.flush()?;
        self.frame.end(end);
        self.write_frame(FrameKind::End, self.summary.events as u32)?;
        self.out.flush()?;
        Ok((self.out, self.summary))
    }

    fn write_frame(&mut self, kind: FrameKind, events: u32) -> Result<(), WriteError> {
        let raw = std::mem::take(&mut self.frame).bytes;
        let stored = zstd::bulk::compress(&raw, ZSTD_LEVEL)?;
        let header = FrameHeader {
            kind,
            stored_bytes: stored.len() as u32,
            raw_bytes: raw.len() as u32,
            events,
        };
        self.out.write_all(&header.encode(&stored, &self.seal))?;
        self.out.write_all(&stored)?;
        self.seal.index += 1;
        self.summary.raw_bytes += raw.len() as u64;
        self.summary.written_bytes += (FRAME_HEADER_BYTES + stored.len()) as u64;
        Ok(())
    }
}

fn check_effect(effect: &Effect) -> Result<(), WriteError> {
    match effect {
        Effect::Write { content, .. } if !content.is_valid() => Err(WriteError::ContentTooLarge {
            bytes: content.bytes(),
        }),
        _ => Ok(()),
    }
}

fn check_position(position: &EventPosition) -> Result<(), WriteError> {
    match position {
        EventPosition::Landmark(landmark) if landmark.memory.len() > Landmark::MEMORY_MAX => {
            Err(WriteError::TooManyFacts(landmark.memory.len()))
        }
        _ => Ok(()),
    }
}
