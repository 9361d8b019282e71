//! Traces in files. `docs/format/memory-trace.md` is the law.

use super::chunk::{Chunk, Damaged, position};
use super::wire::{Bytes, Wrong};
use super::{Item, MemorySink};
use machine::units::Position;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

const MAGIC: [u8; 8] = *b"SBMEMTRC";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 32;
const CHUNK_TAG: [u8; 4] = *b"CHNK";
const END_TAG: [u8; 4] = *b"LAST";
const CHUNK_HEADER_BYTES: usize = 80;
/// Bytes of a chunk header before its checksum.
const CHUNK_FIELDS: usize = 64;
/// Most bytes that a chunk unpacks to. Readers refuse more before they allocate.
const RAW_MAX: u32 = 256 << 20;
/// Fast, and most of what there is to gain: the trace grows as the guest runs.
const LEVEL: i32 = 1;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It could not be read at all.
    #[error("a memory trace could not be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("this is no memory trace")]
    Magic,
    /// Another version made it.
    #[error("a memory trace of version {0}; this program reads version {VERSION}")]
    Version(u16),
    /// It ends without its last chunk: the run was interrupted.
    #[error("the memory trace is cut off after {chunks} whole chunks")]
    Torn {
        /// Chunks before.
        chunks: u64,
    },
    /// Bytes have changed.
    #[error("chunk {chunk} of a memory trace at offset {offset} is damaged: {what}")]
    Damaged {
        /// Its number from 0.
        chunk: u64,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// Where a trace can be stored: what was written last may have to go again.
pub trait TraceFile: Write + Send {
    /// Cuts everything behind the first `bytes` bytes and goes on there.
    ///
    /// # Errors
    /// Any.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
}

impl TraceFile for File {
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)?;
        self.seek(SeekFrom::Start(bytes)).map(|_| ())
    }
}

impl TraceFile for Vec<u8> {
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.truncate(bytes as usize);
        Ok(())
    }
}

/// The fixed part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChunkHeader {
    tag: [u8; 4],
    interval: u64,
    start: Position,
    end: Position,
    accesses: u64,
    stored_bytes: u32,
    raw_bytes: u32,
}

impl ChunkHeader {
    fn encode(&self, stored: &[u8]) -> [u8; CHUNK_HEADER_BYTES] {
        let mut out = [0; CHUNK_HEADER_BYTES];
        out[..4].copy_from_slice(&self.tag);
        out[4..8].copy_from_slice(&self.stored_bytes.to_le_bytes());
        out[8..12].copy_from_slice(&self.raw_bytes.to_le_bytes());
        let numbers = [
            self.interval,
            self.start.steps.0,
            self.start.rep_iterations,
            self.end.steps.0,
            self.end.rep_iterations,
            self.accesses,
        ];
        for (slot, number) in out[16..CHUNK_FIELDS].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&out[..CHUNK_FIELDS], stored);
        out[CHUNK_FIELDS..].copy_from_slice(&sum);
        out
    }

    fn decode(bytes: &[u8; CHUNK_HEADER_BYTES]) -> Result<Self, Wrong> {
        let mut fields = Bytes(&bytes[4..CHUNK_FIELDS]);
        let mut tag = [0; 4];
        tag.copy_from_slice(&bytes[..4]);
        if tag != CHUNK_TAG && tag != END_TAG {
            return Err("no chunk where one should start");
        }
        let (stored_bytes, raw_bytes) = (fields.u32()?, fields.u32()?);
        if fields.u32()? != 0 {
            return Err("its header has bytes that must be zero");
        }
        Ok(Self {
            tag,
            stored_bytes,
            raw_bytes,
            interval: fields.u64()?,
            start: position(&mut fields)?,
            end: position(&mut fields)?,
            accesses: fields.u64()?,
        })
    }
}

fn checksum(fields: &[u8], stored: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(fields).update(stored);
    let hash = hasher.finalize();
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

fn header() -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out
}

/// Stores the trace of an interval.
pub struct TraceWriter<F> {
    file: F,
    interval: u64,
    bytes: u64,
    /// Where each chunk ends in the file, and accesses up to there.
    ends: Vec<(u64, u64)>,
    last: Position,
}

impl<F: TraceFile> TraceWriter<F> {
    /// Starts the trace of an interval in an empty file.
    ///
    /// # Errors
    /// What the file says.
    pub fn new(mut file: F, interval: u64) -> io::Result<Self> {
        file.write_all(&header())?;
        Ok(Self {
            file,
            interval,
            bytes: HEADER_BYTES as u64,
            ends: Vec::new(),
            last: Position::default(),
        })
    }

    fn accesses(&self) -> u64 {
        self.ends.last().map_or(0, |(_, accesses)| *accesses)
    }

    fn put(&mut self, header: &ChunkHeader, stored: &[u8]) -> io::Result<()> {
        self.file.write_all(&header.encode(stored))?;
        self.file.write_all(stored)?;
        self.bytes += (CHUNK_HEADER_BYTES + stored.len()) as u64;
        Ok(())
    }
}

impl<F: TraceFile> MemorySink for TraceWriter<F> {
    fn chunk(&mut self, chunk: &Chunk) -> io::Result<()> {
        let raw = chunk.encode();
        let stored = zstd::bulk::compress(&raw, LEVEL)?;
        let header = ChunkHeader {
            tag: CHUNK_TAG,
            interval: self.interval,
            start: chunk.start,
            end: chunk.end,
            accesses: chunk.accesses,
            stored_bytes: stored.len() as u32,
            raw_bytes: raw.len() as u32,
        };
        self.put(&header, &stored)?;
        self.ends
            .push((self.bytes, self.accesses() + chunk.accesses));
        self.last = chunk.end;
        Ok(())
    }

    fn keep(&mut self, chunks: u64) -> io::Result<()> {
        self.ends.truncate(chunks as usize);
        self.bytes = self.ends.last().map_or(HEADER_BYTES as u64, |end| end.0);
        self.file.cut(self.bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        let header = ChunkHeader {
            tag: END_TAG,
            interval: self.interval,
            start: self.last,
            end: self.last,
            accesses: self.accesses(),
            stored_bytes: 0,
            raw_bytes: self.ends.len() as u32,
        };
        self.put(&header, &[])?;
        self.file.flush()
    }
}

/// What a trace says about one of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceInfo {
    /// The interval of the recording.
    pub interval: u64,
    /// Where it begins.
    pub start: Position,
    /// Where it ends.
    pub end: Position,
    /// Accesses in it.
    pub accesses: u64,
    /// Its bytes in the file.
    pub stored_bytes: u64,
    /// Its offset in the file.
    pub offset: u64,
}

/// Reads a trace, or several one behind the other (files of intervals may be concatenated).
pub struct TraceReader<R> {
    file: R,
    offset: u64,
    chunks: u64,
    /// Chunks of the part that is being read.
    part: u32,
    complete: bool,
}

impl<R: Read + Seek> TraceReader<R> {
    /// Opens a trace.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn new(file: R) -> Result<Self, TraceError> {
        let mut this = Self {
            file,
            offset: 0,
            chunks: 0,
            part: 0,
            complete: false,
        };
        match this.header()? {
            true => Ok(this),
            false => Err(TraceError::Magic),
        }
    }

    /// The next chunk; `None` behind the last one.
    ///
    /// # Errors
    /// [`TraceError`]. After [`TraceError::Torn`] and [`TraceError::Damaged`] all chunks before are
    /// good.
    pub fn chunk(&mut self) -> Result<Option<(TraceInfo, Chunk)>, TraceError> {
        let Some((info, header, sum)) = self.next_header()? else {
            return Ok(None);
        };
        let mut stored = vec![0; header.stored_bytes as usize];
        self.read(&mut stored)?;
        let fields = header.encode(&stored);
        if fields[CHUNK_FIELDS..] != sum {
            return Err(self.damaged(info.offset, "its checksum does not match"));
        }
        if header.raw_bytes > RAW_MAX {
            return Err(self.damaged(info.offset, "it is over the size limit"));
        }
        let raw = zstd::bulk::decompress(&stored, header.raw_bytes as usize)
            .map_err(|_| self.damaged(info.offset, "it does not unpack"))?;
        let ends = (header.start, header.end);
        let chunk = Chunk::decode(&raw, ends, header.accesses)
            .map_err(|Damaged(what)| self.damaged(info.offset, what))?;
        self.advance(&info);
        Ok(Some((info, chunk)))
    }

    /// Passes over the next chunk without reading its content.
    ///
    /// # Errors
    /// [`TraceError`]; damage of the content is not noticed.
    pub fn skip(&mut self) -> Result<Option<TraceInfo>, TraceError> {
        let Some((info, header, _)) = self.next_header()? else {
            return Ok(None);
        };
        self.file.seek_relative(header.stored_bytes.into())?;
        self.advance(&info);
        Ok(Some(info))
    }

    /// Calls `each` with everything in the trace that comes next, up to its end.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn for_each(&mut self, mut each: impl FnMut(Item)) -> Result<(), TraceError> {
        while let Some((_, chunk)) = self.chunk()? {
            chunk.items().for_each(&mut each);
        }
        Ok(())
    }

    fn advance(&mut self, info: &TraceInfo) {
        self.offset = info.offset + info.stored_bytes;
        self.chunks += 1;
        self.part += 1;
    }

    fn next_header(&mut self) -> Result<Option<(TraceInfo, ChunkHeader, [u8; 16])>, TraceError> {
        loop {
            if self.complete && !self.header()? {
                return Ok(None);
            }
            let mut bytes = [0; CHUNK_HEADER_BYTES];
            self.read(&mut bytes)?;
            let offset = self.offset;
            let header = ChunkHeader::decode(&bytes).map_err(|what| self.damaged(offset, what))?;
            let mut sum = [0; 16];
            sum.copy_from_slice(&bytes[CHUNK_FIELDS..]);
            if header.tag == CHUNK_TAG {
                let info = TraceInfo {
                    interval: header.interval,
                    start: header.start,
                    end: header.end,
                    accesses: header.accesses,
                    stored_bytes: CHUNK_HEADER_BYTES as u64 + u64::from(header.stored_bytes),
                    offset,
                };
                return Ok(Some((info, header, sum)));
            }
            if header.encode(&[])[CHUNK_FIELDS..] != sum || header.raw_bytes != self.part {
                return Err(self.damaged(offset, "the end belongs to another trace"));
            }
            self.offset += CHUNK_HEADER_BYTES as u64;
            self.complete = true;
        }
    }

    /// Reads the header of a trace, or of the next one in the file; false at the end of the file.
    fn header(&mut self) -> Result<bool, TraceError> {
        let mut bytes = [0; HEADER_BYTES];
        let first = self.offset == 0;
        match self.read_some(&mut bytes)? {
            0 if !first => return Ok(false),
            HEADER_BYTES => {}
            _ if first => return Err(TraceError::Magic),
            _ => {
                return Err(TraceError::Torn {
                    chunks: self.chunks,
                });
            }
        }
        if bytes[..8] != MAGIC {
            return Err(match first {
                true => TraceError::Magic,
                false => self.damaged(self.offset, "bytes behind the end"),
            });
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(TraceError::Version(version));
        }
        if bytes != header() {
            return Err(self.damaged(self.offset, "its header has bytes that must be zero"));
        }
        self.offset += HEADER_BYTES as u64;
        (self.part, self.complete) = (0, false);
        Ok(true)
    }

    fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match self.file.read(&mut into[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), TraceError> {
        match self.read_some(into)? == into.len() {
            true => Ok(()),
            false => Err(TraceError::Torn {
                chunks: self.chunks,
            }),
        }
    }

    fn damaged(&self, offset: u64, what: &'static str) -> TraceError {
        TraceError::Damaged {
            chunk: self.chunks,
            offset,
            what,
        }
    }
}
