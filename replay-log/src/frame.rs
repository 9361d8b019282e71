//! The layout around events: segment header and frames. Nothing here is compressed or variable.

use machine::units::Position;
use std::fmt;

pub(crate) const MAGIC: [u8; 8] = *b"SBREPLOG";
/// The version this build writes, and the only one it reads.
pub(crate) const VERSION: u16 = 1;
pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const FRAME_HEADER_BYTES: usize = 32;
/// Most bytes that a frame unpacks to. Readers refuse more before they allocate.
pub(crate) const FRAME_RAW_MAX: usize = 16 << 20;

/// Names a recording. Random, so that segments of different recordings are not mixed up.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordingId(pub [u8; 16]);

impl fmt::Display for RecordingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RecordingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordingId({self})")
    }
}

/// Which kinds of position a segment uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionKind {
    /// Exact counts; the interval starts at this position.
    Count {
        /// Position of the checkpoint the interval starts from.
        start: Position,
    },
    /// Rules 1 to 3; no counts anywhere.
    Landmark,
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The recording.
    pub recording: RecordingId,
    /// The interval: from checkpoint `interval` to checkpoint `interval` + 1.
    pub interval: u64,
    /// How its positions are given.
    pub positions: PositionKind,
}

/// Why bytes are no header.
pub(crate) enum HeaderFault {
    Magic,
    Version(u16),
    Checksum,
    Positions(u8),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let Self {
            recording,
            interval,
            positions,
        } = self;
        let (kind, start) = match positions {
            PositionKind::Count { start } => (0, *start),
            PositionKind::Landmark => (1, Position::default()),
        };
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = kind;
        out[16..32].copy_from_slice(&recording.0);
        out[32..40].copy_from_slice(&interval.to_le_bytes());
        out[40..48].copy_from_slice(&start.steps.0.to_le_bytes());
        out[48..56].copy_from_slice(&start.rep_iterations.to_le_bytes());
        let sum = checksum::<8>(&[&out[..56]]);
        out[56..].copy_from_slice(&sum);
        out
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderFault> {
        if bytes[..8] != MAGIC {
            return Err(HeaderFault::Magic);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        if bytes[56..] != checksum::<8>(&[&bytes[..56]]) {
            return Err(HeaderFault::Checksum);
        }
        let positions = match bytes[10] {
            0 => PositionKind::Count {
                start: Position {
                    rep_iterations: quad(bytes, 48),
                    ..Position::at(quad(bytes, 40))
                },
            },
            1 => PositionKind::Landmark,
            other => return Err(HeaderFault::Positions(other)),
        };
        let mut recording = RecordingId::default();
        recording.0.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            recording,
            interval: quad(bytes, 32),
            positions,
        })
    }
}

fn quad(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut quad = [0; 8];
    quad.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(quad)
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// Events.
    Events,
    /// The end of the interval; the last frame of a complete segment.
    End,
}

impl FrameKind {
    fn tag(self) -> [u8; 4] {
        match self {
            Self::Events => *b"EVTS",
            Self::End => *b"LAST",
        }
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    /// Bytes that follow the frame header.
    pub(crate) stored_bytes: u32,
    /// Bytes that they unpack to.
    pub(crate) raw_bytes: u32,
    /// Events in this frame; in the last frame, the low 32 bits of their number in the segment.
    pub(crate) events: u32,
}

/// Ties frames to their segment and their place in it.
pub(crate) struct FrameSeal {
    pub(crate) header: [u8; HEADER_BYTES],
    pub(crate) index: u64,
}

impl FrameHeader {
    fn fields(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..4].copy_from_slice(&self.kind.tag());
        out[4..8].copy_from_slice(&self.stored_bytes.to_le_bytes());
        out[8..12].copy_from_slice(&self.raw_bytes.to_le_bytes());
        out[12..].copy_from_slice(&self.events.to_le_bytes());
        out
    }

    pub(crate) fn encode(&self, stored: &[u8], seal: &FrameSeal) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[..16].copy_from_slice(&self.fields());
        out[16..].copy_from_slice(&seal.checksum(&self.fields(), stored));
        out
    }

    /// Reads the frame at the start of `bytes`: header and stored content, checksum verified.
    pub(crate) fn decode<'a>(
        bytes: &'a [u8],
        seal: &FrameSeal,
    ) -> Result<(Self, &'a [u8]), &'static str> {
        let (header, rest) = bytes
            .split_first_chunk::<FRAME_HEADER_BYTES>()
            .ok_or("frame header cut off")?;
        let field = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let kind = match &header[..4] {
            b"EVTS" => FrameKind::Events,
            b"LAST" => FrameKind::End,
            _ => return Err("no frame where one should start"),
        };
        let this = Self {
            kind,
            stored_bytes: field(4),
            raw_bytes: field(8),
            events: field(12),
        };
        let stored = rest
            .get(..this.stored_bytes as usize)
            .ok_or("frame cut off")?;
        if header[16..] != seal.checksum(&this.fields(), stored) {
            return Err("checksum of a frame does not match");
        }
        if this.raw_bytes as usize > FRAME_RAW_MAX {
            return Err("frame over the size limit");
        }
        Ok((this, stored))
    }
}

impl FrameSeal {
    fn checksum(&self, fields: &[u8; 16], stored: &[u8]) -> [u8; 16] {
        checksum(&[&self.header, &self.index.to_le_bytes(), fields, stored])
    }
}

/// The first `N` bytes of the BLAKE3 hash of the parts, one after the other.
fn checksum<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher
        .finalize()
        .as_bytes()
        .first_chunk()
        .expect("checksums are at most 32 bytes")
}
