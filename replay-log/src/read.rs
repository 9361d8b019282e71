//! Reading a segment.

use crate::codec::Decoder;
use crate::event::{End, Event};
use crate::frame::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, FrameSeal, HEADER_BYTES, Header, HeaderFault,
    VERSION,
};
use std::fmt;

/// Why bytes are no segment that this build reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than a segment header.
    #[error("replay log of {0} bytes is shorter than its {HEADER_BYTES}-byte header")]
    TooShort(usize),
    /// Something else.
    #[error("not a replay log (bad magic)")]
    Magic,
    /// Written by another version.
    #[error("replay log of format version {0}; this build reads version {VERSION}")]
    Version(u16),
    /// The header does not match its checksum.
    #[error("the header of the replay log is damaged (checksum)")]
    Header,
    /// The header names a kind of position that version 1 does not have.
    #[error("the replay log names unknown position kind {0}")]
    Positions(u8),
}

/// How the bytes of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// All there.
    Complete,
    /// From `at_byte` on nothing is usable; what came before is, and was kept.
    Cut {
        /// Where the first unusable frame starts.
        at_byte: u64,
        /// Bytes from there to the end.
        lost_bytes: u64,
        /// What is wrong there.
        reason: &'static str,
    },
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Cut {
                at_byte,
                lost_bytes,
                reason,
            } => write!(
                f,
                "cut at byte {at_byte} ({lost_bytes} bytes lost): {reason}"
            ),
        }
    }
}

/// One interval's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What the segment says about itself.
    pub header: Header,
    /// The events, in order.
    pub events: Vec<Event>,
    /// The end of the interval; present exactly if the tail is complete.
    pub end: Option<End>,
    /// How the bytes end.
    pub tail: Tail,
}

impl Segment {
    /// Reads a segment. A torn or damaged tail is cut and reported in [`Segment::tail`]; whole
    /// frames before it are kept.
    ///
    /// # Errors
    /// [`OpenError`] when the header cannot be used.
    pub fn read(bytes: &[u8]) -> Result<Self, OpenError> {
        let header_bytes = bytes
            .first_chunk::<HEADER_BYTES>()
            .ok_or(OpenError::TooShort(bytes.len()))?;
        let header = Header::decode(header_bytes).map_err(|fault| match fault {
            HeaderFault::Magic => OpenError::Magic,
            HeaderFault::Version(version) => OpenError::Version(version),
            HeaderFault::Checksum => OpenError::Header,
            HeaderFault::Positions(kind) => OpenError::Positions(kind),
        })?;
        let mut segment = Self {
            header,
            events: Vec::new(),
            end: None,
            tail: Tail::Complete,
        };
        segment.read_frames(bytes, header_bytes);
        Ok(segment)
    }

    fn read_frames(&mut self, bytes: &[u8], header: &[u8; HEADER_BYTES]) {
        let mut at = HEADER_BYTES;
        let mut seal = FrameSeal {
            header: *header,
            index: 0,
        };
        while self.end.is_none() {
            match self.read_frame(&bytes[at..], &seal) {
                Ok(used) => at += used,
                Err(reason) => return self.cut(bytes, at, reason),
            }
            seal.index += 1;
        }
        if at < bytes.len() {
            self.end = None;
            self.cut(bytes, at, "bytes after the last frame");
        }
    }

    fn cut(&mut self, bytes: &[u8], at: usize, reason: &'static str) {
        self.tail = Tail::Cut {
            at_byte: at as u64,
            lost_bytes: (bytes.len() - at) as u64,
            reason,
        };
    }

    /// Takes one frame whole or not at all; returns its length.
    fn read_frame(&mut self, bytes: &[u8], seal: &FrameSeal) -> Result<usize, &'static str> {
        let (header, stored) = FrameHeader::decode(bytes, seal)?;
        let raw = zstd::bulk::decompress(stored, header.raw_bytes as usize)
            .map_err(|_| "frame does not unpack")?;
        if raw.len() != header.raw_bytes as usize {
            return Err("frame unpacks to another size");
        }
        let mut decoder = Decoder::new(&raw);
        match header.kind {
            FrameKind::Events => {
                let mut events = Vec::new();
                while !decoder.is_empty() {
                    events.push(decoder.event().map_err(|malformed| malformed.0)?);
                }
                if events.len() as u64 != u64::from(header.events) {
                    return Err("frame holds another number of events");
                }
                self.events.append(&mut events);
            }
            FrameKind::End => {
                let end = decoder.end().map_err(|malformed| malformed.0)?;
                if !decoder.is_empty() || header.events != self.events.len() as u32 {
                    return Err("end does not fit the events");
                }
                self.end = Some(end);
            }
        }
        Ok(FRAME_HEADER_BYTES + stored.len())
    }
}
